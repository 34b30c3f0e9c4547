"""Reads LightX2V's JSON configurations (`--config_json`) as a CacheConfig. Owns no caching rule of its own.

Source: ModelTC/LightX2V (Apache-2.0), its rules at the commit named in docs/presets.md. `CacheConfig.from_lightx2v` is the
way in. What is not about caching is ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from mindie_cache.checks import flag, numbers, real, whole
from mindie_cache.config import CacheConfig
from mindie_cache.errors import ConfigError, did_you_mean
from mindie_cache.parsing import parse_json

WAN_1_3B_BLOCKS = 30  # LightX2V ships its methods of single blocks for Wan2.1-T2V-1.3B only
WAN_MODULES = 3  # calls per block of TaylorSeer: self-attention, cross-attention, feed-forward
WAN_FRAME_TOKENS = 1536  # LightX2V's constant, where the size of the video is not in the file
_RET_STEPS = 5
_TAYLOR = "taylor_cache_"
_KEYS = (
    *("feature_caching", "coefficients", "teacache_thresh", "use_ret_steps"),
    *("magcache_calibration", "magcache_K", "magcache_thresh", "magcache_retention_ratio", "magcache_ratios"),
    *("residual_diff_threshold", "downsample_factor", "adacache_spatial_dim", "use_taylor_cache"),
    *(_TAYLOR + name for name in ("interval", "order", "low_freqs_order", "high_freqs_order")),
    *(_TAYLOR + name for name in ("enable_first_enhance", "first_enhance_steps")),
    *(_TAYLOR + name for name in ("enable_tailing_enhance", "tailing_enhance_steps")),
)
_PREFIXES = ("teacache", "magcache", "adacache", "taylor_cache", "taylorcache")
Keys = Mapping[str, Any]
Fields = dict[str, Any]  # of CacheConfig, without method, blocks_count and steps_count


def read(path: str | PathLike[str], blocks_count: int | None = None) -> CacheConfig:
    """Read a LightX2V configuration; see `CacheConfig.from_lightx2v`."""
    try:
        values = parse_json(Path(path).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ConfigError(f"a LightX2V configuration is an object of keys, but this is a {type(values).__name__}.")
        return _config(values, blocks_count, Path(path).stem)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None


def _config(values: Keys, blocks_count: int | None, title: str) -> CacheConfig:
    _refuse_misspelt(values)
    name = _selected(values)
    steps = _required(values, "infer_steps", name)
    whole("infer_steps", steps, 1)
    method, build, default_blocks = _METHODS[name]
    if blocks_count is None:
        layers = values.get("num_layers", default_blocks)
        whole("num_layers", layers, 1)
        blocks_count = layers * WAN_MODULES if name == "TaylorSeer" else layers
    whole("blocks_count", blocks_count, 1)
    calibrates = values.get("magcache_calibration", False)  # LightX2V's default for HunyuanVideo-1.5 is true
    flag("magcache_calibration", calibrates)
    if name == "Mag" and calibrates:
        return CacheConfig("calibrator", blocks_count, steps, options=_calibrator(values, title)).validated()
    return CacheConfig(method, blocks_count, steps, **build(values, name)).validated()


def _selected(values: Keys) -> str:
    """The entry of `_METHODS` that the file asks for."""
    taylor = values.get("use_taylor_cache", False)
    flag("use_taylor_cache", taylor)
    name = values.get("feature_caching", "NoCaching")
    if name is None:
        name = "None"
    if not isinstance(name, str) or name not in _METHODS or name == _HUNYUAN_IMAGE:
        allowed = did_you_mean(name, [known for known in _METHODS if known != _HUNYUAN_IMAGE])
        raise ConfigError(f"feature_caching={name!r} is not supported. {allowed}")
    if taylor and name not in ("NoCaching", "None"):
        raise ConfigError(f"use_taylor_cache and feature_caching={name!r} exclude each other. Keep one of them.")
    if taylor:
        return _HUNYUAN_IMAGE
    if "feature_caching" not in values:
        for key in values:
            switch = "use_taylor_cache" if key.startswith(_TAYLOR) else "feature_caching"
            if key in _KEYS and key != "use_taylor_cache" and switch not in values:
                raise ConfigError(f"{key} is set, but {switch} is missing, so nothing would be cached. Add {switch}.")
    return name


def _refuse_misspelt(values: Keys) -> None:
    lowered = {key.lower().replace("-", "_"): key for key in _KEYS}
    for key in values:
        plain = key.lower().replace("-", "_")
        close = difflib.get_close_matches(plain, lowered, n=1, cutoff=0.85)
        if key not in _KEYS and (close or plain.startswith(_PREFIXES)):
            raise ConfigError(f"unknown key {key!r}. {did_you_mean(lowered[close[0]] if close else key, _KEYS)}")


def _required(values: Keys, key: str, name: str) -> Any:
    if values.get(key) is None:
        raise ConfigError(f"{key} is missing: feature_caching={name!r} needs it. Add it to the file.")
    return values[key]


def _nothing(values: Keys, name: str) -> Fields:
    return {}  # dit_block_cache with step_interval 1: every step is computed


def _tea(values: Keys, name: str) -> Fields:
    """TeaCache's decision: the polynomial, its signal and its warm-up go together."""
    ret_steps, threshold = values.get("use_ret_steps", False), values.get("teacache_thresh", 0.26)
    flag("use_ret_steps", ret_steps)
    real("teacache_thresh", threshold, 0.0, None)
    given = _required(values, "coefficients", name)
    if isinstance(given, list) and given and all(isinstance(item, list) for item in given):
        if len(given) != 2:
            raise ConfigError(
                f"coefficients has {len(given)} lists. Give two, the first for use_ret_steps=true and the second for false, "
                "or one flat list (HunyuanVideo-1.5)."
            )
        index = 0 if ret_steps else 1
        key, chosen, signal = f"coefficients[{index}]", given[index], "temb"
        if not chosen:
            raise ConfigError(
                f"{key} is empty, but use_ret_steps={str(ret_steps).lower()} selects it: its polynomial would be zero and "
                f"nothing recomputed. Fill it, or set use_ret_steps to {str(not ret_steps).lower()}."
            )
    else:
        key, chosen, signal = "coefficients", given, "modulated"
        if ret_steps:
            raise ConfigError(
                "use_ret_steps=true selects the first of two lists, but coefficients is one flat list. Give both lists, or "
                "leave use_ret_steps out."
            )
    numbers(key, chosen)
    options = {"threshold": threshold, "coefficients": chosen, "signal": signal, "final_steps": 1}
    return {"options": {**options, "warmup_steps": _RET_STEPS if ret_steps else 1}}


