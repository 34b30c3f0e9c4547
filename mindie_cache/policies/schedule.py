"""Schedule: a fixed set of computed steps, from a search or a published list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mindie_cache.policies.decision import Decision


@dataclass(frozen=True)
class Schedule:
    """Compute at `compute_steps`, at step 0 and at the last of `steps_count` steps; reuse elsewhere.

    A computed step that could not take place (guidance left the branch out) is made up for at the first opportunity.
    """

    compute_steps: frozenset[int]
    steps_count: int
    shared = False

    def decide(self, state: Any, step: int, signal: Any, can_reuse: bool) -> Decision:
        """`state` is the last computed step."""
        if step in self.compute_steps:
            return Decision(False, step, "scheduled")
        if step >= self.steps_count - 1:
            return Decision(False, step, "last step")
        if not can_reuse:
            return Decision(False, step, "no data")
        if any([state < planned < step for planned in self.compute_steps]):
            return Decision(False, step, "late refresh")
        return Decision(True, state, "scheduled")

    def worth_keeping(self, step: int, depth: int) -> bool:
        return step < self.steps_count - 1

    def last_use(self, step: int) -> bool:
        return step + 1 in self.compute_steps or step + 1 >= self.steps_count - 1
