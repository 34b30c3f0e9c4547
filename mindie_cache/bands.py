"""Bands: features kept as parts that add up to them, each with a history of its own. The arithmetic is in ops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from mindie_cache.errors import ModelExecError
from mindie_cache.history import Features, History, Plain, combine_objects, own
from mindie_cache.ops import band_split, combine, low_pass

_HELD = (1.0,)


class Bands(Protocol):
    """How a feature is split. The parts are new tensors of its shape and dtype whose sum it is."""

    def split(self, feature: torch.Tensor) -> tuple[torch.Tensor, ...]: ...


@dataclass(frozen=True)
class PictureBands:
    """Low and high spatial frequencies of pictures (..., height, width), split at min(height, width) // `radius_divisor`."""

    radius_divisor: int

    def split(self, feature: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if feature.dim() < 2:
            return feature, torch.zeros_like(feature)  # no picture: a mean
        return band_split(feature, min(feature.shape[-2:]) // self.radius_divisor)


@dataclass(frozen=True)
class TokenBands:
    """Slow and fast part along the tokens (dim 1): low up to the share `cutoff` of the highest frequency."""

    cutoff: float

    def split(self, feature: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if feature.dim() < 2:
            raise ModelExecError(
                f"low_order and high_order split features along their tokens, dim 1, but this one has the shape "
                f"{tuple(feature.shape)}. Set order instead."
            )
        highest = int(self.cutoff * (feature.shape[1] // 2) + 1e-6)
        low = low_pass(feature, highest, dim=1)
        return low, feature - low


class BandedHistory:
    """A History whose features are split into `bands`; `combine` takes one row of weights a band.

    Tensors of whole numbers and other objects have no bands: the newest is held.
    """

    __slots__ = ("_bands", "_deepest", "_histories")

    def __init__(self, bands: Bands, histories: Sequence[History]):
        self._bands = bands
        self._histories = tuple(histories)
        self._deepest = max(self._histories, key=lambda history: history.depth)

    @property
    def steps(self) -> tuple[int, ...]:
        return self._deepest.steps

    @property
    def nbytes(self) -> int:
        return sum([history.nbytes for history in self._histories])

    @property
    def dtypes(self) -> set[torch.dtype]:
        return self._deepest.dtypes

    def clear(self) -> None:
        for history in self._histories:
            history.clear()

    def push(self, step: int, features: Features, shared: bool = False) -> None:
        if shared:
            features = tuple([own(item) for item in features])
        none = (None,) * (len(self._histories) - 1)
        parts = [self._bands.split(f) if is_real(f) else (f, *none) for f in features]
        for history, band in zip(self._histories, zip(*parts, strict=True), strict=True):
            history.push(step, band)

    def take(self) -> Features:
        """The newest snapshot; the history does not keep it any more, nor older ones."""
        newest = self.combine([(0.0,) * (len(self.steps) - 1) + _HELD] * len(self._histories), None)
        self.clear()
        return newest

    def combine(self, rows: Sequence[Sequence[float]], references: Features | None) -> Features:
        """One new object per stream: ``reference + sum over bands and snapshots (weight * part)``."""
        combined = []
        for stream in range(self._deepest.width):
            kept = [history.fetch(stream) for history in self._histories]
            reference = references[stream] if references else None
            whole = kept[0][-1]
            if type(whole) is Plain:
                combined.append(combine_objects([whole.value], _HELD, reference))
            elif not is_real(whole):
                combined.append(combine([whole], _HELD, reference))
            else:
                parts = [part for band in kept for part in band]
                weights = [weight for band, row in zip(kept, rows, strict=True) for weight in row[-len(band) :]]
                combined.append(combine(parts, weights, reference))
        return tuple(combined)


def is_real(value: Any) -> bool:
    """Whether this is a tensor of real numbers, which can be split and weighted."""
    return isinstance(value, torch.Tensor) and value.is_floating_point()
