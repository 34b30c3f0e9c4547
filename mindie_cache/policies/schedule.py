"""Schedule: a fixed set of computed steps, from an interval, a search, a table or a published rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from mindie_cache.policies.decision import Decision, Policy


def interval(start: int, every: int, stop: int, steps_count: int) -> frozenset[int]:
    """The computed steps of MindIE-SD's two caches: reuse at the steps s with ``start < s < stop`` that are not
    ``start``, ``start + every``, ...; compute at all others."""
    reused = {step for step in range(start + 1, min(stop, steps_count)) if (step - start) % every}
    return frozenset(range(steps_count)) - reused


@dataclass(frozen=True)
class Schedule(Policy):
    """Compute at `compute_steps`, at step 0 and at the last `final_steps` of `steps_count` steps; reuse elsewhere.

    A computed step that could not take place (guidance left the branch out, an outer cache skipped the call) is made up
    for at the first opportunity. Features of steps before `keep_from` are not kept. `reason` is the word for a reused one in
    reports.
    """

    compute_steps: frozenset[int]
    steps_count: int
    final_steps: int = 1
    keep_from: int = 0
    reason: str = "scheduled"

    def decide(self, state: Any, step: int, signal: Any, can_reuse: bool) -> Decision:
        """`state` is the last computed step."""
        if step in self.compute_steps:
            return Decision(False, step, "refresh")
        if step >= self.steps_count - self.final_steps:
            return Decision(False, step, "last step")
        if not can_reuse:
            return Decision(False, step, "no data")
        if self._planned[step] > state:
            return Decision(False, step, "late refresh")
        return Decision(True, state, self.reason)

    def worth_keeping(self, step: int, depth: int) -> bool:
        if not self.keep_from <= step < self._last_reused:
            return False
        # A predictor of several snapshots takes the newest ones that this branch has, also if it misses planned steps.
        return depth > 1 or step not in self.compute_steps or step + 1 not in self.compute_steps

    def last_use(self, step: int) -> bool:
        following = step + 1
        return following in self.compute_steps or following >= self.steps_count - self.final_steps

    @cached_property
    def _planned(self) -> tuple[int, ...]:
        """Of every step the newest one before it that is in `compute_steps`."""
        steps = range(-1, self.steps_count - 1)
        return tuple(accumulate([step if step in self.compute_steps else -1 for step in steps], max))

    @cached_property
    def _last_reused(self) -> int:
        steps = range(1, self.steps_count - self.final_steps)
        return max([step for step in steps if step not in self.compute_steps], default=-1)


@dataclass(frozen=True)
class PerBranch(Policy):
    """Another policy for each branch: `policies` by name; a branch that is not named follows the first one."""

    policies: Mapping[str, Policy]

    def of(self, branch: str) -> Policy:
        return self.policies.get(branch) or next(iter(self.policies.values()))
