"""Which call of a pass a function is, learned from the first pass. Knows nothing of steps or of caching.

Modules, and methods bound to modules, tell calls apart: those that an outer cache skipped, a pass that begins again because
the last one was interrupted, another expert. Any other callable is taken in the order in which it comes.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Any

import torch

_UNSEEN = object()


class Surprise(Enum):
    """What a function that is not in its place means."""

    NEW = auto()  # never seen, where another one was: another expert took over
    SHIFTED = auto()  # the very first pass was interrupted after one call, and this is the second call of the next
    DISORDER = auto()  # one module serves several calls, and they come in another order than before


def identity(function: Callable[..., Any]) -> Any:
    """What recognises a callable in a later step: itself, if it is a module or a module's method; None otherwise."""
    owner = getattr(function, "__self__", function)
    return function if isinstance(owner, torch.nn.Module) else None


class Layout:
    """The functions of one pass by call index."""

    __slots__ = ("_identities", "_places", "_repeats", "functions")

    def __init__(self, count: int):
        self.functions: list[Any] = [_UNSEEN] * count  # as last seen, to recognise them by `is` on the fast path
        self._identities: list[Any] = [None] * count
        self._places: dict[Any, int] = {}
        self._repeats = False  # one module serves several calls

    @property
    def is_blind(self) -> bool:
        """Whether calls cannot be told apart."""
        return self._identities[0] is None or self._repeats

    def knows(self, index: int) -> bool:
        return self._identities[index] is not None

    def learn(self, index: int, function: Callable[..., Any]) -> None:
        """Remember `function` as call `index`."""
        self.functions[index] = function
        known = identity(function)
        if known is not None:
            self._identities[index] = known
            self._places.setdefault(known, index)

    def find(self, index: int, function: Callable[..., Any]) -> int | Surprise:
        """Return the call index of `function`, which comes where `index` is expected, or what is surprising about it."""
        known, expected = identity(function), self._identities[index]
        if known is None or known == expected:
            self.functions[index] = function
            return index
        if self._repeats and expected is not None:
            return Surprise.DISORDER
        place = self._places.get(known)
        if expected is None and (place is None or self._repeats or known == self._identities[index - 1]):
            if index == 2 and self._identities[0] == self._identities[1] != known:
                return Surprise.SHIFTED
            self._repeats = self._repeats or (place is not None and index > 1)
            self.learn(index, function)
            return index
        return Surprise.NEW if place is None else place
