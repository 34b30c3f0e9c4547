"""Which steps to compute: the exact dynamic program over gaps, for every number of computed steps.

A skipped step t between the computed steps i and j is estimated by a line in sigma through the velocities of i and of p, the
computed step before i. The signed error that a gap leaves in the latents is then linear in the velocities of an uncached
generation, and its square a quadratic form in their Gram matrix K. All sums over a gap are differences of prefix sums, so
that the cost of any gap (p, i, j) takes a fixed number of operations. The error of the first gap, where one velocity is
held, is added to that of the second one before it is squared: they have much in common, and can cancel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindie_cache.errors import ParametersInvalid

Array = NDArray[Any]
GAP_FACTOR = 1.3  # of steps by computed steps: the largest gap, rounded up
RISING, FALLING = 0, 1  # phases of a schedule: no gap was shorter than the one before it, or one was


@dataclass(frozen=True)
class Schedule:
    """The computed `steps` and the squared error of the latents, summed over prompts, that is `predicted` for them."""

    steps: tuple[int, ...]
    predicted: float


def largest_gap(steps_count: int, budget: int, factor: float = GAP_FACTOR) -> int:
    """How far the next computed step may be: `factor` times steps by budget, rounded up, or as far as it must be."""
    return max(math.ceil(factor * steps_count / budget), math.ceil((steps_count - 1) / max(1, budget - 1)))


class Program:
    """The dynamic program of one recording.

    Args:
        gram: ``(steps, steps)`` inner products of the guided velocities, summed over prompts.
        sigmas: ``(steps + 1,)`` noise levels of the sampler, falling, the last one included.
        gain: of the correction at a computed step after a gap; 0: none. The last step corrects nothing.
        growth: an error that is made while the share of noise is s counts exp(growth * (s - 0.5)) fold, because the steps
            that follow make it larger or smaller. s is sigma itself, or else sigma / (1 + sigma).
        begin: noise level at which the generation begins, where this is a part of one: s is sigma up to 1.
    """

    def __init__(self, gram: Array, sigmas: Array, gain: float = 1.0, growth: float = 0.0, begin: float | None = None):
        self.gram, self.sigmas = np.asarray(gram, float), np.asarray(sigmas, float)
        self.gain = gain
        self.steps_count = len(self.sigmas) - 1
        _check(self.gram, self.sigmas)
        is_share = (self.sigmas[0] if begin is None else begin) <= 1
        share = self.sigmas if is_share else self.sigmas / (1 + self.sigmas)
        self._sums = _Sums(self.gram, self.sigmas, np.exp(growth * (share - 0.5)))

    def solve(self, budgets: list[int] | None = None, factor: float = GAP_FACTOR) -> dict[int, Schedule]:
        """The best schedule for each number of computed steps, by default for all of them from 2 on.

        The first and the last step are always computed, and no gap is longer than `largest_gap`. After the first gap, gaps
        become longer up to one, and not longer again: where they alternate, errors of one sign add up.
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
            i, j = np.array([here]), np.array([following])
            total += float(self._sums.costs(np.array([before]), i, j, self.gain)[0])
            if before == 0:
                total += float(self._sums.crossed(i, j, self.gain)[0])
            before = here
        return total

    def _solve(self, budgets: list[int], limit: int) -> dict[int, Schedule]:
        """`best[f, j, d]`: least cost with j computed and the computed step before it d steps earlier; f is the phase. One
        round a step."""
        count = self.steps_count
        costs = self._table(limit)
        best = np.full((2, count, limit + 1), np.inf)
        reached = np.arange(1, min(limit, count - 1) + 1)
        first = self._sums.costs(np.full(len(reached), -1), np.zeros(len(reached), int), reached, self.gain)
        best[RISING, reached, reached] = first
        choices: list[Array] = []
        found: dict[int, Schedule] = {}
        for computed in range(2, max(budgets) + 1):
            ends = best[:, count - 1]
            if computed in budgets and np.isfinite(ends).any():
                end = int(ends.argmin())
                found[computed] = Schedule(_trace(choices, count - 1, end, limit), max(0.0, float(ends.flat[end])))
            best, chosen = _round(best, costs)
            choices.append(chosen)
        return found

    def _table(self, limit: int) -> Array:
        """``[i, a, d]``: cost of the gap from i to i + d after the computed step i - a; infinite where there is none."""
        count = self.steps_count
        here, before, gap = np.meshgrid(np.arange(count), np.arange(limit + 1), np.arange(limit + 1), indexing="ij")
        valid = (before >= 1) & (here - before >= 0) & (gap >= 1) & (here + gap < count)
        table = np.full(here.shape, np.inf)
        i = here[valid]
        table[valid] = self._sums.costs(i - before[valid], i, i + gap[valid], self.gain)
        second = valid & (here == before)
        table[second] += self._sums.crossed(here[second], (here + gap)[second], self.gain)
        return table


