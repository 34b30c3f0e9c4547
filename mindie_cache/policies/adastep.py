"""Adastep: skip a whole step while the latents move evenly (their third difference is small).

Source: MindIE's Adastep for CogVideoX, after AdaptiveDiffusion (Ye et al., NeurIPS 2024, arXiv 2410.09873).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from mindie_cache.ops import relative_l1
from mindie_cache.policies.decision import Decision


class AdastepState(NamedTuple):
    """`latents` of the last step; the newest step lengths `lengths` (up to 3); how many `estimates` were made; how many
    `skips` in a row were wished for."""

    latents: torch.Tensor
    lengths: tuple[float, ...] = ()
    estimates: int = 0
    skips: int = 0


@dataclass(frozen=True)
class Adastep:
    """With d_t = mean |x_t - x_(t-1)| over the latents: skip step t if |(d_t + d_(t-2)) / 2 - d_(t-1)| <= tau d_(t-1).

    Args:
        skip_thr: tau before the first estimate (recommended 0.01 to 0.015; 0.006 and 0.009 for CogVideoX 5b and 2b).
        max_skip_steps: at most this many skipped steps in a row (recommended 3 to 4); 0 sets no limit.
        decay_ratio: tau is multiplied by this at every estimate (recommended 0.95 to 0.99).
        steps_count: steps of a run; the last one is always computed.
        relative: divide each d_t by mean |x_(t-1)|.
        parity: the original's decisions: its first step length is measured from zero instead of from the first latents, a
            skip is possible from its first estimate on, and the last step is not forced.
    """

    skip_thr: float
    max_skip_steps: int
    decay_ratio: float
    steps_count: int
    relative: bool = False
    parity: bool = False
    shared = True
    warmup_steps = 4

    def decide(self, state: AdastepState | None, step: int, signal: torch.Tensor, can_reuse: bool) -> Decision:
        """`signal`: the latents that the model is called with at `step`. One host read a step."""
        if state is None:
            return Decision(False, AdastepState(signal.detach().clone()), "no data")
        length = self._length(signal, state)
        if not math.isfinite(length):
            return Decision(False, AdastepState(signal.detach().clone()), "not finite")
        state = state._replace(latents=signal.detach().clone(), lengths=(*state.lengths[-2:], length))
        if len(state.lengths) < 3:
            return Decision(False, state, "warm-up")
        oldest, middle, newest = state.lengths
        estimates = state.estimates + 1
        threshold = self.skip_thr * self.decay_ratio**estimates
        capped = 0 < self.max_skip_steps <= state.skips
        even = abs((newest + oldest) / 2 - middle) <= middle * threshold
        reason = "limit of skips" if capped else "even" if even else "uneven"
        if reason == "even" and not self.parity:
            reason = self._forced(step) or reason
        skip = reason == "even"
        state = state._replace(estimates=estimates, skips=state.skips + 1 if skip else 0)
        if skip and not can_reuse:
            return Decision(False, state, "no data")
        return Decision(skip, state, reason)

    def _forced(self, step: int) -> str:
        if step < self.warmup_steps:
            return "warm-up"
        return "last step" if step >= self.steps_count - 1 else ""

    def _length(self, latents: torch.Tensor, state: AdastepState) -> float:
        first_of_original = self.parity and not state.lengths
        previous = torch.zeros_like(latents) if first_of_original else state.latents
        difference, magnitude = relative_l1(latents, previous).tolist()
        if self.relative:
            return difference / magnitude if magnitude else math.nan
        return difference / latents.numel()

    def worth_keeping(self, step: int, depth: int) -> bool:
        return step < self.steps_count - 1

    def last_use(self, step: int) -> bool:
        return False  # the next decision needs the next latents
