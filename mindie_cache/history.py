"""The ring of kept snapshots of one lane, and the one place where they are combined."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import torch

from mindie_cache.ops import combine
from mindie_cache.placement import Placement

Features = tuple[Any, ...]  # one entry per stream: a tensor, or any object that a model passes along


def own(value: Any) -> Any:
    """A copy of a tensor that shares nothing with it, not even a graph; any other object as it is."""
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


class History:
    """At most `depth` snapshots, oldest first. The caller gives up what it pushes; nothing kept is ever handed out."""

    __slots__ = ("_are_tensors", "_kept", "depth", "nbytes", "placement", "steps")

    def __init__(self, depth: int, placement: Placement):
        self.depth = depth
        self.placement = placement
        self.clear()

    def clear(self) -> None:
        self.steps: tuple[int, ...] = ()
        self._kept: list[Features] = []
        self._are_tensors: tuple[bool, ...] = ()
        self.nbytes = 0

    def push(self, step: int, features: Features) -> None:
        """Keep `features` of `step`; the same step again replaces its snapshot, a full ring drops its oldest."""
        are_tensors = tuple([isinstance(item, torch.Tensor) for item in features])
        if are_tensors != self._are_tensors:
            self.clear()
            self._are_tensors = are_tensors
        if self.steps and self.steps[-1] == step:
            self._kept.pop()
            self.steps = self.steps[:-1]
        elif len(self._kept) == self.depth:
            del self._kept[0]
            self.steps = self.steps[1:]
        keep = self.placement.keep
        self._kept.append(tuple([keep(f) if known else f for f, known in zip(features, are_tensors, strict=True)]))
        self.steps = (*self.steps, step)
        self.nbytes = sum([self._size(kept) for kept in self._kept])

    def _size(self, kept: Features) -> int:
        nbytes = self.placement.nbytes
        return sum([nbytes(item) for item, known in zip(kept, self._are_tensors, strict=True) if known])

    def combine(self, weights: Sequence[float], references: Features | None) -> Features:
        """One new object per stream: ``reference + sum(weight * snapshot)``; without references, the sum alone."""
        combined = []
        for stream, is_tensor in enumerate(self._are_tensors):
            kept = [features[stream] for features in self._kept]
            reference = None if references is None else references[stream]
            if is_tensor:
                combined.append(combine([self.placement.fetch(item) for item in kept], weights, reference))
            else:
                combined.append(_combine_objects(kept, weights, reference))
        return tuple(combined)


def _combine_objects(kept: list[Any], weights: Sequence[float], reference: Any) -> Any:
    """Numbers are weighted as tensors are; any other object (None, a string, a module's cache) is held."""
    value = kept[-1]
    if weights[-1] != 1.0 and isinstance(value, numbers.Number):
        value = sum(weight * item for weight, item in zip(weights, kept, strict=True))
    return value if reference is None else reference + value
