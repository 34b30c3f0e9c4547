"""What a user asks of `enable_cache`: a configuration, a level, a method, a preset or a file. Gives a CacheConfig once the
model's calls are counted and the number of steps is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from mindie_cache.config import CacheConfig, check_names
from mindie_cache.errors import ConfigError, did_you_mean
from mindie_cache.hooks.levels import LEVELS, level
from mindie_cache.methods.planned import PlanOptions
from mindie_cache.parsing import parse_json, parse_yaml
from mindie_cache.presets.text import select
from mindie_cache.recipes import METHODS

PROBABLE_STEPS = 50
PLANNED = "plan", "plan_blocks"
PLAN = "mindie_cache plan"  # what plan files say of themselves
_COUNTS = ("blocks_count", "steps_count")
_PREFERRED = ("ada_taylor", "magcache", "teacache", "custom", "dit_block_cache")  # of a preset that names no method


@dataclass(frozen=True)
class Wish:
    """A configuration without the numbers that follow from the model and the run. Plain data.

    Args:
        title: how the report calls it.
        values: fields of CacheConfig, without the counts.
        calls_count, steps_count: that it was written for, if it says so.
        level: name of the level whose schedule follows from the number of steps.
        scheduler: class of the one that a plan was fitted to.
    """

    title: str
    values: Mapping[str, Any]
    calls_count: int | None = None
    steps_count: int | None = None
    level: str | None = None
    scheduler: str | None = None

    @property
    def method(self) -> str:
        return self.values["method"]

    @property
    def options(self) -> Any:
        return self.values.get("options")

    @property
    def probable_steps(self) -> int:
        """To check the configuration with before the run."""
        return self.steps_count or self._planned_steps or PROBABLE_STEPS

    @property
    def _planned_steps(self) -> int | None:
        """Of the plan file that the options name, if they do."""
        options = self.options
        path = options.get("plan") if isinstance(options, Mapping) else getattr(options, "plan", None)
        if self.method not in PLANNED or not isinstance(path, str):
            return None
        from mindie_cache.calibration.planning.plan import Plan  # reads a file

        return Plan.load(path).steps_count

    def config(self, calls: int, steps: int) -> CacheConfig:
        """The validated configuration for so many calls and steps."""
        if self.calls_count not in (None, calls):
            raise ConfigError(
                f"blocks_count={self.calls_count}, but {calls} calls of this kind were found in the model. Set "
                f"blocks_count={calls}, or give the fields as a mapping without blocks_count."
            )
        values = dict(self.values)
        if self.level is not None:
            values["options"] = LEVELS[self.level].schedule(steps)
        return CacheConfig(**values, blocks_count=calls, steps_count=steps).validated()

    def for_steps(self, steps: int) -> Wish:
        return replace(self, steps_count=steps)


def read_wish(asked: Any, model_names: tuple[str, ...] = ()) -> Wish:
    """Understand what was given to `enable_cache`.

    Args:
        asked: CacheConfig, mapping of its fields, name of a level, method or preset, or path of a YAML or JSON file.
        model_names: under which presets for this model may be filed.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(asked, CacheConfig):
        return _of_config(asked)
    if isinstance(asked, Mapping):
        return _of_mapping(asked)
    if isinstance(asked, PathLike) or (isinstance(asked, str) and asked.endswith((".yaml", ".yml", ".json"))):
        return _of_file(Path(asked))
    if not isinstance(asked, str):
        raise ConfigError(
            f"enable_cache got {type(asked).__name__} as its configuration. Give a CacheConfig, a mapping of its fields, "
            f"the path of a YAML or JSON file, or a name: {', '.join(LEVELS)}, a method or a preset."
        )
    if asked in LEVELS:
        return _of_level(asked, model_names)
    if asked in METHODS:
        return _of_mapping({"method": asked})
    return _of_preset(asked)


def suited(wish: Wish, pipe: Any) -> Wish:
    """Without the correction of a plan, where the pipeline's scheduler would not do with it what it is made for."""
    scheduler = getattr(pipe, "scheduler", None)
    if wish.method not in PLANNED or scheduler is None or wish.level is not None:
        return wish
    from mindie_cache.calibration.planning.samplers import reason_against

    wish = replace(wish, scheduler=type(scheduler).__name__)
    why = reason_against(scheduler)
    if not why:
        return wish
    options = wish.options
    options = replace(options, gain=0.0) if isinstance(options, PlanOptions) else {**(options or {}), "gain": 0.0}
    title = f"{wish.title}, without correction: {why}"
    return replace(wish, title=title, values={**wish.values, "options": options})


def _of_level(name: str, model_names: tuple[str, ...]) -> Wish:
    table = level(name, model_names)
    if table is not None:
        return Wish(f"{name}: ada_taylor with the preset {table['preset']}", {"method": "ada_taylor", "options": table})
    words = f"{name}: {LEVELS[name].speedup:g} times fewer steps computed"
    return Wish(words, {"method": "plan_blocks"}, level=name)


def _of_config(config: CacheConfig, title: str = "") -> Wish:
    checked = config.validated()
    values = {field.name: getattr(checked, field.name) for field in fields(checked) if field.name not in _COUNTS}
    return Wish(title or checked.method, values, checked.blocks_count, checked.steps_count)


def _of_mapping(values: Mapping[str, Any]) -> Wish:
    """The fields of a CacheConfig; blocks_count and steps_count may be left out."""
    check_names(values)
    method = values.get("method")
    if not isinstance(method, str) or method not in METHODS:
        raise ConfigError(f"method={method!r} is not supported. {did_you_mean(method, METHODS)}")
    rest = {name: value for name, value in values.items() if name not in _COUNTS}
    steps, options = values.get("steps_count"), values.get("options")
    if method in PLANNED and steps is None and isinstance(options, Mapping) and options.get("compute_steps"):
        steps = max(options["compute_steps"]) + 1  # a schedule is for one number of steps, and ends with the last one
    return Wish(method, rest, values.get("blocks_count"), steps)


def _of_file(path: Path) -> Wish:
    try:
        text = path.read_text(encoding="utf-8")
        values = parse_json(text) if path.suffix == ".json" else parse_yaml(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Give the path of a YAML or JSON file.") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} holds no mapping of fields. Write it with CacheConfig.to_yaml(path).")
    if values.get("kind") == PLAN:
        return Wish(f"plan {path}", {"method": "plan", "options": {"plan": str(path)}})
    if not values.keys() & {"method", *_COUNTS}:  # a calibration file
        options = {"preset": str(path)}
        return Wish(f"ada_taylor with {path}", {"method": "ada_taylor", "options": options})
    try:
        return replace(_of_mapping(values), title=str(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _of_preset(name: str) -> Wish:
    """ "method:model@variant", or "model@variant" of the first method that has it."""
    method, _, model = name.rpartition(":")
    try:
        found = select(model, method or None)
    except ConfigError as error:
        raise ConfigError(f"{name!r} is no level ({', '.join(LEVELS)}), no method, no file and no preset. {error}") from None
    preset = min(found, key=lambda one: _PREFERRED.index(one.method) if one.method in _PREFERRED else len(_PREFERRED))
    own = {field.name for field in fields(CacheConfig)}
    values = {key: value for key, value in preset.settings.items() if key in own and key not in _COUNTS}
    options = {key: value for key, value in preset.settings.items() if key not in own}
    return Wish(f"preset {preset.method}:{preset.name}", {"method": preset.method, **values, "options": options})
