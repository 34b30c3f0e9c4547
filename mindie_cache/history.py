"""The ring of kept snapshots of one lane, and the one place where they are combined."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from mindie_cache.placement import Codes, Placement, copied

Features = tuple[Any, ...]  # one entry per stream: a tensor, or any object that a model passes along

_PLACED = (torch.Tensor, Codes)
_HELD = (1.0,)  # for whole numbers and flags, which have no values between


def own(value: Any) -> Any:
    """A copy of a tensor that shares nothing with it, not even a graph; any other object as it is."""
    return copied(value) if isinstance(value, torch.Tensor) else value


class Plain(NamedTuple):
    """A kept object that is not a tensor: a number, None, a string."""

    value: Any


class History:
    """At most `depth` snapshots, oldest first. Nothing kept is ever handed out."""

    __slots__ = ("_kept", "_size", "depth", "nbytes", "placement", "steps")

    def __init__(self, depth: int, placement: Placement):
        self.depth = depth
        self.placement = placement
        self.clear()

    def clear(self) -> None:
        self.steps: tuple[int, ...] = ()
        self._kept: list[tuple[Any, ...]] = []  # a snapshot: one Plain or placed tensor per stream
        self._size = self.nbytes = 0  # bytes of one snapshot, of all

    def push(self, step: int, features: Features, shared: bool = False) -> None:
        """Keep `features` of `step`; the same step again replaces its snapshot, a full ring drops its oldest.

        The caller gives them up, unless they are `shared`: copies are kept then.
        """
        keep, steps = self.placement.keep_copy if shared else self.placement.keep, self.steps
        snapshot = tuple([keep(f) if isinstance(f, _PLACED) else Plain(f) for f in features])
        if steps:
            if self.depth > 1 and [type(new) for new in snapshot] != [type(old) for old in self._kept[-1]]:
                self.clear()  # an output was a tensor and is none now, or the other way round: nothing to interpolate
                steps = ()
            elif steps[-1] == step:
                self._kept.pop()
                steps = steps[:-1]
            elif len(steps) == self.depth:
                del self._kept[0]
                steps = steps[1:]
        self._kept.append(snapshot)
        self.steps = (*steps, step)
        if not self._size:
            nbytes = self.placement.nbytes
            self._size = sum([nbytes(item) for item in snapshot if type(item) is not Plain])
        self.nbytes = len(self._kept) * self._size

    @property
    def width(self) -> int:
        """Streams of a snapshot."""
        return len(self._kept[-1]) if self._kept else 0

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Of the tensors of the newest snapshot."""
        return {item.dtype for item in self._kept[-1] if type(item) is not Plain} if self._kept else set()

    def fetch(self, stream: int) -> list[Any]:
        """What is kept of one stream, oldest first: tensors, which are not to be changed, and Plain objects."""
        fetch = self.placement.fetch
        kept = [snapshot[stream] for snapshot in self._kept]
        return [item if type(item) is Plain else fetch(item) for item in kept]

    def newest(self) -> Features:
        """Copies of the newest snapshot."""
        copy = self.placement.copy
        return tuple([item.value if type(item) is Plain else copy(item) for item in self._kept[-1]])

    def take(self) -> Features:
        """The newest snapshot itself; the history does not keep it any more, nor older ones."""
        fetch, newest = self.placement.fetch, self._kept.pop()
        self._kept.clear()
        self.steps, self.nbytes = (), 0
        return tuple([item.value if type(item) is Plain else fetch(item) for item in newest])

    def combine(self, weights: Sequence[float], references: Features | None) -> Features:
        """One new object per stream: ``reference + sum(weight * snapshot)``; without references, the sum alone."""
        snapshots = self._kept
        if weights[-1] == 1.0 and not any(weights[:-1]):  # the newest one alone
            if references is None:
                return self.newest()
            snapshots, weights = snapshots[-1:], _HELD
        placement, combined = self.placement, []
        for stream, kept in enumerate(zip(*snapshots, strict=True)):
            reference, newest = references[stream] if references else None, kept[-1]
            if type(newest) is Plain:
                combined.append(combine_objects([item.value for item in kept], weights, reference))
            elif newest.dtype.is_floating_point or newest.dtype.is_complex:
                combined.append(placement.combine(kept, weights, reference))
            else:
                combined.append(placement.combine((newest,), _HELD, reference))
        return tuple(combined)


def combine_objects(kept: list[Any], weights: Sequence[float], reference: Any) -> Any:
    """Real numbers are weighted as tensors are; any other object (a length, a flag, None, a string) is held."""
    value = kept[-1]
    if weights[-1] != 1.0 and isinstance(value, numbers.Number) and not isinstance(value, numbers.Integral):
        value = sum(weight * item for weight, item in zip(weights, kept, strict=True))
    return value if reference is None or value is None else reference + value
