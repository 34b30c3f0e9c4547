"""MindIE-SD's methods: dit_block_cache, attention_cache and adastep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mindie_cache.checks import flag, real, whole
from mindie_cache.errors import ConfigError
from mindie_cache.methods.base import NO_END, ExtrapolationOptions, LimitOptions, Recipe, block_range, estimate
from mindie_cache.policies import Adastep, Limits, Policy, Schedule, interval
from mindie_cache.sites import EachCall
from mindie_cache.streams import BlockStreams, WholeOutput
from mindie_cache.taps import ModelInput

if TYPE_CHECKING:
    from mindie_cache.config import CacheConfig


@dataclass(frozen=True, kw_only=True)
class ReuseOptions(ExtrapolationOptions):
    """Options of `dit_block_cache` and `attention_cache`.

    Args:
        compute_steps: compute at exactly these steps (and at the first and the last) instead of at an interval.
    """

    compute_steps: tuple[int, ...] | None = None

    def check(self, config: CacheConfig) -> None:
        super().check(config)
        if self.compute_steps is None:
            return
        if not isinstance(self.compute_steps, tuple | list):
            raise ConfigError(f"compute_steps={self.compute_steps!r} must be a list of steps, e.g. [0, 1, 4, 8].")
        for step in self.compute_steps:
            whole("compute_steps", step, 0, config.steps_count - 1)
        if (config.step_start, config.step_interval, config.step_end) != (0, 1, NO_END):
            raise ConfigError(
                "compute_steps replaces step_start, step_interval and step_end, but both are set. Leave one of them out."
            )


@dataclass(frozen=True, kw_only=True)
class AdastepOptions(LimitOptions):
    """Options of `adastep`, see `mindie_cache.policies.Adastep` for their meaning and recommended values.

    Args:
        parity: the original's decisions: its first step length is measured from zero instead of from the first latents, a
            skip is possible from its first estimate on, and the last step is not forced.
    """

    skip_thr: float = 0.015
    max_skip_steps: int = 4
    decay_ratio: float = 0.99
    relative: bool = False
    parity: bool = False
    warmup_steps: int = 4

    def check(self, config: CacheConfig) -> None:
        super().check(config)
        real("skip_thr", self.skip_thr, 0.0, None)
        real("decay_ratio", self.decay_ratio, 0.0, 1.0)
        for name in ("relative", "parity"):
            flag(name, getattr(self, name))
        if self.relative and self.parity:
            raise ConfigError("relative=True changes the original's numbers, parity=True keeps them. Set only one of them.")
        if not self.together:
            raise ConfigError("together=False: adastep takes one decision for all branches. Leave it at true.")


def _steps(config: CacheConfig, stop: int) -> Policy:
    """The interval of MindIE-SD's eight fields, or the explicit schedule of the options."""
    options = config.options
    assert isinstance(options, ReuseOptions)
    if options.compute_steps is not None:
        return Schedule(frozenset(options.compute_steps), config.steps_count)
    steps = interval(config.step_start, config.step_interval, stop, config.steps_count)
    return Schedule(steps, config.steps_count, final_steps=0, reason="interval")  # the original forces no last step


def dit_block_cache(config: CacheConfig) -> Recipe:
    return Recipe(
        site=block_range(config),
        policy=_steps(config, config.step_end),
        streams=BlockStreams(config.streams),
        unit="block",
        **estimate(config),
    )


def attention_cache(config: CacheConfig) -> Recipe:
    return Recipe(
        site=EachCall(config.block_start, min(config.block_end, config.blocks_count)),
        policy=_steps(config, config.step_end + 1),  # MindIE-SD's attention_cache includes step_end
        streams=WholeOutput(),
        unit="attention call",
        **estimate(config),
    )


def adastep(config: CacheConfig) -> Recipe:
    options = config.options
    assert isinstance(options, AdastepOptions)
    limits = options.limits(config)
    if options.parity:
        limits = Limits(steps_count=config.steps_count, warmup_steps=0, final_steps=0, max_skip_steps=options.max_skip_steps)
    policy = Adastep(
        limits=limits,
        skip_thr=options.skip_thr,
        decay_ratio=options.decay_ratio,
        relative=options.relative,
        parity=options.parity,
        sync=options.sync,
    )
    return Recipe(
        site=EachCall(0, 1),
        policy=policy,
        streams=WholeOutput(),
        signal=ModelInput(),
        unit="forward",
        **estimate(config),
    )
