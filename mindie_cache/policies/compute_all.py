"""ComputeAll: every step is computed and its feature kept, to be measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mindie_cache.policies.decision import Decision, Policy


@dataclass(frozen=True)
class ComputeAll(Policy):
    """Never reuses."""

    reuses = False

    def decide(self, state: Any, step: int, signal: Any, can_reuse: bool) -> Decision:
        return Decision(False, None, "calibration")
