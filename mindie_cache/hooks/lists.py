"""Lists of blocks: while a reused region is passed, the model's own loop is given stand-ins instead of its inner blocks.

The loop stays as it is, and a skipped block costs no call of a `torch.nn.Module`. A model that takes its blocks from the
list in another way, e.g. by index, finds the blocks themselves, and the patches on them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property, partial
from itertools import chain, groupby
from types import MethodType
from typing import Any, NamedTuple

from torch import nn

from mindie_cache.hooks.calls import BlockPatch, under_way
from mindie_cache.hooks.compiling import runs_eagerly
from mindie_cache.hooks.patches import CALL, Patch
from mindie_cache.hooks.signatures import Form
from mindie_cache.lanes import Lane
from mindie_cache.wrappers import unwrapped

_now = under_way.get


class CachedList(nn.ModuleList):
    """The class of a list of blocks while a cache is enabled: iterating it goes by its patch."""

    @runs_eagerly
    def __iter__(self) -> Iterator[nn.Module]:
        patch = self.__dict__.get("__iter__")
        return super().__iter__() if patch is None else patch()


class Skipped:
    """Stands for an inner block of a region that is reused: returns what it is given. Whoever asks it sees the block."""

    __slots__ = ("_block", "_lane", "_patch")
    _block: Any
    _lane: Lane
    _patch: BlockPatch

    def __init__(self, patch: BlockPatch, lane: Lane):
        keep = partial(object.__setattr__, self)
        keep("_lane", lane)
        keep("_patch", patch)
        keep("_block", patch.module)

    @runs_eagerly
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._lane.reuse:
            return self._patch.passed(self._lane, args, kwargs)
        return self._block(*args, **kwargs)  # it was kept, and is called later

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._block, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._block, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # for isinstance
        return type(self._block)


_CALL = """
def __call__(self, {parameters}):
    lane = self._lane
    return lane.rebuild(({streams},)) if lane.reuse else self._block({arguments})
"""


@cache
def stand_in(forward: Callable[..., Any], form: Form) -> type[Skipped]:
    """The class of the stand-ins for blocks with this `forward`: their calls have its parameters, where these are plain
    names, because Python takes twice as long to pass them on as keywords that it does not know."""
    parameters = [*inspect.signature(forward).parameters.values()][1:]
    names = [one.name for one in parameters]
    is_plain = all([one.kind is one.POSITIONAL_OR_KEYWORD for one in parameters]) and not {"self", "lane"} & {*names}
    if not form.fixed or not is_plain:
        return Skipped
    words = {"parameters": ", ".join(names), "streams": ", ".join(form.streams)}
    words["arguments"] = ", ".join([f"{name}={name}" for name in names])
    made: dict[str, Any] = {}
    exec(_CALL.format(**words), made)  # as collections.namedtuple does
    call = runs_eagerly(made["__call__"])
    call.__defaults__ = tuple([one.default for one in parameters if one.default is not one.empty])
    return type("Skipped", (Skipped,), {"__slots__": (), "__call__": call})


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

    derived = Patch.derived | {"_blocks"}

    def __init__(self, module: nn.ModuleList, owner: Any, inner: Sequence[BlockPatch]):
        super().__init__(module, owner, "__iter__")
        self._inner = list(inner)

    @cached_property
    def _blocks(self) -> list[nn.Module]:
        return [*self.original()]

    def _divided(self, lanes: Sequence[Any]) -> list[Stretch]:
        inner = {patch.module: patch for patch in self._inner}
        found = []
        for lane, group in groupby(self._blocks, lambda block: lanes[inner[block].index] if block in inner else None):
            blocks = [*group]
            found.append(Stretch(blocks, lane, [_stand_in_for(inner[block], lane) for block in blocks] if lane else []))
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
        loops = now.track.loops
        stretches = loops.get(self)
        if stretches is None:
            stretches = loops[self] = self._divided(now.lanes)
        return chain.from_iterable(_passed(stretches))


def _stand_in_for(patch: BlockPatch, lane: Lane) -> Skipped:
    return stand_in(type(unwrapped(patch.module)).forward, patch.form)(patch, lane)


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
