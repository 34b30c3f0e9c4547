"""Predictors: from the steps of kept snapshots to one weight per snapshot. They never touch a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mindie_cache.predictors.hold import Hold
from mindie_cache.predictors.taylor import Taylor


class Predictor(Protocol):
    """`depth`: snapshots worth keeping; `warmup`: snapshots needed before the first prediction."""

    @property
    def depth(self) -> int: ...

    @property
    def warmup(self) -> int: ...

    def weights(self, points: Sequence[float], at: float) -> Sequence[float]:
        """One weight per point; `points` ascend (steps or sigmas of the snapshots, oldest first), `at` is the target."""
        ...


__all__ = ["Hold", "Predictor", "Taylor"]
