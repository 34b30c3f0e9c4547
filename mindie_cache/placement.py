"""How kept tensors are stored. Owns no history and takes no decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch

from mindie_cache.ops import combine, dequantize_rows, quantize_rows, quantized_delta, residual_delta


class Placement(Protocol):
    """What is stored has the `dtype` of the tensor that it was."""

    def keep(self, feature: Any) -> Any:
        """What is stored of a tensor that nobody else holds, or of what `residual` returned."""

    def keep_copy(self, feature: Any, /) -> Any:
        """What is stored of a tensor that belongs to somebody else."""

    def residual(self, output: torch.Tensor, reference: torch.Tensor) -> Any:
        """``output - reference``, for `keep`."""

    def fetch(self, kept: Any) -> torch.Tensor:
        """The tensor, for reading."""

    def copy(self, kept: Any) -> torch.Tensor:
        """The tensor, as a new one."""

    def combine(self, kept: Sequence[Any], weights: Sequence[float], reference: torch.Tensor | None, /) -> torch.Tensor:
        """``reference + sum(weight * kept)``, see mindie_cache.ops.combine."""

    def nbytes(self, kept: Any) -> int: ...


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that shares nothing with this one, not even a graph."""
    return tensor.detach().clone() if tensor.requires_grad else tensor.clone()


class OnDevice:
    """As the model made them, where it made them."""

    def keep(self, feature: torch.Tensor) -> torch.Tensor:
        return feature

    def fetch(self, kept: torch.Tensor) -> torch.Tensor:
        return kept

    keep_copy = staticmethod(copied)
    residual = staticmethod(residual_delta)
    copy = staticmethod(torch.Tensor.clone)
    combine = staticmethod(combine)

    def nbytes(self, kept: torch.Tensor) -> int:
        return kept.numel() * kept.element_size()


class Codes(NamedTuple):
    """A tensor of type `dtype` as int8 `codes`, with one fp32 scale a row."""

    codes: torch.Tensor
    scales: torch.Tensor
    dtype: torch.dtype


class Int8Rows:
    """As int8 codes with one scale a row (a token): half of the memory of bf16. Tensors of whole numbers stay as they are.

    An element of a row loses at most 1/254 of the row's largest one. See mindie_cache.ops.quantize_rows.
    """

    def keep(self, feature: torch.Tensor | Codes) -> torch.Tensor | Codes:
        if isinstance(feature, Codes) or not feature.is_floating_point() or feature.dim() < 2:
            return feature
        codes, scales = quantize_rows(feature)
        return Codes(codes, scales, feature.dtype)

    def keep_copy(self, feature: torch.Tensor) -> torch.Tensor | Codes:
        if not feature.is_floating_point() or feature.dim() < 2:
            return copied(feature)
        return self.keep(feature.detach())

    def residual(self, output: torch.Tensor, reference: torch.Tensor) -> torch.Tensor | Codes:
        if not output.is_floating_point() or output.dim() < 2:
            return residual_delta(output, reference)
        codes, scales = quantized_delta(output, reference)
        return Codes(codes, scales, torch.promote_types(output.dtype, reference.dtype))

    def fetch(self, kept: torch.Tensor | Codes) -> torch.Tensor:
        return dequantize_rows(*kept) if isinstance(kept, Codes) else kept

    def copy(self, kept: torch.Tensor | Codes) -> torch.Tensor:
        return dequantize_rows(*kept) if isinstance(kept, Codes) else kept.clone()

    def combine(
        self, kept: Sequence[torch.Tensor | Codes], weights: Sequence[float], reference: torch.Tensor | None
    ) -> torch.Tensor:
        codes = [item for item in kept if isinstance(item, Codes)]
        if len(codes) < len(kept):
            return combine([self.fetch(item) for item in kept], weights, reference)
        dtype = codes[-1].dtype if reference is None else reference.dtype
        return combine([item.codes for item in codes], weights, reference, [item.scales for item in codes], dtype)

    def nbytes(self, kept: torch.Tensor | Codes) -> int:
        if isinstance(kept, Codes):
            return kept.codes.numel() + kept.scales.numel() * kept.scales.element_size()
        return kept.numel() * kept.element_size()


PLACEMENTS: dict[str, type[Placement]] = {"device": OnDevice, "int8": Int8Rows}
