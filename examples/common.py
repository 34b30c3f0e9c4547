"""What the examples for diffusers share: arguments, device, loading, timing, and the pictures that compare.

An example says which pipeline and which arguments; what it does with the cache stands in its own `main`, to be copied.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mindie_cache import CacheError, CacheReport, ConfigError, device
from mindie_cache.demo.metrics import psnr, ssim

CONFIG = """\
--config is what enable_cache takes:
  a level    quality, balanced, fast: how much may be skipped. Uses a table of the model if the package has one
  a method   with its default options, e.g. dit_block_cache, taylorseer, first_block
  a preset   method:model, e.g. magcache:FLUX.1-dev (`mindie-cache presets` lists them)
  a file     YAML or JSON with the fields of a CacheConfig, or what `mindie-cache calibrate` has written

"""
EPILOG = """\
without the weights, a pipeline with the same code and random weights shows how it works, on any device:
  python {script} --tiny --compare

files in --out: the result, report.json, and with --compare also the uncached result and comparison.png"""
SHOWN_FRAMES = 4
CELL = (256, 640)  # least and greatest width of a picture in the comparison, in pixels
PAPER, INK = (24, 26, 32), (236, 238, 242)


class Result(NamedTuple):
    """One generation: frames `(frames, height, width, 3)` in [0, 1] on the CPU, and the seconds it took."""

    frames: Tensor
    seconds: float


class Example:
    """The command line of one example, and what follows from it.

    Args:
        text: its docstring.
        model: repository of the weights.
        tiny: the entry of tiny_pipelines that has the same pipeline.
        prompt, steps: defaults.
        fps: frames a second, of a video.
        takes_image: it starts from a picture.
        configured: how a comparison calls the cache, of an example that does not take --config.
    """

    def __init__(
        self,
        text: str,
        *,
        model: str,
        tiny: str,
        prompt: str,
        steps: int,
        fps: int = 0,
        takes_image: bool = False,
        configured: str = "",
    ):
        self._tiny, self._fps = tiny, fps
        self.script = Path(sys.argv[0]).name
        parser = argparse.ArgumentParser(
            description=text,
            epilog=("" if configured else CONFIG) + EPILOG.format(script=sys.argv[0]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add = parser.add_argument
        add("--model", default=model, metavar="DIR", help=f"folder or repository of the weights (default: {model})")
        add("--tiny", action="store_true", help="small random weights instead, for a look at the mechanics")
        if not configured:
            add("--config", default="balanced", help="level, method, preset or file; see below (default: balanced)")
        add("--compare", action="store_true", help="also generate without the cache, from the same seed, and compare")
        add("--prompt", default=prompt, metavar="TEXT", help=f"default: {prompt!r}")
        if takes_image:
            add("--image", type=Path, metavar="FILE", help="the picture to start from (required without --tiny)")
        add("--steps", type=int, default=steps, metavar="N", help=f"denoising steps (default: {steps})")
        add("--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)")
        for name in ("height", "width", "frames") if fps else ("height", "width"):
            add(f"--{name}", type=int, metavar="N", help="instead of the example's own")
        add("--device", default="auto", metavar="NAME", help="auto, npu, npu:1, cuda, cpu (default: auto, npu first)")
        add("--offload", action="store_true", help="keep each component on the CPU until it is needed: less memory, slower")
        add("--out", type=Path, metavar="FOLDER", help=f"where files go (default: out/{Path(self.script).stem})")
        self.options = parser.parse_args()
        if takes_image and not self.options.tiny and self.options.image is None:
            parser.error("--image is missing: this model starts from a picture. Or try --tiny.")
        self.device = device.resolve(self.options.device)
        self.dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        self.config: str = configured or self.options.config
        self.out: Path = self.options.out or Path("out") / Path(self.script).stem

    def load(self, pipeline: str, **classes: Any) -> Any:
        """The pipeline of that class, on the device. `classes`: of components that stand in for the pipeline's own."""
        library = diffusers()
        if self.options.tiny:
            from tiny_pipelines import TINY

            pipe = TINY[self._tiny].build()
            pipe.set_progress_bar_config(disable=None)
            pipe.register_modules(**{name: _as(kind, getattr(pipe, name)) for name, kind in classes.items()})
        else:
            pipe = self._from_pretrained(getattr(library, pipeline), classes)
        if not self.options.offload:
            return pipe.to(self.device)
        if self.device.type == "cpu":
            raise ConfigError("--offload needs an accelerator: on the CPU everything is there already. Leave it out.")
        pipe.enable_model_cpu_offload(device=self.device)
        return pipe

    def _from_pretrained(self, pipeline: Any, classes: dict[str, Any]) -> Any:
        model, dtype = self.options.model, {"torch_dtype": self.dtype}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*torch_dtype.*")  # the name that every version knows
                own = {name: kind.from_pretrained(model, subfolder=name, **dtype) for name, kind in classes.items()}
                return pipeline.from_pretrained(model, **own, **dtype)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--model {model} cannot be loaded: {error}") from error

    def arguments(self, **call: Any) -> dict[str, Any]:
        """The pipeline's arguments: `call`, and what the command line says. A tiny pipeline has its own."""
        options = self.options
        if self.options.tiny:
            from tiny_pipelines import TINY

            call = TINY[self._tiny].call()
        given = {"height": options.height, "width": options.width, "num_frames": getattr(options, "frames", None)}
        if getattr(options, "image", None) is not None:
            given["image"] = Image.open(options.image).convert("RGB")
        call |= {name: value for name, value in given.items() if value is not None}
        return {**call, "prompt": options.prompt, "num_inference_steps": options.steps, "output_type": "pt"}

    def generate(self, pipe: Any, call: dict[str, Any]) -> Result:
        """One generation from the seed."""
        generator = torch.Generator().manual_seed(self.options.seed)  # of the CPU: the same noise on every device
        device.synchronize(self.device)
        begin = time.perf_counter()
        output = pipe(**{**call, "generator": generator}, return_dict=False)[0]
        device.synchronize(self.device)
        seconds = time.perf_counter() - begin
        first = output[0]  # of the batch
        frames = first if first.ndim == 4 else first[None]
        return Result(frames.float().cpu().clamp(0, 1).movedim(1, -1), seconds)

    def uncached(self, pipe: Any, call: dict[str, Any]) -> Result | None:
        """With --compare, a generation before the cache is enabled. An accelerator is warmed up by two steps."""
        if not self.options.compare:
            return None
        if self.device.type != "cpu":
            self.generate(pipe, {**call, "num_inference_steps": min(2, call["num_inference_steps"])})
        return self.generate(pipe, call)

    def save(self, cached: Result, uncached: Result | None, report: CacheReport) -> None:
        """Write the files, and say what was compared."""
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "report.json").write_text(report.to_json(), encoding="utf-8")
        written = [self._write("cached", cached.frames)]
        print(f"{cached.seconds:.2f} s, {report.share_computed:.0%} of the calls computed")
        if uncached is not None:
            words = compared(cached, uncached)
            written += [self._write("uncached", uncached.frames), self.out / "comparison.png"]
            rows = [
                (f"uncached, {uncached.seconds:.2f} s", uncached),
                (f"{self.config}, {cached.seconds:.2f} s, {words}", cached),
            ]
            comparison(rows).save(written[-1])
            print(f"uncached {uncached.seconds:.2f} s; cached {words}")
        print("written:", ", ".join(map(str, written)))

    def _write(self, name: str, frames: Tensor) -> Path:
        """A picture, or a video: MP4 if imageio or opencv is installed, else an animated GIF."""
        pictures = [_picture(frame) for frame in frames]
        if not self._fps:
            target = self.out / f"{name}.png"
            pictures[0].save(target)
            return target
        if any(find_spec(name) for name in ("imageio", "cv2")):  # what diffusers writes videos with
            from diffusers.utils import export_to_video

            target = self.out / f"{name}.mp4"
            export_to_video(list(frames.numpy()), str(target), fps=self._fps)
        else:
            target = self.out / f"{name}.gif"
            pictures[0].save(target, save_all=True, append_images=pictures[1:], duration=1000 // self._fps, loop=0)
        return target


def compared(cached: Result, uncached: Result) -> str:
    """Speed-up and likeness in words."""
    pairs = list(zip(cached.frames, uncached.frames, strict=True))
    errors = [10 ** (-psnr(one[None, None], other[None, None])[0] / 10) for one, other in pairs]  # one by one: less memory
    error = sum(errors) / len(errors)
    decibels = f"{-10 * math.log10(error):.1f}" if error else "infinite"
    likeness = sum(ssim(one[None, None], other[None, None])[0] for one, other in pairs) / len(pairs)
    return f"{uncached.seconds / cached.seconds:.2f}x as fast, PSNR {decibels} dB, SSIM {likeness:.4f}"


def comparison(results: list[tuple[str, Result]]) -> Image.Image:
    """The results with their captions: pictures side by side, of videos a few frames, one video below the other."""
    count, height, width = results[0][1].frames.shape[:3]
    places = sorted({round(index * (count - 1) / (SHOWN_FRAMES - 1)) for index in range(SHOWN_FRAMES)})
    cell = min(max(width, CELL[0]), CELL[1])
    tall, gap, head = round(cell * height / width), 8, 34
    font = ImageFont.load_default(16)
    wide = max(len(places) * (cell + gap), *[round(font.getlength(caption)) + gap for caption, _ in results])
    columns = len(results) if count == 1 else 1
    rows = len(results) // columns
    sheet = Image.new("RGB", (gap + columns * wide, gap + rows * (head + tall + gap)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (caption, result) in enumerate(results):
        left, top = gap + index % columns * wide, gap + index // columns * (head + tall + gap)
        draw.text((left, top + 6), caption, fill=INK, font=font)
        for column, place in enumerate(places):
            picture = _picture(result.frames[place]).resize((cell, tall), Image.Resampling.LANCZOS)
            sheet.paste(picture, (left + column * (cell + gap), top + head))
    return sheet


def _picture(frame: Tensor) -> Image.Image:
    return Image.fromarray((255 * frame).round().to(torch.uint8).numpy())


def _as(kind: Any, module: Any) -> Any:
    """A module of class `kind` with the configuration and the weights of another one."""
    twin = kind.from_config(module.config)
    twin.load_state_dict(module.state_dict())
    return twin.eval()


def diffusers() -> Any:
    """The library, or an error that says how to get it."""
    try:
        import diffusers as library
    except ImportError as error:
        raise ConfigError(
            f"This example needs diffusers, which cannot be imported ({error}). pip install 'mindie_cache[diffusers]'"
        ) from None
    return library


def run(main: Callable[[], None]) -> None:
    """Run an example; what the user can put right is said in one line."""
    try:
        main()
    except (CacheError, OSError) as error:  # OSError: no such folder, file or repository
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None
