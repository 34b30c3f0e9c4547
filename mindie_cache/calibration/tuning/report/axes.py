"""Axes: where a number is, in percent of a plot, and which ticks there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_NICE = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`; `log`: by decades; `falling`: the low end is at 100 percent."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False
    falling: bool = False

    def place(self, value: float) -> float:
        """Percent from the start; what is outside is at the end where it would be (a zero on decades, for one)."""
        if self.log:
            low, high, value = math.log10(self.low), math.log10(self.high), math.log10(max(value, self.low))
        else:
            low, high = self.low, self.high
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return round(100 * (1 - share if self.falling else share), 3)


def linear(values: Sequence[float], falling: bool = False, most: int = 6) -> Axis:
    """Around `values`, with at most `most` steps of a nice size between ticks."""
    low, high = min(values), max(values)
    room = (high - low) * 0.04 or max(abs(high) * 0.05, 0.05)
    low, high = low - room, high + room
    step = _nice((high - low) / most)
    ticks = [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return Axis(low, high, tuple(ticks), falling=falling)


def decades(values: Sequence[float], falling: bool = False, most: int = 8) -> Axis:
    """Around the `values` above 0 on a logarithmic scale of a decade or more."""
    above = [value for value in values if value > 0] or [1.0]
    room = max(1.5, math.sqrt(10 * min(above) / max(above)))
    low, high = min(above) / room, max(above) * room
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    marks = (1, 2, 5) if last - first <= 2 else (1,)
    ticks = [mark * 10.0**power for power in range(first, last + 1, math.ceil((last - first) / most)) for mark in marks]
    return Axis(low, high, tuple(tick for tick in ticks if low <= tick <= high), True, falling)


def every(count: int) -> int:
    """How far ticks on `count` steps are from each other."""
    return next((step for step in (1, 2, 5, 10, 20, 50, 100) if count / step <= 8), count)


def _nice(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(nice * power for nice in _NICE if nice * power >= step * (1 - 1e-9))
