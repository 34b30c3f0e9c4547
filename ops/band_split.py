"""band_split: the low and the high spatial frequencies of pictures, both as pictures."""

from __future__ import annotations

import torch

from mindie_cache.ops.fourier import frequencies, hartley, has_fft, wide_dtype


def band_split(x: torch.Tensor, radius: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``(low, high)`` with ``low + high == x``, split at a circle on the spectrum of the last two dimensions.

    Args:
        x: real tensor of shape (..., height, width).
        radius: frequencies (u, v) with ``u^2 + v^2 <= radius^2`` are low; u and v are whole numbers, 0 is the mean.

    Returns:
        Two new tensors of the shape and dtype of `x`. bf16 and fp16 are transformed in fp32.

    Source: the circular mask on the shifted spectrum of FasterCache (Lv et al., ICLR 2025). By FFT where the device has
    one, otherwise by products with real Fourier matrices of ``2 radius + 1`` rows, which give the same numbers.
    """
    if x.dim() < 2 or not x.is_floating_point():
        raise ValueError(f"band_split: needs real pictures (..., height, width), got {x.dtype} of {tuple(x.shape)}.")
    if radius < 0:
        raise ValueError(f"band_split: radius={radius} is negative; the mean alone has radius 0.")
    wide = x.to(wide_dtype(x.dtype))
    low = (by_fft if has_fft(x.device) else by_matrices)(wide, radius).to(x.dtype)
    return low, (wide - low).to(x.dtype)


def by_fft(x: torch.Tensor, radius: int) -> torch.Tensor:
    """The low frequencies of a wide `x`."""
    height, width = x.shape[-2:]
    u = (torch.arange(height, device=x.device) + height // 2) % height - height // 2  # 0, 1, ..., -2, -1
    v = torch.arange(width // 2 + 1, device=x.device)
    return torch.fft.irfft2(torch.fft.rfft2(x) * _inside(u, v, radius), s=(height, width))


def by_matrices(x: torch.Tensor, radius: int) -> torch.Tensor:
    """As `by_fft`, in four matrix products."""
    height, width = x.shape[-2:]
    rows, columns = hartley(height, radius, x), hartley(width, radius, x)
    inside = _inside(frequencies(height, radius, x.device), frequencies(width, radius, x.device), radius)
    return rows.T @ (rows @ x @ columns.T * inside) @ columns


def _inside(u: torch.Tensor, v: torch.Tensor, radius: int) -> torch.Tensor:
    return u[:, None] ** 2 + v**2 <= radius**2
