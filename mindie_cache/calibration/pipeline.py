"""Calibrate a pipeline: whole generations without reuse, through `enable_cache`. Owns no measurement and no loading."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mindie_cache.calibration import files
from mindie_cache.calibration.facts import default_of, guidance_name, quiet, shifted, sigma_shift
from mindie_cache.calibration.result import Calibration, Curves
from mindie_cache.checks import whole
from mindie_cache.errors import CacheError, ConfigError, did_you_mean
from mindie_cache.hooks import enable_cache

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
            for prompt, seed in pairs:
                generator = torch.Generator().manual_seed(seed)
                found.append(_measured(pipe, asked, {**call, "prompt": prompt, "generator": generator}, bar))
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


def _measured(pipe: Any, asked: Mapping[str, Any], call: Mapping[str, Any], bar: Any) -> Calibration:
    """One generation. All experts of a pipeline write into one table; the first one that ran has it."""
    before = bar.n
    with enable_cache(pipe, asked) as handle, ExitStack() as stack:

        def show(*_: Any) -> None:
            steps = {record.step for report in handle.report().models.values() for record in report.steps}
            bar.update(before + len(steps) - bar.n)

        for name in handle.report().models:
            stack.callback(getattr(pipe, name).register_forward_hook(show).remove)
        _generate(pipe, call)
        used = [name for name, report in handle.report().models.items() if report.steps]
        return handle.calibration(used[0] if used else None)


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
    return f'{path} is a preset of {methods}:\n  enable_cache(pipe, {{"method": "ada_taylor", "options": {options}}})'
