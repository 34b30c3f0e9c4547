"""Calibrate a pipeline: whole generations without reuse, all experts into one table. Owns no measurement and no loading.

What is measured is the main stream (`hidden_states`), from the input of the first block of the cached range to the output of
the last one, also of blocks that return the text first. Which branch and step a forward is, `enable_cache` finds out.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from mindie_cache.calibration import files
from mindie_cache.calibration.facts import default_of, guidance_name, quiet, shifted, sigma_shift
from mindie_cache.calibration.meter import ResidualMeter
from mindie_cache.calibration.result import Calibration, Curves, Provenance
from mindie_cache.checks import whole
from mindie_cache.config import CacheConfig
from mindie_cache.distributed import Ranks
from mindie_cache.errors import CacheError, ConfigError, did_you_mean
from mindie_cache.hooks import enable_cache
from mindie_cache.hooks.calls import under_way
from mindie_cache.hooks.regions import built, scope_of
from mindie_cache.hooks.wish import read_wish
from mindie_cache.methods.calibrator import CalibratorOptions
from mindie_cache.taps import HIDDEN

DEFAULT_PROMPT = "a red fox runs through fresh snow in the morning sun"


@dataclass(frozen=True, kw_only=True)
class PipelineCalibration:
    """What to measure, and where to write it. Every prompt is generated with every seed, one after the other.

    Args:
        name: of the model, for the file.
        steps: of one generation; None: the pipeline's default.
        call: further arguments of the pipeline, e.g. `{"height": 480, "image": picture}`.
        shift: of the scheduler, which is changed to it for the run; None leaves it alone.
        guidance: None leaves the pipeline's.
        out: file that is written; None writes none.
        format: of the file, "telefuser" or "lightx2v".
        signal: also fit TeaCache's polynomial, for this argument of the blocks (e.g. "temb") or for "modulated".
    """

    name: str
    steps: int | None = None
    prompts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    call: Mapping[str, Any] = field(default_factory=dict)
    shift: float | None = None
    guidance: float | None = None
    out: Path | None = None
    format: str = "telefuser"
    signal: str | None = None

    def run(self, pipe: Any, *, progress: bool = False) -> Calibration:
        """Generate, measure, and write the file.

        Raises:
            ConfigError, ParametersInvalid: an argument is out of range, the pipeline refuses one, `out` cannot be written.
            ModelExecError: what was measured is NaN or infinite.
        """
        for seed in self.seeds:
            whole("seed", seed, 0)
        call = self._arguments(pipe)
        steps = call["num_inference_steps"]
        whole("steps", steps, 2)
        if self.out is not None:
            files.prepare(self.out)
        prompts = self.prompts or (call.get("prompt", DEFAULT_PROMPT),)
        pairs = list(itertools.product(prompts, self.seeds))
        with (
            shifted(pipe, self.shift),
            quiet(pipe),
            tqdm(total=steps * len(pairs), desc="calibrating", unit="step", dynamic_ncols=True, disable=not progress) as bar,
        ):
            asked = {"method": "calibrator", "options": self._options(pipe, call)}
            found = []
            with enable_cache(pipe, asked) as handle:
                models = {name: _inner(getattr(pipe, name)) for name in handle.report().models}
                for prompt, seed in pairs:
                    generator = torch.Generator().manual_seed(seed)
                    watch = _Watch(models, asked, steps, bar.update)
                    with watch.hooked():
                        _generate(pipe, {**call, "prompt": prompt, "generator": generator})
                    found.append(watch.result())
                    handle.reset()
        calibration = pooled(found)
        if self.out is not None:
            calibration.save(self.out, self.format)
        return calibration

    def _arguments(self, pipe: Any) -> dict[str, Any]:
        """The keyword arguments of every generation."""
        known = inspect.signature(type(pipe).__call__).parameters
        call = dict(self.call)
        if self.steps is not None or "num_inference_steps" not in call:
            default = known["num_inference_steps"].default if "num_inference_steps" in known else None
            call["num_inference_steps"] = default if self.steps is None else self.steps
        if self.guidance is not None:
            scale = guidance_name(pipe)
            call[scale] = self.guidance
            if scale == "true_cfg_scale":  # without a negative prompt such pipelines leave guidance out
                call.setdefault("negative_prompt", " ")
        if "output_type" in known:
            call["output_type"] = "latent"  # nobody looks at the pictures
        unknown = [name for name in call if name not in known]
        if unknown and not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values()):
            raise ConfigError(f"{type(pipe).__name__} takes no argument {unknown[0]!r}. {did_you_mean(unknown[0], known)}")
        return call

    def _options(self, pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
        guidance = call.get(guidance_name(pipe), default_of(pipe, guidance_name(pipe)))
        sizes = [call.get(name) or default_of(pipe, name) for name in ("width", "height", "num_frames")]
        return {
            "model_name": self.name,
            "sigma_shift": sigma_shift(pipe),
            "scheduler": type(getattr(pipe, "scheduler", None)).__name__,
            "resolution": "x".join(str(size) for size in sizes if size) or None,
            "guidance_scale": float(guidance) if isinstance(guidance, int | float) else None,
            "signal": self.signal,
        }


class _Watch:
    """One generation of all experts of a pipeline: feeds one record, so that a table goes on where the expert changes."""

    def __init__(self, models: Mapping[str, nn.Module], asked: Any, steps: int, on_step: Callable[[], Any]):
        self._models = models
        self._wish = read_wish(asked)
        self._steps = steps
        self._on_step = on_step
        self._measured: dict[str, Any] = {}
        self._entered: tuple[str, int, torch.Tensor] | None = None
        self._seen = -1  # the last step
        self._meter = self._new_meter(steps)

    def _new_meter(self, steps: int) -> ResidualMeter:
        options: CalibratorOptions = self._wish.config(1, steps).options
        provenance = Provenance(
            model=options.model_name,
            steps=steps,
            sigma_shift=options.sigma_shift,
            scheduler=options.scheduler,
            resolution=options.resolution,
            guidance_scale=options.guidance_scale,
        )
        return ResidualMeter(provenance=provenance, signal=options.signal)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        with ExitStack() as stack:
            for model in self._models.values():
                for handle in self._hooks(model):
                    stack.callback(handle.remove)
            yield

    def _hooks(self, model: nn.Module) -> Iterator[RemovableHandle]:
        scope = scope_of(model, self._wish)
        config: CacheConfig = self._wish.config(scope.calls_count, self._steps)
        tap = built(config, scope).signal
        span = max(scope.spans, key=lambda one: one.stop - one.start)
        first, last = scope.forms[span.start], scope.forms[span.stop - 1]
        name = HIDDEN if HIDDEN in first.streams else first.streams[0]
        place = last.streams.index(name) if name in last.streams else 0

        def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = first.bound(args, kwargs)
            now = under_way.get()
            if now is None:
                return
            branch, step = now.track.branch, now.track.step
            if step > self._seen:
                self._seen = step
                self._on_step()
            if tap is not None:
                self._meter.see(self._measured, branch, step, tap.take(block, (values[name],), values, None))
            self._entered = branch, step, values[name].detach().clone()

        def leave(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self._entered is None:
                return
            (branch, step, before), self._entered = self._entered, None
            after = output[place] if isinstance(output, tuple | list) else output
            self._meter.add(self._measured, branch, step, after.detach() - before, Ranks(None))

        yield scope.blocks[span.start].register_forward_pre_hook(enter, with_kwargs=True)
        yield scope.blocks[span.stop - 1].register_forward_hook(leave)

    def result(self) -> Calibration:
        """What was measured, of as many steps as there were: a run that starts from a picture has fewer."""
        done = self._seen + 1
        meter = self._meter if done in (0, self._steps) else self._new_meter(done)
        return meter.result(self._measured, Ranks(None))


def pooled(calibrations: Sequence[Calibration]) -> Calibration:
    """The measurements of several generations as if they had been one batch; tokens count alike.

    Raises:
        ConfigError: they have different branches or numbers of steps.
    """
    first = calibrations[0]
    if len(calibrations) == 1:
        return first
    for other in calibrations[1:]:
        if other.branches.keys() != first.branches.keys() or other.provenance.steps != first.provenance.steps:
            raise ConfigError(
                "The generations have different branches or numbers of steps, so they give no common table. Calibrate with "
                "prompts that are generated in the same way."
            )
    weights = [one.provenance.tokens for one in calibrations]
    branches = {name: _pooled([one.branches[name] for one in calibrations], weights) for name in first.branches}
    return replace(first, provenance=replace(first.provenance, tokens=sum(weights)), branches=branches)


def _pooled(curves: Sequence[Curves], weights: Sequence[int]) -> Curves:
    total = sum(weights)
    rows = []
    for step in range(len(curves[0].ratios)):
        parts = [
            (one.ratios[step], one.stds[step], one.cosine_distances[step], n) for one, n in zip(curves, weights, strict=True)
        ]
        mean = sum(ratio * n for ratio, _, _, n in parts) / total
        moment = sum(std**2 * (n - 1) + n * (ratio - mean) ** 2 for ratio, std, _, n in parts)
        rows.append((mean, math.sqrt(moment / max(1, total - 1)), sum(cosine * n for _, _, cosine, n in parts) / total))
    ratios, stds, cosines = zip(*rows, strict=True)
    return Curves(ratios, stds, cosines, tuple([pair for one in curves for pair in one.changes]))


def _inner(model: nn.Module) -> nn.Module:
    """The module itself, of one that torch.compile has wrapped."""
    return getattr(model, "_orig_mod", model)


def _generate(pipe: Any, call: Mapping[str, Any]) -> None:
    try:
        with torch.no_grad():
            pipe(**call)
    except CacheError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{type(pipe).__name__} refuses its arguments: {error}") from error


def usage(calibration: Calibration, path: Path) -> str:
    """What to do with the file that was written."""
    facts = calibration.provenance
    options = {"preset": str(path)} if facts.sigma_shift is None else {"preset": str(path), "sigma_shift": facts.sigma_shift}
    methods = "magcache and ada_taylor" if calibration.signal is None else "magcache, ada_taylor and teacache"
    return (
        f"{path} is a preset of {methods}:\n"
        f'  enable_cache(pipe, {{"method": "ada_taylor", "options": {options}}}, num_inference_steps={facts.steps})'
    )
