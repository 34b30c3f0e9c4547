"""Taylor: extrapolation of order n from n + 1 snapshots, as weights on the snapshots.

Source: TaylorSeer (Liu et al., ICCV 2025, arXiv 2503.06923) and TeleFuser's AdaTaylorCache, from their formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Taylor:
    """Extrapolate with a polynomial of degree `order` through the newest snapshots (fewer while fewer exist).

    Args:
        order: degree; 0 holds the newest snapshot, 1 is a line.
        max_distance: farther than this from the newest snapshot (in the unit of the points) hold it instead.
        ladder: "newton" is Newton's form on the real gaps, exact on polynomials of its order. "published" is the
            derivative ladder of TaylorSeer and TeleFuser, sum of D_i d^i / i! with D_(i+1) = (D_i - D_i before) / newest
            gap, for parity with their numbers; it equals Newton's form at order 1 only.
    """

    order: int = 1
    max_distance: float | None = None
    ladder: str = "newton"

    @property
    def depth(self) -> int:
        return self.order + 1

    @property
    def warmup(self) -> int:
        return 1

    def weights(self, points: Sequence[float], at: float) -> Sequence[float]:
        used = min(len(points), self.order + 1)
        if self.max_distance is not None and abs(at - points[-1]) > self.max_distance:
            used = 1
        rule = _published if self.ladder == "published" else _newton
        return (0.0,) * (len(points) - used) + tuple(rule(points[len(points) - used :], at))


def _newton(points: Sequence[float], at: float) -> list[float]:
    """Newton's interpolant gathered by snapshot: prod_(k != i) (at - p_k) / (p_i - p_k)."""
    weights = []
    for i, here in enumerate(points):
        weight = 1.0
        for k, there in enumerate(points):
            if k != i:
                weight *= (at - there) / (here - there)
        weights.append(weight)
    return weights


def _published(points: Sequence[float], at: float) -> list[float]:
    """The ladder, with each derivative written as a row of weights on the snapshots."""
    size = len(points)
    rows: list[list[float]] = []  # rows[i] = D_i after the newest snapshot
    for newest in range(size):
        before, rows = rows, [[float(i == newest) for i in range(size)]]
        for order in range(min(newest, size - 1)):
            gap = points[newest] - points[newest - 1]
            rows.append([(new - old) / gap for new, old in zip(rows[order], before[order], strict=True)])
    distance, term, total = at - points[-1], 1.0, [0.0] * size
    for order, row in enumerate(rows):
        term = term * distance / order if order else 1.0
        total = [weight + term * part for weight, part in zip(total, row, strict=True)]
    return total
