"""Policies: compute or reuse, decided once per run, branch and step. They never touch kept features."""

from __future__ import annotations

from typing import Any, Protocol

from mindie_cache.policies.adastep import Adastep
from mindie_cache.policies.decision import Decision
from mindie_cache.policies.interval import Interval
from mindie_cache.policies.schedule import Schedule


class Policy(Protocol):
    """Frozen parameters; whatever changes is the `state` value that the engine carries (None in a new lane)."""

    @property
    def shared(self) -> bool:
        """Whether one decision, taken from data, serves all branches of a step (and ranks agree on it)."""
        ...

    def decide(self, state: Any, step: int, signal: Any, can_reuse: bool) -> Decision: ...

    def worth_keeping(self, step: int, depth: int) -> bool:
        """Whether a feature computed at `step` can serve a later step (`depth`: snapshots the predictor uses)."""
        ...

    def last_use(self, step: int) -> bool:
        """Whether it is certain that the step after the reused `step` is computed."""
        ...


__all__ = ["Adastep", "Decision", "Interval", "Policy", "Schedule"]
