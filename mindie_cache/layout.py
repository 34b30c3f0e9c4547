"""Which call of a pass a function is, learned from the first pass. Knows nothing of steps or of caching.

Modules, and methods bound to modules, tell calls apart: those that an outer cache skipped, a pass that begins again because
the last one was interrupted, another expert. Any other callable is taken in the order in which it comes.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import Any

import torch

_UNSEEN = object()


class Surprise(Enum):
    """What a function that is not in its place means, if not that others were skipped."""

    NEW = auto()  # never seen: another expert took over
    MISLEARNED = auto()  # the second pass contradicts the first one, which was interrupted or not one pass
    AGAIN = auto()  # the first call comes again, before the end of the pass
    DISORDER = auto()  # one module serves several calls, and this is not the one whose turn it is


def identity(function: Callable[..., Any]) -> Any:
    """What recognises a callable in a later step: itself, if it is a module or a module's method; None otherwise."""
    while isinstance(function, partial):
        function = function.func
    owner = getattr(function, "__self__", function)
    return function if isinstance(owner, torch.nn.Module) else None


class Layout:
    """The functions of one pass by call index. Learned in the first pass, confirmed by the second one."""

    __slots__ = ("_identities", "_places", "_seam", "_seen", "anonymous", "cut", "functions", "lost", "passes", "repeats")

    def __init__(self, count: int, seen: frozenset[Any] = frozenset()):
        self.functions: list[Any] = [_UNSEEN] * (count + 1)  # as last seen, to know them by `is`; the last one: the end
        self.passes = 0  # whole ones that agreed
        self.anonymous = False  # some calls have nothing to know them by
        self.repeats = False  # some have the same
        self.lost = False  # which call is which cannot be known any more
        self.cut = -1  # where the last pass that was too short ended
        self._identities: list[Any] = [_UNSEEN] * count
        self._places: dict[Any, int] = {}  # the first one of each
        self._seen = seen  # in earlier layouts, none of which was confirmed
        self._seam = 0  # from this call on it was learned anew, so that a pass may have begun there

    @property
    def count(self) -> int:
        return len(self._identities)

    @property
    def modules_count(self) -> int:
        """Different functions that were seen since the calls last made sense."""
        return len(self._seen | self._places.keys())

    def returned(self, function: Callable[..., Any]) -> bool:
        """Whether `function` was seen in an earlier layout that was never confirmed."""
        return identity(function) in self._seen

    def knows(self, index: int) -> bool:
        return self._identities[index] is not _UNSEEN

    def trusted(self, nested: bool) -> bool:
        """Whether features may be reused by it. Inside another agent, which may skip calls, order alone tells nothing."""
        if self.lost or not self.passes:
            return False
        if self.count == 1:
            return True
        if nested and (self.anonymous or self.repeats):
            return False
        return self.passes > 1 or not (self._seam or (self.repeats and not self._is_cycle()))

    def _is_cycle(self) -> bool:
        """Whether the calls are some calls twice or more, e.g. those of "cond" and of "uncond"."""
        calls, count = self._identities, self.count
        return any(calls[n:] == calls[:-n] for n in range(1, count // 2 + 1) if not count % n)

    def same(self, index: int, other: int) -> bool:
        """Whether one function serves both calls."""
        return self._identities[index] == self._identities[other]

    def begins_with(self, function: Callable[..., Any]) -> bool:
        return identity(function) == self._identities[0]

    def learn(self, index: int, function: Callable[..., Any]) -> None:
        """Remember `function` as call `index`."""
        self.functions[index] = function
        self._adopt(index, identity(function))

    def _adopt(self, index: int, known: Any) -> None:
        self._identities[index] = known
        if known is None:
            self.anonymous = True
        elif self._places.setdefault(known, index) != index:
            self.repeats = True

    def learn_after(self, index: int, function: Callable[..., Any]) -> bool:
        """Remember `function` as the call after `index`, if nothing is known of that one."""
        if index + 1 == self.count or self.knows(index + 1):
            return False
        self.learn(index + 1, function)
        self._seam = index + 1
        return True

    def find(self, index: int, function: Callable[..., Any]) -> int | Surprise:
        """Return the call index of `function`, which comes where `index` is expected, or what is surprising about it."""
        known, expected = identity(function), self._identities[index]
        if expected is _UNSEEN:
            self.learn(index, function)
            return index
        if self.lost or known is None or expected is None or known == expected:
            self.functions[index] = function
            return index
        place = self._places.get(known)
        if self.passes < 2 and (self.repeats or (self._seam and place is None)):
            return Surprise.MISLEARNED
        if place is None:
            return Surprise.NEW
        if self.repeats:
            return Surprise.DISORDER if place else Surprise.AGAIN
        return place

    def renewed(self, index: int, function: Callable[..., Any]) -> Layout:
        """The layout in which `function`, and probably what follows, is another than before."""
        fresh = Layout(self.count, frozenset() if self.passes > 1 else self._seen | self._places.keys())
        for place, known in enumerate(self._identities[:index]):
            fresh._adopt(place, known)
        fresh._seam = index
        fresh.learn(index, function)
        return fresh

    def realigned(self, index: int, function: Callable[..., Any]) -> tuple[Layout, int] | None:
        """The layout, and the place of `function` in it, if the first pass was interrupted and the next one began in it.

        None if that cannot be.
        """
        calls = [*self._identities, *self._identities[:index], identity(function)]
        starts = [at for at in range(1, self.count) if at == self._seam or calls[at] == calls[0]]
        start = min([at for at in starts if len(calls) - at <= self.count], default=None)
        if start is None or _UNSEEN in calls:
            return None
        fresh = Layout(self.count, self._seen | self._places.keys())
        for place, known in enumerate(calls[start:-1]):
            fresh._adopt(place, known)
        place = len(calls) - 1 - start
        fresh.learn(place, function)
        return fresh, place