def _round(best: Array, costs: Array) -> tuple[Array, Array]:
    """`best` with one more computed step; and the phase and the gap that each entry comes from, as one index.

    Gaps grow while RISING, and do not grow any more when FALLING; the first one, without a slope, may have any length.
    """
    following, chosen = np.full_like(best, np.inf), np.zeros(best.shape, np.int32)
    count, size = best.shape[1], np.arange(best.shape[2])
    for gap in range(1, min(size[-1], count - 1) + 1):
        here = np.arange(count - gap)
        through = best[:, here] + costs[here, :, gap]
        is_first = size == here[:, None]
        rises = np.stack([is_first | (size <= gap), np.zeros_like(is_first)])
        falls = np.stack([~is_first & (size > gap), ~is_first & (size >= gap)])
        for phase, allowed in ((RISING, rises), (FALLING, falls)):
            options = np.concatenate(np.where(allowed, through, np.inf), axis=1)
            choice = options.argmin(axis=1)
            following[phase, here + gap, gap] = options[here, choice]
            chosen[phase, here + gap, gap] = choice
    return following, chosen


def _trace(choices: list[Array], last: int, end: int, limit: int) -> tuple[int, ...]:
    """The steps, from `end`: the phase and the gap of the last one, as one index."""
    steps = [last]
    for chosen in reversed(choices):
        phase, gap = divmod(end, limit + 1)
        end = int(chosen[phase, steps[-1], gap])
        steps.append(steps[-1] - gap)
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
        computed after the gap."""
        (a, i), (b, q), (c, end) = parts = self._parts(p, i, j, gain)
        k = self.gram
        square = self.both[j, j] - self.both[i + 1, j] - self.both[j, i + 1] + self.both[i + 1, i + 1]
        total = a * a * k[i, i] + b * b * k[q, q] + c * c * k[end, end] + square
        total += 2 * (a * b * k[i, q] + a * c * k[i, end] + b * c * k[q, end])
        for factor, index in parts:
            total -= 2 * factor * (self.weighted[index, j] - self.weighted[index, i + 1])
        return np.where(j > i + 1, np.maximum(total, 0.0) * self.weights[j], 0.0)

    def crossed(self, i: Array, j: Array, gain: float) -> Array:
        """Twice the weighted inner product of the errors of the first gap, from 0 to i, and of the next one, to j."""
        start, row = np.zeros_like(i), np.arange(len(i))
        (a, _), _, (c, end) = self._parts(start - 1, start, i, gain)
        onto = (
            a[:, None] * self.gram[0] + c[:, None] * self.gram[end] - (self.weighted[:, i] - self.weighted[:, start + 1]).T
        )
        sums = np.concatenate((np.zeros((len(i), 1)), np.cumsum(onto * np.diff(self.u), axis=1)), axis=1)
        total = sum(factor * onto[row, index] for factor, index in self._parts(start, i, j, gain))
        return 2 * np.sqrt(self.weights[i] * self.weights[j]) * (total - (sums[row, j] - sums[row, i + 1]))

    def _parts(self, p: Array, i: Array, j: Array, gain: float) -> tuple[tuple[Array, Array], ...]:
        """The error of a gap is G = a v_i + b v_p + c v_j - sum of D_t v_t over the gap: a, b and c, each with its step."""
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
        return (a - c * (1 + ahead), i), (b + c * ahead, q), (c, end)


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
