"""The exceptions and the warning that users see, and the 'did you mean' helper. Owns no rule of its own."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable


class CacheError(Exception):
    """Base of every error raised by mindie_cache."""


class ConfigError(CacheError, ValueError):
    """A configuration that cannot work: unknown method or key, a value out of range."""


class ParametersInvalid(CacheError, ValueError):  # noqa: N818 - MindIE-SD's name, kept for drop-in use
    """A call that cannot work: not a callable, a missing or empty argument."""


class ModelExecError(CacheError, RuntimeError):
    """The model's function returned something that cannot be cached."""


class CacheWarning(UserWarning):
    """Caching works, but not as its configuration promises; the message says what to do."""


def did_you_mean(name: object, allowed: Iterable[str]) -> str:
    """Return ``'Did you mean 'x'? Allowed: ...'`` for a misspelt ``name``."""
    names = sorted(allowed)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Allowed: {', '.join(names) or 'none'}."


class WarnOnce:
    """Emits each kind of CacheWarning once; `kind` is a short key, `message` may vary."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def given(self, *kinds: str) -> bool:
        return not self._given.isdisjoint(kinds)

    def __call__(self, kind: str, message: str) -> None:
        if kind not in self._given:
            self._given.add(kind)
            warnings.warn(message, CacheWarning, stacklevel=_users_level())


def _users_level() -> int:
    """The `stacklevel` of the user's line, for our caller: the first frame outside this package and PyTorch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("mindie_cache", "torch"):
        level, frame = level + 1, frame.f_back
    return level
