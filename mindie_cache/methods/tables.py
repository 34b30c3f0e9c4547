"""Methods whose computed steps are known before the run: magcache, ada_taylor, taylorseer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mindie_cache.bands import TokenBands
from mindie_cache.checks import choice, flag, numbers, real, whole
from mindie_cache.errors import ConfigError
from mindie_cache.methods.base import PresetOptions, Recipe, block_range, estimate
from mindie_cache.policies import PerBranch, Schedule
from mindie_cache.policies.magnitude import RESAMPLINGS, plan, resample
from mindie_cache.predictors import PerBand, Predictor, Taylor
from mindie_cache.sites import EachCall
from mindie_cache.streams import BlockStreams, WholeOutput

if TYPE_CHECKING:
    from mindie_cache.config import CacheConfig


@dataclass(frozen=True, kw_only=True)
class MagCacheOptions(PresetOptions):
    """Options of `magcache`, see `mindie_cache.policies.magnitude`. Give a preset, or `cond_ratios`.

    Args:
        threshold: of the accumulated error, 0.12 by default.
        max_skip_steps: most reused steps in a row, 2 by default.
        retention_ratio: share of the first steps that are always computed, 0.2 by default.
        cond_ratios, uncond_ratios: magnitude of each step's residual over that of the step before, one entry a step, the
            first one 1.0. Without `uncond_ratios` both branches follow `cond_ratios`.
        resampling: to another number of steps by "product" or, as published, by the "nearest" entry.
        final_steps: the last steps, always computed; 0 as published by MagCache.
    """

    threshold: float | None = None
    max_skip_steps: int | None = None
    retention_ratio: float | None = None
    cond_ratios: tuple[float, ...] | None = None
    uncond_ratios: tuple[float, ...] | None = None
    resampling: str = "product"
    final_steps: int = 1
    defaults: ClassVar[dict[str, Any]] = {
        "threshold": 0.12,
        "max_skip_steps": 2,
        "retention_ratio": 0.2,
        "cond_ratios": None,
        "uncond_ratios": None,
    }
    preset_method: ClassVar[str] = "magcache"
    rule: ClassVar[str] = "magcache"

    def resolved(self, config: CacheConfig) -> tuple[Any, tuple[str, ...]]:
        full, notes = super().resolved(config)
        given, steps = self.cond_ratios, config.steps_count
        if not isinstance(given, tuple | list) or len(given) in (0, steps):
            return full, notes
        note = (
            f"cond_ratios has {len(given)} entries, but steps_count={steps}: the table is resampled, which is an estimate. "
            f"Give one entry a step, or calibrate with {steps} steps."
        )
        if self.strict:
            raise ConfigError(f"{note} strict is set.")
        return full, (*notes, note)

    def check(self, config: CacheConfig) -> None:
        self.check_preset()
        full, _ = self.resolved(config)
        super(MagCacheOptions, full).check(config)
        real("threshold", full.threshold, 0.0, None)
        whole("max_skip_steps", full.max_skip_steps, 0)
        real("retention_ratio", full.retention_ratio, 0.0, 1.0)
        whole("final_steps", full.final_steps, 0)
        choice("resampling", full.resampling, RESAMPLINGS)
        if full.cond_ratios is None:
            raise ConfigError(
                f"{config.method} needs a magnitude table: set preset (`mindie-cache presets --method {config.method}` "
                "lists them) or cond_ratios, or measure your model with the calibrator."
            )
        for name in ("cond_ratios", "uncond_ratios"):
            ratios = getattr(full, name)
            if ratios is not None:
                numbers(name, ratios)
                if min(ratios) <= 0:
                    raise ConfigError(f"{name} holds {min(ratios)}, but a ratio of magnitudes is above 0.")
        if full.uncond_ratios is not None and len(full.uncond_ratios) != len(full.cond_ratios):
            raise ConfigError(
                f"uncond_ratios has {len(full.uncond_ratios)} entries, cond_ratios {len(full.cond_ratios)}: give one a step "
                "to both."
            )

    def plan(self, ratios: tuple[float, ...], steps_count: int) -> frozenset[int]:
        """The computed steps of one branch; only for `resolved` options."""
        assert self.threshold is not None
        assert self.max_skip_steps is not None
        assert self.retention_ratio is not None
        return plan(
            resample(ratios, steps_count, self.resampling),
            steps_count,
            self.threshold,
            self.max_skip_steps,
            self.retention_ratio,
            rule=self.rule,
            final_steps=self.final_steps,
            init_step=getattr(self, "init_step", 0),
        )


@dataclass(frozen=True, kw_only=True)
class AdaTaylorOptions(MagCacheOptions):
    """Options of `ada_taylor`, TeleFuser's AdaTaylorCache: a magnitude table, and a line through two residuals.

    Args:
        init_step: one more step that is always computed: where the second of two experts takes over.
    """

    order: int = 1
    max_distance: int | None = 2
    init_step: int = 0
    preset_method: ClassVar[str] = "ada_taylor"
    rule: ClassVar[str] = "telefuser"

    def check(self, config: CacheConfig) -> None:
        super().check(config)
        whole("init_step", self.init_step, 0)


def magnitude(config: CacheConfig) -> Recipe:
    """The recipe of magcache and of ada_taylor."""
    options, notes = config.options.resolved(config)
    tables = {"cond": options.cond_ratios, "uncond": options.uncond_ratios or options.cond_ratios}
    steps = config.steps_count
    schedules = {
        branch: Schedule(options.plan(ratios, steps), steps, final_steps=options.final_steps, reason="magnitude")
        for branch, ratios in tables.items()
    }
    return Recipe(
        site=block_range(config),
        policy=PerBranch(schedules),
        streams=BlockStreams(config.streams),
        unit="block",
        notes=notes,
        **estimate(config),
    )


@dataclass(frozen=True, kw_only=True)
class TaylorSeerOptions(PresetOptions):
    """Options of `taylorseer`.

    Args:
        interval: steps from one computed step to the next, 5 by default.
        order: degree of the forecast, 1 by default.
        warmup_steps: the first steps, always computed, 1 by default (`first_enhance` of the original).
        final_steps: the last steps, always computed.
        lite: forecast the residual of the whole block range, which keeps order + 1 tensors; False: `apply` is called once
            per module (attention, feed-forward) and the output of each is forecast.
        low_order, high_order: forecast slow and fast parts along the tokens (dim 1) with a degree each, as HunyuanImage-3.0
            does; instead of `order`.
        split_cutoff: share of the highest frequency up to which a part is slow, 0.1 by default.
    """

    interval: int | None = None
    order: int | None = None  # type: ignore[assignment]
    warmup_steps: int | None = None
    final_steps: int = 1
    lite: bool | None = None
    low_order: int | None = None
    high_order: int | None = None
    split_cutoff: float | None = None
    defaults: ClassVar[dict[str, Any]] = {
        "interval": 5,
        "order": 1,
        "warmup_steps": 1,
        "lite": False,
        "low_order": None,
        "high_order": None,
        "split_cutoff": 0.1,
    }
    preset_method: ClassVar[str] = "taylorseer"

    def check(self, config: CacheConfig) -> None:
        self.check_preset()
        full, _ = self.resolved(config)
        super(TaylorSeerOptions, full).check(config)
        whole("interval", full.interval, 1)
        whole("warmup_steps", full.warmup_steps, 0)
        whole("final_steps", full.final_steps, 0)
        flag("lite", full.lite)
        if full.low_order is None and full.high_order is None:
            if self.split_cutoff is not None:
                raise ConfigError("split_cutoff has no effect without low_order and high_order. Set both, or leave it out.")
            return
        if full.low_order is None or full.high_order is None:
            raise ConfigError(
                f"low_order={full.low_order} and high_order={full.high_order}: each part needs a degree. Set both."
            )
        if self.order is not None:
            raise ConfigError(f"order={self.order} has no effect beside low_order and high_order. Leave it out.")
        for name in ("low_order", "high_order"):
            whole(name, getattr(full, name), 0, 8)
        real("split_cutoff", full.split_cutoff, 0.0, 1.0)

    @property
    def is_split(self) -> bool:
        """Whether the forecast has two parts; one degree for both is the forecast of the whole."""
        return self.low_order != self.high_order

    def predictor(self) -> Predictor:
        if self.low_order is None or self.high_order is None:
            return super().predictor()
        low, high = (Taylor(order, self.max_distance, self.ladder) for order in (self.low_order, self.high_order))
        return PerBand((low, high)) if self.is_split else low


def _published_start(options: Any, first: int) -> int:
    """The first step that the original derives from: the last but one of the warm-up; the last one in HunyuanImage-3.0."""
    return max(0, first - (2 if options.low_order is None else 1))


def taylorseer(config: CacheConfig) -> Recipe:
    options, notes = config.options.resolved(config)
    calls, first = block_range(config), min(max(1, options.warmup_steps), config.steps_count)
    computed = {*range(first), *range(first - 1, config.steps_count, options.interval)}
    policy = Schedule(
        frozenset(computed),
        config.steps_count,
        final_steps=options.final_steps,
        keep_from=_published_start(options, first) if options.ladder == "published" else 0,
        reason="interval",
    )
    parts = {
        "policy": policy,
        "notes": notes,
        "predictor": options.predictor(),
        "placement": estimate(config)["placement"],
        "bands": TokenBands(options.split_cutoff) if options.is_split else None,
    }
    if options.lite:
        return Recipe(site=calls, streams=BlockStreams(config.streams), unit="block", **parts)
    return Recipe(site=EachCall(calls.start, calls.stop), streams=WholeOutput(), unit="module call", **parts)
