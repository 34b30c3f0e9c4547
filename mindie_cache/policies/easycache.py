"""EasyCache: reuse while the change of the output that its recent rate predicts stays under a threshold. No calibration.

Source: EasyCache (Zhou et al., arXiv 2507.02860).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from mindie_cache.device import Reading
from mindie_cache.ops import relative_l1
from mindie_cache.policies.decision import NOT_FINITE, Decision, Limits, Policy, Signal, relative


class EasyState(NamedTuple):
    """Model input of the previous step; input and output of the last computed step; the sums of its comparison with the
    one before, still on the device; `rate` k; sum |output|; the change `accumulated`; reused steps in a row."""

    previous: torch.Tensor
    given: torch.Tensor | None = None
    output: torch.Tensor | None = None
    sums: torch.Tensor | None = None
    rate: float = 0.0
    size: float = -1.0  # not known yet
    accumulated: float = 0.0
    skips: int = 0
    waiting: Reading | None = None


@dataclass(frozen=True, kw_only=True)
class EasyCache(Policy):
    """With k = mean |v - v'| / mean |x - x'| between the last two computed steps: reuse while the sum of
    k mean |x_t - x_(t-1)| / mean |v| is below the threshold.

    Args:
        limits: warm-up, last steps, most reused steps in a row.
        threshold: of the sum since the last computed step (published: 0.05 for Wan, 0.025 for HunyuanVideo).
        shared: one decision for all branches.
        sync: "now" or "lagged": what was measured a step earlier stands for this step's numbers.
    """

    limits: Limits
    threshold: float
    shared: bool = True
    sync: str = "now"

    def decide(self, state: EasyState | None, step: int, signal: Signal | None, can_reuse: bool) -> Decision:
        """`signal`: the model's input x. One host read a step."""
        assert signal is not None
        if state is None or state.previous.shape != signal.value.shape:
            return Decision(False, EasyState(signal.own()), "no data")
        sums = relative_l1(signal.value, state.previous)[:1]
        sums = sums if state.sums is None else torch.cat((sums, state.sums))
        numbers, waiting = self.numbers(signal.ranks, sums, state.waiting)
        state = state._replace(previous=signal.own(), sums=None, waiting=waiting)
        if numbers is None:
            return Decision(False, state._replace(accumulated=0.0, skips=0), "no data")
        moved, *rates = numbers
        if rates:
            output_change, input_change, size = rates
            state = state._replace(rate=relative(output_change, input_change), size=size)
        predicted = state.accumulated + (relative(state.rate * moved, state.size) if moved else 0.0)
        forced = self.limits.forced(step, state.skips) or ("" if can_reuse else "no data")
        forced = forced or ("warm-up" if state.size < 0 else "")  # the rate needs two computed steps
        computed = state._replace(accumulated=0.0, skips=0)
        if not forced and not math.isfinite(predicted):
            return Decision(False, computed, NOT_FINITE)
        if forced or predicted >= self.threshold:
            return Decision(False, computed, forced or "changed")
        return Decision(True, state._replace(accumulated=predicted, skips=state.skips + 1), "little change")

    def observe(self, state: EasyState, step: int, seen: Signal) -> EasyState:
        """`seen`: the model's output v."""
        output, sums = seen.own(), None
        if state.given is not None and state.output is not None and state.output.shape == output.shape:
            changed, moved = relative_l1(output, state.output), relative_l1(state.previous, state.given)
            sums = torch.stack((changed[0], moved[0], output.float().abs().sum()))
        return state._replace(given=state.previous, output=output, sums=sums)

    def worth_keeping(self, step: int, depth: int) -> bool:
        return not self.limits.is_final(step + 1)
