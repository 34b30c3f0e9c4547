"""Finds, on every ladder, the setting that just meets the aim. Bisection; all ladders are probed in the same rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from mindie_cache.calibration.search.cost import ratio_of_shares
from mindie_cache.calibration.search.evaluator import Evaluator
from mindie_cache.calibration.search.findings import part_of
from mindie_cache.calibration.search.store import Evaluation
from mindie_cache.calibration.tuning.aim import SPEEDUP, Aim
from mindie_cache.calibration.tuning.ladders import Ladder, Rung
from mindie_cache.errors import CacheError


@dataclass
class _Climber:
    """`low` to `high` are the rungs that may be the first one from which no bolder one is wanted."""

    ladder: Ladder
    low: int
    high: int

    @property
    def middle(self) -> int:
        return (self.low + self.high) // 2


class Climb:
    """Bisections on the first prompt.

    Args:
        until: whether time is over: what is not finished then stays where it is.
    """

    def __init__(self, evaluator: Evaluator, aim: Aim, until: Callable[[], bool] = lambda: False):
        self.evaluator, self.aim, self.until = evaluator, aim, until
        self.notes: list[str] = []

    def speedup(self, rung: Rung, share: float | None = None) -> float:
        """Times faster end to end, by the share of calls and the measured times of the model's parts."""
        part = part_of(rung.config, self.evaluator.profile)
        known = share if share is not None else rung.share
        assert known is not None
        return ratio_of_shares(known, part)

    def candidates(self, ladders: Sequence[Ladder]) -> dict[str, list[Rung]]:
        """Of each ladder, the rung that just meets the aim, and its neighbour on the other side."""
        climbers = [_Climber(ladder, 0, len(ladder.rungs)) for ladder in ladders]
        total = sum([len(one.ladder.rungs).bit_length() for one in climbers if not self._knows(one.ladder.rungs[0])])
        with tqdm(total=total, desc="bisections", unit="generation", disable=not self.evaluator.progress) as bar:
            while going := [one for one in climbers if self._goes_on(one)]:
                probes = [one for one in going if not self._knows(one.ladder.rungs[one.middle])]
                failed = self._probe(probes, bar)
                climbers = [one for one in climbers if one not in failed]
                for one in going:
                    if one in climbers:
                        self._narrow(one)
        late = [one.ladder.title for one in climbers if one.low == 0 and one.high == len(one.ladder.rungs)]
        if late:
            self.notes.append(f"{', '.join(late)}: not tried, for want of time.")
        return {one.ladder.title: self._around(one) for one in climbers if one.ladder.title not in late}

    def _goes_on(self, one: _Climber) -> bool:
        return one.low < one.high and (self._knows(one.ladder.rungs[one.middle]) or not self.until())

    def _knows(self, rung: Rung) -> bool:
        return self.aim.kind == SPEEDUP and rung.share is not None

    def _probe(self, climbers: Sequence[_Climber], bar: Any) -> list[_Climber]:
        """Run the middle rungs; ladders that do not run on this model come back."""
        failed = []
        pairs = [(one.ladder.rungs[one.middle].config, 0) for one in climbers]
        try:
            self.evaluator.several(pairs, bar)
        except CacheError:
            for one, pair in zip(climbers, pairs, strict=True):
                try:
                    self.evaluator.several([pair])
                except CacheError as error:  # noqa: PERF203 - which one it is has to be found out
                    self.notes.append(f"{one.ladder.title} was left out: {error}")
                    failed.append(one)
        return failed

    def runs(self, rungs: Sequence[Rung]) -> list[Rung]:
        """Those that run on the first prompt; of the others it is noted why not."""
        found = []
        for rung in rungs:
            try:
                self.evaluator.several([(rung.config, 0)])
                found.append(rung)
            except CacheError as error:  # noqa: PERF203 - one that does not fit leaves the others
                self.notes.append(f"{rung.title} was left out: {error}")
        return found

    def _narrow(self, one: _Climber) -> None:
        rung = one.ladder.rungs[one.middle]
        if self._knows(rung):
            bolder = self.speedup(rung) < self.aim.value
        else:
            entry = self.evaluator.several([(rung.config, 0)])[0]  # it is known
            reached = self.aim.reached(self.speedup(rung, entry.share), _errors(entry))
            bolder = reached != (self.aim.kind == SPEEDUP)
        if bolder:
            one.low = one.middle + 1
        else:
            one.high = one.middle

    def _around(self, one: _Climber) -> list[Rung]:
        """For a speed-up the first rung that reaches it and the next bolder one; for an error the last one below it and the
        next more careful one; at the ends of the ladder what there is."""
        first = one.low if self.aim.kind == SPEEDUP else one.low - 2
        last = len(one.ladder.rungs) - 1
        return [one.ladder.rungs[i] for i in sorted({min(max(first, 0), last), min(max(first + 1, 0), last)})]


def _errors(entry: Evaluation) -> dict[str, float]:
    return {name: float("inf") if value is None else value for name, value in entry.scores.items()}
