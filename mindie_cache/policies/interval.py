"""Interval: compute every k-th step of a window, reuse between. The rule of MindIE-SD's two caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mindie_cache.policies.decision import Decision, Policy


@dataclass(frozen=True)
class Interval(Policy):
    """Refresh at steps `start`, `start + interval`, ...; reuse at the other steps s with `start < s < stop`.

    A refresh that could not take place (an outer cache skipped the call, guidance left the branch out) is made up for at
    the first opportunity. Source: MindIE-SD, cache_agent.
    """

    start: int
    interval: int
    stop: int

    def decide(self, state: Any, step: int, signal: Any, can_reuse: bool) -> Decision:
        """`state` is the last computed step."""
        if not self.start < step < self.stop:
            return Decision(False, step, "outside the window")
        refresh = step - (step - self.start) % self.interval
        if step == refresh:
            return Decision(False, step, "refresh")
        if not can_reuse:
            return Decision(False, step, "no data")
        if state < refresh:
            return Decision(False, step, "late refresh")
        return Decision(True, state, "interval")

    def worth_keeping(self, step: int, depth: int) -> bool:
        return step < self.stop - 1 and (depth > 1 or step >= self.start)

    def last_use(self, step: int) -> bool:
        return step + 1 >= self.stop or (step + 1 - self.start) % self.interval == 0
