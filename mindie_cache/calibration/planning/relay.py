"""Plans for models that take turns, such as the two experts of Wan2.2: one program for the steps of each, joined.

Nothing that is kept of one expert says anything about the next: its first step is computed, without a history, and
corrects nothing. So a turn is a program of its own, whose last step is the first one of the next turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from numpy.typing import NDArray

from mindie_cache.calibration.planning.program import GAP_FACTOR, Program, Schedule, largest_gap
from mindie_cache.calibration.planning.recording import Recording

Array = NDArray[Any]


class Relay:
    """As `Program`, over turns.

    Args:
        starts: the first step of every turn, the first one 0.
    """

    def __init__(self, gram: Array, sigmas: Array, gain: float, growth: float, starts: Sequence[int]):
        self.steps_count = len(sigmas) - 1
        self._starts = tuple(starts)
        self._turns: list[Program | None] = []
        for begin, following in pairwise((*self._starts, self.steps_count - 1)):
            steps = slice(begin, following + 1)
            is_last_step = begin == following  # alone in its turn: always computed
            part = (
                None if is_last_step else Program(gram[steps, steps], sigmas[begin : following + 2], gain, growth, sigmas[0])
            )
            self._turns.append(part)

    def solve(self, budgets: list[int], factor: float = GAP_FACTOR) -> dict[int, Schedule]:
        """The best schedules that compute the first step of every turn and the last step. Not for budgets below that.

        No gap is longer than `largest_gap`, or than the least limit above it that the budget permits: where turns begin,
        gaps end early.
        """
        best = cache(self._best)
        found: dict[int, Schedule] = {}
        for budget in sorted(budgets):
            if len({*self._starts, self.steps_count - 1}) <= budget <= self.steps_count:
                limits = range(largest_gap(self.steps_count, budget, factor), self.steps_count + 1)
                found[budget] = next(best(limit)[budget] for limit in limits if budget in best(limit))
        return found

    def cost(self, schedule: tuple[int, ...]) -> float:
        """The predicted squared error of a schedule with the first step of every turn and the last step."""
        ends = *self._starts[1:], self.steps_count - 1
        parts = [
            program.cost(tuple(step - begin for step in schedule if begin <= step <= end))
            for begin, end, program in zip(self._starts, ends, self._turns, strict=True)
            if program is not None
        ]
        return sum(parts)

    def _best(self, limit: int) -> dict[int, Schedule]:
        """For every budget that has schedules: the turns share a budget in the best way. No gap is above `limit`."""
        joined = {1: Schedule((0,), 0.0)}
        for begin, program in zip(self._starts, self._turns, strict=True):
            if program is None:
                continue
            longer: dict[int, Schedule] = {}
            for so_far in joined.values():
                for turn in program.within(limit).values():
                    steps = so_far.steps + tuple(begin + step for step in turn.steps[1:])
                    total = so_far.predicted + turn.predicted
                    if len(steps) not in longer or total < longer[len(steps)].predicted:
                        longer[len(steps)] = Schedule(steps, total)
            joined = longer
        return joined


def program_of(recording: Recording, gain: float, growth: float) -> Program | Relay:
    """Of one model, or of several that take turns."""
    parts = recording.gram, recording.sigmas, gain, growth
    return Program(*parts) if len(recording.starts) == 1 else Relay(*parts, recording.starts)
