"""The Pareto front of settings: none that another one beats in cost and in error. Plain numbers, no settings."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]  # cost, error; less is better. NaN and infinity are worse than every number


def front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other point beats, by rising cost; of equal points the first one."""
    best, found = math.inf, []
    for index in sorted(range(len(points)), key=lambda i: (*_finite(points[i]), i)):
        error = _finite(points[index])[1]
        if error < best:
            best = error
            found.append(index)
    return found


def keep_best(points: Sequence[Point], count: int) -> list[int]:
    """`count` indices in their order: the front, then the front of the others, and so on; of the last one, least error."""
    left, kept = list(range(len(points))), list[int]()
    while left and len(kept) < count:
        layer = [left[i] for i in front([points[j] for j in left])]
        if not layer:  # only points that are no numbers are left
            layer = list(left)
        room = count - len(kept)
        kept += sorted(layer, key=lambda i: (_finite(points[i])[1], i))[:room]
        left = [i for i in left if i not in layer]
    return sorted(kept)


def choose(points: Sequence[Point], *, most_cost: float | None = None, most_error: float | None = None) -> int | None:
    """The point of least error that costs at most `most_cost`; with `most_error` instead, the cheapest of at most that.

    Returns:
        None if there is none.
    """
    fitting = [i for i, (cost, error) in enumerate(points) if math.isfinite(cost) and math.isfinite(error)]
    if most_error is not None:
        fitting = [i for i in fitting if points[i][1] <= most_error]
        return min(fitting, key=lambda i: (*points[i], i), default=None)
    if most_cost is not None:
        fitting = [i for i in fitting if points[i][0] <= most_cost * (1 + 1e-9)]
    return min(fitting, key=lambda i: (points[i][1], points[i][0], i), default=None)


def _finite(point: Point) -> Point:
    cost, error = point
    return (cost if math.isfinite(cost) else math.inf, error if math.isfinite(error) else math.inf)
