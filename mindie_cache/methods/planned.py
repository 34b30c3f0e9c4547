"""plan and plan_blocks: computed steps that were planned from a recorded generation, a line in sigma between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from mindie_cache.checks import flag, numbers, real, whole
from mindie_cache.errors import ConfigError
from mindie_cache.methods.base import Recipe, block_range
from mindie_cache.placement import PLACEMENTS
from mindie_cache.policies import Schedule
from mindie_cache.predictors import Line, Retroactive
from mindie_cache.sites import EachCall
from mindie_cache.streams import BlockStreams, WholeOutput

if TYPE_CHECKING:
    from mindie_cache.config import CacheConfig


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options of `plan` and `plan_blocks`: a plan file, or its numbers.

    Args:
        plan: path of a plan (.json), which fills the other three.
        budget: computed steps, of those that the plan has; the plan's own choice by default.
        compute_steps: the steps that are computed, the first and the last among them.
        sigmas: noise level of the sampler at every step and at the end, falling: one more than steps. Without them the line
            goes by the number of the step.
        gain: of the correction at a computed step after reused ones, 0: none. It needs `sigmas`, and a sampler that adds
            (sigma_(t+1) - sigma_t) times the output, as Euler steps of flow matching do.
        provenance: without a plan file, what the numbers were made on: a use on something else is said.
        strict: a plan for another number of steps, model, scheduler or guidance is an error instead of a warning.
    """

    plan: str | None = None
    budget: int | None = None
    compute_steps: tuple[int, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    gain: float | None = None
    provenance: Mapping[str, Any] | None = field(default=None, hash=False)
    strict: bool = False

    def resolved(self, config: CacheConfig) -> tuple[PlanOptions, tuple[str, ...]]:
        """With the plan's numbers filled in, and sentences about what does not fit."""
        if self.plan is None:
            return replace(self, gain=0.0 if self.gain is None else self.gain), ()
        from mindie_cache.calibration.planning.plan import Plan  # reads a file

        plan, notes, steps = Plan.load(self.plan), [], config.steps_count
        if self.budget is not None:
            plan = plan.choose(budget=self.budget)
        if plan.steps_count != steps:
            words = f"plan={self.plan!r} was made for {plan.steps_count} steps, but steps_count={steps}"
            if self.strict:
                raise ConfigError(f"{words}, and strict is set. Plan again with {steps} steps.")
            notes.append(f"{words}: its steps are moved to the same places, which is an estimate. Plan again with {steps}.")
            plan = plan.for_steps(steps)
        entry = plan.chosen
        gain = entry.gain if self.gain is None else self.gain
        return replace(self, compute_steps=entry.steps, sigmas=plan.sigmas, gain=gain), tuple(notes)

    def check(self, config: CacheConfig) -> None:
        flag("strict", self.strict)
        if self.provenance is not None and not isinstance(self.provenance, Mapping):
            raise ConfigError(f"provenance={self.provenance!r} must be a mapping, as plan files have it. Or leave it out.")
        steps = config.steps_count
        if self.plan is not None and not isinstance(self.plan, str):
            raise ConfigError(f"plan={self.plan!r} must be the path of a plan file.")
        if self.budget is not None:
            whole("budget", self.budget, 2, steps)
        if (self.plan is None) == (self.compute_steps is None):
            raise ConfigError(
                "Give plan, the path of a plan file, or compute_steps, sigmas and gain. "
                "mindie_cache.calibration.planning.plan(pipe, prompts, ...).save(path) makes a plan."
            )
        if self.plan is None and self.budget is not None:
            raise ConfigError("budget chooses among the schedules of a plan: give plan, or leave budget out.")
        full, _ = self.resolved(config)
        numbers("compute_steps", full.compute_steps, min(2, steps))
        assert full.compute_steps is not None
        for step in full.compute_steps:
            whole("compute_steps", step, 0, steps - 1)
        if {0, steps - 1} - {*full.compute_steps}:
            raise ConfigError(
                f"compute_steps={list(full.compute_steps)} must have the first and the last step, 0 and {steps - 1}."
            )
        real("gain", full.gain, 0.0, 2.0)
        if full.sigmas is None:
            if full.gain:
                raise ConfigError("gain needs sigmas, the noise levels of the sampler. Give them, or set gain=0.")
            return
        numbers("sigmas", full.sigmas, 2)
        if len(full.sigmas) != steps + 1 or not all(a > b for a, b in pairwise(full.sigmas)):
            raise ConfigError(
                f"sigmas has {len(full.sigmas)} entries; steps_count={steps} needs {steps + 1} that fall: the noise level "
                "at every step, and at the end."
            )


def planned(config: CacheConfig) -> Recipe:
    """Whole forwards are skipped."""
    return Recipe(site=EachCall(0, 1), streams=WholeOutput(), unit="forward", **_parts(config))


def planned_blocks(config: CacheConfig) -> Recipe:
    """A range of blocks is skipped, and what it adds is estimated: for models whose forward cannot be skipped whole."""
    return Recipe(site=block_range(config), streams=BlockStreams(config.streams), unit="block", **_parts(config))


def _parts(config: CacheConfig) -> dict[str, Any]:
    options, notes = config.options.resolved(config)
    steps = config.steps_count
    sigmas = options.sigmas or tuple(float(left) for left in range(steps, -1, -1))
    return {
        "policy": Schedule(frozenset(options.compute_steps), steps, reason="planned"),
        "predictor": Line(sigmas),
        "corrector": Retroactive(sigmas, options.gain) if options.gain else None,
        "placement": PLACEMENTS[config.placement](),
        "notes": notes,
    }
