"""A schedule without a recording: planned for data that is known in closed form. The answer where nothing was measured.

For Gaussian data the probability flow can be solved (B. Wang and J. Vastola, arXiv 2311.10892, and "The Unreasonable
Effectiveness of Gaussian Score Approximation for Diffusion Models", 2024, who find that the first steps of trained models
follow it). With x = (1 - u) data + u noise, a principal component of variance L goes from noise to data as
s = sqrt((1 - u)^2 L + u^2), and the velocity is its derivative, s' = (u - (1 - u) L) / s. So the Gram matrix of the
velocities is the sum of s'(u) s'(w) over the components, and the program plans on it as on a recording.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindie_cache.calibration.planning.program import Program

SHIFT = 3.0  # of the noise levels, where the sampler's are not known
GROWTH = 5.0  # as in plans from recordings
COMPONENTS, FALL = 1000, 1.5  # their variances fall as 1 / k^1.5, and are 1 on average


def gaussian_gram(sigmas: NDArray[Any]) -> NDArray[Any]:
    """``(steps, steps)``: inner products of the velocities for Gaussian data whose spectrum falls as a power.

    Args:
        sigmas: ``(steps + 1,)`` noise levels from 1 to 0.
    """
    variances = np.arange(1.0, COMPONENTS + 1) ** -FALL
    variances *= COMPONENTS / variances.sum()
    u = np.asarray(sigmas, float)[:-1, None]
    velocities = (u - (1 - u) * variances) / np.sqrt((1 - u) ** 2 * variances + u**2)
    return velocities @ velocities.T


@lru_cache(maxsize=64)
def usual_schedule(steps: int, budget: int) -> tuple[int, ...]:
    """The computed steps, `budget` of them: the best schedule of a line without correction."""
    if steps < 2 or budget >= steps:
        return tuple(range(steps))
    even = np.linspace(1, 0, steps + 1)
    sigmas = SHIFT * even / (1 + (SHIFT - 1) * even)
    budget = max(2, budget)
    return Program(gaussian_gram(sigmas), sigmas, gain=0.0, growth=GROWTH).solve([budget])[budget].steps
