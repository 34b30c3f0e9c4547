"""low_pass: the slow part of a sequence along one dimension."""

from __future__ import annotations

import torch

from mindie_cache.ops.fourier import hartley, has_fft, wide_dtype


def low_pass(x: torch.Tensor, highest: int, dim: int) -> torch.Tensor:
    """Return the part of `x` whose frequencies along `dim` are at most `highest` periods, as a new tensor.

    Args:
        x: real tensor.
        highest: whole periods over the length of `dim`; 0 keeps the mean, half the length keeps everything.
        dim: dimension of the sequence.

    Returns:
        A tensor of the shape and dtype of `x`. bf16 and fp16 are transformed in fp32. By FFT where the device has one,
        otherwise by two products with a real Fourier matrix of ``2 highest + 1`` rows, which give the same numbers.
    """
    if not x.is_floating_point() or not -x.dim() <= dim < x.dim():
        raise ValueError(f"low_pass: needs a real tensor with a dimension {dim}, got {x.dtype} of {tuple(x.shape)}.")
    if highest < 0:
        raise ValueError(f"low_pass: highest={highest} is negative; the mean alone has 0 periods.")
    return (by_fft if has_fft(x.device) else by_matrix)(x.to(wide_dtype(x.dtype)), highest, dim).to(x.dtype)


def by_fft(x: torch.Tensor, highest: int, dim: int) -> torch.Tensor:
    spectrum = torch.fft.rfft(x, dim=dim)
    count = min(highest + 1, spectrum.shape[dim])
    return torch.fft.irfft(spectrum.narrow(dim, 0, count), n=x.shape[dim], dim=dim)  # fills up with zeros


def by_matrix(x: torch.Tensor, highest: int, dim: int) -> torch.Tensor:
    basis = hartley(x.shape[dim], highest, x)
    last = x.movedim(dim, -1)
    return (last @ basis.T @ basis).movedim(-1, dim)
