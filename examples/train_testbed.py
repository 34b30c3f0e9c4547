"""Trains the testbed's text-to-video transformer from nothing, on videos rendered while it trains.

    python examples/train_testbed.py --minutes 75 --out runs/testbed
    python examples/train_testbed.py --minutes 75 --out runs/testbed --resume     # go on after an interruption
    python examples/train_testbed.py --minutes 75 --out runs/testbed --publish    # ship the result in the package

The learning rate falls to zero at the planned end, and most of the quality comes with that fall: plan the length first,
and let the run finish. `--out` receives checkpoint.pt (all that `--resume` needs), weights.safetensors (the averaged
weights), preview.png (a row of frames per prompt) and log.jsonl (the loss, and the judge's accuracy now and then).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from mindie_cache import CacheError
from mindie_cache.device import resolve
from mindie_cache.testbed import (
    TestbedConfig,
    TestbedTransformer,
    accuracy,
    all_prompts,
    contact_sheet,
    generate,
    save_testbed,
)
from mindie_cache.testbed import training as recipe
from mindie_cache.testbed.weights import WEIGHTS_PATH

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Clock:
    """How far the run is: in steps, in samples and in seconds of training (previews and pauses not counted)."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0

    def progress(self, options: argparse.Namespace) -> float:
        """Fraction of the planned run, in [0, 1]."""
        done = self.step / options.steps if options.steps else self.seconds / (60 * options.minutes)
        return min(done, 1.0)


class Trainer:
    """Model, averaged model, optimisers, random numbers and clock of one run, as one thing to save and restore."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.model = TestbedTransformer(TestbedConfig(dim=options.dim, blocks=options.blocks)).to(options.device)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimisers = recipe.make_optimisers(self.model, options.lr)
        self.generator = torch.Generator().manual_seed(options.seed)
        self.clock = Clock()
        dtype = recipe.faster_precision(options.device) if options.precision == "auto" else PRECISIONS[options.precision]
        self.autocast = torch.autocast(torch.device(options.device).type, torch.bfloat16, dtype == torch.bfloat16)
        self.precision = str(dtype).removeprefix("torch.")
        if options.compile:
            for block in self.model.transformer_blocks:
                block.compile()

    def step(self) -> float:
        """One step of training; returns the loss."""
        options, start = self.options, time.perf_counter()
        factor = recipe.learning_rate_factor(self.clock.progress(options))
        latents, ids = recipe.training_batch(options.batch_size, text_dropout=options.text_dropout, generator=self.generator)
        latents, ids = latents.to(options.device), ids.to(options.device)
        with self.autocast:
            loss = recipe.flow_loss(self.model, latents, ids, shift=options.shift, generator=self.generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = options.lr * factor
            optimiser.step()
            optimiser.zero_grad()
        recipe.update_average(self.average, self.model, self.clock.step, options.ema)
        self.clock.step += 1
        self.clock.samples += options.batch_size
        value = loss.item()  # waits for the device, so that the seconds below are true
        self.clock.seconds += time.perf_counter() - start
        return value

    def save(self, path: Path) -> None:
        """Writes the checkpoint in one move: an interruption leaves the old one."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "generator": self.generator.get_state(),
            "clock": vars(self.clock),
        }
        torch.save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    def restore(self, path: Path) -> None:
        """Takes up the state that ``save`` wrote."""
        state = torch.load(path, map_location=self.options.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.generator.set_state(state["generator"].cpu())
        self.clock = Clock(**state["clock"])

    def provenance(self) -> dict[str, object]:
        """How the weights came to be, for the metadata of the weights file."""
        kept = ("batch_size", "lr", "ema", "shift", "text_dropout", "seed", "compile")
        return {
            "steps": self.clock.step,
            "samples_seen": self.clock.samples,
            "training_seconds": round(self.clock.seconds),
            "precision": self.precision,
            "torch": torch.__version__,
            "python": platform.python_version(),
            **{name: getattr(self.options, name) for name in kept},
        }


def evaluate(trainer: Trainer, out: Path, prompts_count: int) -> dict[str, float]:
    """Writes weights and preview of the averaged model; returns the judge's accuracy."""
    order = torch.randperm(len(all_prompts()), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [all_prompts()[index] for index in order[:prompts_count]]
    videos = generate(trainer.average, prompts, seeds=list(range(len(prompts)))).videos
    Image.fromarray(contact_sheet(videos[:16]).numpy()).save(out / "preview.png")
    save_testbed(trainer.average, out / "weights.safetensors", trainer.provenance())
    return vars(accuracy(videos, prompts))


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=75.0, help="planned length in minutes of training (75)")
    length.add_argument("--steps", type=int, help="planned length in steps, instead of --minutes")
    parser.add_argument("--out", type=Path, default=Path("runs/testbed"), help="folder for all results (runs/testbed)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--publish", action="store_true", help="copy the final weights into the package")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, npu, ... (cpu)")
    parser.add_argument("--precision", choices=("auto", *PRECISIONS), default="auto", help="auto measures both (auto)")
    parser.add_argument("--compile", action="store_true", help="compile the blocks: slower start, faster steps")
    parser.add_argument("--batch-size", type=int, default=32, help="videos a step (32)")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate (3e-3)")
    parser.add_argument("--ema", type=float, default=0.998, help="decay of the averaged weights (0.998)")
    parser.add_argument("--shift", type=float, default=3.0, help="shift of the noise levels, as when sampling (3)")
    parser.add_argument("--text-dropout", type=float, default=0.1, help="share of null prompts, for guidance (0.1)")
    parser.add_argument("--dim", type=int, default=96, help="width of both streams (96)")
    parser.add_argument("--blocks", type=int, default=12, help="depth (12)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data and noise (0)")
    parser.add_argument("--preview-every", type=float, default=8.0, help="minutes between previews and checkpoints (8)")
    parser.add_argument("--preview-prompts", type=int, default=48, help="prompts the judge sees at a preview (48)")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse_options()
    try:
        options.device = resolve(options.device)
    except CacheError as error:
        raise SystemExit(f"error: {error}") from None
    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint = options.out / "checkpoint.pt"
    if checkpoint.exists() and not options.resume:
        raise SystemExit(f"{checkpoint} exists. Add --resume to go on with it, or choose another --out.")
    if options.resume and not checkpoint.exists():
        raise SystemExit(f"there is no {checkpoint} to resume. Leave --resume out to start a new run.")
    trainer = Trainer(options)
    if options.resume:
        trainer.restore(checkpoint)
    clock, next_preview = trainer.clock, trainer.clock.seconds + 60 * options.preview_every
    smooth = None
    bar = tqdm(total=100, unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}")
    with open(options.out / "log.jsonl", "a", buffering=1) as log:
        while clock.progress(options) < 1:
            loss = trainer.step()
            smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
            bar.set_postfix_str(f"step {clock.step}, loss {smooth:.4f}, {clock.samples / clock.seconds:.0f} videos/s")
            bar.update(100 * clock.progress(options) - bar.n)
            finished = clock.progress(options) >= 1
            record = {**vars(clock), "loss": smooth}
            if clock.seconds > next_preview or finished:
                next_preview = clock.seconds + 60 * options.preview_every
                trainer.save(checkpoint)
                record |= evaluate(trainer, options.out, options.preview_prompts)
                bar.write(json.dumps(record))
            if clock.step % 50 == 0 or "overall" in record:
                log.write(json.dumps(record) + "\n")
    bar.close()
    if options.publish:
        save_testbed(trainer.average, WEIGHTS_PATH, trainer.provenance())
    print(f"weights and preview are in {options.out}")


if __name__ == "__main__":
    main()
