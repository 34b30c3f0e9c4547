"""ResidualChange: reuse while a probe, the residual of the first blocks, stays close to what it was.

Source: LightX2V's FirstBlock and DualBlock; the idea is ParaAttention's first-block cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from mindie_cache.device import Reading
from mindie_cache.distributed import Ranks
from mindie_cache.ops import relative_l1
from mindie_cache.policies.decision import NOT_FINITE, Decision, Limits, Policy, Signal, relative


class ResidualState(NamedTuple):
    """The probe that the next one is compared with, and the number of reused steps in a row.

    If the decision lags: the `latest` probe, and what is on its way to the host: how far that is from the reference and
    from the one before it.
    """

    reference: torch.Tensor
    skips: int = 0
    latest: torch.Tensor | None = None
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
        sync: "now", or "lagged": the change up to the step before, plus one more step like that one.
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
            return Decision(False, ResidualState(probe, latest=probe if self.sync == "lagged" else None), "no data")
        change = self._change(probe, state, signal.ranks)
        forced = self.limits.forced(step, state.skips) or ("" if can_reuse and change is not None else "no data")
        if change is not None and not math.isfinite(change):
            reuse, reason = False, NOT_FINITE
        elif change is None or forced or change >= self.threshold:
            reuse, reason = False, forced or "changed"
        else:
            reuse, reason = True, "little change"
        reference = state.reference if reuse and self.compare == "computed" else probe
        following = ResidualState(reference, state.skips + 1 if reuse else 0)
        if state.latest is not None:
            sums = torch.cat((relative_l1(probe, reference), relative_l1(probe, state.latest)))
            following = following._replace(latest=probe, waiting=signal.ranks.send(sums))
        return Decision(reuse, following, reason)

    def _change(self, probe: torch.Tensor, state: ResidualState, ranks: Ranks) -> float | None:
        """The change that decides; None if nothing is known yet."""
        if state.latest is None:
            return relative(*ranks.read(relative_l1(probe, state.reference)))
        if state.waiting is None:
            return None
        change, size, step, size_before = state.waiting.read()
        return relative(step, size_before) + (relative(change, size) if self.compare == "computed" else 0.0)

    def worth_keeping(self, step: int, depth: int) -> bool:
        return not self.limits.is_final(step + 1)
