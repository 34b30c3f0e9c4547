"""SeaCache: TeaCache's sum, of a signal from which the noise of its step was filtered first.

Source: SeaCache (Chung et al., CVPR 2026, arXiv 2602.18993) and its code for Wan2.1; the response axis by axis as
diffusers 0.42.1 has it (`SeaCacheConfig`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from mindie_cache.errors import ParametersInvalid
from mindie_cache.ops import axis_filter
from mindie_cache.policies.decision import Decision, Signal
from mindie_cache.policies.teacache import TeaCache, TeaState

NOISIEST = 1 - 1e-6  # sigma = 1 has no signal at all: the limit is the mean alone


@dataclass(frozen=True, kw_only=True)
class SeaCache(TeaCache):
    """TeaCache on what a Wiener filter takes for content at the noise level of the step.

    In x = (1 - sigma) content + sigma noise, with white noise and content of the power |f|^-b, the best linear estimate of
    the content multiplies the frequency f by (1 - sigma) / ((1 - sigma)^2 + sigma^2 |f|^b). It is taken for each axis of the
    grid, and scaled to the mean 1 over the frequencies so that steps can be compared. Early only the slowest frequencies
    count, late all of them.

    Args:
        sigmas: noise level of each step, from 0 to 1.
        exponent: b, of the power of content over frequency.
        grid: the axes that the tokens of the signal ``(..., tokens, channels)`` are flattened from, the last one the
            fastest; None: the signal has them itself, ``(batch, channels, *grid)``.
    """

    coefficients: tuple[float, ...] = (1.0, 0.0)
    sigmas: tuple[float, ...]
    exponent: float
    grid: tuple[int, ...] | None = None

    def decide(self, state: TeaState | None, step: int, signal: Signal | None, can_reuse: bool) -> Decision:
        """`signal`: the first block's modulated input, or the latents. At most one host read a step."""
        assert signal is not None
        return super().decide(state, step, signal._replace(value=self.filtered(signal, step)), can_reuse)

    def filtered(self, signal: Signal, step: int) -> torch.Tensor:
        """What `signal` shows of the content, on its grid; of all ranks, if each of them has a part of the tokens."""
        value, axes = self._on_grid(signal)
        sigma = min(self.sigmas[min(step, len(self.sigmas) - 1)], NOISIEST)

        def gain(frequencies: torch.Tensor) -> torch.Tensor:
            passed = (1 - sigma) ** 2 / ((1 - sigma) ** 2 + sigma**2 * frequencies**self.exponent)
            return passed / passed.mean()

        return axis_filter(value, gain, axes)

    def _on_grid(self, signal: Signal) -> tuple[torch.Tensor, range]:
        """The signal, and its dimensions that are axes of the grid."""
        value = signal.value.detach()
        if self.grid is None:
            if value.dim() < 3:
                raise ParametersInvalid(
                    f"The latents have the shape {tuple(value.shape)}, but their grid is to be filtered: pass (batch, "
                    "channels, height, width) or (batch, channels, frames, height, width)."
                )
            return value, range(2, value.dim())
        tokens, wanted = value.shape[-2] if value.dim() > 1 else 0, math.prod(self.grid)
        if tokens != wanted and tokens * signal.ranks.size == wanted:
            value, tokens = signal.ranks.join(value, -2), wanted
        if tokens != wanted:
            shared = f" on each of {signal.ranks.size} ranks" if signal.ranks.size > 1 else ""
            raise ParametersInvalid(
                f"grid={self.grid} has {wanted} tokens, but the signal is {tuple(value.shape)}: {tokens} tokens{shared}. "
                "Set grid to the latents' (frames, height, width), or (height, width), divided by the patch size."
            )
        return value.unflatten(-2, self.grid), range(-1 - len(self.grid), -1)
