"""Which steps to compute: the exact dynamic program over gaps, for every number of computed steps.

A skipped step t between the computed steps i and j is estimated by a line in sigma through the velocities of i and of p, the
computed step before i. The signed error that a gap leaves in the latents is then linear in the velocities of an uncached
generation, and its square a quadratic form in their Gram matrix K. All sums over a gap are differences of prefix sums, so
that the cost of any gap (p, i, j) takes a fixed number of operations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindie_cache.errors import ParametersInvalid

Array = NDArray[Any]
GAP_FACTOR = 1.3  # of the mean gap: the largest one


@dataclass(frozen=True)
class Schedule:
    """The computed `steps` and the squared error of the latents, summed over prompts, that is `predicted` for them."""

    steps: tuple[int, ...]
    predicted: float


def largest_gap(steps_count: int, budget: int, factor: float = GAP_FACTOR) -> int:
    """How far the next computed step may be: a little more than on average."""
    return max(math.ceil(factor * steps_count / budget), math.ceil((steps_count - 1) / max(1, budget - 1)))


class Program:
    """The dynamic program of one recording.

    Args:
        gram: ``(steps, steps)`` inner products of the guided velocities, summed over prompts.
        sigmas: ``(steps + 1,)`` noise levels of the sampler, falling, the last one included.
        gain: of the correction at a computed step after a gap; 0: none. The last step corrects nothing.
        growth: an error that is made while the share of noise is s counts exp(growth * (s - 0.5)) fold, because the steps
            that follow make it larger or smaller.
    """

    def __init__(self, gram: Array, sigmas: Array, gain: float = 1.0, growth: float = 0.0):
        self.gram, self.sigmas = np.asarray(gram, float), np.asarray(sigmas, float)
        self.gain = gain
        self.steps_count = len(self.sigmas) - 1
        _check(self.gram, self.sigmas)
        share = self.sigmas if self.sigmas[0] <= 1 else self.sigmas / (1 + self.sigmas)
        self._sums = _Sums(self.gram, self.sigmas, np.exp(growth * (share - 0.5)))

    def solve(self, budgets: list[int] | None = None, factor: float = GAP_FACTOR) -> dict[int, Schedule]:
        """The best schedule for each number of computed steps, by default for all of them from 2 on.

        The first and the last step are always computed, and no gap is longer than `largest_gap`.
        """
        wanted = budgets if budgets is not None else list(range(2, self.steps_count + 1))
        by_limit: dict[int, list[int]] = {}
        for budget in wanted:
            if not 2 <= budget <= self.steps_count:
                raise ParametersInvalid(
                    f"budget={budget}: of {self.steps_count} steps at least 2 are computed, the first and the last, and at "
                    f"most all. Use 2 to {self.steps_count}."
                )
            by_limit.setdefault(min(largest_gap(self.steps_count, budget, factor), self.steps_count - 1), []).append(budget)
        found: dict[int, Schedule] = {}
        for limit, some in by_limit.items():
            found.update(self._solve(some, limit))
        return dict(sorted(found.items()))

    def within(self, limit: int) -> dict[int, Schedule]:
        """The best schedule for each number of computed steps that has one whose gaps are at most `limit`."""
        return self._solve(list(range(2, self.steps_count + 1)), min(limit, self.steps_count - 1))

    def cost(self, schedule: tuple[int, ...]) -> float:
        """The predicted squared error of any schedule that begins with step 0."""
        total, before = 0.0, -1
        ends = (*schedule[1:], self.steps_count)
        for here, following in zip(schedule, ends, strict=True):
            total += float(self._sums.costs(np.array([before]), np.array([here]), np.array([following]), self.gain)[0])
            before = here
        return total

    def _solve(self, budgets: list[int], limit: int) -> dict[int, Schedule]:
        """`best[j, d]`: least cost with j computed and the computed step before it d steps earlier; one round a step."""
        count = self.steps_count
        costs = self._table(limit)
        best = np.full((count, limit + 1), np.inf)
        reached = np.arange(1, limit + 1)
        reached = reached[reached < count]
        best[reached, reached] = self._sums.costs(np.full(len(reached), -1), np.zeros(len(reached), int), reached, self.gain)
        choices: list[Array] = []
        found: dict[int, Schedule] = {}
        for computed in range(2, max(budgets) + 1):
            if computed in budgets and np.isfinite(best[count - 1]).any():
                gap = int(best[count - 1].argmin())
                found[computed] = Schedule(_trace(choices, count - 1, gap), float(best[count - 1, gap]))
            following = np.full_like(best, np.inf)
            chosen = np.zeros(best.shape, np.int32)
            for gap in range(1, limit + 1):
                here = np.arange(count - gap)
                through = best[here] + costs[here, :, gap]  # by the gap before
                choice = through.argmin(axis=1)
                following[here + gap, gap] = through[here, choice]
                chosen[here + gap, gap] = choice
            choices.append(chosen)
            best = following
        return found

    def _table(self, limit: int) -> Array:
        """``[i, a, d]``: cost of the gap from i to i + d after the computed step i - a; infinite where there is none."""
        count = self.steps_count
        here, before, gap = np.meshgrid(np.arange(count), np.arange(limit + 1), np.arange(limit + 1), indexing="ij")
        valid = (before >= 1) & (here - before >= 0) & (gap >= 1) & (here + gap < count)
        table = np.full(here.shape, np.inf)
        i = here[valid]
        table[valid] = self._sums.costs(i - before[valid], i, i + gap[valid], self.gain)
        return table


def _trace(choices: list[Array], last: int, gap: int) -> tuple[int, ...]:
    steps = [last]
    for chosen in reversed(choices):
        steps.append(steps[-1] - gap)
        gap = int(chosen[steps[-2], gap])
    return (0, *reversed(steps)) if steps[-1] else tuple(reversed(steps))


class _Sums:
    """Prefix sums over the steps t of D_t, D_t u_t, D_t u_t^2, of D_t K[:, t], and of D_s D_t K[s, t]; u is sigma."""

    def __init__(self, gram: Array, sigmas: Array, weights: Array):
        self.gram, self.u, self.weights = gram, sigmas, weights
        steps = np.diff(sigmas)
        at = sigmas[:-1]
        self.powers = [np.concatenate(([0.0], np.cumsum(steps * at**power))) for power in range(3)]
        self.weighted = np.concatenate((np.zeros((len(gram), 1)), np.cumsum(gram * steps, axis=1)), axis=1)
        both = np.cumsum(np.cumsum(gram * np.outer(steps, steps), axis=0), axis=1)
        self.both = np.pad(both, ((1, 0), (1, 0)))

    def costs(self, p: Array, i: Array, j: Array, gain: float) -> Array:
        """``||G||^2``, weighted, for arrays of gaps; p = -1: no computed step before i; j = number of steps: nothing is
        computed after the gap. The error is G = a v_i + b v_p + c v_j - sum of D_t v_t over the gap."""
        u, last = self.u, len(self.gram)
        q = np.where(p < 0, i, p)  # any valid index where there is no p
        s0, s1, s2 = (sums[j] - sums[i + 1] for sums in self.powers)
        slope = np.where(p < 0, 0.0, 1.0 / np.where(p < 0, 1.0, u[i] - u[q]))
        rise = (s1 - u[i] * s0) * slope  # sum of D_t (u_t - u_i) / (u_i - u_p)
        a, b = s0 + rise, -rise
        end = np.minimum(j, last - 1)
        corrects = (j < last - 1) & (j > i + 1)
        reach = np.where(corrects, u[end] - u[i], 1.0)
        one = (s1 - u[i] * s0) / reach
        two = (s2 - (u[i] + u[q]) * s1 + u[i] * u[q] * s0) / (reach * np.where(corrects & (p >= 0), u[end] - u[q], 1.0))
        c = np.where(corrects, gain * np.where(p < 0, one, two), 0.0)
        ahead = reach * slope
        a, b = a - c * (1 + ahead), b + c * ahead
        k = self.gram
        square = self.both[j, j] - self.both[i + 1, j] - self.both[j, i + 1] + self.both[i + 1, i + 1]
        total = a * a * k[i, i] + b * b * k[q, q] + c * c * k[end, end] + square
        total += 2 * (a * b * k[i, q] + a * c * k[i, end] + b * c * k[q, end])
        for factor, index in ((a, i), (b, q), (c, end)):
            total -= 2 * factor * (self.weighted[index, j] - self.weighted[index, i + 1])
        return np.where(j > i + 1, np.maximum(total, 0.0) * self.weights[j], 0.0)


def _check(gram: Array, sigmas: Array) -> None:
    count = len(sigmas) - 1
    if count < 2 or gram.shape != (count, count):
        raise ParametersInvalid(
            f"A Gram matrix of shape {gram.shape} does not fit {len(sigmas)} noise levels. Give one row a step, and one "
            "noise level more than steps; at least 2 steps."
        )
    if not (np.isfinite(gram).all() and np.isfinite(sigmas).all()):
        raise ParametersInvalid("The recording has NaN or infinite numbers. Look for overflow in the model, e.g. in fp16.")
    if not (np.diff(sigmas) < 0).all():
        raise ParametersInvalid("The noise levels have to fall from step to step.")
