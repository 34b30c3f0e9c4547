"""The patches of the modules that are skipped: what a call does while its model's forward is under way."""

from __future__ import annotations

from contextvars import ContextVar
from operator import itemgetter
from typing import Any, NamedTuple

from torch import nn

from mindie_cache.hooks.compiling import runs_eagerly
from mindie_cache.hooks.patches import CallPatch
from mindie_cache.hooks.signatures import Form
from mindie_cache.lanes import Lane, Track


class Forward(NamedTuple):
    """A forward that is under way."""

    owner: Any  # its attachment
    track: Track
    lanes: list[Lane | None]  # of the track
    call: Any  # the engine's procedure for calls
    seen: bytearray  # 1 for each region whose first call has come


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
        if now is None or now.owner is not self.owner:
            return self.original(*args, **kwargs)
        if now.seen[self.index]:  # e.g. one feed-forward for two streams: the first call is the region
            return self.original(*args, **kwargs)
        now.seen[self.index] = 1
        return now.call(now.track, self.index, self.original, args, kwargs)


class BlockPatch(CallPatch):
    """A block of a range. Those at its ends go to the engine; those between do what it has decided there.

    Args:
        edge: the engine has to see this call: it begins or ends a region, or is looked into.
    """

    def __init__(self, module: nn.Module, owner: Any, index: int, form: Form, edge: bool):
        super().__init__(module, owner)
        self.index = index
        self.form = form
        self.edge = edge
        self._prepare()

    def _prepare(self) -> None:
        """How an inner block takes its streams, all of them, from its keywords or from its positional arguments."""
        names = self.form.streams
        places = [self.form.parameters.index(name) for name in names]
        is_pair = self.form.fixed and len(names) > 1  # itemgetter of one name gives no tuple
        self._by_name = itemgetter(*names) if is_pair else None
        self._by_place = itemgetter(*places) if is_pair else None
        self._least = max(places) + 1

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._prepare()

    @runs_eagerly
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        now = _now()
        if now is None or now.owner is not self.owner:
            return self.original(*args, **kwargs)
        if self.edge:
            return self._at_edge(now, args, kwargs)
        lane = now.lanes[self.index]
        if lane is None or not lane.reuse:
            return self.original(*args, **kwargs)
        # An inner block of a reused region returns what it was given.
        if self._by_name is not None and not args:
            return lane.rebuild(self._by_name(kwargs))
        if self._by_place is not None and len(args) >= self._least:
            return lane.rebuild(self._by_place(args))
        values = self.form.bound(args, kwargs)
        streams = [values.get(name) for name in self.form.streams]
        return lane.rebuild(tuple(streams if self.form.fixed else [item for item in streams if item is not None]))

    def _at_edge(self, now: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        lane = now.lanes[self.index]
        if lane is not None and lane.start == self.index:
            if now.seen[self.index]:
                lane.new_pass()
                return now.owner.repeated(self.original, args, kwargs)
            now.seen[self.index] = 1
        if len(args) != 1:  # taps and the engine expect the main stream first, and all else by name
            values = self.form.bound(args, kwargs) if args else kwargs
            first = self.form.parameters[0]
            if first in values:
                args, kwargs = (values.pop(first),), values
        return now.call(now.track, self.index, self.original, args, kwargs)
