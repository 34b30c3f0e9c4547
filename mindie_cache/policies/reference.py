"""Reference: the branch that others are predicted from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mindie_cache.policies.decision import Decision, Policy


@dataclass(frozen=True)
class Reference(Policy):
    """Compute every step; what it returns in the steps of `[start, stop)` is there for the other branches."""

    start: int
    stop: int
    reuses = False

    def decide(self, state: Any, step: int, signal: Any, can_reuse: bool) -> Decision:
        return Decision(False, None, "reference")

    def worth_keeping(self, step: int, depth: int) -> bool:
        return self.start <= step < self.stop