def _calibrator(values: Keys, title: str) -> Fields:
    """What the file says about the run becomes the provenance. Nothing is written unasked: save agent.calibration()."""
    named = {option: values[key] for key, option in _PROVENANCE.items() if values.get(key) is not None}
    return {"model_name": title, "format": "lightx2v", **named}


_PROVENANCE = {"transformer_model_name": "model_name", "sample_shift": "sigma_shift", "sample_guide_scale": "guidance_scale"}


def _mag(values: Keys, name: str) -> Fields:
    ratios = _required(values, "magcache_ratios", name)
    if not isinstance(ratios, list) or len(ratios) != 2 or not all(isinstance(item, list) for item in ratios):
        raise ConfigError("magcache_ratios must be two lists, [[cond], [uncond]], one number a step in each.")
    for index, item in enumerate(ratios):
        if item or not index:
            numbers(f"magcache_ratios[{index}]", item)
    hunyuan = "transformer_model_name" in values or str(values.get("model_cls", "")).startswith("hunyuan")
    defaults = {"magcache_thresh": 0.2, "magcache_K": 6, "magcache_retention_ratio": 0.2} if hunyuan else {}
    found = {key: _required({**defaults, **values}, key, name) for key in _MAG_OPTIONS}
    real("magcache_thresh", found["magcache_thresh"], 0.0, None)
    whole("magcache_K", found["magcache_K"], 0)
    real("magcache_retention_ratio", found["magcache_retention_ratio"], 0.0, 1.0)
    options = {option: found[key] for key, option in _MAG_OPTIONS.items()}
    return {"options": {**options, "cond_ratios": ratios[0], "uncond_ratios": ratios[1] or None, "final_steps": 1}}


