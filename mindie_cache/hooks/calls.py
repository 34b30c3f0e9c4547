"""The patches of the modules that are skipped: what a call does while its model's forward is under way."""

from __future__ import annotations

from contextvars import ContextVar
from operator import itemgetter
from typing import Any, NamedTuple

from torch import nn

from mindie_cache.hooks.compiling import is_compiling, stay_eager
from mindie_cache.hooks.patches import Patch
from mindie_cache.hooks.signatures import Form
from mindie_cache.lanes import Track


class Forward(NamedTuple):
    """A forward that is under way."""

    owner: Any  # its attachment
    track: Track
    call: Any  # the engine's procedure for calls


under_way: ContextVar[Forward | None] = ContextVar("mindie_cache_forward", default=None)
_now = under_way.get


class PartPatch(Patch):
    """A module that is a region of its own, such as an attention."""

    def __init__(self, module: nn.Module, owner: Any, index: int):
        super().__init__(module, owner)
        self.index = index

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            return _uncompiled(self, args, kwargs)
        return self.run(args, kwargs)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        now = _now()
        if now is None or now.owner is not self.owner:
            return self.original(*args, **kwargs)
        return now.call(now.track, self.index, self.original, args, kwargs)


class BlockPatch(Patch):
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
        self._streams = itemgetter(*self.form.streams)
        self._is_single = len(self.form.streams) == 1

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        del state["_streams"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._prepare()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            return _uncompiled(self, args, kwargs)
        return self.run(args, kwargs)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        now = _now()
        if now is None or now.owner is not self.owner:
            return self.original(*args, **kwargs)
        track = now.track
        if not self.edge:
            lane = track.lanes[self.index]
            if lane is None or not lane.reuse:
                return self.original(*args, **kwargs)
            return self._same(lane, args, kwargs)
        values = self.form.bound(args, kwargs)
        first = self.form.parameters[0]
        if first in values:  # taps and the engine expect the main stream first
            args, kwargs = (values[first],), {name: value for name, value in values.items() if name != first}
        return now.call(track, self.index, self.original, args, kwargs)

    def _same(self, lane: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An inner block of a reused region returns what it was given."""
        values = self.form.bound(args, kwargs)
        if self._is_single:
            return lane.rebuild((self._streams(values),))
        if self.form.fixed:
            return lane.rebuild(self._streams(values))
        return lane.rebuild(tuple([values[name] for name in self.form.streams if values.get(name) is not None]))


def _uncompiled(patch: PartPatch | BlockPatch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    stay_eager()
    return patch.run(args, kwargs)


_uncompiled._torchdynamo_disable = True  # type: ignore[attr-defined]  # as torch.compiler.disable, without its import
