"""The presets of this package: reads the JSON files beside it, when first asked, and finds one by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from mindie_cache.errors import ConfigError, did_you_mean
from mindie_cache.presets.preset import Conditions, Preset, Source, settings_of


class PresetNotFound(ConfigError, FileNotFoundError):  # noqa: N818 - the standard library's form
    """No preset of this name; the message says which there are. Also a FileNotFoundError, as in TeleFuser."""


def all_presets(method: str | None = None) -> tuple[Preset, ...]:
    """Every preset, or every one of a method, ordered by method and model."""
    if method is None:
        return _catalogue()
    methods = {preset.method for preset in _catalogue()}
    if method not in methods:
        raise PresetNotFound(f"There are no presets for method {method!r}. {did_you_mean(method, methods)}")
    return tuple([preset for preset in _catalogue() if preset.method == method])


def find(method: str, model: str, variant: str = "") -> Preset:
    """The preset of a method for a model.

    Names are compared without case, and "." and "/" equal "_"; ``model@variant`` is understood too. Only the presets of
    this package are looked at, never a path.

    Raises:
        PresetNotFound: there is none, or several variants and none was named.
    """
    if not isinstance(model, str) or not isinstance(variant, str):
        raise PresetNotFound(
            f"preset={model!r} with variant={variant!r}: both are names. `mindie-cache presets` lists them."
        )
    if not variant:
        model, _, variant = model.partition("@")
    presets = all_presets(method)
    variants = [preset for preset in presets if normal(preset.model) == normal(model)]
    if not variants:
        hint = did_you_mean(model, {preset.model for preset in presets})
        raise PresetNotFound(f"There is no preset of {method} for model {model!r}. {hint} See `mindie-cache presets`.")
    found = [preset for preset in variants if normal(preset.variant) == normal(variant)]
    if not found and not variant and len(variants) == 1:
        found = variants
    if not found:
        names = {preset.name for preset in variants}
        problem = f"has no preset {variant!r}" if variant else "has several presets"
        raise PresetNotFound(f"{model} {problem} of {method}. {did_you_mean(f'{model}@{variant}', names)}")
    return found[0]


@cache
def _catalogue() -> tuple[Preset, ...]:
    files = [file for file in resources.files(__package__).iterdir() if file.name.endswith(".json")]
    entries = [entry for file in files for entry in json.loads(file.read_text(encoding="utf-8"))["presets"]]
    presets = [_preset(entry) for entry in entries]
    return tuple(sorted(presets, key=lambda preset: (preset.method, normal(preset.model), preset.variant)))


def normal(name: str) -> str:
    """The form in which names are compared."""
    return name.replace(".", "_").replace("/", "_").casefold()


def _preset(entry: Mapping[str, Any]) -> Preset:
    return Preset(
        method=entry["method"],
        model=entry["model"],
        variant=entry.get("variant", ""),
        settings=settings_of(entry["settings"]),
        made_for=Conditions(**entry["made_for"]),
        source=Source(**entry["source"]),
        note=entry.get("note", ""),
    )
