"""relative_l1: how far a tensor moved, as two sums that stay on the device."""

from __future__ import annotations

import torch

from mindie_cache.ops.dispatch import guarded, implementation
from mindie_cache.ops.memory import laid_alike, portion


def relative_l1(current: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    """Return ``[sum |current - previous|, sum |previous|]``: a float32 tensor of shape (2,), without synchronising.

    Args:
        current, previous: tensors of one shape and device. NaN and Inf propagate into the sums.

    The quotient of the two is the relative L1 distance; the first over the number of elements is the mean step length.
    """
    if current.shape != previous.shape:  # a broadcast here would be a silent error
        raise ValueError(f"relative_l1: shapes differ, {tuple(current.shape)} and {tuple(previous.shape)}.")
    if implementation("relative_l1", current) == "reference":
        return relative_l1_reference(current, previous)
    return torch.ops.mindie_cache.relative_l1(current, previous)


def relative_l1_reference(current: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    """The same by PyTorch's operators, some elements at a time."""
    size = portion(current)
    if current.numel() > size:
        parts = zip(*[tensor.reshape(-1).split(size) for tensor in (current, previous)], strict=True)
        return torch.stack([relative_l1_reference(now, before) for now, before in parts]).sum(0)
    before = previous.to(torch.float32, copy=True)
    change = current - before if current.dtype == torch.float32 else current.float().sub_(before)
    return torch.stack((change.abs_().sum(), before.abs_().sum()))


torch.library.define("mindie_cache::relative_l1", "(Tensor current, Tensor previous) -> Tensor")


@torch.library.impl("mindie_cache::relative_l1", "CompositeExplicitAutograd")
def _run(current: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    def by_reference() -> torch.Tensor:
        return relative_l1_reference(current, previous)

    def by_kernel() -> torch.Tensor:
        from mindie_cache.ops.triton import relative_l1 as kernels

        out = torch.empty(2, dtype=torch.float32, device=current.device)
        kernels.relative_l1(*laid_alike((current, previous)), out)
        return out

    if implementation("relative_l1", current) == "reference":
        return by_reference()
    return guarded("relative_l1", current, by_kernel, by_reference)


@torch.library.register_fake("mindie_cache::relative_l1")
def _fake(current: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    return torch.empty(2, dtype=torch.float32, device=current.device)
