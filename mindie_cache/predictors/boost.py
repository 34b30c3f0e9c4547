"""Boost: the newest snapshot, amplified in a window of steps. FasterCache's weights of a band of guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Boost:
    """Weights (0, ..., 0, factor) at the steps of `[first, stop)`, and (0, ..., 0, 1) at others.

    `compounding`: one more factor for each step of the window since the snapshot. It has the numbers of FasterCache's
    code, which multiplies what it keeps in place whenever it is used; its paper multiplies once.
    Source: FasterCache (Lv et al., ICLR 2025, arXiv 2410.19355).
    """

    factor: float
    first: int
    stop: int
    compounding: bool = False
    depth = 1
    warmup = 1

    def weights(self, points: Sequence[float], at: float) -> Sequence[float]:
        since = int(points[-1]) + 1 if self.compounding else int(at)
        times = max(0, min(int(at) + 1, self.stop) - max(since, self.first))
        return (*(0.0,) * (len(points) - 1), self.factor**times)
