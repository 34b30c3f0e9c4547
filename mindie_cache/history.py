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

    __slots__ = ("_are_tensors", "_kept", "_sizes", "depth", "nbytes", "placement", "steps")

    def __init__(self, depth: int, placement: Placement):
        self.depth = depth
        self.placement = placement
        self.clear()

    def clear(self) -> None:
        self.steps: tuple[int, ...] = ()
        self._kept: list[Features] = []
        self._sizes: list[int] = []
        self._are_tensors: tuple[bool, ...] = ()
        self.nbytes = 0

    def __len__(self) -> int:
        """Number of streams."""
        return len(self._are_tensors)

    def push(self, step: int, features: Features) -> None:
        """Keep `features` of `step`; the same step again replaces its snapshot, a full ring drops its oldest."""
        are_tensors = tuple([isinstance(item, torch.Tensor) for item in features])
        if are_tensors != self._are_tensors:
            self.clear()
            self._are_tensors = are_tensors
        steps = self.steps
        if steps and (steps[-1] == step or len(steps) == self.depth):
            out = len(steps) - 1 if steps[-1] == step else 0
            steps = steps[:out] + steps[out + 1 :]
            self.nbytes -= self._sizes.pop(out)
            del self._kept[out]
        keep, nbytes, size = self.placement.keep, self.placement.nbytes, 0
        if True in are_tensors:
            features = tuple([keep(f) if known else f for f, known in zip(features, are_tensors, strict=True)])
            size = sum([nbytes(f) for f, known in zip(features, are_tensors, strict=True) if known])
        self._kept.append(features)
        self._sizes.append(size)
        self.nbytes += size
        self.steps = (*steps, step)

    def take(self) -> Features:
        """The newest snapshot itself; the history keeps nothing any more."""
        fetch = self.placement.fetch
        taken = tuple([fetch(f) if known else f for f, known in zip(self._kept[-1], self._are_tensors, strict=True)])
        self.clear()
        return taken

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
