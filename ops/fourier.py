"""What the frequency operations share: which devices have an FFT, and real Fourier matrices for those that have none."""

from __future__ import annotations

import math

import torch

FFT_DEVICES = ("cpu", "cuda", "meta")


def has_fft(device: torch.device | str) -> bool:
    return str(device).partition(":")[0] in FFT_DEVICES  # a name like "npu" need not be known to this PyTorch


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which frequencies are computed: float32 for bf16 and fp16."""
    return torch.promote_types(dtype, torch.float32)


def frequencies(size: int, highest: int, device: torch.device) -> torch.Tensor:
    """The whole frequencies u of `size` samples with |u| <= `highest`, ascending; -size/2 and size/2 are the same one."""
    return torch.arange(-min(highest, (size - 1) // 2), min(highest, size // 2) + 1, device=device)


def hartley(size: int, highest: int, like: torch.Tensor) -> torch.Tensor:
    """Orthonormal rows cas(2 pi u n / size) / sqrt(size), cas = cos + sin, one for each of `frequencies`.

    The rows of u and -u span what the complex exponentials of u and -u span. So a low-pass, which treats both alike, is
    the same projection in this real basis as in the Fourier basis.
    """
    u = frequencies(size, highest, like.device)
    turns = (u[:, None] * torch.arange(size, device=like.device)) % size  # whole numbers: exact at any size
    angles = turns.to(wide_dtype(like.dtype)) * (2 * math.pi / size)
    return (angles.cos() + angles.sin()) / math.sqrt(size)
