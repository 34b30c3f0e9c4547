"""How much work a schedule leaves: exact counts of executed blocks and attentions, and what follows from them.

Symbols: N steps, L blocks; refreshes happen at start, start + interval, ... before stop. Times are of one step. Owns no
search. The procedure that these formulas serve is that of MindIE-SD's documentation and of msmodelslim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from mindie_cache.checks import real, whole
from mindie_cache.errors import ConfigError

_ROUNDING = 1e-9  # what floating-point error may add to a whole number before it is rounded up


class Window(NamedTuple):
    """A setting of `dit_block_cache`: blocks [first, first + length) are reused between refreshes in steps [start, stop)."""

    start: int
    interval: int
    stop: int
    first: int
    length: int


@dataclass(frozen=True)
class Work:
    """What one denoising step costs: each block, and everything else. Without timings a block costs 1 and the rest 0.

    Args:
        blocks: cost of each block, in order, over all branches.
        rest: cost of a step outside of the blocks.
    """

    blocks: tuple[float, ...]
    rest: float = 0.0

    @classmethod
    def counted(cls, blocks: int) -> Work:
        return cls((1.0,) * blocks)

    @property
    def step(self) -> float:
        return self.rest + sum(self.blocks)

    def saved(self, window: Window) -> float:
        """Cost of what `window` skips in a run: R * (c_b + ... + c_(b + l - 1))."""
        span = self.blocks[window.first : window.first + window.length]
        return reuses(window.start, window.interval, window.stop) * sum(span)

    def ratio(self, window: Window, steps: int) -> float:
        """Cost of the uncached run over that with the window."""
        return steps * self.step / (steps * self.step - self.saved(window))


def refreshes(start: int, interval: int, stop: int) -> int:
    """U: refreshed steps of the window [start, stop). The first one is at start, hence the rounding up."""
    return -(-(stop - start) // interval)


def reuses(start: int, interval: int, stop: int) -> int:
    """R = A - U: steps of the window that reuse, of its A = stop - start."""
    return max(0, stop - start - refreshes(start, interval, stop))


def blocks_needed(
    work: Work, steps: int, ratio: float, *, start: int, interval: int, stop: int, first: int, last: int
) -> int | None:
    """The smallest number of blocks from `first` on whose reuse makes a run `ratio` times cheaper.

    With equal blocks and nothing else this is ceil(L (1 - (N / ratio - start - U) / R)) for stop = N.

    Args:
        last: blocks from here on are not cached.

    Returns:
        None if all blocks of [first, last) together save too little.
    """
    wanted = steps * work.step * (1 - 1 / ratio)
    times, saved = reuses(start, interval, stop), 0.0
    for index in range(first, last):
        saved += times * work.blocks[index]
        if saved >= wanted * (1 - _ROUNDING):
            return index - first + 1
    return None


def published_blocks_needed(blocks: int, steps: int, ratio: float, *, start: int, interval: int) -> int:
    """What the published tool computes: it rounds down, and counts one refresh too few unless interval divides N - start.

    The window that follows is often slower than `ratio` says. For comparison with results of that tool.

    Raises:
        ConfigError: the tool refuses these numbers.
    """
    real("ratio", ratio, 1.0, 2.0)
    whole("interval", interval, 2)
    window = steps - start
    refreshed = window // interval
    reused = window - refreshed
    length = int(blocks * (1 - (steps / ratio - start - refreshed) / reused)) if reused > 0 else 0
    if not 0 < length < blocks:
        raise ConfigError(
            f"ratio={ratio} with steps={steps}, start={start} and interval={interval} needs {length} of {blocks} blocks; "
            f"the published search allows 1 to {blocks - 1}. Use another ratio, or leave --published out to search more "
            "intervals."
        )
    return length


class AttentionWindow(NamedTuple):
    """A setting of `attention_cache`: attentions are reused at the steps s with start < s <= end that are no refresh."""

    start: int
    interval: int
    end: int


def attention_reuses(window: AttentionWindow) -> int:
    """Steps whose attentions are reused: W - floor(W / interval), W = end - start."""
    span = window.end - window.start
    return span - span // window.interval


def attention_skips_needed(steps: int, ratio: float, share: float = 1.0) -> int:
    """m = ceil(N (1 - 1 / ratio) / share): steps whose attentions have to be skipped.

    Args:
        share: of a step's time that attentions take; 1 counts attention calls only.
    """
    return math.ceil(steps * (1 - 1 / ratio) / share - _ROUNDING)


def attention_window(steps: int, skips: int, start: int) -> AttentionWindow | None:
    """The window with the smallest interval that skips at least `skips` steps; None if there is none.

    It ends after whole cycles of a refresh and interval - 1 reuses, and at step N - 3 at the latest.
    """
    last = steps - 3
    for interval in range(2, last - start + 2):
        if attention_reuses(AttentionWindow(start, interval, last)) >= skips:
            cycles = -(-skips // (interval - 1))
            return AttentionWindow(start, interval, min(last, start + interval * cycles))
    return None


def ratio_of_shares(computed: float, share: float) -> float:
    """End-to-end speed-up if a part that takes `share` of the time is computed in `computed` of the calls."""
    return 1 / (1 - share * (1 - computed))
