"""Lists of blocks: while a reused region is passed, the model's own loop is given stand-ins instead of its inner blocks.

The loop stays as it is, and a skipped block costs no call of a `torch.nn.Module`. A model that takes its blocks from the
list in another way, e.g. by index, finds the blocks themselves, and the patches on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain, groupby
from types import MethodType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import nn

from mindie_cache.hooks.calls import BlockPatch, under_way
from mindie_cache.hooks.compiling import runs_eagerly
from mindie_cache.hooks.patches import CALL, Patch
from mindie_cache.lanes import Lane, Track

_now = under_way.get


class CachedList(nn.ModuleList):
    """The class of a list of blocks while a cache is enabled: iterating it goes by its patch."""

    @runs_eagerly
    def __iter__(self) -> Iterator[nn.Module]:
        patch = vars(self).get("__iter__")
        return super().__iter__() if patch is None else patch()


class Skipped:
    """Stands for an inner block of a region that is reused: returns what it is given. Whoever asks it sees the block."""

    __slots__ = ("_block", "_by_name", "_lane", "_patch")

    def __init__(self, patch: BlockPatch, lane: Lane):
        self._lane = lane
        self._patch = patch
        self._block = patch.module
        self._by_name = patch.by_name

    @runs_eagerly
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        lane, by_name = self._lane, self._by_name
        if not lane.reuse:  # it was kept, and is called later
            return self._block(*args, **kwargs)
        if args or by_name is None:
            return self._patch.passed(lane, args, kwargs)
        try:
            return lane.rebuild(by_name(kwargs))
        except KeyError:  # a stream is left out
            return self._patch.passed(lane, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # for isinstance
        return type(self._block)


class Stretch(NamedTuple):
    """Neighbours in a list: the inner `blocks` of one region, with a stand-in each; or others, which have no `lane`."""

    blocks: list[Any]
    lane: Lane | None
    stand_ins: list[Skipped]


class ListPatch(Patch):
    """Makes the loop over `module` pass by the inner blocks of reused regions.

    Args:
        module: the list.
        owner: the attachment.
        inner: patches of the inner blocks of all regions.
    """

    derived = Patch.derived | {"_blocks", "_stretches"}

    def __init__(self, module: nn.ModuleList, owner: Any, inner: Sequence[BlockPatch]):
        super().__init__(module, owner, "__iter__")
        self._inner = list(inner)
        self._stretches: WeakKeyDictionary[Track, list[Stretch]] = WeakKeyDictionary()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._stretches = WeakKeyDictionary()

    @cached_property
    def _blocks(self) -> list[nn.Module]:
        return [*self.original()]

    def _divided(self, lanes: Sequence[Any]) -> list[Stretch]:
        inner = {patch.module: patch for patch in self._inner}
        found = []
        for lane, group in groupby(self._blocks, lambda block: lanes[inner[block].index] if block in inner else None):
            blocks = [*group]
            found.append(Stretch(blocks, lane, [Skipped(inner[block], lane) for block in blocks] if lane else []))
        return found

    def _method(self, module: nn.Module) -> Any:
        return MethodType(nn.ModuleList.__iter__, module)

    def install(self) -> None:
        super().install()
        self.module.__class__ = CachedList

    def remove(self) -> None:
        super().remove()
        if self.name not in vars(self.module):
            self.module.__class__ = nn.ModuleList

    def move(self, place: str) -> None:
        """Code that is compiled as a whole is given the blocks."""
        if place == CALL and not self.active:
            self.install()
        elif place != CALL and self.active:
            self.remove()

    def __call__(self) -> Iterator[Any]:
        now = _now()
        if now is None or now.owner is not self.owner or [*self.module._modules.values()] != self._blocks:
            return self.original()
        stretches = self._stretches.get(now.track)
        if stretches is None:
            stretches = self._stretches[now.track] = self._divided(now.lanes)
        return chain.from_iterable(_passed(stretches))


def _passed(stretches: list[Stretch]) -> Iterator[list[Any]]:
    """One after the other, because whether a region is reused is not known before its first block was called."""
    for blocks, lane, stand_ins in stretches:
        yield stand_ins if lane is not None and lane.reuse else blocks


def list_patches(model: nn.Module, owner: Any, inner: Sequence[BlockPatch]) -> list[ListPatch]:
    """For every list of the model that inner blocks are in."""
    found = []
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and type(module) in (nn.ModuleList, CachedList):
            blocks = {*module._modules.values()}
            mine = [patch for patch in inner if patch.module in blocks]
            found += [ListPatch(module, owner, mine)] if mine else []
    return found
