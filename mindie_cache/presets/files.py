"""Reads a user's calibration file, in TeleFuser's or LightX2V's format, as a preset."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from mindie_cache.checks import numbers, real, whole
from mindie_cache.errors import ConfigError, did_you_mean
from mindie_cache.parsing import parse_json
from mindie_cache.presets.preset import Conditions, Preset, Source, settings_of

TABLES = ("ada_taylor", "magcache")
POLYNOMIALS = ("teacache", "custom")
_RATIOS = ("mag_ratio", "mag_ratios", "magcache_ratios")  # LightX2V's: [cond, uncond]
_OPTIONS = {  # option: its keys in TeleFuser's and LightX2V's files
    "threshold": ("thresh", "magcache_thresh"),
    "max_skip_steps": ("K", "magcache_K"),
    "retention_ratio": ("retention_ratio", "magcache_retention_ratio"),
}
_CONDITIONS = {
    "steps": ("num_inference_steps", "infer_steps"),
    "sigma_shift": ("sigma_shift", "sample_shift"),
    "resolution": ("resolution",),
    "guidance_scale": ("guidance_scale", "sample_guide_scale"),
    "scheduler": ("scheduler",),
}


def load_file(path: str | PathLike[str], method: str = "ada_taylor") -> Preset:
    """Read a calibration file as a preset of `method`.

    TeleFuser's format is an object with ``cond_mag_ratios``, ``uncond_mag_ratios`` and, optionally, ``K``,
    ``retention_ratio``, ``thresh``, ``sigma_shift``, ``num_inference_steps``; LightX2V's is ``[[cond], [uncond]]``, alone
    or as ``magcache_ratios`` of its configuration. For teacache the polynomial that our calibrator adds to TeleFuser's
    format is read. Other keys are provenance and ignored.

    Raises:
        ConfigError: the file is not of such a form, or a number is missing, NaN, infinite or out of range.
        OSError: the file cannot be read.
    """
    if method not in (*TABLES, *POLYNOMIALS):
        allowed = did_you_mean(method, (*TABLES, *POLYNOMIALS))
        raise ConfigError(f"preset={str(path)!r}: {method} has no calibration files. {allowed} Name a preset instead.")
    file = Path(path)
    try:
        document = parse_json(file.read_text(encoding="utf-8"))
        return _preset(document, method, file)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None


def _preset(document: Any, method: str, file: Path) -> Preset:
    values = {"mag_ratio": document} if isinstance(document, list) else document
    if not isinstance(values, Mapping):
        raise ConfigError(f"a calibration file is an object or [[cond], [uncond]], but this is a {type(document).__name__}.")
    provenance = values.get("provenance")
    facts: Mapping[str, Any] = provenance if isinstance(provenance, Mapping) else {}
    made_for = _conditions({**facts, **values})
    settings = _table(values, made_for.steps) if method in TABLES else _polynomial(values)
    if method in TABLES and made_for.steps is None:
        made_for = _conditions({**facts, **values, "num_inference_steps": len(settings["cond_ratios"])})
    model = facts.get("model")
    return Preset(
        method=method,
        model=model if isinstance(model, str) and model else file.stem,
        settings=settings_of(settings),
        made_for=made_for,
        source=Source(repo="", path=str(file), credit=f"measured {facts['created']}" if facts.get("created") else ""),
        note=str(facts.get("note") or ""),
    )


def _given(values: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str, Any]:
    """The first of `keys` that the file has, and its value."""
    return next(((key, values[key]) for key in keys if values.get(key) is not None), (keys[0], None))


def _conditions(values: Mapping[str, Any]) -> Conditions:
    found: dict[str, Any] = {}
    for name, keys in _CONDITIONS.items():
        key, value = _given(values, keys)
        if value is None:
            continue
        if name == "steps":
            whole(key, value, 1)
        elif name in ("sigma_shift", "guidance_scale"):
            real(key, value, 0.0, None)
        elif not isinstance(value, str):
            raise ConfigError(f"{key}={value!r} must be text.")
        found[name] = value
    return Conditions(**found)


def _table(values: Mapping[str, Any], steps: int | None) -> dict[str, Any]:
    pair_key, pair = _given(values, _RATIOS)
    named = {key: key for key in ("cond_mag_ratios", "uncond_mag_ratios")}
    if pair is not None:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ConfigError(f"{pair_key} must be two lists, [[cond], [uncond]], one number a step in each.")
        named = {f"{pair_key}[{index}]": name for index, name in enumerate(named)}
        lists: dict[str, Any] = dict(zip(named, pair, strict=True))
    else:
        lists = {name: values.get(name) for name in named}
    cond, uncond = named
    if lists[cond] is None:
        missing = did_you_mean("cond_mag_ratios", [key for key in values if "ratio" in key])
        raise ConfigError(f"cond_mag_ratios (or LightX2V's [[cond], [uncond]]) is missing. Among its keys: {missing}")
    for name, ratios in lists.items():
        if ratios:
            _check_ratios(name, ratios, steps)
    if not lists[cond]:
        raise ConfigError(f"{cond} is empty. Give one number a step.")
    if lists[uncond] and len(lists[uncond]) != len(lists[cond]):
        raise ConfigError(
            f"{cond} has {len(lists[cond])} entries, {uncond} {len(lists[uncond])}. Give both one a step, or measure anew."
        )
    settings: dict[str, Any] = _options(values)
    settings["cond_ratios"] = lists[cond]
    if lists[uncond]:
        settings["uncond_ratios"] = lists[uncond]
    return settings


def _options(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, keys in _OPTIONS.items():
        key, value = _given(values, keys)
        if value is None:
            continue
        if name == "max_skip_steps":
            whole(key, value, 0)
        else:
            real(key, value, 0.0, 1.0 if name == "retention_ratio" else None)
        found[name] = value
    return found


def _check_ratios(name: str, ratios: Any, steps: int | None) -> None:
    if not isinstance(ratios, list):
        raise ConfigError(f"{name} must be a list of numbers, one a step; got {type(ratios).__name__}.")
    numbers(name, ratios)
    if min(ratios) <= 0:
        raise ConfigError(f"{name}[{ratios.index(min(ratios))}]={min(ratios)}, but a ratio of magnitudes is above 0.")
    if ratios[0] != 1:
        raise ConfigError(
            f"{name}[0]={ratios[0]}: entry 0 belongs to step 0, which has no step before it. Put 1.0 in front of the list."
        )
    if steps is not None and len(ratios) != steps:
        raise ConfigError(f"{name} has {len(ratios)} entries for {steps} steps. Give one a step, or measure anew.")


def _polynomial(values: Mapping[str, Any]) -> dict[str, Any]:
    found = values.get("teacache")
    if not isinstance(found, Mapping):
        raise ConfigError(
            "there is no polynomial in this file (key teacache). Measure again with the calibrator and a signal to watch."
        )
    numbers("teacache.coefficients", found.get("coefficients"))
    settings = {"coefficients": found["coefficients"]}
    if isinstance(found.get("signal"), str):
        settings["signal"] = found["signal"]
    return settings
