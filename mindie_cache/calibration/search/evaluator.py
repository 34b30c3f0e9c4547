"""Runs settings on prompts, each once, whatever number of ranks shares the folder. Lists no settings and chooses none."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from mindie_cache import CacheConfig, CacheWarning, enable_cache
from mindie_cache.calibration.search.baselines import Baselines
from mindie_cache.calibration.search.made import Made
from mindie_cache.calibration.search.pareto import keep_best
from mindie_cache.calibration.search.ranks import enabled
from mindie_cache.calibration.search.scores import Score, mean, measured
from mindie_cache.calibration.search.store import Evaluation, Store
from mindie_cache.calibration.search.targets import Target
from mindie_cache.errors import ConfigError
from mindie_cache.report import Report

Watch = Callable[[CacheConfig, int, Made, Made], None]
GROWTH, LEAST_KEPT = 3, 6  # of successive halving: a third goes on to three times as many prompts, and at least six do


@dataclass(frozen=True)
class Outcome:
    """A setting on all prompts: the means of its evaluations."""

    config: CacheConfig
    scores: dict[str, float]
    share: float
    seconds: float
    notes: tuple[str, ...] = ()


class Evaluator(Baselines):
    """Evaluates settings of caches on a target.

    Args:
        target, prompts, seeds, store, settings: of `Baselines`.
        scores: the first one ranks; the others are written down.
        halving: whether only the best third of many settings is run on more prompts.
        watch: called after every cached generation with the setting, the prompt, and both generations.
    """

    def __init__(
        self,
        target: Target,
        prompts: Sequence[str],
        seeds: Sequence[int],
        scores: Sequence[Score],
        store: Store,
        *,
        halving: bool = True,
        watch: Watch | None = None,
        **settings: Any,
    ):
        needs_frames = any(score.frames for score in scores)
        super().__init__(target, prompts, seeds, store, needs_frames=needs_frames, **settings)
        self.scores, self._halving, self._watch = tuple(scores), halving, watch

    def evaluate(self, config: CacheConfig, prompt: int) -> Evaluation:
        """One setting on one prompt; from the folder, if it was done before."""
        key = key_of(config, prompt)
        known = self.store.get(key)
        if known is None:
            known = self._evaluated(config, prompt, key)
            self.store.add(known)
        return known

    def _evaluated(self, config: CacheConfig, prompt: int, key: str) -> Evaluation:
        reference, steps = self.uncached(prompt), self.target.steps
        start = resumes_at(config) if reference.trace else 0
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", CacheWarning)
            with enabled(self.target, config) as handle:
                made = self._generate(prompt, config, start=start, made=reference)
                reports = handle.report().models
        for warning in caught:
            if not issubclass(warning.category, CacheWarning):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        self.check_steps(max([record.step for report in reports.values() for record in report.steps], default=steps - 1) + 1)
        calls = sum(report.calls for report in reports.values()) * steps / (steps - start)
        reused = sum(report.calls_reused for report in reports.values())
        if self._watch is not None:
            self._watch(config, prompt, made, reference)
        return Evaluation(
            key,
            config.to_dict(),
            prompt,
            {score.name: measured(score, made, reference) for score in self.scores},
            1 - reused / calls if calls else 1.0,
            made.seconds + sum(reference.step_seconds[:start]),
            tuple([str(warning.message) for warning in caught if issubclass(warning.category, CacheWarning)]),
            schedules(reports, start),
            reference.seconds * self._pace,
        )

    def several(self, pairs: Sequence[tuple[CacheConfig, int]], bar: Any = None) -> list[Evaluation]:
        """Settings on prompts, shared out over the ranks; the bar, if there is one, counts them."""
        wanted = {key_of(config, prompt): (config, prompt) for config, prompt in pairs}
        for prompt in sorted({prompt for _, prompt in wanted.values()}):
            self.prepare_one(prompt)
        works: dict[str, Callable[[], Any]] = {key: partial(self.evaluate, *pair) for key, pair in wanted.items()}
        self.share_out(works, lambda key: self.store.get(key) is not None, bar=bar)
        found = {key: self.store.get(key) for key in wanted}
        return [entry for pair in pairs if (entry := found[key_of(*pair)]) is not None]

    def check_steps(self, found: int) -> None:
        """Raises ConfigError if a generation has another number of steps than it was told to have."""
        if found != self.target.steps:
            raise ConfigError(
                f"a generation made {found} steps, and {self.target.steps} were expected. If your loop makes {found}, give "
                f"--steps {found}. Pipelines that make fewer steps than they are told (strength), or others (sigmas, a "
                "scheduler of second order), cannot be searched."
            )

    def run(self, configs: Iterable[CacheConfig], title: str, *, every: bool = False) -> list[Outcome]:
        """Settings on all prompts, in their order; with successive halving those that stay among the best.

        The number of prompts grows threefold; the best third by Pareto fronts of share and error goes on, at least six; with
        `every` all of them.
        """
        self.prepare()
        left = list(dict.fromkeys(map(_frozen, configs)))
        counts = _rungs(len(self.prompts)) if self._halving and not every else [len(self.prompts)]
        for rung, count in enumerate(counts):
            works: dict[str, Callable[[], Any]] = {}
            for config in left:
                for prompt in range(count):
                    works[key_of(config.value, prompt)] = partial(self.evaluate, config.value, prompt)
            name = title if len(counts) == 1 else f"{title}, {count} prompt{'s' if count > 1 else ''}"
            self.share_out(works, lambda key: self.store.get(key) is not None, name)
            if rung + 1 < len(counts):
                outcomes = [self.outcome(config.value, count) for config in left]
                points = [(round(one.share, 9), one.scores[self.scores[0].name]) for one in outcomes]
                left = [left[i] for i in keep_best(points, max(LEAST_KEPT, math.ceil(len(left) / GROWTH)))]
        return [self.outcome(config.value, len(self.prompts)) for config in left]

    def outcome(self, config: CacheConfig, count: int | None = None) -> Outcome:
        """The mean of what is known of a setting on the first `count` prompts (all)."""
        found = [self.store.get(key_of(config, prompt)) for prompt in range(count or len(self.prompts))]
        entries = [entry for entry in found if entry is not None]
        assert len(entries) == len(found), "every prompt was evaluated"
        names = [score.name for score in self.scores]
        scores = {name: mean(name, [entry.scores.get(name) for entry in entries]) for name in names}
        notes = tuple(dict.fromkeys(note for entry in entries for note in entry.notes))
        share = sum(entry.share for entry in entries) / len(entries)
        return Outcome(config, scores, share, sum(entry.seconds for entry in entries) / len(entries), notes)


class _frozen:  # noqa: N801 - a CacheConfig whose options may be a dictionary, as a key
    def __init__(self, value: CacheConfig):
        self.value = value.validated()
        self._text = json.dumps(self.value.to_dict(), sort_keys=True)

    def __hash__(self) -> int:
        return hash(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _frozen) and self._text == other._text


def key_of(config: CacheConfig, prompt: int) -> str:
    """What a setting on a prompt is known by in the folder."""
    text = json.dumps(config.to_dict(), sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:20]}-{prompt}"


def resumes_at(config: CacheConfig) -> int:
    """Where a run may go on from the uncached one and still be the same in every bit: at step_start, or so much earlier that
    what is extrapolated from has been kept. Methods that look at data watch it from step 0 on."""
    options = config.validated().options
    scheduled = config.method in ("dit_block_cache", "attention_cache") and options.compute_steps is None
    return max(0, min(config.step_start, config.steps_count - 1) - options.order) if scheduled else 0


def _rungs(prompts: int) -> list[int]:
    """Numbers of prompts of successive halving: three times as many each, and all as soon as that is nearly as many."""
    found = [1]
    while found[-1] < prompts:
        more = GROWTH * found[-1]
        found.append(more if 1.5 * more < prompts else prompts)
    return found


def schedules(reports: Mapping[str, Report], start: int = 0) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Of each branch of each model: its name, and the steps in which something was computed anew; those before `start` were
    taken from an uncached generation."""
    found: dict[str, list[int]] = {}
    for model, report in reports.items():
        for record in report.steps:
            name = record.branch if len(reports) == 1 else f"{model} {record.branch}"
            steps = found.setdefault(name, list(range(start)))
            if not record.reused:
                steps.append(record.step)
    return tuple([(name, tuple(steps)) for name, steps in found.items()])


def calls_of(target: Target, method: str) -> int:
    """blocks_count of a method on this target: what `enable_cache` counts.

    Raises:
        ConfigError: the method does not fit the model.
    """
    steps = target.steps if isinstance(target.subject, nn.Module) else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        with enable_cache(target.subject, {"method": method}, num_inference_steps=steps, blocks=target.blocks) as handle:
            count = handle.config.blocks_count
    if count < 1:
        raise ConfigError(f"{method} finds nothing to work on in this model. Choose another method.")
    return count
