"""Which settings of diffusers' and cache-dit's caches `peers.py` runs, gentle to strong. Plain data; imports neither.

cache-dit's defaults (8 first blocks, 8 steps of warm-up) are meant for deeper models and more steps; F8 is kept beside F1,
the warm-up is 4 of 30 steps throughout, as its guide recommends for fewer steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PeerSetting:
    """One row: `name` of the method, `knob` in words, and what `peer_methods.METHODS[method]` is given."""

    name: str
    knob: str
    method: str
    options: dict[str, Any]


def diffusers(config: str, knob: str, **options: Any) -> PeerSetting:
    """`config` without its ending "Config"; `options` are its fields."""
    return PeerSetting(f"diffusers {config}", knob, "diffusers", {"config": config, **options})


def lite(interval: int) -> PeerSetting:
    """Lite mode's patterns with the testbed's names: blocks give zeros, the output layer is extrapolated."""
    names = {"skip_predict_identifiers": [r"transformer_blocks\.\d+"], "cache_identifiers": ["patch_out"]}
    options = {"config": "TaylorSeerCache", "cache_interval": interval, **names}
    return PeerSetting("diffusers TaylorSeerCache lite", f"every {interval}", "diffusers", options)


def attention_broadcast(interval: int, low: int, high: int) -> PeerSetting:
    options = {"spatial_attention_block_skip_range": interval, "spatial_attention_timestep_skip_range": (low, high)}
    return diffusers("PyramidAttentionBroadcast", f"every {interval}, timesteps {low} to {high}", **options)


def faster_cache(high: int) -> PeerSetting:
    """Attention every 2nd step and the unconditional branch every 5th, its defaults, at timesteps below `high`."""
    ranges = ("spatial_attention_timestep_skip_range", "unconditional_batch_timestep_skip_range")
    return diffusers("FasterCache", f"timesteps below {high}", **dict.fromkeys(ranges, (-1, high)))


def cache_dit(name: str, knob: str, first: int = 1, last: int = 0, warm_up: int = 4, **options: Any) -> PeerSetting:
    """`first` blocks decide and `last` blocks are always computed; `options` are fields of the config."""
    blocks = {"Fn_compute_blocks": first, "Bn_compute_blocks": last, "max_warmup_steps": warm_up}
    return PeerSetting(f"cache-dit {name}", knob, "cache-dit", {**blocks, **options})


def calibrated(calibrator: str, threshold: float, **options: Any) -> PeerSetting:
    """DBCache F1B0 with a calibrator; at most 3 cached steps in a row, without which its extrapolation runs away."""
    order = f" {options['taylorseer_order']}" if options else ""
    chosen = {"calibrator": {"name": calibrator, "options": options}, "residual_diff_threshold": threshold}
    chosen["max_continuous_cached_steps"] = 3
    return cache_dit(f"DBCache F1B0 + {calibrator}{order}", f"threshold {threshold:g}", **chosen)


THRESHOLDS = (0.07, 0.1, 0.15, 0.3)
PEER_SETTINGS: tuple[PeerSetting, ...] = (
    *(diffusers("FirstBlockCache", f"threshold {t:g}", threshold=t) for t in THRESHOLDS),
    *(diffusers("MagCache", f"threshold {t:g}", threshold=t, max_skip_steps=4) for t in (0.01, 0.03, 0.06, 0.12)),
    *(diffusers("SeaCache", f"threshold {t:g}", threshold=t, max_consecutive_cached=4) for t in (0.1, 0.25, 0.5, 1.0)),
    *(diffusers("TaylorSeerCache", f"attention, every {n}", cache_interval=n) for n in (2, 3, 5)),
    *(lite(n) for n in (2, 3, 4, 5)),
    diffusers("TaylorSeerCache", "lite mode as it is, every 3", cache_interval=3, use_lite_mode=True),
    *(attention_broadcast(n, 100, 950) for n in (2, 3, 4)),
    *(faster_cache(high) for high in (641, 781, 901)),
    diffusers("TextKVCache", "as it is"),  # knows the blocks of one model only: listed with its reason
    *(cache_dit("DBCache F1B0", f"threshold {t:g}", residual_diff_threshold=t) for t in THRESHOLDS),
    *(cache_dit("DBCache F4B0", f"threshold {t:g}", 4, residual_diff_threshold=t) for t in THRESHOLDS),
    *(cache_dit("DBCache F8B0", f"threshold {t:g}", 8, residual_diff_threshold=t) for t in THRESHOLDS),
    *(calibrated("TaylorSeer", t, taylorseer_order=1) for t in THRESHOLDS),
    *(calibrated("TaylorSeer", t, taylorseer_order=2) for t in THRESHOLDS),
    *(calibrated("FoCa", t) for t in THRESHOLDS),
    *(calibrated("DMD", t) for t in THRESHOLDS),
    *(cache_dit("static mask F1B0", policy, mask=policy) for policy in ("slow", "medium", "fast", "ultra")),
    *(
        cache_dit("DBPrune F1B0", f"threshold {t:g}", config="DBPruneConfig", residual_diff_threshold=t)
        for t in (0.02, 0.05, 0.1, 0.2)
    ),
)
