"""safest: which way to generate with so many computed steps is best, tried on prompts; and the plan says what came out."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from mindie_cache.calibration.facts import default_of, quiet
from mindie_cache.calibration.planning.plan import Entry, Plan
from mindie_cache.calibration.planning.planner import generations, listed
from mindie_cache.calibration.search.made import as_latents
from mindie_cache.errors import ModelExecError, ParametersInvalid
from mindie_cache.hooks.handle import enable_cache
from mindie_cache.hooks.levels import regular

PLANNED, UNCORRECTED, REGULAR = "as planned", "without correction", "regular steps"
TRIED = "tried"  # in the provenance


def safest(pipe: Any, found: Plan, prompts: str | Sequence[str], *, seeds: Sequence[int] = (0,), **call: Any) -> Plan:
    """Generate with the plan's chosen number of computed steps in three ways, and keep the one with the least error.

    The ways are the plan's own; its steps without correction; and regular steps without correction, which nobody planned.
    A prompt and seed takes one generation without a cache and three with one: 1 + 3 / speed-up in all. Prompts that were not
    recorded are the better judges; one is enough to avoid the worst.

    Args:
        found: a plan at the budget that it is meant for: `Plan.choose`.
        call: further arguments of the pipeline, as they were for `plan`.

    Returns:
        The plan with the steps and the gain of that way at its chosen budget, and the error as its `verified` one; the
        predicted one stays that of the plan. What each way gave stands in its provenance, under "tried": relative squared
        errors of the final latents.

    Raises:
        ParametersInvalid: the pipeline has a cache, makes another number of steps than the plan has, or there is no prompt.
        ModelExecError: a generation without a cache gives NaN or infinity.
    """
    steps = call.get("num_inference_steps") or default_of(pipe, "num_inference_steps")
    if steps != found.steps_count:
        raise ParametersInvalid(
            f"The plan has {found.steps_count} steps, and this call of the pipeline makes {steps}. Pass "
            f"num_inference_steps={found.steps_count}, or plan again."
        )
    runs = generations(pipe, prompts, seeds, call)
    candidates = ways(found)
    errors = dict.fromkeys(candidates, 0.0)
    energy = 0.0
    with (
        tempfile.TemporaryDirectory() as folder,
        quiet(pipe),
        tqdm(total=len(runs) * (1 + len(candidates)), desc="trying", unit="generation", disable=None) as bar,
    ):
        files = {name: Path(folder, f"{name}.json") for name in candidates}
        for name, entry in candidates.items():
            _with(found, entry).save(files[name])
        for run in runs:
            exact = _latents(pipe, run, None)
            bar.update()
            energy += float(exact.double().square().sum())
            for name, file in files.items():
                error = float((_latents(pipe, run, file) - exact).double().square().sum())
                errors[name] += error if math.isfinite(error) else math.inf
                bar.update()
    if not 0 < energy < math.inf:
        raise ModelExecError(f"The squares of the latents without a cache sum to {energy}. Look for overflow, e.g. in fp16.")
    shares = {name: error / energy for name, error in errors.items()}
    best = min(shares, key=lambda name: shares[name])
    if not math.isfinite(shares[best]):
        raise ModelExecError("Every way gives NaN or infinity with a cache. Compute more steps: choose a larger budget.")
    noted = {**found.provenance, TRIED: {"chosen": best, **_plain(shares), "prompts": listed(prompts), "seeds": list(seeds)}}
    return replace(_with(found, replace(candidates[best], verified=shares[best])), provenance=noted)


def ways(found: Plan) -> dict[str, Entry]:
    """The chosen budget in each way that differs from those before it."""
    entry = found.chosen
    even = Entry(_with_starts(regular(found.steps_count, entry.budget), found.starts), 0.0, entry.predicted)
    different: dict[tuple[tuple[int, ...], float], str] = {}
    named = {PLANNED: entry, UNCORRECTED: replace(entry, gain=0.0, verified=None), REGULAR: even}
    for name, one in named.items():
        different.setdefault((one.steps, one.gain), name)
    return {name: named[name] for name in different.values()}


def _with_starts(steps: Sequence[int], starts: Sequence[int]) -> tuple[int, ...]:
    """As many steps, the nearest ones moved to where an expert begins."""
    moved = set(steps)
    for start in sorted(set(starts) - moved):
        moved.discard(min(moved - {*starts, max(steps)}, key=lambda step: abs(step - start), default=start))
        moved.add(start)
    return tuple(sorted(moved))


def _with(found: Plan, entry: Entry) -> Plan:
    return replace(found, front=tuple([entry if one.budget == entry.budget else one for one in found.front]))


def _latents(pipe: Any, run: Callable[[], Any], file: Path | None) -> Tensor:
    with nullcontext() if file is None else enable_cache(pipe, file):
        return as_latents(run()[0], type(pipe).__name__)


def _plain(shares: Mapping[str, float]) -> dict[str, float | None]:
    """None for what is no number: JSON knows no infinity."""
    return {name: share if math.isfinite(share) else None for name, share in shares.items()}
