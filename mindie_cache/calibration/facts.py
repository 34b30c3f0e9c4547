"""What a pipeline of diffusers tells about itself: guidance, shift, defaults. Works on names; imports no diffusers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mindie_cache.errors import ConfigError

SHIFTS = ("flow_shift", "shift")  # under which schedulers of diffusers file the sigma shift


def guidance_name(pipe: Any) -> str:
    """The argument for classifier-free guidance; where `guidance_scale` has no value of its own, it is `true_cfg_scale`."""
    known = inspect.signature(type(pipe).__call__).parameters
    plain = known.get("guidance_scale")
    return "true_cfg_scale" if "true_cfg_scale" in known and (plain is None or plain.default is None) else "guidance_scale"


def cfg_scale(pipe: Any, call: Mapping[str, Any]) -> float | None:
    """The scale by which two branches are combined in this call, the largest one if experts have their own; None if it is
    not known. A `guidance_scale` beside a `true_cfg_scale` is one that the model is told."""
    known = inspect.signature(type(pipe).__call__).parameters
    name = "true_cfg_scale" if "true_cfg_scale" in known else "guidance_scale"
    given = [call.get(one, default_of(pipe, one)) for one in (name, f"{name}_2")]
    return max([float(scale) for scale in given if isinstance(scale, int | float)], default=None)


def sigma_shift(pipe: Any) -> float | None:
    """The shift of the scheduler; None if it has none, or chooses it by resolution."""
    name = _shift_name(pipe)
    return None if name is None else float(pipe.scheduler.config[name])


def _shift_name(pipe: Any) -> str | None:
    config = getattr(getattr(pipe, "scheduler", None), "config", {})
    if config.get("use_dynamic_shifting"):
        return None
    return next((name for name in SHIFTS if isinstance(config.get(name), int | float)), None)


@contextmanager
def shifted(pipe: Any, shift: float | None) -> Iterator[None]:
    """With a scheduler of another sigma shift; the pipeline's own one is put back afterwards."""
    if shift is None:
        yield
        return
    name, before = _shift_name(pipe), pipe.scheduler
    if name is None:
        raise ConfigError(
            f"shift={shift}: {type(before).__name__} has no sigma shift of its own here (it has none, or chooses it by "
            "resolution). Leave the shift out."
        )
    if not shift > 0:
        raise ConfigError(f"sigma_shift={shift} must be above 0.")
    pipe.scheduler = type(before).from_config(before.config, **{name: shift})
    try:
        yield
    finally:
        pipe.scheduler = before


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """Without the pipeline's own progress bar: one bar counts the steps of all generations."""
    before = dict(getattr(pipe, "_progress_bar_config", None) or {})
    if hasattr(pipe, "set_progress_bar_config"):
        pipe.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        if hasattr(pipe, "set_progress_bar_config"):
            pipe.set_progress_bar_config(**before)


def default_of(pipe: Any, name: str) -> Any:
    known = inspect.signature(type(pipe).__call__).parameters
    value = known[name].default if name in known else None
    return None if value is inspect.Parameter.empty else value