_MAG_OPTIONS = {
    "magcache_thresh": "threshold",
    "magcache_K": "max_skip_steps",
    "magcache_retention_ratio": "retention_ratio",
}


def _taylorseer(values: Keys, name: str) -> Fields:
    return {"options": {"interval": 4, "order": 1, "warmup_steps": 1, "final_steps": 1}}


def _ada(values: Keys, name: str) -> Fields:
    """Motion regularisation compares tokens one latent frame apart; without their number Flux2 has no motion."""
    tokens = values.get("adacache_spatial_dim")
    if tokens is not None:
        whole("adacache_spatial_dim", tokens, 0)
    elif not str(values.get("model_cls", "")).startswith("flux2"):
        tokens = _frame_tokens(values)
    options: Fields = {"final_steps": 1}
    return {"options": {**options, "motion": True, "frame_tokens": tokens} if tokens else options}


def _frame_tokens(values: Keys) -> int:
    """Tokens of one latent frame of Wan (a token is 16 x 16 pixels)."""
    sizes = [values.get(key) for key in ("target_height", "target_width")]
    if None in sizes:
        return WAN_FRAME_TOKENS
    for key, size in zip(("target_height", "target_width"), sizes, strict=True):
        whole(key, size, 16)
    height, width = (int(size or 0) // 16 for size in sizes)
    return height * width


def _block_residual(values: Keys, name: str) -> Fields:
    threshold, downsample = _required(values, "residual_diff_threshold", name), _required(values, "downsample_factor", name)
    real("residual_diff_threshold", threshold, 0.0, None)
    whole("downsample_factor", downsample, 1)
    published = {"parity": True} if name == "DynamicBlock" else {"compare": "previous"}
    return {"options": {"threshold": threshold, "downsample": downsample, "final_steps": 1, **published}}


def _hunyuan_image(values: Keys, name: str) -> Fields:
    """HunyuanImage-3.0: the output of the whole stack, its low and high frequencies apart."""

    def get(key: str, default: int, least: int, most: int | None = None) -> int:
        value = values.get(_TAYLOR + key, default)
        whole(_TAYLOR + key, value, least, most)
        return int(value)

    order = get("order", 2, 0, 8)
    enhanced = {}
    for key, default in (("first", 3), ("tailing", 1)):
        enabled = values.get(f"{_TAYLOR}enable_{key}_enhance", False)
        flag(f"{_TAYLOR}enable_{key}_enhance", enabled)
        enhanced[key] = get(f"{key}_enhance_steps", default, 1) if enabled else 1
    return {
        "options": {
            "interval": get("interval", 5, 1),
            "warmup_steps": enhanced["first"],
            "final_steps": enhanced["tailing"],
            "lite": True,
            "low_order": min(order, get("low_freqs_order", 2, 0, 8)),
            "high_order": min(order, get("high_freqs_order", 2, 0, 8)),
        }
    }


_HUNYUAN_IMAGE = "use_taylor_cache"
_METHODS: dict[str, tuple[str, Callable[[Keys, str], Fields], int]] = {  # method, its options, blocks_count if not given
    "NoCaching": ("dit_block_cache", _nothing, 1),
    "None": ("dit_block_cache", _nothing, 1),
    "Tea": ("teacache", _tea, 1),
    "Mag": ("magcache", _mag, 1),
    "TaylorSeer": ("taylorseer", _taylorseer, WAN_1_3B_BLOCKS),
    "Ada": ("adacache", _ada, WAN_1_3B_BLOCKS),
    "Custom": ("custom", _tea, 1),
    "FirstBlock": ("first_block", _block_residual, WAN_1_3B_BLOCKS),
    "DualBlock": ("dual_block", _block_residual, WAN_1_3B_BLOCKS),
    "DynamicBlock": ("dynamic_block", _block_residual, WAN_1_3B_BLOCKS),
    _HUNYUAN_IMAGE: ("taylorseer", _hunyuan_image, 1),
}
