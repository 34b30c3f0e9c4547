"""Whether a plan is used on what it was made on: model and scheduler when it is enabled, noise levels and guidance when a
generation begins. Says what differs, or refuses it if the plan is strict. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import ref

import numpy as np
import torch

from mindie_cache.config import CacheConfig
from mindie_cache.errors import ConfigError
from mindie_cache.methods.planned import PlanOptions

SAME = 0.02  # of all noise: the difference of levels up to which two runs have the same ones
AGAIN = "Plan again with these settings."
REFIT = "Enable the cache again, which fits the plan to it."


class PlanFit:
    """Of one model with a plan.

    Args:
        config: whose options may name a plan file, or tell what their numbers were made on; otherwise everything fits.
        scheduler: class of the one that it was fitted to, if there was one.
    """

    def __init__(self, config: CacheConfig, scheduler: str | None = None):
        self._options = config.options
        self._scheduler = scheduler
        self._tried: Any = lambda: None  # the scheduler that was looked at last
        self._corrects = False
        self._seen: Any = None  # the grid that was looked at last
        self._plan: Any = None
        if not isinstance(self._options, PlanOptions):
            return
        self._corrects = bool(self._options.resolved(config)[0].gain)
        from mindie_cache.calibration.planning.plan import Plan  # reads a file

        if self._options.plan is not None:
            self._plan = Plan.load(self._options.plan)
        elif self._options.provenance is not None and self._options.sigmas is not None:
            self._plan = Plan(self._options.sigmas, (), 0, self._options.provenance)

    def on(self, models: Mapping[str, Any], pipe: Any) -> str:
        """What differs in the models and in the pipeline's scheduler, as a sentence; empty if nothing does."""
        if self._plan is None:
            return ""
        from mindie_cache.calibration.planning.identity import differences

        return self._said(differences(self._plan.provenance, models, pipe))

    def at(self, pipe: Any) -> str:
        """What differs in the generation that the pipeline is about to make the first step of."""
        if self._plan is None:
            return ""
        return self._said([*self._levels(pipe.scheduler), *self._guidance(pipe)])

    def swapped(self, scheduler: Any) -> str:
        """What is wrong with a scheduler that is there in the place of the one that the plan was fitted to."""
        if self._scheduler is None or self._tried() is scheduler:
            return ""
        self._tried = ref(scheduler)
        from mindie_cache.calibration.planning.samplers import reason_against

        name = type(scheduler).__name__
        why = reason_against(scheduler) if self._corrects else ""
        if not why and name == self._scheduler:
            return ""
        words = f"The plan was fitted to {self._scheduler}; the pipeline has another scheduler now: {why or name}. {REFIT}"
        if self._options.strict:
            raise ConfigError(f"{words} Or leave strict out.")
        return words

    def _said(self, found: list[str]) -> str:
        if not found:
            return ""
        words = f"plan={self._options.plan or 'the schedule'!r} does not fit: {'; '.join(found)}. {AGAIN}"
        if self._options.strict:
            raise ConfigError(f"{words} Or leave strict out.")
        return words

    def _levels(self, scheduler: Any) -> list[str]:
        """Tries the scheduler, unless its grid is the one of the last generation."""
        grid, place = _grid(scheduler), getattr(scheduler, "step_index", None)
        has_begun = place is not None and place != (getattr(scheduler, "begin_index", None) or 0)
        if grid == self._seen or has_begun:
            return []
        self._seen = grid
        from mindie_cache.calibration.planning.samplers import sampler_of

        now, planned = np.array(sampler_of(scheduler).levels), np.array(self._plan.sigmas)
        if len(now) != len(planned):
            return []  # another number of steps is said elsewhere
        away = np.abs(_normal(now) - _normal(planned))
        step = int(away.argmax())
        if away[step] <= SAME:
            return []
        return [
            f"at step {step} {_normal(planned)[step]:.1%} of the noise was left when it was recorded, and now it is "
            f"{_normal(now)[step]:.1%} (another shift, resolution or scheduler)"
        ]

    def _guidance(self, pipe: Any) -> list[str]:
        """Pipelines of diffusers keep the argument of the call there."""
        before, now = self._plan.provenance.get("guidance_scale"), getattr(pipe, "_guidance_scale", None)
        known = isinstance(before, int | float) and isinstance(now, int | float)
        from mindie_cache.calibration.facts import guidance_name

        if not known or before == now or guidance_name(pipe) != "guidance_scale":
            return []
        return [f"guidance_scale was {before:g}, and is {now:g}"]


def _normal(levels: np.ndarray) -> np.ndarray:
    """From 1 to 0: plans do not depend on unit and origin."""
    return (levels - levels[-1]) / (levels[0] - levels[-1])


def _grid(scheduler: Any) -> Any:
    """What tells two grids of a scheduler apart, without waiting for a device."""
    sigmas, begin = getattr(scheduler, "sigmas", None), getattr(scheduler, "begin_index", None)
    if isinstance(sigmas, torch.Tensor) and sigmas.is_cpu:
        return tuple(sigmas.tolist()), begin
    return len(scheduler.timesteps), begin
