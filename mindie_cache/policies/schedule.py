"""Schedule: a fixed set of computed steps, from a search, a table or a published rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindie_cache.policies.decision import Decision, Policy


@dataclass(frozen=True)
class Schedule(Policy):
    """Compute at `compute_steps`, at step 0 and at the last `final_steps` of `steps_count` steps; reuse elsewhere.

    A computed step that could not take place (guidance left the branch out) is made up for at the first opportunity.
    Features of steps before `keep_from` are not kept. `reason` is the word for a computed step in reports.
    """

    compute_steps: frozenset[int]
    steps_count: int
    final_steps: int = 1
    keep_from: int = 0
    reason: str = "scheduled"

    def decide(self, state: Any, step: int, signal: Any, can_reuse: bool) -> Decision:
        """`state` is the last computed step."""
        if step in self.compute_steps:
            return Decision(False, step, self.reason)
        if step >= self.steps_count - self.final_steps:
            return Decision(False, step, "last step")
        if not can_reuse:
            return Decision(False, step, "no data")
        if any([state < planned < step for planned in self.compute_steps]):
            return Decision(False, step, "late refresh")
        return Decision(True, state, self.reason)

    def worth_keeping(self, step: int, depth: int) -> bool:
        return self.keep_from <= step < self.steps_count - max(1, self.final_steps)

    def last_use(self, step: int) -> bool:
        following = step + 1
        return following in self.compute_steps or following >= self.steps_count - self.final_steps


@dataclass(frozen=True)
class PerBranch(Policy):
    """Another policy for each branch: `policies` by name; a branch that is not named follows the first one."""

    policies: Mapping[str, Policy]

    def of(self, branch: str) -> Policy:
        return self.policies.get(branch) or next(iter(self.policies.values()))
