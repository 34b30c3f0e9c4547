"""Recording: the inner products of the guided velocities of uncached generations. Nothing else of them is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mindie_cache.errors import ModelExecError, ParametersInvalid


@dataclass(frozen=True)
class Recording:
    """What the planner needs.

    Args:
        gram: ``(steps, steps)``: inner products of the velocities, summed over samples.
        sigmas: ``(steps + 1,)``: noise levels, falling.
        energy: sum of the squares of the final latents, over samples.
        samples: how many generations.
    """

    gram: np.ndarray
    sigmas: np.ndarray
    energy: float
    samples: int

    def __add__(self, other: Recording) -> Recording:
        """Both together: plans for several prompts are made from the sum."""
        if self.sigmas.shape != other.sigmas.shape or not np.allclose(self.sigmas, other.sigmas, atol=1e-6):
            raise ParametersInvalid("Recordings with different noise levels cannot be added: use the same steps and shift.")
        return Recording(self.gram + other.gram, self.sigmas, self.energy + other.energy, self.samples + other.samples)


class Recorder:
    """Sees the latents of one uncached generation, or of a batch of them, step by step, as a sampler's callback.

    Euler steps of flow matching: the guided velocity of step t is (x_(t+1) - x_t) / (sigma_(t+1) - sigma_t).
    Velocities are kept on the host in float32 until the generation is over: steps times the size of the latents.

    Args:
        sigmas: noise levels of the sampler, falling, the last one included.
    """

    def __init__(self, sigmas: Sequence[float] | Tensor):
        self.sigmas = np.asarray(torch.as_tensor(sigmas).double())
        self._latents: Tensor | None = None
        self._velocities: list[Tensor] = []

    def start(self, latents: Tensor) -> None:
        """The noise that the generation begins with."""
        self._latents, self._velocities = latents.detach().clone(), []

    def step(self, step: int, latents: Tensor) -> None:
        """The latents after step `step`, from 0."""
        if self._latents is None or step != len(self._velocities):
            raise ParametersInvalid(
                f"Step {step} was recorded after {len(self._velocities)} steps. Call start(noise) first, then step(0, ...), "
                "step(1, ...), one after another."
            )
        length = float(self.sigmas[step + 1] - self.sigmas[step])
        self._velocities.append(((latents.float() - self._latents.float()) / length).cpu().flatten())
        self._latents = latents.detach().clone()

    def result(self) -> Recording:
        """The Gram matrix, in float64."""
        steps = len(self.sigmas) - 1
        if len(self._velocities) != steps or self._latents is None:
            raise ParametersInvalid(f"{len(self._velocities)} of {steps} steps were recorded. Let the generation finish.")
        gram = np.empty((steps, steps))
        wide = [velocity.double() for velocity in self._velocities]
        for row, velocity in enumerate(wide):
            for column in range(row + 1):
                gram[row, column] = gram[column, row] = float(torch.dot(velocity, wide[column]))
        energy = float(self._latents.double().square().sum())
        if not (np.isfinite(gram).all() and np.isfinite(energy)):
            raise ModelExecError("The recorded generation has NaN or infinite numbers. Look for overflow, e.g. in fp16.")
        return Recording(gram, self.sigmas, energy, int(self._latents.shape[0]))
