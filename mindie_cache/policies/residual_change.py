"""ResidualChange: reuse while a probe, the residual of the first blocks, stays close to what it was.

Source: LightX2V's FirstBlock and DualBlock; the idea is ParaAttention's first-block cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from mindie_cache.device import Reading
from mindie_cache.ops import relative_l1
from mindie_cache.policies.decision import Decision, Limits, Policy, Signal, relative


class ResidualState(NamedTuple):
    """The probe that the next one is compared with, and the number of reused steps in a row."""

    reference: torch.Tensor
    skips: int = 0
    waiting: Reading | None = None


@dataclass(frozen=True, kw_only=True)
class ResidualChange(Policy):
    """With a the reference and b the probe, every `downsample`-th channel: reuse if mean |a - b| / mean |a| < threshold.

    Args:
        limits: warm-up, last steps, most reused steps in a row.
        threshold: of the relative change.
        downsample: of the last dimension.
        compare: "computed": with the last computed step, so that the drift is bounded; "previous": with the previous step,
            as LightX2V does.
        shared: one decision for all branches.
        sync: "now" or "lagged": the previous step's change stands for this one's.
    """

    limits: Limits
    threshold: float
    downsample: int = 1
    compare: str = "computed"
    shared: bool = True
    sync: str = "now"

    def decide(self, state: ResidualState | None, step: int, signal: Signal | None, can_reuse: bool) -> Decision:
        """`signal`: the probe of this step. One host read a step."""
        assert signal is not None
        probe = signal.value[..., :: self.downsample].detach().clone()
        if state is None or state.reference.shape != probe.shape:
            return Decision(False, ResidualState(probe), "no data")
        sums, waiting = self.numbers(signal.ranks, relative_l1(probe, state.reference), state.waiting)
        computed = ResidualState(probe, waiting=waiting)
        if sums is None:
            return Decision(False, computed, "no data")
        change = relative(*sums)
        forced = self.limits.forced(step, state.skips) or ("" if can_reuse else "no data")
        if not math.isfinite(change):
            return Decision(False, computed, "not finite")
        if forced or change >= self.threshold:
            return Decision(False, computed, forced or "changed")
        reference = probe if self.compare == "previous" else state.reference
        return Decision(True, ResidualState(reference, state.skips + 1, waiting), "little change")

    def worth_keeping(self, step: int, depth: int) -> bool:
        return not self.limits.is_final(step + 1)
