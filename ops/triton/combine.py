"""Kernels of combine: a weighted sum of up to four snapshots on top of a reference, each element read and written once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from mindie_cache.ops.tiling import blocks, launch

MOST = 4  # snapshots in one pass


@triton.jit
def combine_flat(s0, s1, s2, s3, w0, w1, w2, w3, reference, out, n, COUNT: tl.constexpr, ADDS: tl.constexpr, BLOCK: tl.constexpr):
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        at = block * BLOCK + tl.arange(0, BLOCK)
        mask = at < n
        total = tl.load(s0 + at, mask=mask, other=0.0).to(tl.float32) * w0
        if COUNT > 1:
            total += tl.load(s1 + at, mask=mask, other=0.0).to(tl.float32) * w1
        if COUNT > 2:
            total += tl.load(s2 + at, mask=mask, other=0.0).to(tl.float32) * w2
        if COUNT > 3:
            total += tl.load(s3 + at, mask=mask, other=0.0).to(tl.float32) * w3
        if ADDS:
            total += tl.load(reference + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def combine_rows(
    s0, s1, s2, s3, f0, f1, f2, f3, w0, w1, w2, w3, reference, out, rows, columns,
    COUNT: tl.constexpr, ADDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """As combine_flat, for int8 snapshots with one fp32 factor a row."""
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        a0 = tl.load(f0 + row) * w0
        if COUNT > 1:
            a1 = tl.load(f1 + row) * w1
        if COUNT > 2:
            a2 = tl.load(f2 + row) * w2
        if COUNT > 3:
            a3 = tl.load(f3 + row) * w3
        for start in range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            mask = column < columns
            at = row * columns + column
            total = tl.load(s0 + at, mask=mask, other=0).to(tl.float32) * a0
            if COUNT > 1:
                total += tl.load(s1 + at, mask=mask, other=0).to(tl.float32) * a1
            if COUNT > 2:
                total += tl.load(s2 + at, mask=mask, other=0).to(tl.float32) * a2
            if COUNT > 3:
                total += tl.load(s3 + at, mask=mask, other=0).to(tl.float32) * a3
            if ADDS:
                total += tl.load(reference + at, mask=mask, other=0.0).to(tl.float32)
            tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


def combine(
    snapshots: Sequence[torch.Tensor],
    weights: Sequence[float],
    reference: torch.Tensor | None,
    scales: Sequence[torch.Tensor] | None,
    out: torch.Tensor,
) -> None:
    """Write the sum into `out`. All tensors are laid out alike in memory; see mindie_cache.ops.combine for the contract."""
    count, spare = len(snapshots), MOST - len(snapshots)
    tensors = (*snapshots, *snapshots[:1] * spare)
    factors = (*weights, *weights[:1] * spare)
    adds = reference is not None
    base = reference if reference is not None else out
    # what a block takes of local memory: per snapshot its elements, their fp32 copy, the product and the sum
    each = sum(tensor.element_size() + 12 for tensor in snapshots) + adds * (base.element_size() + 8) + out.element_size() + 4
    if scales is None:
        block, programs = blocks(out.numel(), each)
        launch(combine_flat, programs, out, *tensors, *factors, base, out, out.numel(), COUNT=count, ADDS=adds, BLOCK=block)
    else:
        columns = out.shape[-1]
        rows = out.numel() // columns
        block, programs = blocks(columns, each, rows)
        by_row = (*scales, *scales[:1] * spare)
        launch(
            combine_rows, programs, out, *tensors, *by_row, *factors, base, out, rows, columns,
            COUNT=count, ADDS=adds, BLOCK=block,
        )  # fmt: skip
