"""Adastep: skip a whole step while the latents move evenly (their third difference is small).

Source: MindIE's Adastep for CogVideoX, after AdaptiveDiffusion (Ye et al., NeurIPS 2024, arXiv 2410.09873).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from mindie_cache.device import Reading
from mindie_cache.distributed import Ranks
from mindie_cache.ops import relative_l1
from mindie_cache.policies.decision import NOT_FINITE, Decision, Limits, Policy, Signal


class AdastepState(NamedTuple):
    """`latents` of the last step; the newest step lengths `lengths` (up to 3); how many `estimates` were made; how many
    `skips` in a row were wished for."""

    latents: torch.Tensor
    lengths: tuple[float, ...] = ()
    estimates: int = 0
    skips: int = 0
    waiting: Reading | None = None


_ALONE = Ranks()


@dataclass(frozen=True, kw_only=True)
class Adastep(Policy):
    """With d_t = mean |x_t - x_(t-1)| over the latents: skip step t if |(d_t + d_(t-2)) / 2 - d_(t-1)| <= tau d_(t-1).

    Args:
        limits: warm-up, last steps, most skipped steps in a row (recommended 3 to 4).
        skip_thr: tau before the first estimate (recommended 0.01 to 0.015; 0.006 and 0.009 for CogVideoX 5b and 2b).
        decay_ratio: tau is multiplied by this at every estimate (recommended 0.95 to 0.99).
        relative: divide each d_t by mean |x_(t-1)|.
        parity: the original's first step length, which is measured from zero instead of from the first latents.
        sync: "now" or "lagged": d_(t-1) stands for d_t.
    """

    limits: Limits
    skip_thr: float
    decay_ratio: float
    relative: bool = False
    parity: bool = False
    sync: str = "now"
    shared = True

    def decide(self, state: AdastepState | None, step: int, signal: Signal | None, can_reuse: bool) -> Decision:
        """`signal`: the latents that the model is called with at `step`. All ranks must wish a skip."""
        assert signal is not None
        judged = self._judge(state, step, signal, can_reuse)
        if self.sync == "lagged":  # by the sums of all ranks, so that they agree
            return judged
        if not signal.ranks.agree(judged.reuse, signal.value.device) and judged.reuse:
            return Decision(False, judged.state._replace(skips=0), "ranks disagree")
        return judged

    def _judge(self, state: AdastepState | None, step: int, signal: Signal, can_reuse: bool) -> Decision:
        if state is None or state.latents.shape != signal.value.shape:
            return Decision(False, AdastepState(signal.own()), "no data")
        length, waiting = self._length(signal, state)
        state = state._replace(latents=signal.own(), waiting=waiting)
        if length is None:
            return Decision(False, state, "warm-up")
        if not math.isfinite(length):
            return Decision(False, AdastepState(state.latents, waiting=waiting), NOT_FINITE)
        state = state._replace(lengths=(*state.lengths[-2:], length))
        if len(state.lengths) < 3:
            return Decision(False, state, "warm-up")
        oldest, middle, newest = state.lengths
        estimates = state.estimates + 1
        threshold = self.skip_thr * self.decay_ratio**estimates
        even = abs((newest + oldest) / 2 - middle) <= middle * threshold
        forced = self.limits.forced(step, state.skips) or ("" if can_reuse else "no data")
        state = state._replace(estimates=estimates, skips=state.skips + 1 if even and not forced else 0)
        return Decision(even and not forced, state, forced or "even" if even else "uneven")

    def _length(self, signal: Signal, state: AdastepState) -> tuple[float | None, Reading | None]:
        """d of the step that is measured, if one is, and the numbers under way."""
        latents = signal.value
        first_of_original = self.parity and not state.lengths
        sums = relative_l1(latents, torch.zeros_like(latents) if first_of_original else state.latents)
        ranks = signal.ranks if self.sync == "lagged" else _ALONE  # "now": the ranks vote instead
        numbers, waiting = self.numbers(ranks, sums, state.waiting)
        if numbers is None:
            return None, waiting
        difference, magnitude = numbers
        if self.relative:
            return (difference / magnitude if magnitude else math.nan), waiting
        return difference / (latents.numel() * ranks.size), waiting

    def worth_keeping(self, step: int, depth: int) -> bool:
        return step < self.limits.steps_count - 1
