"""TeaCache: reuse while the accumulated, rescaled change of a cheap signal stays under a threshold.

Source: TeaCache (Liu et al., CVPR 2025, arXiv 2411.19108); LightX2V's `Tea` and `Custom`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch

from mindie_cache.device import Reading
from mindie_cache.ops import relative_l1
from mindie_cache.policies.decision import NOT_FINITE, Decision, Limits, Policy, Signal, relative


class TeaState(NamedTuple):
    """The signal of the `previous` step, the change `accumulated` since the last computed step, reused steps since."""

    previous: torch.Tensor
    accumulated: float = 0.0
    skips: int = 0
    waiting: Reading | None = None


@dataclass(frozen=True, kw_only=True)
class TeaCache(Policy):
    """With d = mean |s_t - s_(t-1)| / mean |s_(t-1)| of the signal s: reuse while the sum of max(0, p(d)) < threshold.

    Args:
        limits: warm-up, last steps, most reused steps in a row.
        threshold: of the sum since the last computed step.
        coefficients: of the polynomial p, the highest power first. It was fitted on a range of d; outside of it p can be
            negative, which would let the sum run away downwards: hence max(0, p).
        shared: one decision for all branches.
        sync: "now" or "lagged": d_(t-1) stands for d_t.
    """

    limits: Limits
    threshold: float
    coefficients: tuple[float, ...]
    shared: bool = True
    sync: str = "now"

    def decide(self, state: TeaState | None, step: int, signal: Signal | None, can_reuse: bool) -> Decision:
        """`signal`: the time embedding, or the first block's modulated input. At most one host read a step."""
        assert signal is not None
        computed = TeaState(signal.own())
        if state is None or state.previous.shape != signal.value.shape:
            return Decision(False, computed, "no data")
        forced = self.limits.forced(step, state.skips)
        if forced and self.sync == "now":
            return Decision(False, computed, forced)
        sums, waiting = self.numbers(signal.ranks, relative_l1(signal.value, state.previous), state.waiting)
        computed = computed._replace(waiting=waiting)
        if forced or sums is None:
            return Decision(False, computed, forced or "no data")
        distance = relative(*sums)
        accumulated = state.accumulated + self.rescaled(distance)
        if not math.isfinite(accumulated):
            return Decision(False, computed, NOT_FINITE)
        if not can_reuse:
            return Decision(False, computed, "no data")
        if accumulated >= self.threshold:
            return Decision(False, computed, "changed")
        return Decision(True, computed._replace(accumulated=accumulated, skips=state.skips + 1), "little change")

    def rescaled(self, distance: float) -> float:
        """max(0, p(distance)); NaN stays NaN."""
        value = reduce(lambda total, coefficient: total * distance + coefficient, self.coefficients, 0.0)
        return value if math.isnan(value) else max(0.0, value)

    def worth_keeping(self, step: int, depth: int) -> bool:
        return not self.limits.is_final(step + 1)
