"""FasterCache's two parts: fastercache, for attention, and cfg_cache, for guidance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from mindie_cache.bands import PictureBands
from mindie_cache.checks import choice, flag, real, whole
from mindie_cache.errors import ConfigError
from mindie_cache.guidance import PARALLEL, REFERENCE, BatchGuidance, SequentialGuidance
from mindie_cache.methods.base import PresetOptions, Recipe, block_range
from mindie_cache.placement import PLACEMENTS
from mindie_cache.policies import PerBranch, Policy, Reference, Schedule
from mindie_cache.predictors import Boost, PerBand, TwoPoint
from mindie_cache.sites import EachCall, Site
from mindie_cache.streams import WholeOutput

if TYPE_CHECKING:
    from mindie_cache.config import CacheConfig

LAYOUTS = ("sequential", "batch")


@dataclass(frozen=True, kw_only=True)
class FasterCacheOptions(PresetOptions):
    """Options of `fastercache`: each attention output is the last computed one, moved on by a share of its last change.

    Without numbers of its own or a preset it takes CogVideoX's, in proportion to the number of steps.

    Args:
        keep_from: first step whose outputs are kept, 3 before `reuse_from` by default.
        reuse_from: first step that can be reused; three tenths of the run by default.
        reuse_until: steps from this one on are computed; no limit by default.
        interval, phase, reuse_on: a step is reused if (step + phase) is one of the "multiples" of `interval`, or one of
            the "others".
        weight_floor, weight_slope, weight_origin: the share is max(floor, slope * (step - origin)).
        final_steps: the last steps, always computed; 0 as published.
    """

    keep_from: int | None = None
    reuse_from: int | None = None
    reuse_until: int | None = None
    interval: int | None = None
    phase: int | None = None
    reuse_on: str | None = None
    weight_floor: float | None = None
    weight_slope: float | None = None
    weight_origin: int | None = None
    final_steps: int = 1
    defaults: ClassVar[dict[str, Any]] = {
        "keep_from": None,
        "reuse_from": None,
        "interval": 3,
        "phase": 1,
        "reuse_on": "others",
        "weight_floor": 0.3,
        "weight_slope": 0.0,
        "weight_origin": 0,
    }
    preset_method: ClassVar[str] = "fastercache"

    def resolved(self, config: CacheConfig) -> tuple[Any, tuple[str, ...]]:
        full, notes = super().resolved(config)
        reuse_from = _first_step("reuse_from", full.reuse_from, config.steps_count)
        return replace(full, reuse_from=reuse_from, keep_from=_or(full.keep_from, max(0, reuse_from - 3))), notes

    def check(self, config: CacheConfig) -> None:
        self.check_preset()
        full, _ = self.resolved(config)
        super(FasterCacheOptions, full).check(config)
        _refuse_order(full, config)
        for name in ("keep_from", "reuse_from", "phase", "weight_origin", "final_steps"):
            whole(name, getattr(full, name), 0)
        if full.reuse_until is not None:
            whole("reuse_until", full.reuse_until, full.reuse_from)
        whole("interval", full.interval, 2)
        choice("reuse_on", full.reuse_on, ("multiples", "others"))
        for name in ("weight_floor", "weight_slope"):
            real(name, getattr(full, name), 0.0, None)

    def reused_steps(self, steps_count: int) -> set[int]:
        """Only for `resolved` options."""
        assert self.reuse_from is not None
        assert self.phase is not None
        assert self.interval is not None
        stop = steps_count if self.reuse_until is None else min(self.reuse_until, steps_count)
        wanted = self.reuse_on == "multiples"
        steps = range(self.reuse_from, stop)
        return {step for step in steps if ((step + self.phase) % self.interval == 0) == wanted}


def fastercache(config: CacheConfig) -> Recipe:
    options, notes = config.options.resolved(config)
    steps, calls = config.steps_count, block_range(config)
    return Recipe(
        site=EachCall(calls.start, calls.stop),
        policy=_schedule(options.reused_steps(steps), steps, options.final_steps, options.keep_from),
        predictor=TwoPoint(options.weight_floor, options.weight_slope, options.weight_origin),
        placement=PLACEMENTS[config.placement](),
        streams=WholeOutput(),
        unit="attention call",
        notes=notes,
    )


@dataclass(frozen=True, kw_only=True)
class CfgCacheOptions(PresetOptions):
    """Options of `cfg_cache`: the unconditional output is the conditional one of the same step plus their last difference.

    Without numbers of its own or a preset it takes CogVideoX's, in proportion to the number of steps.

    Args:
        refresh_from: first step whose difference is kept, 2 before `skip_from` by default.
        skip_from: first step in which the unconditional output can be predicted; three tenths of the run by default.
        interval, phase: it is computed in the steps in which (step + phase) is a multiple of `interval`.
        low_boost, high_boost: (factor, first step, stop) by which the low and the high frequencies of the difference are
            amplified.
        radius_divisor: low are frequencies up to min(height, width) // radius_divisor of the output.
        compounding: amplify once more with every predicted step since the difference was kept, as the published code.
        layout: "sequential" for one call per branch, "cond" before "uncond"; "batch" for one call with both halves.
        uncond_first: whether the unconditional half of a batch comes first; to be said with layout="batch".
        final_steps: the last steps, always computed.
    """

    refresh_from: int | None = None
    skip_from: int | None = None
    interval: int | None = None
    phase: int | None = None
    low_boost: tuple[float, int, int] | None = None
    high_boost: tuple[float, int, int] | None = None
    radius_divisor: int | None = None
    compounding: bool = False
    layout: str = "sequential"
    uncond_first: bool | None = None
    final_steps: int = 1
    defaults: ClassVar[dict[str, Any]] = {
        "refresh_from": None,
        "skip_from": None,
        "interval": 5,
        "phase": 1,
        "low_boost": None,
        "high_boost": None,
        "radius_divisor": 5,
    }
    preset_method: ClassVar[str] = "cfg_cache"

    def resolved(self, config: CacheConfig) -> tuple[Any, tuple[str, ...]]:
        full, notes = super().resolved(config)
        steps = config.steps_count
        skip_from = _first_step("skip_from", full.skip_from, steps)
        full = replace(
            full,
            skip_from=skip_from,
            refresh_from=_or(full.refresh_from, max(0, skip_from - 2)),
            low_boost=_or(full.low_boost, (1.1, 0, 4 * steps // 5)),
            high_boost=_or(full.high_boost, (1.1, 3 * steps // 5, steps)),
        )
        return full, notes

    def check(self, config: CacheConfig) -> None:
        self.check_preset()
        if self.layout == "parallel":
            raise ConfigError(f'layout="parallel" is not possible. {PARALLEL}')
        choice("layout", self.layout, LAYOUTS)
        full, _ = self.resolved(config)
        super(CfgCacheOptions, full).check(config)
        _refuse_order(full, config)
        for name in ("refresh_from", "skip_from", "phase", "final_steps"):
            whole(name, getattr(full, name), 0)
        whole("interval", full.interval, 2)
        whole("radius_divisor", full.radius_divisor, 1)
        if full.skip_from < full.refresh_from:
            raise ConfigError(
                f"skip_from={full.skip_from} is before refresh_from={full.refresh_from}: there is nothing to predict with. "
                f"Use refresh_from<={full.skip_from}."
            )
        for name in ("low_boost", "high_boost"):
            _check_boost(name, getattr(full, name))
        flag("compounding", full.compounding)
        self._check_order_in_batch()

    def _check_order_in_batch(self) -> None:
        if self.layout != "batch" and self.uncond_first is not None:
            raise ConfigError('uncond_first has no effect on layout="sequential". Set layout="batch", or leave it out.')
        if self.layout == "batch" and self.uncond_first is None:
            raise ConfigError(
                'layout="batch" needs uncond_first: no batch tells which half is the unconditional one. Most pipelines of '
                "diffusers put the negative prompt first: uncond_first=True."
            )
        if self.uncond_first is not None:
            flag("uncond_first", self.uncond_first)


def cfg_cache(config: CacheConfig) -> Recipe:
    options, notes = config.options.resolved(config)
    steps = config.steps_count
    reused = {step for step in range(options.skip_from, steps) if (step + options.phase) % options.interval}
    schedule = _schedule(reused, steps, options.final_steps, options.refresh_from)
    reference = Reference(options.refresh_from, steps - options.final_steps)
    layouts: dict[str, tuple[Site, Policy]] = {
        "sequential": (SequentialGuidance(), PerBranch({"others": schedule, REFERENCE: reference})),
        "batch": (BatchGuidance(bool(options.uncond_first)), schedule),
    }
    site, policy = layouts[options.layout]
    boosts = [
        Boost(factor, first, stop, options.compounding) for factor, first, stop in (options.low_boost, options.high_boost)
    ]
    return Recipe(
        site=site,
        policy=policy,
        predictor=PerBand(tuple(boosts)),
        bands=PictureBands(options.radius_divisor),
        placement=PLACEMENTS[config.placement](),
        streams=WholeOutput(),
        unit="forward",
        notes=notes,
    )


def _schedule(reused: set[int], steps_count: int, final_steps: int, keep_from: int) -> Schedule:
    computed = frozenset(range(steps_count)) - reused
    return Schedule(computed, steps_count, final_steps=final_steps, keep_from=keep_from, reason="interval")


def _or(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def _first_step(name: str, value: Any, steps_count: int) -> int:
    """Where reuse begins: as given, or three tenths of the run. Checked here, because other defaults follow from it."""
    first = _or(value, 3 * steps_count // 10)
    whole(name, first, 0)
    return int(first)


def _refuse_order(options: PresetOptions, config: CacheConfig) -> None:
    if options.order:
        raise ConfigError(
            f"order={options.order} has no effect on {config.method}, which has weights of its own: leave it out."
        )


def _check_boost(name: str, boost: Any) -> None:
    if not isinstance(boost, tuple | list) or len(boost) != 3:
        raise ConfigError(f"{name}={boost!r} must be (factor, first step, stop), e.g. [1.1, 0, 40].")
    real(f"{name} factor", boost[0], 0.0, None)
    whole(f"{name} first step", boost[1], 0)
    whole(f"{name} stop", boost[2], boost[1])
