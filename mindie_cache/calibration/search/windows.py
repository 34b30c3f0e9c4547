"""The candidates of the searches over windows. Each list is in a fixed order, and holds nothing twice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mindie_cache.calibration.search.cost import (
    AttentionWindow,
    Window,
    Work,
    attention_skips_needed,
    attention_window,
    blocks_needed,
    published_blocks_needed,
    reuses,
)
from mindie_cache.checks import real, whole
from mindie_cache.errors import ConfigError

BEST = 3  # block starts that the second stage takes over
LEAST_LENGTH = 2  # MindIE-SD's run time adds a single cached block twice
PUBLISHED_STARTS, PUBLISHED_LENGTHS = (0, 5), 8


@dataclass(frozen=True)
class Space:
    """What `dit_block_cache` is searched over.

    Args:
        work: cost of each block and of the rest of a step; the ratio is measured with it.
        steps: N.
        ratio: how many times cheaper a run has to be, at least.
        first, last: cached blocks are in [first, last).
        intervals: one of so many steps is a refresh.
        starts: step_start.
        stops: step_end.
        published: the lists and the arithmetic of the published tool; then starts and stops are its own.
    """

    work: Work
    steps: int
    ratio: float
    first: int
    last: int
    intervals: tuple[int, ...] = (2, 3, 4)
    starts: tuple[int, ...] = ()
    stops: tuple[int, ...] = ()
    published: bool = False

    def __post_init__(self) -> None:
        whole("steps", self.steps, 4)
        real("ratio", self.ratio, 1.0, None)
        if self.ratio <= 1:
            raise ConfigError(f"ratio={self.ratio}: nothing is to be saved. Use a ratio above 1, e.g. 1.3.")
        for interval in self.intervals:
            whole("interval", interval, 2, self.steps)
        default_starts = PUBLISHED_STARTS if self.published else [round(part * self.steps) for part in (0.0, 0.1, 0.2)]
        default_stops = (self.steps,) if self.published else (self.steps, self.steps - 1)
        object.__setattr__(self, "starts", tuple(sorted({*(self.starts or default_starts)})))
        object.__setattr__(self, "stops", tuple(sorted({*(self.stops or default_stops)})))
        for start in self.starts:
            whole("step_start", start, 0, self.steps - 2)
        for stop in self.stops:
            whole("step_end", stop, self.starts[-1] + 2, self.steps)

    def least(self, interval: int, first: int) -> int | None:
        """The blocks that reach the ratio also from the latest start to the earliest stop, so from all."""
        start, stop = self.starts[-1], self.stops[0]
        if self.published:
            count = self.last - self.first + 1  # of the stack, with its first block
            needed = published_blocks_needed(count, self.steps, self.ratio, start=start, interval=interval)
            return needed if first + needed <= self.last else None
        found = blocks_needed(
            self.work,
            self.steps,
            self.ratio,
            start=start,
            interval=interval,
            stop=stop,
            first=first,
            last=self.last,
        )
        if found is None:
            return None
        length = max(LEAST_LENGTH, found)
        return length if first + length <= self.last else None

    def stage_one(self) -> list[Window]:
        """For each interval every block start, with the fewest blocks, from the latest start to the earliest stop.

        Raises:
            ConfigError: no window reaches the ratio.
        """
        found = [
            Window(self.starts[-1], interval, self.stops[0], first, length)
            for interval in self.intervals
            for first in range(self.first, self.last)
            if (length := self.least(interval, first)) is not None
        ]
        if not found:
            raise ConfigError(self._out_of_reach())
        return found

    def stage_two(self, best: Iterable[Window]) -> list[Window]:
        """For each of the best windows all lengths up to a quarter of the blocks more, from all starts to all stops."""
        found: dict[Window, None] = {}
        for window in best:
            for length in self._lengths(window):
                for start in self.starts:
                    for stop in self.stops:
                        found[Window(start, window.interval, stop, window.first, length)] = None
            found.pop(window, None)
        return list(found)

    def _lengths(self, window: Window) -> range:
        if self.published:  # b + l < L, although the first stage allows b + l = L
            return range(window.length, min(window.length + PUBLISHED_LENGTHS, self.last - window.first))
        more = (self.last - self.first + 1) // 4
        return range(window.length, min(window.length + more, self.last - window.first) + 1)

    def _out_of_reach(self) -> str:
        start, stop = self.starts[-1], self.stops[0]
        most = max(
            self.work.ratio(Window(start, interval, stop, self.first, self.last - self.first), self.steps)
            for interval in self.intervals
        )
        reusing = max(reuses(start, interval, stop) for interval in self.intervals)
        return (
            f"ratio={self.ratio} is out of reach: {self.last - self.first} blocks that are reused in {reusing} of "
            f"{self.steps} steps give {most:.2f} (intervals {', '.join(map(str, self.intervals))}; starts up to {start}). "
            "Use a smaller ratio, larger --intervals, or earlier --starts."
        )


def top(windows: Sequence[Window], errors: Sequence[float], *, together: bool = False) -> list[Window]:
    """The three block starts with the smallest errors: of each interval, or `together` of all."""
    ranked = [window for _, window in sorted(zip(errors, windows, strict=True))]
    if together:
        return ranked[:BEST]
    intervals = dict.fromkeys(window.interval for window in windows)
    return [window for k in intervals for window in [one for one in ranked if one.interval == k][:BEST]]


def attention_windows(
    steps: int, ratio: float, *, share: float = 1.0, starts: Sequence[int] = (), extra_intervals: int = 0
) -> list[AttentionWindow]:
    """One window for each start of the sweep (from 0.15 N to 0.35 N by default), with the smallest interval that will do.

    Args:
        share: of a step's time that attentions take; 1 measures the ratio in attention calls.
        extra_intervals: also so many larger intervals, each from the same start to the end of the sweep's range.

    Raises:
        ConfigError: no window reaches the ratio.
    """
    whole("steps", steps, 6)
    real("ratio", ratio, 1.0, None)
    real("attention share", share, 1e-6, 1.0)
    if ratio <= 1:
        raise ConfigError(f"ratio={ratio}: nothing is to be saved. Use a ratio above 1, e.g. 1.3.")
    sweep = starts or range(math.ceil(0.15 * steps - 1e-9), math.floor(0.35 * steps + 1e-9) + 1)
    for start in sweep:
        whole("step_start", start, 0, steps - 4)
    skips = attention_skips_needed(steps, ratio, share)
    found: dict[AttentionWindow, None] = {}
    for start in sweep:
        window = attention_window(steps, skips, start)
        if window is not None:
            found[window] = None
            for more in range(1, extra_intervals + 1):
                if window.interval + more <= steps - 3 - start:
                    found[AttentionWindow(start, window.interval + more, steps - 3)] = None
    if not found:
        most = steps - 3 - min(sweep)
        bound = 1 / (1 - share * most / steps)
        raise ConfigError(
            f"ratio={ratio} is out of reach: it needs {skips} of {steps} steps without attention, and from step "
            f"{min(sweep)} to {steps - 3} there are {most} (ratio below {bound:.2f}). Use a smaller ratio or earlier "
            "--starts."
        )
    return list(found)
