"""Predictors: from the steps of kept snapshots to one weight per snapshot. They never touch a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mindie_cache.predictors.boost import Boost
from mindie_cache.predictors.hold import Hold
from mindie_cache.predictors.line import Line, Retroactive
from mindie_cache.predictors.per_band import PerBand
from mindie_cache.predictors.taylor import Taylor
from mindie_cache.predictors.two_point import TwoPoint


class Predictor(Protocol):
    """`depth`: snapshots worth keeping; `warmup`: snapshots needed before the first prediction."""

    @property
    def depth(self) -> int: ...

    @property
    def warmup(self) -> int: ...

    def weights(self, points: Sequence[float], at: float) -> Sequence[Any]:
        """One weight per point, in `PerBand` a row of them per band. `points` ascend (steps or sigmas of the snapshots,
        oldest first), `at` is the target."""
        ...


__all__ = ["Boost", "Hold", "Line", "PerBand", "Predictor", "Retroactive", "Taylor", "TwoPoint"]
