"""How each score is named and written, which of two values is better, and which setting is nearest to a goal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mindie_cache.calibration.tuning.report.data import Candidate, Goal, OnPrompt, Results
from mindie_cache.calibration.tuning.report.html import TIMES, decibel, plain, ratio, small, times


@dataclass(frozen=True)
class Score:
    """`label`: in tables; `show`: a value as text; `more`: whether more is better."""

    name: str
    label: str
    show: Callable[[float | None], str]
    more: bool = False

    def worst(self, values: Iterable[float]) -> float | None:
        return min(values, default=None) if self.more else max(values, default=None)


_KNOWN = {
    score.name: score
    for score in (
        Score("psnr", "PSNR", decibel, more=True),
        Score("latents", "error", small),
        Score("ssim", "SSIM", ratio, more=True),
        Score("lpips", "LPIPS", ratio),
    )
}


def score(name: str) -> Score:
    """A score that is not known is taken for an error: less is better."""
    return _KNOWN.get(name) or Score(name, name, plain)


PSNR, ERROR = score("psnr"), score("latents")


def quality(scores: Iterable[str]) -> Score:
    """The score that a result is judged by at first sight: PSNR, where there is one."""
    return PSNR if PSNR.name in scores else ERROR


def worst_prompt(one: Candidate, by: Score) -> OnPrompt | None:
    """Of the prompts of a candidate."""
    there = [each for each in one.prompts if by.name in each.scores]
    worst = by.worst(each.scores[by.name] for each in there)
    return next((each for each in there if each.scores[by.name] == worst), None)


@dataclass(frozen=True)
class Aim:
    """A goal in words, the score it is about (None: the speed), and what a candidate has of it."""

    words: str
    score: Score | None
    show: Callable[[float | None], str]
    reached: Callable[[Candidate], float | None]

    def nearest(self, candidates: Iterable[Candidate]) -> Candidate | None:
        more = self.score is None or self.score.more
        there = [(value, one) for one in candidates if (value := self.reached(one)) is not None]
        return min(there, key=lambda pair: -pair[0] if more else pair[0], default=(0.0, None))[1]


def aim(goal: Goal) -> Aim | None:
    """None for a kind of goal that is not known."""
    if goal.kind == "speedup":
        return Aim(f"at least {goal.value:g}{TIMES} faster", None, times, _speed)
    by = {"max_error": ERROR, "min_psnr": PSNR}.get(goal.kind)
    if by is None:
        return None
    words = f"a PSNR of at least {goal.value:g} dB" if by.more else f"an error of at most {small(goal.value)}"
    return Aim(words, by, by.show, lambda one: one.scores.get(by.name))


def nearest(results: Results) -> Candidate | None:
    """What is nearest to a goal that nothing reached: on held-out prompts, if anything was run on them."""
    wanted = results.goal and aim(results.goal)
    if not wanted:
        return None
    return wanted.nearest(results.candidates[i] for i in results.finalists) or wanted.nearest(results.candidates)


def _speed(one: Candidate) -> float | None:
    return one.speedup if one.speedup is not None else one.estimate
