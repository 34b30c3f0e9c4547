"""What a preset is: numbers for one method and model, what they were made for and where they come from."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mindie_cache.errors import CacheWarning, ConfigError

if TYPE_CHECKING:
    from mindie_cache.config import CacheConfig


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a preset was made for; None where nobody wrote it down. `resolution` is "832x480", or "480p" for a class."""

    steps: int | None = None
    sigma_shift: float | None = None
    resolution: str | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None

    def __str__(self) -> str:
        """E.g. ``50 steps, shift 8, 832x480``."""
        parts = {"steps": "{} steps", "sigma_shift": "shift {:g}", "guidance_scale": "guidance {:g}"}
        known = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return ", ".join([parts.get(name, "{}").format(value) for name, value in known if value is not None])


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the numbers of a preset were read. `credit`: who else is to be named for them."""

    repo: str
    path: str
    commit: str = ""
    licence: str = ""
    credit: str = ""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Numbers for one method and model.

    Args:
        method: name of the method, as in `CacheConfig`.
        model: name of the model; `variant` tells several presets for it apart.
        settings: options of the method, and fields of `CacheConfig` for dit_block_cache and attention_cache.
        made_for: the run that they were measured in or tuned for.
        source: where they come from.
        note: what else one should know.
    """

    method: str
    model: str
    variant: str = ""
    settings: Mapping[str, Any]
    made_for: Conditions
    source: Source
    note: str = ""

    @property
    def name(self) -> str:
        """``model@variant``, which `find` and the option `preset` understand."""
        return f"{self.model}@{self.variant}" if self.variant else self.model

    def mismatches(
        self, steps: int | None = None, sigma_shift: float | None = None, resolution: str | None = None
    ) -> list[str]:
        """Sentences about what differs between your run and the one that the preset was made for; None is not checked."""
        made, found = self.made_for, []
        title = f"Preset {self.name!r} of {self.method}"
        if steps is not None and made.steps not in (None, steps):
            found.append(
                f"{title} was made for {made.steps} steps, but this run has {steps}: {self._at_other_steps()}, "
                f"or use {made.steps} steps."
            )
        if sigma_shift is not None and made.sigma_shift not in (None, sigma_shift):
            found.append(
                f"{title} was made for sigma_shift={made.sigma_shift:g}, but this run has {sigma_shift:g}: its steps are at "
                f"other noise levels. Calibrate for {sigma_shift:g}, or use {made.sigma_shift:g}."
            )
        if resolution is not None and made.resolution is not None and not _same_size(resolution, made.resolution):
            found.append(
                f"{title} was made for {made.resolution}, but this run has {resolution}. Check the result, or calibrate at "
                f"{resolution}."
            )
        return found

    def _at_other_steps(self) -> str:
        """What happens with another number of steps, and what to do."""
        if "cond_ratios" in self.settings:
            return "its table is resampled, which is an estimate. Calibrate with your number of steps"
        if "coefficients" in self.settings:
            return "the change from step to step is another, and so is its error. Check the threshold"
        return "its step numbers and distances mean other places of the run. Adapt them"

    def config(
        self, blocks_count: int | None = None, steps_count: int | None = None, *, strict: bool = False
    ) -> CacheConfig:
        """A validated `CacheConfig` with these settings. For other steps than the preset's there is a CacheWarning.

        Args:
            blocks_count: of your model; may be left out where the preset knows it, and for methods of whole forwards.
            steps_count: of your run, by default that of the preset.
            strict: other steps than the preset's are a ConfigError.
        """
        config = self.adapted(blocks_count, steps_count)
        for note in self.mismatches(steps=config.steps_count):
            if strict:
                raise ConfigError(f"{note} strict is set.")
            if "cond_ratios" not in self.settings:  # of a table the agent says it
                warnings.warn(note, CacheWarning, stacklevel=2)
        return config

    def adapted(self, blocks_count: int | None = None, steps_count: int | None = None) -> CacheConfig:
        """As `config`, without a word about what does not fit: to look at it, not to generate with."""
        from mindie_cache.config import CacheConfig
        from mindie_cache.recipes import METHODS

        own = [field.name for field in fields(CacheConfig) if field.name in self.settings]
        values = {name: self.settings[name] for name in own}
        options = {name: value for name, value in self.settings.items() if name not in own}
        blocks = values.pop("blocks_count", 1 if METHODS[self.method].whole_forward else None)
        for name, given in (("blocks_count", blocks_count or blocks), ("steps_count", steps_count or self.made_for.steps)):
            if given is None:
                raise ConfigError(
                    f"Preset {self.name!r} of {self.method} does not know {name}. Give it: config({name}=...)."
                )
            values[name] = given
        return CacheConfig(method=self.method, options=options, **values).validated()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the files; what is unknown is left out."""
        known = {name: value for name, value in asdict(self.made_for).items() if value is not None}
        source = {name: value for name, value in asdict(self.source).items() if value}
        values = {
            "method": self.method,
            "model": self.model,
            "variant": self.variant,
            "settings": {name: _thawed(value) for name, value in self.settings.items()},
            "made_for": known,
            "source": source,
            "note": self.note,
        }
        return {name: value for name, value in values.items() if value != "" or name == "model"}


def settings_of(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings that nobody can change: a read-only mapping, lists as tuples."""
    return MappingProxyType({name: _frozen(value) for name, value in values.items()})


def _frozen(value: Any) -> Any:
    return tuple([_frozen(item) for item in value]) if isinstance(value, list) else value


def _thawed(value: Any) -> Any:
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value


def _same_size(one: str, other: str) -> bool:
    """Whether "832x480", "480x832" and "480p" can be the same size; words that are no sizes are compared as they are."""
    sizes = [_sides(one), _sides(other)]
    if not all(sizes):
        return one.casefold() == other.casefold()
    return sizes[0] == sizes[1] if min(map(len, sizes)) == 2 else sizes[0][0] == sizes[1][0]


def _sides(resolution: str) -> list[int]:
    """[480, 832] of "832x480", [480] of "480p", nothing of anything else."""
    text = resolution.casefold().strip()
    parts = [text[:-1]] if text.endswith("p") else text.split("x")
    known = len(parts) == 2 or text.endswith("p")
    return sorted([int(part) for part in parts]) if known and all([part.isdecimal() for part in parts]) else []
