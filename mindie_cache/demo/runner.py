"""Runs every setting on the same prompts and seeds, and measures time, work and likeness. Writes and prints nothing.

A repetition is one batch of prompts: uncached, every setting, and uncached again, whose mean the settings are compared
with. Odd repetitions go through the settings in the reverse order: so a drift of the machine's speed cancels.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from mindie_cache import CacheWarning, Report
from mindie_cache.demo.attach import attached
from mindie_cache.demo.metrics import psnr, ssim
from mindie_cache.demo.plan import Setting
from mindie_cache.demo.work import operations, share_computed
from mindie_cache.device import synchronize
from mindie_cache.testbed import TestbedTransformer, generate, read

WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Batch:
    """The prompts of one repetition and their seeds."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """One setting on one batch. `videos` ``(batch, frames, height, width, 3)`` in [0, 1], on the CPU."""

    videos: Tensor
    seconds: float
    reports: tuple[Report, ...]
    notes: tuple[str, ...]


@dataclass
class Outcome:
    """All that was measured of one setting. Lists grow by one a repetition, or by one a video."""

    setting: Setting
    seconds: list[float] = field(default_factory=list)  # of uncached, the mean of the two runs of a repetition
    ratios: list[float] = field(default_factory=list)  # uncached seconds of the same repetition over these
    shares: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)  # dB, a video
    ssim: list[float] = field(default_factory=list)  # a video
    right: list[bool] = field(default_factory=list)  # a video: colour, shape and direction are those of the prompt
    bytes_peak: int = 0
    reports: tuple[Report, ...] = ()  # of the first repetition
    videos: Tensor = field(default_factory=lambda: torch.empty(0))  # of the first repetition
    notes: list[str] = field(default_factory=list)

    @property
    def speedup(self) -> float:
        return statistics.median(self.ratios)

    @property
    def share(self) -> float:
        return statistics.fmean(self.shares)

    @property
    def accuracy(self) -> float:
        return statistics.fmean(self.right)


def run_sample(
    model: TestbedTransformer, setting: Setting, batch: Batch, on_step: Callable[[], None] = lambda: None
) -> Sample:
    """Generate one batch under one setting; the model is afterwards as it was."""
    device = next(model.parameters()).device
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CacheWarning)
        with attached(model, setting.configs) as caches:
            synchronize(device)
            start = perf_counter()
            made = generate(
                model,
                batch.prompts,
                seeds=batch.seeds,
                steps=setting.steps,
                forward_cache=caches.forward_cache,
                callback=lambda step, latents: on_step(),
            )
            synchronize(device)
            seconds = perf_counter() - start
            reports = tuple(agent.report() for agent in caches.agents)
    for warning in caught:
        if not issubclass(warning.category, CacheWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    notes = tuple(str(warning.message) for warning in caught if issubclass(warning.category, CacheWarning))
    return Sample(made.videos.cpu(), seconds, reports, notes)


def compare(
    model: TestbedTransformer,
    settings: Sequence[Setting],
    batches: Sequence[Batch],
    on_step: Callable[[str], None] = lambda name: None,
) -> list[Outcome]:
    """Run every setting on every batch.

    Args:
        model: the transformer; its device is used.
        settings: what to compare; the first one is the reference of all (uncached).
        batches: one per repetition.
        on_step: called with the setting's name after every denoising step.
    """
    cost = operations(model.config)
    outcomes = [Outcome(setting) for setting in settings]

    def sample(index: int, batch: Batch) -> Sample:
        return run_sample(model, settings[index], batch, partial(on_step, settings[index].name))

    run_sample(model, Setting("warm-up", "", WARM_UP_STEPS), batches[0])
    for repetition, batch in enumerate(batches):
        others = range(1, len(settings))
        before = sample(0, batch)
        samples = {index: sample(index, batch) for index in (reversed(others) if repetition % 2 else others)}
        after = sample(0, batch)
        samples[0] = replace(before, seconds=(before.seconds + after.seconds) / 2)
        for index, outcome in enumerate(outcomes):
            _add(outcome, samples[index], samples[0], batch, cost, settings[0].steps)
    return outcomes


def steps_total(settings: Sequence[Setting], batches: Sequence[Batch]) -> int:
    """How many denoising steps `compare` makes known."""
    return len(batches) * (settings[0].steps + sum(setting.steps for setting in settings))


def _add(
    outcome: Outcome, sample: Sample, reference: Sample, batch: Batch, cost: dict[str, int], steps_uncached: int
) -> None:
    outcome.seconds.append(sample.seconds)
    outcome.ratios.append(reference.seconds / sample.seconds)
    outcome.shares.append(share_computed(cost, sample.reports, outcome.setting.steps, steps_uncached))
    outcome.psnr += psnr(sample.videos, reference.videos)
    outcome.ssim += ssim(sample.videos, reference.videos)
    outcome.right += [seen.agrees(prompt) for seen, prompt in zip(read(sample.videos), batch.prompts, strict=True)]
    outcome.bytes_peak = max(outcome.bytes_peak, sum(report.bytes_peak for report in sample.reports))
    outcome.notes += [note for note in sample.notes if note not in outcome.notes]
    if len(outcome.seconds) == 1:
        outcome.reports, outcome.videos = sample.reports, sample.videos
