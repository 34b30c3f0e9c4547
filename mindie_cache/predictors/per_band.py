"""PerBand: a predictor for each band of a feature, such as its low and its high frequencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PerBand:
    """One row of weights a band, for a `mindie_cache.bands.BandedHistory`."""

    predictors: tuple[Any, ...]  # Predictor

    @property
    def depths(self) -> tuple[int, ...]:
        return tuple([predictor.depth for predictor in self.predictors])

    @property
    def depth(self) -> int:
        return max(self.depths)

    @property
    def warmup(self) -> int:
        return max([predictor.warmup for predictor in self.predictors])

    def weights(self, points: Sequence[float], at: float) -> Sequence[Sequence[float]]:
        return tuple([predictor.weights(points, at) for predictor in self.predictors])
