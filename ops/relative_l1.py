"""relative_l1: how far a tensor moved, as two sums that stay on the device."""

from __future__ import annotations

import torch


def relative_l1(current: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    """Return ``[sum |current - previous|, sum |previous|]``: a float32 tensor of shape (2,), without synchronising.

    Args:
        current, previous: tensors of one shape and device. NaN and Inf propagate into the sums.

    The quotient of the two is the relative L1 distance; the first over the number of elements is the mean step length.
    """
    if current.shape != previous.shape:  # a broadcast here would be a silent error
        raise ValueError(f"relative_l1: shapes differ, {tuple(current.shape)} and {tuple(previous.shape)}.")
    before = previous.float()
    return torch.stack(((current.float() - before).abs().sum(), before.abs().sum()))
