"""The one table from a method's name to what it means."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from mindie_cache.errors import ConfigError
from mindie_cache.methods import broadcast, calibrator, fastercache, mindie, planned, probes, seacache, signals, tables
from mindie_cache.methods.base import NO_END, Method
from mindie_cache.methods.mindie import ReuseOptions

if TYPE_CHECKING:
    from mindie_cache.config import CacheConfig

METHODS: dict[str, Method] = {
    # MindIE-SD
    "dit_block_cache": Method(mindie.ReuseOptions, mindie.dit_block_cache, declares_streams=True, windowed=True),
    "attention_cache": Method(mindie.ReuseOptions, mindie.attention_cache, windowed=True),
    "adastep": Method(mindie.AdastepOptions, mindie.adastep, whole_forward=True),
    # TeaCache, SeaCache, AdaCache, EasyCache; LightX2V's CustomCache
    "teacache": Method(signals.TeaCacheOptions, signals.teacache, declares_streams=True),
    "custom": Method(signals.CustomOptions, signals.teacache, declares_streams=True),
    "seacache": Method(seacache.SeaCacheOptions, seacache.seacache, declares_streams=True),
    "adacache": Method(signals.AdaCacheOptions, signals.adacache, declares_streams=True),
    "easycache": Method(signals.EasyCacheOptions, signals.easycache, whole_forward=True),
    # MagCache, TeleFuser's AdaTaylorCache, TaylorSeer
    "magcache": Method(tables.MagCacheOptions, tables.magnitude, declares_streams=True),
    "ada_taylor": Method(tables.AdaTaylorOptions, tables.magnitude, declares_streams=True),
    "taylorseer": Method(tables.TaylorSeerOptions, tables.taylorseer, declares_streams=True),
    # computes everything and measures
    "calibrator": Method(calibrator.CalibratorOptions, calibrator.calibrator, declares_streams=True),
    # FasterCache, Pyramid Attention Broadcast
    "fastercache": Method(fastercache.FasterCacheOptions, fastercache.fastercache),
    "cfg_cache": Method(fastercache.CfgCacheOptions, fastercache.cfg_cache, whole_forward=True),
    "pab": Method(broadcast.PabOptions, broadcast.pab),
    # planned from a recorded generation
    "plan": Method(planned.PlanOptions, planned.planned, whole_forward=True),
    "plan_blocks": Method(planned.PlanOptions, planned.planned_blocks, declares_streams=True),
    # LightX2V's block caches
    "first_block": Method(probes.FirstBlockOptions, probes.first_block, declares_streams=True),
    "dual_block": Method(probes.DualBlockOptions, probes.first_block, declares_streams=True),
    "dynamic_block": Method(probes.DynamicBlockOptions, probes.dynamic_block, declares_streams=True),
}

# The options, over all methods, that decide how many steps are reused.
DECIDING_OPTIONS = {
    "broadcast",
    "codebook",
    "compute_steps",
    "interval",
    "reuse_from",
    "skip_from",
    "skip_thr",
    "threshold",
    "warmup_steps",
    "window",
}


def check_fields(config: CacheConfig) -> None:
    """Raise ConfigError if a field is set that has no effect on the method."""
    method = METHODS[config.method]
    if not method.windowed and (config.step_start, config.step_interval, config.step_end) != (0, 1, NO_END):
        raise ConfigError(
            f"{config.method} decides by itself which steps are computed: step_start, step_interval and step_end have no "
            f"effect. Leave them at their defaults and use options={method.options.__name__}(...)."
        )
    if method.whole_forward:
        if config.blocks_count != 1:
            raise ConfigError(
                f"blocks_count={config.blocks_count}, but {config.method} skips whole forwards: one call per step and "
                "branch. Set blocks_count=1 and call agent.apply(transformer, hidden_states=latents, ...)."
            )
        if (config.block_start, config.block_end) != (0, NO_END):
            raise ConfigError(
                f"{config.method} skips whole forwards: block_start and block_end have no effect. Leave them at their "
                "defaults."
            )


def bypass_reason(config: CacheConfig) -> str:
    """Why this (valid) configuration caches nothing, or an empty string. The conditions are MindIE-SD's."""
    if config.method == "adastep":
        return "" if config.options.skip_thr > 0 else "skip_thr=0: no step is even enough to be skipped"
    windowed = METHODS[config.method].windowed
    scheduled = isinstance(config.options, ReuseOptions) and config.options.compute_steps is not None
    conditions = {
        "step_interval=1: every step is refreshed. Use step_interval>=2": (
            windowed and config.step_interval == 1 and not scheduled
        ),
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


def advice(config: CacheConfig) -> tuple[str, str]:
    """What to change when nothing was reused, and what when everything was: only settings that the method has."""
    if METHODS[config.method].windowed and getattr(config.options, "compute_steps", None) is None:
        return (
            "Check step_start, step_interval and step_end against the number of steps, and blocks_count against the model.",
            "Use a smaller step_interval or a later step_start.",
        )
    names = ", ".join(field.name for field in fields(config.options) if field.name in DECIDING_OPTIONS)
    return f"Run more steps, or check these options: {names}.", f"Check these options: {names}."
