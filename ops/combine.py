"""combine: reference + sum_i weight_i * snapshot_i, the only arithmetic of a reuse step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mindie_cache.ops.dispatch import DTYPES, guarded, implementation
from mindie_cache.ops.memory import laid_alike, portion

MOST_IN_ONE_PASS = 4  # snapshots that a kernel takes


def combine(
    snapshots: Sequence[torch.Tensor],
    weights: Sequence[float],
    reference: torch.Tensor | None = None,
    scales: Sequence[torch.Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return ``reference + sum(weight * snapshot)`` as a new tensor that shares no memory with its inputs.

    Args:
        snapshots: one or more tensors of one shape, dtype and device.
        weights: one Python float per snapshot. Snapshots of weight 0 are not read.
        reference: a tensor of the same shape and device, or None for 0.
        scales: for int8 snapshots ``(..., columns)`` of `quantize_rows`, the fp32 scales ``(...)`` of each.
        dtype: of the result; the reference's by default, without one the snapshots' (float32 for int8 snapshots).

    Returns:
        A tensor of that dtype. Sums of bf16 and fp16 are taken in fp32 and rounded once. NaN and Inf propagate.
    """
    if not snapshots or len(snapshots) != len(weights):
        raise ValueError(f"combine: {len(snapshots)} snapshots but {len(weights)} weights; needs one weight per snapshot.")
    newest = snapshots[-1]
    if reference is not None and reference.shape != newest.shape:  # a broadcast here would be a silent error
        raise ValueError(f"combine: shapes differ, {tuple(newest.shape)} and {tuple(reference.shape)}.")
    if scales is not None:
        _check_scales(snapshots, scales)
    elif weights[-1] == 1.0 and not any(weights[:-1]):  # hold: one copy, or one addition, which is one pass already
        total = newest.clone() if reference is None else reference + newest
        like = newest if reference is None else reference
        return total if total.dtype == (dtype or like.dtype) else total.to(dtype or like.dtype)
    dtype = dtype or (reference.dtype if reference is not None else torch.float32 if scales is not None else newest.dtype)
    if implementation("combine", newest if reference is None else reference) == "reference":
        return combine_reference(snapshots, weights, reference, scales, dtype)
    return torch.ops.mindie_cache.combine(snapshots, weights, reference, scales, dtype)


def combine_reference(
    snapshots: Sequence[torch.Tensor],
    weights: Sequence[float],
    reference: torch.Tensor | None,
    scales: Sequence[torch.Tensor] | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The same by PyTorch's operators; where types have to be converted, some elements at a time."""
    like = snapshots[-1] if reference is None else reference
    wide = torch.promote_types(like.dtype if like.dtype.is_floating_point or like.dtype.is_complex else dtype, torch.float32)
    divides = wide != dtype if scales is None else like.shape[-1] < portion(like)
    if divides and like.numel() > portion(like):
        return _by_portions(snapshots, weights, reference, scales, dtype)
    if reference is None:
        total = torch.zeros_like(like, dtype=wide)
    else:
        total = reference.clone() if reference.dtype == wide else reference.to(wide)
    for index, (snapshot, weight) in enumerate(zip(snapshots, weights, strict=True)):
        if not weight:
            continue
        if scales is None:
            total.add_(snapshot, alpha=weight)
        else:
            total.addcmul_(snapshot.to(wide), (scales[index] * weight).unsqueeze(-1).to(wide))
    return total if dtype == wide else total.to(dtype)  # a conversion to the same type costs as much as an operator


def _by_portions(
    snapshots: Sequence[torch.Tensor],
    weights: Sequence[float],
    reference: torch.Tensor | None,
    scales: Sequence[torch.Tensor] | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """combine_reference on so many elements, or rows with their scales, at a time that they are a portion."""
    out = torch.empty(snapshots[-1].shape, dtype=dtype, device=snapshots[-1].device)
    rows = portion(out) if scales is None else portion(out) // out.shape[-1]

    def parts(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tensor.reshape(-1, out.shape[-1]).split(rows) if scales is not None else tensor.reshape(-1).split(rows)

    kept = [parts(snapshot) for snapshot in snapshots]
    factors = None if scales is None else [scale.reshape(-1).split(rows) for scale in scales]
    bases = None if reference is None else parts(reference)
    for index, part in enumerate(parts(out)):
        base = None if bases is None else bases[index]
        factor = None if factors is None else [rows[index] for rows in factors]
        part.copy_(combine_reference([rows[index] for rows in kept], weights, base, factor, dtype))
    return out


def _check_scales(snapshots: Sequence[torch.Tensor], scales: Sequence[torch.Tensor]) -> None:
    if len(scales) != len(snapshots):
        raise ValueError(f"combine: {len(snapshots)} snapshots but {len(scales)} scales; needs one tensor of scales each.")
    for snapshot, scale in zip(snapshots, scales, strict=True):
        if snapshot.dtype != torch.int8 or scale.shape != snapshot.shape[:-1]:
            raise ValueError(
                f"combine: scales of shape {tuple(scale.shape)} do not fit {snapshot.dtype} snapshots of shape "
                f"{tuple(snapshot.shape)}. Give int8 codes (..., columns) and scales (...), as quantize_rows returns them."
            )


torch.library.define(
    "mindie_cache::combine",
    "(Tensor[] snapshots, float[] weights, Tensor? reference, Tensor[]? scales, ScalarType dtype) -> Tensor",
)


@torch.library.impl("mindie_cache::combine", "CompositeExplicitAutograd")
def _run(
    snapshots: list[torch.Tensor],
    weights: list[float],
    reference: torch.Tensor | None,
    scales: list[torch.Tensor] | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    like = snapshots[-1] if reference is None else reference
    read = [index for index, weight in enumerate(weights) if weight]

    def by_reference() -> torch.Tensor:
        return combine_reference(snapshots, weights, reference, scales, dtype)

    def by_kernel() -> torch.Tensor:
        from mindie_cache.ops.triton import combine as kernels

        tensors = [snapshots[index] for index in read]
        adds = [] if reference is None else [reference]
        tensors = [tensor.contiguous() for tensor in tensors + adds] if scales else laid_alike(tensors + adds)
        out = torch.empty_like(tensors[-1], dtype=dtype)
        rows = None if scales is None else [scales[index].contiguous() for index in read]
        kernels.combine(tensors[: len(read)], [weights[index] for index in read], tensors[-1] if adds else None, rows, out)
        return out

    one_pass = 0 < len(read) <= MOST_IN_ONE_PASS and {dtype, snapshots[-1].dtype} <= set(DTYPES)
    if not one_pass or implementation("combine", like) == "reference":
        return by_reference()
    return guarded("combine", like, by_kernel, by_reference)


@torch.library.register_fake("mindie_cache::combine")
def _fake(
    snapshots: list[torch.Tensor],
    weights: list[float],
    reference: torch.Tensor | None,
    scales: list[torch.Tensor] | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    return torch.empty_like(snapshots[-1] if reference is None else reference, dtype=dtype)
