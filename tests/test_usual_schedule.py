"""The schedule without a recording: its Gram matrix beside a numerical solution, its schedules beside brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from test_plan import error_of, is_even, levels

from mindie_cache.calibration.planning.program import largest_gap
from mindie_cache.calibration.planning.usual import COMPONENTS, FALL, GROWTH, gaussian_gram, usual_schedule


def variances() -> np.ndarray:
    falling = np.array([1 / k**FALL for k in range(1, COMPONENTS + 1)])
    return falling / falling.mean()


def velocities(u: np.ndarray, fine: int = 4000) -> np.ndarray:
    """By Euler steps: given x, noise - data is on average (u - (1 - u) L) / ((1 - u)^2 L + u^2) times x."""
    spread, found = variances(), []
    at, x = 1.0, np.ones(COMPONENTS)
    for level in u[:-1]:
        for target in np.linspace(at, level, fine + 1)[1:] if level < at else []:
            middle = (at + target) / 2  # midpoint rule
            half = x * (1 + (middle - at) * _slope(at, spread))
            x = x + (target - at) * _slope(middle, spread) * half
            at = target
        found.append(_slope(level, spread) * x)
    return np.array(found)


def _slope(u: float, spread: np.ndarray) -> np.ndarray:
    return (u - (1 - u) * spread) / ((1 - u) ** 2 * spread + u**2)


def test_the_gram_matrix_is_that_of_the_flow():
    u = levels(8)
    v = velocities(u)
    assert np.allclose(gaussian_gram(u), v @ v.T, rtol=1e-4)


@pytest.mark.parametrize("budget", [3, 4, 6])
def test_the_schedule_is_the_best_one_without_correction(budget):
    steps, u = 9, levels(9)
    v = velocities(u, 500)
    limit, inner = largest_gap(steps, budget), itertools.combinations(range(1, steps - 1), budget - 2)
    allowed = [s for s in ((0, *c, steps - 1) for c in inner) if max(np.diff(s)) <= limit and is_even(s)]
    assert usual_schedule(steps, budget) == min(allowed, key=lambda s: error_of(v, u, s, 0.0, GROWTH))


@pytest.mark.parametrize("steps", [1, 2, 3, 28, 30, 50, 100])
def test_it_has_the_first_and_the_last_step(steps):
    for budget in {1, 2, max(1, steps // 3), max(1, steps // 2), steps, steps + 5}:
        found = usual_schedule(steps, budget)
        assert (found[0], found[-1]) == (0, steps - 1)
        assert len(found) == min(steps, max(min(2, steps), budget))
