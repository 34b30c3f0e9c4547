"""DynamicBlock: each block by itself is reused while its input stays close to what it was.

Source: LightX2V's DynamicBlock.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from mindie_cache.device import Reading
from mindie_cache.distributed import Ranks
from mindie_cache.ops import relative_l1
from mindie_cache.policies.decision import NOT_FINITE, Decision, Limits, Policy, Signal, relative


class BlockState(NamedTuple):
    """The block's input of the `previous` step; `sums` of the comparison with the one before, on the device or on their way
    to the host until they are `settled`; the distances `accumulated` since the last computed step; reused steps in a row."""

    previous: torch.Tensor
    sums: torch.Tensor | Reading | None = None
    settled: float | None = None
    accumulated: float = 0.0
    skips: int = 0

    def settle(self, numbers: Iterator[float]) -> BlockState:
        """With the next two of `numbers` if its sums are among them."""
        if self.sums is None:
            return self
        change, size = self.sums.read() if isinstance(self.sums, Reading) else (next(numbers), next(numbers))
        return self._replace(sums=None, settled=relative(change, size))


@dataclass(frozen=True, kw_only=True)
class DynamicBlock(Policy):
    """With d_t = mean |x_t - x_(t-1)| / mean |x_(t-1)| of a block's input x, every `downsample`-th channel: reuse the
    block's residual while the sum of d since its last computed step is below the threshold.

    To look at this step's input before every block would stop the device once a block. Therefore d_t is estimated by
    d_(t-1), and those of all blocks are read together, once a step, by `settle`.

    Args:
        limits: warm-up, last steps, most reused steps in a row.
        threshold: of the sum.
        downsample: of the last dimension.
        parity: LightX2V's rule: reuse if this step's d_t is below the threshold. One host read per block, and the drift is
            not bounded.
        sync: "now": the distances of all blocks are read together, at the next step; "lagged": each is sent at once, so
            that nothing waits. The decisions are the same.
    """

    limits: Limits
    threshold: float
    downsample: int = 1
    parity: bool = False
    sync: str = "now"
    per_call = True

    def settle(self, states: Sequence[BlockState | None], ranks: Ranks) -> list[BlockState | None]:
        """Read the distances of all blocks of a branch: one host read, or none if they were sent."""
        waiting = [state.sums for state in states if state is not None and isinstance(state.sums, torch.Tensor)]
        numbers = iter(ranks.read(torch.cat(waiting)) if waiting else ())
        return [state and state.settle(numbers) for state in states]

    def decide(self, state: BlockState | None, step: int, signal: Signal | None, can_reuse: bool) -> Decision:
        """`signal`: the block's input."""
        assert signal is not None
        probe = signal.value[..., :: self.downsample].detach().clone()
        if state is None or state.previous.shape != probe.shape:
            return Decision(False, BlockState(probe), "no data")
        measured = relative_l1(probe, state.previous)
        sums = None if self.parity else measured if self.sync == "now" else signal.ranks.send(measured)
        if self.parity:
            drift, accumulated = relative(*signal.ranks.read(measured)), 0.0
        elif state.settled is None:
            return Decision(False, BlockState(probe, sums), "no data")
        else:
            accumulated = state.accumulated + state.settled if state.skips else 0.0
            drift = accumulated + state.settled
        forced = self.limits.forced(step, state.skips) or ("" if can_reuse else "no data")
        if not forced and not math.isfinite(drift):
            return Decision(False, BlockState(probe, sums), NOT_FINITE)
        if forced or drift >= self.threshold:
            return Decision(False, BlockState(probe, sums), forced or "changed")
        return Decision(True, BlockState(probe, sums, None, accumulated, state.skips + 1), "little change")

    def worth_keeping(self, step: int, depth: int) -> bool:
        return not self.limits.is_final(step + 1)
