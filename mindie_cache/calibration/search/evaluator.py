"""Runs settings on prompts, each once, whatever number of ranks shares the folder. Lists no settings and chooses none."""

from __future__ import annotations

import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from torch import nn
from tqdm import tqdm

from mindie_cache import CacheConfig, CacheWarning, enable_cache
from mindie_cache.calibration.planning import Recording
from mindie_cache.calibration.search.made import Made
from mindie_cache.calibration.search.pareto import keep_best
from mindie_cache.calibration.search.profile import Meter, Profile
from mindie_cache.calibration.search.ranks import Leader, enabled
from mindie_cache.calibration.search.scores import Score, mean, measured, relative_mse
from mindie_cache.calibration.search.store import PROFILE, Evaluation, Store
from mindie_cache.calibration.search.targets import Target
from mindie_cache.errors import ConfigError, ModelExecError
from mindie_cache.report import Report

Watch = Callable[[CacheConfig, int, Made, Made], None]
_POLL = 0.1  # seconds between looks at what other ranks do
REPEATS = 1e-2  # relative squared error between two runs of the same: kernels that add up in any order stay far below
GROWTH, LEAST_KEPT = 3, 6  # of successive halving: a third goes on to three times as many prompts, and at least six do


@dataclass(frozen=True)
class Outcome:
    """A setting on all prompts: the means of its evaluations."""

    config: CacheConfig
    scores: dict[str, float]
    share: float
    seconds: float
    notes: tuple[str, ...] = ()


