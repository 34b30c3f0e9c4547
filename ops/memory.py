"""How tensors lie in memory, and how much of them is worked on at a time."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

CACHED, LARGE = 2**18, 2**26  # 1 MiB of float32 for each thread, and 256 MiB


def portion(tensor: torch.Tensor) -> int:
    """Elements that a reference converts to float32 at a time.

    On the CPU so few that they stay in its cache, which is several times faster; elsewhere so many that they fill the
    device, and are little beside a model. A compiler fuses by itself.
    """
    if torch.compiler.is_compiling():
        return sys.maxsize
    return CACHED * torch.get_num_threads() if tensor.device.type == "cpu" else LARGE


def laid_alike(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors themselves if they fill memory in the same order, without gaps; else contiguous copies.

    Kernels run over memory from end to end, so the tensors of a call have to lie alike.
    """
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
