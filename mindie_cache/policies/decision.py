"""What a policy is: its answer, what it may look at, and the limits that every adaptive policy obeys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from mindie_cache.device import Reading
from mindie_cache.distributed import Ranks

SYNCS = ("now", "lagged")
NOT_FINITE = "not finite"  # the reason of a decision by a signal that is NaN or infinite


class Decision(NamedTuple):
    """`reuse`; the policy's next `state`; and a word of `reason` for the report."""

    reuse: bool
    state: Any
    reason: str


class Signal(NamedTuple):
    """The tensor that a policy looks at, and the `ranks` that hold the other parts of it."""

    value: torch.Tensor
    ranks: Ranks

    def own(self) -> torch.Tensor:
        """A copy to keep: the model may write into its own tensor later."""
        return self.value.detach().clone()


class Policy:
    """Decides compute or reuse. Frozen parameters; whatever changes is the `state` value that the engine carries.

    A new lane has the state None. `decide` is asked once per run, branch and step (per call, if `per_call`).
    """

    shared = False  # one decision, taken in the first branch of a step, serves all its branches
    per_call = False  # every call has a decision and a state of its own
    sync = "now"  # "lagged": decide by what was measured a step earlier, so that the host never waits for the device
    reuses = True  # False: computes by design, so that a run without reuse is nothing to warn about

    def of(self, branch: str) -> Policy:
        """The policy of one branch, where branches differ."""
        return self

    def decide(self, state: Any, step: int, signal: Signal | None, can_reuse: bool) -> Decision:
        """Answer for `step`. Without data (`can_reuse` false) the answer is to compute."""
        raise NotImplementedError

    def numbers(
        self, ranks: Ranks, sums: torch.Tensor, waiting: Reading | None
    ) -> tuple[list[float] | None, Reading | None]:
        """The host numbers to decide by, and what waits for the next step: the next state has to carry it.

        "now": `sums` themselves, by one host read. "lagged": what was `waiting`, None if nothing was; `sums` are sent.
        """
        if self.sync == "now":
            return ranks.read(sums), None
        return (waiting.read() if waiting is not None else None), ranks.send(sums)

    def settle(self, states: Sequence[Any], ranks: Ranks) -> Sequence[Any]:
        """`per_call` only: the states of all calls of a branch, before its first decision of a step."""
        return states

    def observe(self, state: Any, step: int, seen: Signal) -> Any:
        """Return the next state after a computed step in which the recipe's probe has `seen` a tensor."""
        return state

    def worth_keeping(self, step: int, depth: int) -> bool:
        """Whether a feature computed at `step` can serve a later step (`depth`: snapshots the predictor uses)."""
        return True

    def last_use(self, step: int) -> bool:
        """Whether it is certain that the step after the reused `step` is computed."""
        return False


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What no measurement can overrule.

    Args:
        steps_count: steps of a run.
        warmup_steps: the first steps, always computed.
        final_steps: the last steps, always computed.
        max_skip_steps: most reused steps in a row; 0 sets no limit.
    """

    steps_count: int
    warmup_steps: int = 1
    final_steps: int = 1
    max_skip_steps: int = 0

    def forced(self, step: int, skips: int) -> str:
        """Why `step` is computed whatever a signal says, after `skips` reused steps in a row; empty if it is not."""
        if step < self.warmup_steps:
            return "warm-up"
        if self.is_final(step):
            return "last step"
        return "limit of skips" if 0 < self.max_skip_steps <= skips else ""

    def is_final(self, step: int) -> bool:
        return step >= self.steps_count - self.final_steps


def relative(difference: float, magnitude: float) -> float:
    """difference / magnitude; nothing that became nothing has not changed, something that came from nothing is NaN."""
    if magnitude:
        return difference / magnitude
    return 0.0 if difference == 0 else math.nan
