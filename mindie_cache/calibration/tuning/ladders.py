"""Ladders: the settings of one method in order, from the careful to the bold one. Runs nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mindie_cache import CacheConfig
from mindie_cache.calibration.facts import sigma_shift
from mindie_cache.calibration.planning import Plan, Recording, make_plan
from mindie_cache.calibration.search.evaluator import calls_of
from mindie_cache.calibration.search.knobs import SPANS, Knob, config_for
from mindie_cache.calibration.search.targets import PipelineTarget, TestbedTarget
from mindie_cache.errors import CacheError, ConfigError, did_you_mean
from mindie_cache.recipes import METHODS

PLAN, UNIFORM = "plan", "uniform"
_RUNGS = 25  # of a threshold: neighbours differ by less than one step's work
_OPTIONS: dict[str, dict[str, Any]] = {  # long gaps are left to bold thresholds
    "seacache": {"signal": "latents", "order": 1, "max_skip_steps": 4},
    "first_block": {"max_skip_steps": 8},
    "easycache": {"max_skip_steps": 8},
}


@dataclass(frozen=True)
class Rung:
    """A setting; `share` of calls that it computes and the `predicted` relative squared error, where they are known
    before it has run."""

    title: str
    config: CacheConfig
    share: float | None = None
    predicted: float | None = None


@dataclass(frozen=True)
class Ladder:
    """The settings of one method, by falling share of computed calls."""

    title: str
    rungs: tuple[Rung, ...] = field(repr=False)


def check_methods(methods: Sequence[str]) -> None:
    """Raises ConfigError for a name that is none of a method."""
    known = (UNIFORM, *METHODS)
    for name in methods:
        if name not in known:
            raise ConfigError(f"--methods: {name!r} is not known. {did_you_mean(name, known)}")


def ladders(
    methods: Sequence[str], evaluator: Any, plan: Plan | None, recording: Recording | None
) -> tuple[list[Ladder], list[str]]:
    """The ladders of these methods on a target, and sentences about those that do not fit it."""
    found, notes = [], []
    for name in dict.fromkeys(methods):
        try:
            if name == PLAN:
                found += _planned(plan, recording)
            else:
                found.append(_ladder(name, evaluator, plan))
        except CacheError as error:  # noqa: PERF203 - one that does not fit this model leaves the others
            notes.append(f"{name} was left out: {error}")
    return found, notes


def _ladder(name: str, evaluator: Any, plan: Plan | None) -> Ladder:
    steps = evaluator.target.steps
    if name == UNIFORM:
        sigmas = plan.sigmas if plan is not None else None
        return _uniform(UNIFORM, steps, lambda chosen: _scheduled(chosen, steps, sigmas))
    if name == "dit_block_cache":
        blocks = calls_of(evaluator.target, name)
        return _uniform(
            "dit_block_cache, line",
            steps,
            lambda chosen: CacheConfig(name, blocks, steps, options={"order": 1, "compute_steps": chosen}),
        )
    if name not in SPANS:
        config = config_for(evaluator, name, {})
        return Ladder(name, (Rung(name, config),))
    options = {**_OPTIONS.get(name, {})}
    if name == "seacache":
        options["sigma_shift"] = _shift(evaluator.target)
    first = config_for(evaluator, name, {**options, "threshold": SPANS[name][0]})
    rungs = [
        Rung(
            f"{name}, threshold {value:g}",
            CacheConfig(name, first.blocks_count, steps, options={**options, "threshold": value}).validated(),
        )
        for value in Knob("threshold", *SPANS[name]).grid(_RUNGS)
    ]
    return Ladder(name, tuple(rungs))


def _planned(plan: Plan | None, recording: Recording | None) -> list[Ladder]:
    """The plan; and with and without its correction everywhere, where that is something else: the bolder, the less certain
    it is that a correction helps."""
    if plan is None or recording is None:
        raise ConfigError("nothing was recorded.")
    found, known = [_of_plan(PLAN, plan)], {_gains(plan)}
    for title, correct in (("plan with correction", True), ("plan without correction", False)):
        other = make_plan(recording, correct=correct)
        if _gains(other) not in known:
            known.add(_gains(other))
            found.append(_of_plan(title, other))
    return found


def _gains(plan: Plan) -> tuple[float, ...]:
    return tuple([entry.gain for entry in plan.front])


def _of_plan(title: str, plan: Plan) -> Ladder:
    steps = plan.steps_count
    rungs = [
        Rung(
            f"{title}, {entry.budget} of {steps}",
            _scheduled(entry.steps, steps, plan.sigmas, entry.gain),
            entry.budget / steps,
            entry.predicted,
        )
        for entry in reversed(plan.front)
        if entry.budget < steps
    ]
    return Ladder(title, tuple(rungs))


def _uniform(title: str, steps: int, build: Callable[[tuple[int, ...]], CacheConfig]) -> Ladder:
    """Evenly spread computed steps, the first and the last among them, for every number of them."""
    spread = {budget: evenly(steps, budget) for budget in range(steps - 1, 1, -1)}
    return Ladder(
        title,
        tuple([Rung(f"{title}, {b} of {steps}", build(chosen).validated(), b / steps) for b, chosen in spread.items()]),
    )


def evenly(steps: int, budget: int) -> tuple[int, ...]:
    return tuple([round(place) for place in np.linspace(0, steps - 1, budget)])


def _scheduled(chosen: Sequence[int], steps: int, sigmas: Sequence[float] | None, gain: float = 0.0) -> CacheConfig:
    options = {"compute_steps": tuple(chosen), "gain": gain, **({} if sigmas is None else {"sigmas": tuple(sigmas)})}
    return CacheConfig("plan", 1, steps, options=options).validated()


def _shift(target: Any) -> float | None:
    if isinstance(target, TestbedTarget):
        return target.shift
    if isinstance(target, PipelineTarget):
        return target.shift or sigma_shift(target.subject)
    return None


def spread(ladder: Ladder, count: int) -> list[Rung]:
    """`count` rungs at evenly spread speed-ups from 1.25 to 5, of those whose share is known."""
    known = [rung for rung in ladder.rungs if rung.share is not None]
    wanted = np.linspace(1.25, 5.0, count) if count > 1 else [2.0] * count
    found = [min(known, key=lambda rung: abs(math.log((rung.share or 1.0) * each))) for each in wanted if known]
    return list({rung.title: rung for rung in found}.values())
