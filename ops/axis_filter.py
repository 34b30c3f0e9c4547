"""axis_filter: a frequency response along several dimensions, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from mindie_cache.ops.fourier import frequencies, hartley, wide_dtype


def axis_filter(x: torch.Tensor, gain: Callable[[torch.Tensor], torch.Tensor], dims: Sequence[int]) -> torch.Tensor:
    """Return `x` with its spectrum along each of `dims` multiplied by `gain`, as a new tensor.

    Args:
        x: real tensor.
        gain: from frequencies in cycles per sample, ``(n,)`` from 0 to 1/2, to real factors ``(n,)``. Positive and negative
            frequencies are treated alike, so there is no shift.
        dims: dimensions that are filtered. The response to several frequencies is the product of their gains.

    Returns:
        A tensor of the shape of `x`; bf16 and fp16 come back as fp32. Along a dimension of n samples this is one product
        with a symmetric n x n matrix, ``basis.T diag(gain) basis``: grids of latents have some tens of samples a
        dimension, where that costs no more than an FFT and needs none.
    """
    if not x.is_floating_point() or any(not -x.dim() <= dim < x.dim() for dim in dims):
        raise ValueError(
            f"axis_filter: needs a real tensor with dimensions {tuple(dims)}, got {x.dtype} of {tuple(x.shape)}."
        )
    wide = x.to(wide_dtype(x.dtype), copy=True)
    for dim in dims:
        size = wide.shape[dim]
        basis = hartley(size, size // 2, wide)
        each = frequencies(size, size // 2, wide.device).abs().to(wide.dtype) / size
        wide = (wide.movedim(dim, -1) @ ((basis.T * gain(each)) @ basis)).movedim(-1, dim)
    return wide
