"""The one table from a method's name to what it means: site + policy + predictor + placement + streams + signal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mindie_cache.checks import choice, real, whole
from mindie_cache.errors import ConfigError
from mindie_cache.placement import PLACEMENTS, Placement
from mindie_cache.policies import Adastep, Interval, Policy, Schedule
from mindie_cache.predictors import Hold, Predictor, Taylor
from mindie_cache.sites import BlockRange, EachCall
from mindie_cache.streams import BlockStreams, WholeOutput
from mindie_cache.taps import model_input

if TYPE_CHECKING:
    from mindie_cache.config import CacheConfig

NO_END = 10000  # MindIE-SD's default of step_end and block_end: no limit
LADDERS = ("newton", "published")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One caching method, ready to run. `unit` is the word for one call in reports."""

    site: BlockRange | EachCall
    policy: Policy
    predictor: Predictor
    placement: Placement
    streams: BlockStreams | WholeOutput
    signal: Callable[[tuple[Any, ...], dict[str, Any]], Any] | None = None
    unit: str


@dataclass(frozen=True, kw_only=True)
class ExtrapolationOptions:
    """How a reused feature is estimated, for every method.

    Args:
        order: 0 reuses the newest feature; n extrapolates with a polynomial of degree n.
        max_distance: extrapolate at most this many steps ahead, hold beyond; None sets no limit.
        ladder: "newton" or "published", see `mindie_cache.predictors.Taylor`.
    """

    order: int = 0
    max_distance: int | None = None
    ladder: str = "newton"

    def check(self, config: CacheConfig) -> None:
        whole("order", self.order, 0, 8)
        if self.max_distance is not None:
            whole("max_distance", self.max_distance, 0)
        choice("ladder", self.ladder, LADDERS)
        if not self.order and (self.max_distance is not None or self.ladder != "newton"):
            raise ConfigError("max_distance and ladder need order >= 1: with order=0 features are held. Set order=1.")

    def predictor(self) -> Predictor:
        return Taylor(self.order, self.max_distance, self.ladder) if self.order else Hold()


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
class AdastepOptions(ExtrapolationOptions):
    """Options of `adastep`, see `mindie_cache.policies.Adastep` for their meaning and recommended values."""

    skip_thr: float = 0.015
    max_skip_steps: int = 4
    decay_ratio: float = 0.99
    relative: bool = False
    parity: bool = False

    def check(self, config: CacheConfig) -> None:
        super().check(config)
        real("skip_thr", self.skip_thr, 0.0, None)
        whole("max_skip_steps", self.max_skip_steps, 0)
        real("decay_ratio", self.decay_ratio, 0.0, 1.0)
        for name in ("relative", "parity"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r} must be true or false.")
        if self.relative and self.parity:
            raise ConfigError("relative=True changes the original's numbers, parity=True keeps them. Set only one of them.")
        if config.blocks_count != 1:
            raise ConfigError(
                f"blocks_count={config.blocks_count}, but adastep skips whole forwards: one call per step and branch. "
                "Set blocks_count=1 and call agent.apply(transformer, hidden_states=latents, ...)."
            )
        used = (config.step_start, config.step_interval, config.step_end, config.block_start, config.block_end)
        if used != (0, 1, NO_END, 0, NO_END):
            raise ConfigError(
                "adastep decides by itself which steps to skip: step_start, step_interval, step_end, block_start and "
                "block_end have no effect. Leave them at their defaults and use options=AdastepOptions(...)."
            )


def _steps(config: CacheConfig, stop: int) -> Policy:
    """The interval of MindIE-SD's eight fields, or the explicit schedule of the options."""
    options = config.options
    assert isinstance(options, ReuseOptions)
    if options.compute_steps is not None:
        return Schedule(frozenset(options.compute_steps), config.steps_count)
    return Interval(config.step_start, config.step_interval, stop)


def _common(config: CacheConfig) -> dict[str, Any]:
    assert isinstance(config.options, ExtrapolationOptions)
    return {"predictor": config.options.predictor(), "placement": PLACEMENTS[config.placement]()}


def _dit_block_cache(config: CacheConfig) -> Recipe:
    return Recipe(
        site=BlockRange(config.block_start, min(config.block_end, config.blocks_count)),
        policy=_steps(config, config.step_end),
        streams=BlockStreams(config.streams),
        unit="block",
        **_common(config),
    )


def _attention_cache(config: CacheConfig) -> Recipe:
    return Recipe(
        site=EachCall(config.block_start, min(config.block_end, config.blocks_count)),
        policy=_steps(config, config.step_end + 1),  # MindIE-SD's attention_cache includes step_end
        streams=WholeOutput(),
        unit="attention call",
        **_common(config),
    )


def _adastep(config: CacheConfig) -> Recipe:
    options = config.options
    assert isinstance(options, AdastepOptions)
    return Recipe(
        site=EachCall(0, 1),
        policy=Adastep(
            skip_thr=options.skip_thr,
            max_skip_steps=options.max_skip_steps,
            decay_ratio=options.decay_ratio,
            steps_count=config.steps_count,
            relative=options.relative,
            parity=options.parity,
        ),
        streams=WholeOutput(),
        signal=model_input,
        unit="forward",
        **_common(config),
    )


@dataclass(frozen=True)
class Method:
    """How a method name becomes a recipe: its typed options, its builder, and whether MindIE-SD's bypasses apply."""

    options: type[ExtrapolationOptions]
    build: Callable[[CacheConfig], Recipe]
    declares_streams: bool = field(default=False, kw_only=True)


METHODS: dict[str, Method] = {
    "dit_block_cache": Method(ReuseOptions, _dit_block_cache, declares_streams=True),
    "attention_cache": Method(ReuseOptions, _attention_cache),
    "adastep": Method(AdastepOptions, _adastep),
}


def bypass_reason(config: CacheConfig) -> str:
    """Why this (valid) configuration caches nothing, or an empty string. The conditions are MindIE-SD's."""
    if config.method == "adastep":
        return "" if config.options.skip_thr > 0 else "skip_thr=0: no step is even enough to be skipped"
    scheduled = isinstance(config.options, ReuseOptions) and config.options.compute_steps is not None
    conditions = {
        "step_interval=1: every step is refreshed. Use step_interval>=2": config.step_interval == 1 and not scheduled,
        f"step_start={config.step_start} is not before steps_count={config.steps_count}. Start earlier": config.step_start
        >= config.steps_count,
        f"step_end=step_start={config.step_start}: the window is empty. Use a larger step_end": config.step_end
        == config.step_start,
        f"block_start={config.block_start} is not before blocks_count={config.blocks_count}. Start earlier": (
            config.block_start >= config.blocks_count
        ),
        f"block_end=block_start={config.block_start}: the range is empty. Use a larger block_end": config.block_end
        == config.block_start,
    }
    return next((reason for reason, holds in conditions.items() if holds), "")
