"""combine: reference + sum_i weight_i * snapshot_i, the only arithmetic of a reuse step."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def combine(
    snapshots: Sequence[torch.Tensor], weights: Sequence[float], reference: torch.Tensor | None = None
) -> torch.Tensor:
    """Return ``reference + sum(weight * snapshot)`` as a new tensor that shares no memory with its inputs.

    Args:
        snapshots: one or more tensors of one shape, dtype and device.
        weights: one Python float per snapshot. Snapshots of weight 0 are not read.
        reference: a tensor of the same shape and device, or None for 0.

    Returns:
        A tensor in the reference's dtype (the snapshots' if there is none). Sums of bf16 and fp16 are taken in fp32.
    """
    if not snapshots or len(snapshots) != len(weights):
        raise ValueError(f"combine: {len(snapshots)} snapshots but {len(weights)} weights; needs one weight per snapshot.")
    if reference is not None and reference.shape != snapshots[-1].shape:  # a broadcast here would be a silent error
        raise ValueError(f"combine: shapes differ, {tuple(snapshots[-1].shape)} and {tuple(reference.shape)}.")
    if weights[-1] == 1.0 and not any(weights[:-1]):  # hold: one copy, or one addition
        snapshot = snapshots[-1]
        if reference is None:
            return snapshot.clone()
        total = reference + snapshot
        return total if total.dtype == reference.dtype else total.to(reference.dtype)
    like = snapshots[-1] if reference is None else reference
    wide = torch.promote_types(like.dtype, torch.float32)
    total = torch.zeros_like(like, dtype=wide) if reference is None else reference.to(wide, copy=True)
    for snapshot, weight in zip(snapshots, weights, strict=True):
        if weight:
            total.add_(snapshot, alpha=weight)
    return total.to(like.dtype)
