"""AdaCache: the faster a block's attention changes, the sooner the next computed step.

Source: AdaCache (Kahatapitiya et al., arXiv 2411.02397); LightX2V's `Ada`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from mindie_cache.device import Reading
from mindie_cache.errors import ParametersInvalid
from mindie_cache.ops import relative_l1
from mindie_cache.policies.decision import NOT_FINITE, Decision, Limits, Policy, Signal, relative


@dataclass(frozen=True, kw_only=True)
class Motion:
    """Motion regularisation: videos that move are computed more often.

    M = ((1 / scale) * sum |g[s:] - g[:-s]| / (sum |g[s:]| + sum |g[:-s]|)) ** power over tokens one latent frame (s =
    `frame_tokens`) apart; the distance is multiplied by M + |gradient * (M - M before) / steps between|, in the window.
    """

    frame_tokens: int
    window: tuple[float, float] = (0.1, 0.9)  # share of the steps, both ends included
    scale: float = 0.385
    power: float = 8.0
    gradient: float = 10.0

    def check(self, probe: torch.Tensor) -> None:
        """Without two frames there is nothing to compare, and nothing would count as no motion."""
        if probe.shape[-2] <= self.frame_tokens:
            raise ParametersInvalid(
                f"frame_tokens={self.frame_tokens}, but the probe has only {probe.shape[-2]} tokens, so there are no two "
                "frames to compare. Set it to the tokens of one latent frame, or motion to false for images."
            )

    def sums(self, probe: torch.Tensor) -> torch.Tensor:
        """``(2,)``: numerator and denominator, over the tokens in the second to last dimension."""
        later, earlier = probe[..., self.frame_tokens :, :].float(), probe[..., : -self.frame_tokens, :].float()
        return torch.stack(((later - earlier).abs().sum(), later.abs().sum() + earlier.abs().sum()))

    def covers(self, step: int, steps_count: int) -> bool:
        return int(self.window[0] * steps_count) <= step <= int(self.window[1] * steps_count)

    def value(self, numerator: float, denominator: float) -> float:
        return (relative(numerator, denominator) / self.scale) ** self.power


class AdaState(NamedTuple):
    """What is kept between steps."""

    probe: torch.Tensor | None = None
    probed: int = -1  # step of the probe
    pending: tuple[Reading, int] | None = None  # sums of its comparison, on their way to the host; steps between
    motion: float = 1.0
    computed: int = -1  # last computed step
    distance: int = 1  # steps from there to the next one
    skips: int = 0  # reused steps in a row


@dataclass(frozen=True, kw_only=True)
class AdaCache(Policy):
    """With g the probe and l the steps since the last computed one: d = (sum |g' - g| / sum |g'|) / l is looked up in the
    codebook, which gives the number of steps to the next computed one.

    Args:
        limits: warm-up, last steps, most reused steps in a row.
        codebook: pairs (d below, steps to the next computed step), ascending.
        otherwise: steps to the next computed step if d is below none of them.
        motion: motion regularisation, or None.
        shared: one decision for all branches, from the probe of the first one.
    """

    limits: Limits
    codebook: tuple[tuple[float, int], ...]
    otherwise: int
    motion: Motion | None = None
    shared: bool = True

    def decide(self, state: AdaState | None, step: int, signal: Signal | None, can_reuse: bool) -> Decision:
        """Reuse until the distance is over. What it reads was sent a computed step earlier: no wait."""
        state, finite = self._measured(state or AdaState())
        reason = self.limits.forced(step, state.skips) or ("" if can_reuse else "no data")
        if not reason and step < state.computed + state.distance:
            return Decision(True, state._replace(skips=state.skips + 1), "codebook")
        reason = reason or ("codebook" if finite else NOT_FINITE)
        return Decision(False, state._replace(computed=step, skips=0), reason)

    def observe(self, state: AdaState | None, step: int, seen: Signal) -> AdaState:
        """`seen`: the gated attention residual of the decisive block, ``(..., tokens, channels)``."""
        state = state or AdaState(computed=step)
        probe = seen.own()
        if self.motion is not None:
            self.motion.check(probe)
        if state.probe is None or state.probe.shape != probe.shape:
            return state._replace(probe=probe, probed=step, pending=None, distance=1, motion=1.0)
        sums = relative_l1(probe, state.probe)
        if self.motion is not None and self.motion.covers(step, self.limits.steps_count):
            sums = torch.cat((sums, self.motion.sums(probe)))
        return state._replace(probe=probe, probed=step, pending=(seen.ranks.send(sums), step - state.probed))

    def _measured(self, state: AdaState) -> tuple[AdaState, bool]:
        """Turn the sums of the last computed step into the distance to the next one."""
        if state.pending is None:
            return state, True
        sums, gap = state.pending
        change, size, *moved = sums.read()
        metric = relative(change, size) / gap
        motion = self.motion.value(*moved) if self.motion is not None and moved else 1.0
        if self.motion is not None:
            metric *= motion + abs(self.motion.gradient * (motion - state.motion) / gap)
        finite = math.isfinite(metric)
        steps = next((steps for below, steps in self.codebook if metric < below), self.otherwise) if finite else 1
        return state._replace(pending=None, distance=steps, motion=motion if finite else 1.0), finite

    def worth_keeping(self, step: int, depth: int) -> bool:
        return not self.limits.is_final(step + 1)
