"""The patches of the modules that are skipped: what a call does while its model's forward is under way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from operator import itemgetter
from typing import Any

from torch import nn

from mindie_cache.engine import Engine
from mindie_cache.hooks.compiling import runs_eagerly
from mindie_cache.hooks.patches import CallPatch
from mindie_cache.hooks.signatures import Form
from mindie_cache.lanes import Track


class Forward:
    """A forward that is under way."""

    __slots__ = ("call", "lanes", "owner", "seen", "track")

    def __init__(self, owner: Any, track: Track, engine: Engine):
        self.owner = owner  # its attachment
        self.track = track
        self.lanes: list[Any] = track.lanes
        self.call = engine.call  # its procedure for calls
        self.seen = bytearray(engine.calls_count)  # 1 for each region whose first call has come


under_way: ContextVar[Forward | None] = ContextVar("mindie_cache_forward", default=None)
_now = under_way.get


class PartPatch(CallPatch):
    """A module that is a region of its own, such as an attention."""

    def __init__(self, module: nn.Module, owner: Any, index: int):
        super().__init__(module, owner)
        self.index = index

    @runs_eagerly
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        now = _now()
        index = self.index
        # Seen: e.g. one feed-forward for two streams, whose first call is the region.
        if now is None or now.owner is not self.owner or now.seen[index]:
            return self.original(*args, **kwargs)
        now.seen[index] = 1
        return now.call(now.track, index, self.original, args, kwargs)


class BlockPatch(CallPatch):
    """A block inside a range: it does what the engine has decided at the first one of them."""

    derived = CallPatch.derived | {"_by_place", "_least", "_names", "by_name"}

    def __init__(self, module: nn.Module, owner: Any, index: int, form: Form):
        super().__init__(module, owner)
        self.index = index
        self.form = form
        self._prepare()

    def _prepare(self) -> None:
        """How it takes its streams, if it always has all of them, from its keywords or from its positional arguments."""
        names = self.form.streams
        places = [self.form.parameters.index(name) for name in names]
        self._names = frozenset(names)
        self.by_name = _getter(names) if self.form.fixed else None
        self._by_place = _getter(places) if self.form.fixed and max(places) < self.form.places else None
        self._least = max(places) + 1

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._prepare()

    @runs_eagerly
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        now = _now()
        if now is None or now.owner is not self.owner or not (lane := now.lanes[self.index]).reuse:
            return self.original(*args, **kwargs)
        return self.passed(lane, args, kwargs)

    def passed(self, lane: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In a reused region it returns what it was given."""
        if self.by_name is not None and not args and self._names <= kwargs.keys():
            return lane.rebuild(self.by_name(kwargs))
        if self._by_place is not None and len(args) >= self._least:
            return lane.rebuild(self._by_place(args))
        values = self.form.bound(args, kwargs)
        streams = [values.get(name) for name in self.form.streams]
        return lane.rebuild(tuple(streams if self.form.fixed else [item for item in streams if item is not None]))


def _getter(keys: Sequence[Any]) -> Callable[[Any], tuple[Any, ...]]:
    """Gives the tuple of what is at these keys."""
    if len(keys) > 1:
        return itemgetter(*keys)
    (key,) = keys
    return lambda values: (values[key],)


class EdgePatch(BlockPatch):
    """A block whose call the engine has to see: it begins or ends a range, or is looked into."""

    @runs_eagerly
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        now = _now()
        if now is None or now.owner is not self.owner:
            return self.original(*args, **kwargs)
        lane = now.lanes[self.index]
        if lane is not None and self.index in (lane.start, lane.last):
            if now.seen[self.index]:
                lane.new_pass()
                return now.owner.repeated(self.original, args, kwargs)
            now.seen[self.index] = 1
        form = self.form
        if len(args) != 1 and form.nameable:  # taps expect the main stream first, and all else by name
            values = form.bound(args, kwargs) if args else kwargs
            first = form.parameters[0]
            if first in values:
                args, kwargs = (values.pop(first),), values
        return now.call(now.track, self.index, self.original, args, kwargs)
