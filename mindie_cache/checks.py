"""Checks of single values, with messages that name the field, the value and what is allowed."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from mindie_cache.errors import ConfigError


def whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raise ConfigError unless `value` is a whole number of the range."""
    allowed = f"from {least}" + (f" to {most}" if most is not None else "")
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name}={value!r} must be a whole number {allowed}; got {type(value).__name__}.")
    if int(value) < least or (most is not None and int(value) > most):
        raise ConfigError(f"{name}={value} is out of range. Use a whole number {allowed}.")


def real(name: str, value: Any, least: float, most: float | None) -> None:
    """Raise ConfigError unless `value` is a finite number of the range."""
    allowed = f"from {least}" + (f" to {most}" if most is not None else "")
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(f"{name}={value!r} must be a number {allowed}; got {type(value).__name__}.")
    if not (float(value) >= least and (most is None or float(value) <= most) and float(value) < float("inf")):
        raise ConfigError(f"{name}={value} is out of range. Use a number {allowed}.")


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} is not known. Use one of {', '.join(map(repr, allowed))}.")


def flag(name: str, value: Any) -> None:
    """Raise ConfigError unless `value` is a bool."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} must be true or false.")


def numbers(name: str, value: Any, least_count: int = 1) -> None:
    """Raise ConfigError unless `value` is a sequence of finite numbers."""
    if not isinstance(value, tuple | list) or len(value) < least_count:
        raise ConfigError(f"{name}={value!r} must be a list of at least {least_count} numbers.")
    for index, item in enumerate(value):
        if isinstance(item, bool) or not isinstance(item, Real) or not math.isfinite(item):
            raise ConfigError(f"{name}[{index}]={item!r} must be a finite number.")