class Evaluator:
    """Evaluates settings of caches on a target.

    Args:
        target: generates.
        prompts, seeds: one seed a prompt.
        scores: the first one ranks; the others are written down.
        store: the folder.
        progress: whether to show a bar.
        halving: whether only the best third of many settings is run on more prompts.
        block_ms: milliseconds of a block, by list of blocks, instead of the measured ones.
        watch: called after every cached generation with the setting, the prompt, and both generations.
        leader: of ranks that hold the model together.
    """

    def __init__(
        self,
        target: Target,
        prompts: Sequence[str],
        seeds: Sequence[int],
        scores: Sequence[Score],
        store: Store,
        *,
        progress: bool = False,
        halving: bool = True,
        block_ms: Mapping[str, float] | None = None,
        watch: Watch | None = None,
        leader: Leader | None = None,
    ):
        self.target, self.scores, self.store = target, tuple(scores), store
        self.prompts, self._seeds = tuple(prompts), tuple(seeds)
        self.progress, self._halving = progress, halving
        self.needs_frames = any(score.frames for score in scores)
        self._block_ms, self._watch, self._leader = block_ms or {}, watch, leader
        self._uncached: dict[int, Made] = {}
        self.generations = 0  # of this process
        self._pace = 1.0
        self._is_prepared = False

    @cached_property
    def profile(self) -> Profile:
        """Measured in the first uncached generation."""
        self.prepare()
        found = self.store.read(PROFILE)
        assert found is not None
        return Profile.from_dict(found).with_times(self._block_ms)

    def say(self, text: str) -> None:
        """A line between the bars."""
        if self.progress:
            tqdm.write(text)

    def prepare(self) -> None:
        """Make the uncached generations, and measure the model in the first of them."""
        if self._is_prepared:
            return
        works: dict[str, Callable[[], Any]] = {"profile": self._measure}
        works |= {f"uncached-{p}": partial(self._make_uncached, p) for p in range(1, len(self.prompts))}
        self.share_out(works, self._has_prepared, "uncached")
        self._is_prepared = True

    @property
    def is_measured(self) -> bool:
        """Whether the profile is there."""
        return self._has_prepared("profile")

    def _has_prepared(self, key: str) -> bool:
        if key == "profile":
            return self.store.read(PROFILE) is not None and (self.store.path / "uncached-0.pt").exists()
        return (self.store.path / f"{key}.pt").exists()

    def _measure(self) -> None:
        meter = Meter(self.target)
        with meter.watching():
            made = self._generate(0)
        self._add_baseline(0, made)
        self.store.write(PROFILE, meter.profile(made.seconds).to_dict())

    def _make_uncached(self, prompt: int) -> None:
        self._add_baseline(prompt, self._generate(prompt))

    def _add_baseline(self, prompt: int, made: Made) -> None:
        """Keep an uncached generation, if others can be compared with it."""
        text = self.prompts[prompt]
        if made.latents is not None and not (made.latents.isfinite().all() and made.latents.any()):
            raise ModelExecError(
                f"{text!r} gives latents of NaN, infinity or zeros only, without a cache. Look for overflow."
            )
        known = self.store.baseline(prompt)
        if known is not None and known.latents is not None and relative_mse(made, known) > REPEATS:
            raise ConfigError(
                f"{text!r} with seed {self._seeds[prompt]} gives other latents each time (relative squared error "
                f"{relative_mse(made, known):.2g}), so nothing can be compared. Draw all noise from the seed."
            )
        self.store.add_baseline(prompt, made)

    def _generate(self, prompt: int, config: CacheConfig | None = None, **resumed: Any) -> Made:
        self._begin(prompt, config)
        return self.target.generate(self.prompts[prompt], self._seeds[prompt], frames=self.needs_frames, **resumed)

    def uncached(self, prompt: int) -> Made:
        if prompt not in self._uncached:
            found = self.store.baseline(prompt)
            assert found is not None, "prepare() has made it"
            self._uncached[prompt] = found
        return self._uncached[prompt]

    def _begin(self, prompt: int, config: CacheConfig | None = None) -> None:
        self.generations += 1
        if self._leader is not None:
            self._leader.tell(config, self.prompts[prompt], self._seeds[prompt], self.needs_frames)

    def record(self, prompt: int) -> Recording:
        """Make the uncached generation of a prompt, with what the planner needs of it."""
        self._begin(prompt)
        made, found = self.target.record(self.prompts[prompt], self._seeds[prompt], frames=self.needs_frames)
        self._add_baseline(prompt, made)
        return found

    def warm_up(self) -> None:
        """One generation whose time nobody looks at."""
        self._generate(0)

    def has_uncached(self, prompt: int) -> bool:
        return self._has_prepared(f"uncached-{prompt}")

    def pace(self) -> None:
        """Time the first prompt uncached once more: from now on the machine is as fast as it is now."""
        self._pace = self._generate(0).seconds / self.uncached(0).seconds

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

    def prepare_one(self, prompt: int) -> None:
        """Make the uncached generation of one prompt, without measuring the model."""
        key = f"uncached-{prompt}"
        self.share_out({key: partial(self._make_uncached, prompt)}, self._has_prepared)

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

    def share_out(
        self, works: dict[str, Callable[[], Any]], is_done: Callable[[str], bool], title: str = "", bar: Any = None
    ) -> None:
        """Do what no rank has done or is doing; return when all is done. What a dead rank left is done again. Progress goes
        to a bar of that title, or to the given one."""
        with self._bar(len(works), title) as own:
            bar, left, done = bar or own, dict(works), 0
            while True:
                self.store.refresh()
                left = {key: work for key, work in left.items() if not is_done(key)}
                if bar is not None:
                    bar.update(len(works) - len(left) - done)
                done = len(works) - len(left)
                if not left:
                    return
                if not self._take_one(left, is_done):
                    time.sleep(_POLL)

    def _take_one(self, left: dict[str, Callable[[], Any]], is_done: Callable[[str], bool]) -> bool:
        for key, work in left.items():
            with self.store.claim(key) as mine:
                if not mine:
                    continue
                self.store.refresh()  # it may have been finished just before
                if not is_done(key):
                    work()
                return True
        return False

    def _bar(self, total: int, title: str) -> Any:
        if not self.progress or not total or not title:
            return nullcontext()
        return tqdm(total=total, desc=title, unit="generation", dynamic_ncols=True)


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
