"""CacheConfig: MindIE-SD's eight fields and a few keyword-only ones; its one validation pass; YAML and JSON in and out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from mindie_cache.checks import whole
from mindie_cache.errors import ConfigError, did_you_mean
from mindie_cache.methods.base import NO_END, tupled
from mindie_cache.parsing import parse_json, parse_yaml
from mindie_cache.placement import PLACEMENTS
from mindie_cache.recipes import METHODS, check_fields


@dataclass(frozen=True)
class CacheConfig:
    """What to cache and when. The first eight fields, their order and defaults are those of MindIE-SD's CacheConfig.

    Args:
        method: "dit_block_cache", "attention_cache" or "adastep".
        blocks_count: calls of `CacheAgent.apply` per denoising step and branch.
        steps_count: denoising steps of a run.
        step_start: first step of the caching window; it is computed, reuse begins after it.
        step_interval: refresh every so many steps; 1 turns caching off.
        step_end: dit_block_cache reuses before this step, attention_cache up to and including it.
        block_start, block_end: half-open range of calls that are cached.
        options: settings of the method: a mapping or the method's options class (ReuseOptions, AdastepOptions).
        streams: names of a block's outputs in their order, if it is not (hidden_states, encoder_hidden_states).
        placement: how kept features are stored: "device": as they are; "int8": as codes of one byte with a scale a row (a
            token), which takes half of the memory of bf16 and costs some accuracy.

    Validated by `CacheAgent(config)` and by the readers, not by the constructor, as in MindIE-SD.
    """

    method: str
    blocks_count: int
    steps_count: int
    step_start: int = 0
    step_interval: int = 1
    step_end: int = NO_END
    block_start: int = 0
    block_end: int = NO_END
    _: KW_ONLY
    options: Any = None
    streams: tuple[str, ...] | None = None
    placement: str = "device"

    def validated(self) -> CacheConfig:
        """Return this configuration with typed options, or raise ConfigError for the first thing that is wrong."""
        if not isinstance(self.method, str) or self.method not in METHODS:
            raise ConfigError(f"method={self.method!r} is not supported. {did_you_mean(self.method, METHODS)}")
        for name, least in _LEAST.items():
            whole(name, getattr(self, name), least)
        _ordered("step_start", self.step_start, "step_end", self.step_end)
        _ordered("block_start", self.block_start, "block_end", self.block_end)
        if METHODS[self.method].declares_streams and self.blocks_count < self.block_end != NO_END:
            raise ConfigError(
                f"block_end={self.block_end} is past the last block: blocks_count={self.blocks_count}. "
                f"Use block_end<={self.blocks_count} (half-open)."
            )
        if not isinstance(self.placement, str) or self.placement not in PLACEMENTS:
            raise ConfigError(f"placement={self.placement!r} is not known. {did_you_mean(self.placement, PLACEMENTS)}")
        numbers: Any = {name: int(getattr(self, name)) for name in _LEAST}  # NumPy's whole numbers are accepted
        checked = replace(self, **numbers, options=self._typed_options(), streams=self._checked_streams())
        check_fields(checked)
        checked.options.check(checked)
        return checked

    def _typed_options(self) -> Any:
        kind = METHODS[self.method].options
        if isinstance(self.options, kind):
            return self.options
        given = {} if self.options is None else self.options
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"options={given!r} does not fit method={self.method!r}. Give a mapping or {kind.__name__}(...)."
            )
        names = [field.name for field in fields(kind)]
        for key in given:
            if key not in names:
                raise ConfigError(f"options: unknown key {key!r} for {self.method}. {did_you_mean(key, names)}")
        return kind(**{key: tupled(value) for key, value in given.items()})

    def _checked_streams(self) -> tuple[str, ...] | None:
        if self.streams is None:
            return None
        if not METHODS[self.method].declares_streams:
            raise ConfigError(f"streams has no effect on {self.method}, which keeps whole outputs. Remove streams.")
        named = isinstance(self.streams, tuple | list) and all(isinstance(name, str) and name for name in self.streams)
        if not named or not self.streams or len(set(self.streams)) != len(self.streams):
            raise ConfigError(
                f"streams={self.streams!r} must list different names, in the order of the block's outputs, "
                'e.g. ("encoder_hidden_states", "hidden_states").'
            )
        return tuple(self.streams)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CacheConfig:
        """Build and validate from a mapping of field names; an unknown or missing name is an error."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"A cache configuration is a mapping of fields, but this is a {type(values).__name__}.")
        names = check_names(values)
        missing = [name for name in names[:3] if name not in values]
        if missing:
            raise ConfigError(f"The cache configuration lacks {', '.join(missing)}. Required: {', '.join(names[:3])}.")
        return cls(**values).validated()

    @classmethod
    def from_yaml(cls, path: str | PathLike[str]) -> CacheConfig:
        """Read and validate a YAML file."""
        return cls._from_file(parse_yaml, "YAML", path)

    @classmethod
    def from_json(cls, path: str | PathLike[str]) -> CacheConfig:
        """Read and validate a JSON file."""
        return cls._from_file(parse_json, "JSON", path)

    @classmethod
    def from_lightx2v(cls, path: str | PathLike[str], blocks_count: int | None = None) -> CacheConfig:
        """Read the caching keys of a LightX2V configuration (its `--config_json`); see docs/presets.md for the mapping.

        Args:
            path: the JSON file; keys that have nothing to do with caching are ignored, misspelt ones are an error.
            blocks_count: calls of `apply` per step and branch. By default `num_layers` of the file, else 30 for FirstBlock,
                DualBlock, DynamicBlock and TaylorSeer, which LightX2V ships for Wan2.1-T2V-1.3B only, and 1 for the others:
                the whole stack in one call. Ada looks into the middle block, so it needs the number of blocks.
        """
        from mindie_cache import lightx2v  # only for those who come from there

        return lightx2v.read(path, blocks_count)

    @classmethod
    def _from_file(cls, parse: Callable[[str], Any], form: str, path: str | PathLike[str]) -> CacheConfig:
        try:
            return cls.from_dict(parse(Path(path).read_text(encoding="utf-8")))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        except ValueError as error:
            raise ConfigError(f"{path} is not valid {form}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain values; fields at their defaults are left out, except the three required ones."""
        checked = self.validated()
        values: dict[str, Any] = {}
        for field in fields(checked)[:8]:
            value = getattr(checked, field.name)
            if field.name in _REQUIRED or value != field.default:
                values[field.name] = value
        kind = type(checked.options)
        options = {f.name: getattr(checked.options, f.name) for f in fields(kind)}
        changed = {name: value for name, value in options.items() if value != getattr(kind(), name)}
        if changed:
            values["options"] = {k: list(v) if isinstance(v, tuple) else v for k, v in changed.items()}
        if checked.streams is not None:
            values["streams"] = list(checked.streams)
        if checked.placement != "device":
            values["placement"] = checked.placement
        return values

    def to_yaml(self, path: str | PathLike[str] | None = None) -> str:
        """Return the configuration as YAML that `from_yaml` reads; also write it to `path`, if given."""
        import yaml

        return _written(yaml.safe_dump(self.to_dict(), sort_keys=False), path)

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """Return the configuration as JSON that `from_json` reads; also write it to `path`, if given."""
        return _written(json.dumps(self.to_dict(), indent=2) + "\n", path)


def check_names(values: Mapping[str, Any]) -> list[str]:
    """Return the names of all fields; ConfigError if `values` has another one."""
    names = [field.name for field in fields(CacheConfig)]
    for key in values:
        if key not in names:
            raise ConfigError(f"Unknown key {key!r} in the cache configuration. {did_you_mean(key, names)}")
    return names


_REQUIRED = ("method", "blocks_count", "steps_count")
_LEAST = {
    "blocks_count": 1,
    "steps_count": 1,
    "step_start": 0,
    "step_interval": 1,
    "step_end": 0,
    "block_start": 0,
    "block_end": 0,
}


def _ordered(first: str, low: int, second: str, high: int) -> None:
    if high < low:
        raise ConfigError(f"{second}={high} is before {first}={low}. Use {second}>={low}.")


def _written(text: str, path: str | PathLike[str] | None) -> str:
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text
