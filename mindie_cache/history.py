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
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().clone() if value.requires_grad else value.clone()


class History:
    """At most `depth` snapshots, oldest first. The caller gives up what it pushes; nothing kept is ever handed out."""

    __slots__ = ("_are_tensors", "_kept", "_size", "depth", "placement", "steps")

    def __init__(self, depth: int, placement: Placement):
        self.depth = depth
        self.placement = placement
        self.clear()

    def clear(self) -> None:
        self.steps: tuple[int, ...] = ()
        self._kept: list[Features] = []
        self._are_tensors: list[bool] = []
        self._size = 0  # bytes of one snapshot

    def __len__(self) -> int:
        """Number of streams."""
        return len(self._are_tensors)

    @property
    def nbytes(self) -> int:
        return len(self.steps) * self._size

    def push(self, step: int, features: Features) -> None:
        """Keep `features` of `step`; the same step again replaces its snapshot, a full ring drops its oldest."""
        are_tensors = [isinstance(item, torch.Tensor) for item in features]
        if are_tensors != self._are_tensors:
            self.clear()
            self._are_tensors = are_tensors
        steps = self.steps
        if steps and (steps[-1] == step or len(steps) == self.depth):
            out = len(steps) - 1 if steps[-1] == step else 0
            steps = steps[:out] + steps[out + 1 :]
            del self._kept[out]
        keep = self.placement.keep
        self._kept.append(tuple([keep(f) if known else f for f, known in zip(features, are_tensors)]))  # noqa: B905
        self.steps = (*steps, step)
        if not self._size:
            nbytes = self.placement.nbytes
            self._size = sum([nbytes(f) for f, known in zip(self._kept[0], are_tensors, strict=True) if known])

    def take(self) -> Features:
        """The newest snapshot itself; the history does not keep it any more, nor older ones."""
        fetch, features = self.placement.fetch, self._kept[-1]
        self.steps = ()
        self._kept.clear()
        return tuple([fetch(f) if known else f for f, known in zip(features, self._are_tensors)])  # noqa: B905

    def combine(self, weights: Sequence[float], references: Features | None) -> Features:
        """One new object per stream: ``reference + sum(weight * snapshot)``; without references, the sum alone."""
        fetch, combined = self.placement.fetch, []
        for stream, is_tensor in enumerate(self._are_tensors):
            kept = [features[stream] for features in self._kept]
            reference = references[stream] if references else None
            if is_tensor:
                combined.append(combine([fetch(item) for item in kept], weights, reference))
            else:
                combined.append(_combine_objects(kept, weights, reference))
        return tuple(combined)


def _combine_objects(kept: list[Any], weights: Sequence[float], reference: Any) -> Any:
    """Numbers are weighted as tensors are; any other object (None, a string, a module's cache) is held."""
    value = kept[-1]
    if weights[-1] != 1.0 and isinstance(value, numbers.Number):
        value = sum(weight * item for weight, item in zip(weights, kept, strict=True))
    return value if reference is None else reference + value
