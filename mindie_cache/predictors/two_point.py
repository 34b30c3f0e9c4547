"""TwoPoint: the newest snapshot, moved on by a share of its last change. FasterCache's dynamic feature reuse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TwoPoint:
    """Weights (-w, 1 + w) on the two newest snapshots; one snapshot is held.

    w grows with the target step, not with the distance from the snapshots: ``max(floor, slope (step - origin))``.
    Source: FasterCache (Lv et al., ICLR 2025, arXiv 2410.19355).
    """

    floor: float
    slope: float = 0.0
    origin: float = 0.0

    @property
    def depth(self) -> int:
        return 2 if self.floor or self.slope else 1  # weight 0: nothing but the newest one is read

    @property
    def warmup(self) -> int:
        return 1

    def weights(self, points: Sequence[float], at: float) -> Sequence[float]:
        if len(points) == 1:
            return (1.0,)
        weight = max(self.floor, self.slope * (at - self.origin))
        return (*(0.0,) * (len(points) - 2), -weight, 1.0 + weight)
