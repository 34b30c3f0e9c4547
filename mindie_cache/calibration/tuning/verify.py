"""Verification on prompts that nothing was chosen on: measured speed-ups and errors, and a step on the ladder if the target
is missed there."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from mindie_cache.calibration.search.evaluator import Evaluator, key_of
from mindie_cache.calibration.search.scores import mean
from mindie_cache.calibration.search.store import Evaluation
from mindie_cache.calibration.tuning.aim import SPEEDUP, Aim
from mindie_cache.calibration.tuning.ladders import Ladder, Rung
from mindie_cache.errors import CacheError

_MOVES = 4  # on a ladder, after the first look
_LEAST_PROMPTS = 2  # also when time is over


@dataclass(frozen=True)
class Verified:
    """A setting on the held-out prompts: its evaluations, the median of its speed-ups over uncached, and mean scores."""

    rung: Rung
    entries: tuple[Evaluation, ...]
    speedup: float
    scores: Mapping[str, float]

    @property
    def seconds(self) -> float:
        return statistics.median([entry.seconds for entry in self.entries])


class Verification:
    """Runs finalists on the held-out prompts, prompt by prompt, so that what changes with time falls on all of them; and
    before each further look the machine's pace is taken again.

    Args:
        most: the speed-up of a rung by the share of calls that it computes. Clocks of busy machines say more at times; what
            is reported is never above it.
        until: whether time is over: then fewer prompts are used, but at least two.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        aim: Aim,
        most: Callable[[Rung, float], float],
        until: Callable[[], bool] = lambda: False,
    ):
        self.evaluator, self.aim, self.most, self.until = evaluator, aim, most, until
        self.notes: list[str] = []
        self.found: dict[str, Verified] = {}  # by title of the rung
        self._prompts = len(evaluator.prompts)

    @property
    def is_short(self) -> bool:
        """Whether prompts were left out for want of time."""
        return self._prompts < len(self.evaluator.prompts)

    def run(self, finalists: Mapping[str, Rung], ladders: Sequence[Ladder]) -> None:
        """Verify these, by title of their ladder, and neighbours of what misses the target, or reaches it with room."""
        by_title = {ladder.title: ladder for ladder in ladders}
        places = {title: by_title[title].rungs.index(rung) for title, rung in finalists.items()}
        for _ in range(_MOVES + 1):
            self.verify([by_title[title].rungs[place] for title, place in places.items()], "held-out prompts")
            places = {title: place for title, place in places.items() if by_title[title].rungs[place].title in self.found}
            moved = {title: self._following(by_title[title], place) for title, place in places.items()}
            places = {title: place for title, place in moved.items() if place is not None}
            if not places or self.until():
                return

    def verify(self, rungs: Sequence[Rung], title: str) -> None:
        new = [rung for rung in rungs if rung.title not in self.found]
        if not new:
            return
        if not self._knows(new):
            self._warm_up()
        entries: dict[str, list[Evaluation]] = {rung.title: [] for rung in new}
        total = self._prompts * len(new)
        with tqdm(total=total, desc=title, unit="generation", disable=not self.evaluator.progress) as bar:
            for prompt in range(self._prompts):
                if prompt >= _LEAST_PROMPTS and self.until():
                    self._prompts = prompt
                    break
                for rung, entry in self._evaluated([rung for rung in new if rung.title in entries], prompt, bar):
                    if entry is None:
                        entries.pop(rung.title)
                    else:
                        entries[rung.title].append(entry)
        known = {title: (one.rung, one.entries) for title, one in self.found.items()}
        known |= {rung.title: (rung, tuple(entries[rung.title])) for rung in new if rung.title in entries}
        self.found = {title: self._verified(rung, found[: self._prompts]) for title, (rung, found) in known.items()}

    def _evaluated(self, rungs: Sequence[Rung], prompt: int, bar: Any) -> list[tuple[Rung, Evaluation | None]]:
        """None for a rung that does not run; why not is noted."""
        try:
            done = self.evaluator.several([(rung.config, prompt) for rung in rungs], bar)
            return list(zip(rungs, done, strict=True))
        except CacheError as error:
            if len(rungs) > 1:
                return [pair for rung in rungs for pair in self._evaluated([rung], prompt, None)]
            self.notes.append(f"{rungs[0].title} was left out: {error}")
            return [(rungs[0], None)]

    def _warm_up(self) -> None:
        """The first generation of a process is slow; and later on the machine may be slower or faster than at first."""
        if not self.evaluator.generations:
            self.evaluator.warm_up()
        if self.evaluator.has_uncached(0):
            self.evaluator.pace()

    def _verified(self, rung: Rung, entries: Sequence[Evaluation]) -> Verified:
        speedup = statistics.median([entry.uncached / entry.seconds for entry in entries])
        share = sum([entry.share for entry in entries]) / len(entries)
        names = [score.name for score in self.evaluator.scores]
        scores = {name: mean(name, [entry.scores.get(name) for entry in entries]) for name in names}
        return Verified(rung, tuple(entries), min(speedup, self.most(rung, share)), scores)

    def _knows(self, rungs: Sequence[Rung]) -> bool:
        keys = [key_of(rung.config, prompt) for rung in rungs for prompt in range(self._prompts)]
        return all([self.evaluator.store.get(key) is not None for key in keys])

    def _following(self, ladder: Ladder, place: int) -> int | None:
        """A neighbour that may be better: of a rung that misses the target the one nearer to it, unless another ladder is
        better anyway; of the best rung the one that has less room."""
        here, best = self.found[ladder.rungs[place].title], self.best()
        bolder = 1 if self.aim.kind == SPEEDUP else -1
        if not math.isfinite(self.aim.error(here.scores)):
            following = place - 1
        elif self.aim.reached(here.speedup, here.scores):
            following = place - bolder if here is best else -1
        else:
            rank = self.aim.rank(best.speedup, best.scores)
            promise = self.aim.error(here.scores) if self.aim.kind == SPEEDUP else -here.speedup
            following = place + bolder if rank[0] or promise < rank[1] else -1
        if not 0 <= following < len(ladder.rungs) or ladder.rungs[following].title in self.found:
            return None
        return following

    def best(self) -> Verified:
        """By the aim; of means over prompts, which the worst prompts rule."""
        return min(self.found.values(), key=lambda one: self.aim.rank(one.speedup, one.scores))
