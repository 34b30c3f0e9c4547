"""How tensors lie in memory: kernels run over it from end to end, so the tensors of a call have to lie alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def laid_alike(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors themselves if they fill memory in the same order, without gaps; else contiguous copies."""
    first = tensors[0]
    if all([tensor.is_contiguous() for tensor in tensors]):
        return list(tensors)
    strides = first.stride()
    if all([tensor.stride() == strides for tensor in tensors]) and _is_dense(first):
        return list(tensors)
    return [tensor.contiguous() for tensor in tensors]


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether every element between the first and the last one in memory is an element of the tensor, once."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True
