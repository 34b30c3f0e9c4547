"""Kernels of combine: a weighted sum of up to four snapshots on top of a reference, each element read and written once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from mindie_cache.ops.combine import MOST_IN_ONE_PASS
from mindie_cache.ops.tiling import blocks, launch, local_bytes


@triton.jit
def combine_flat(
    s0, s1, s2, s3, w0, w1, w2, w3, reference, out, n, COUNT: tl.constexpr, ADDS: tl.constexpr, BLOCK: tl.constexpr
):
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
    count, adds = len(snapshots), reference is not None
    base = out if reference is None else reference
    each = sum(local_bytes(tensor) for tensor in (*snapshots, *[base] * adds)) + out.element_size() + 4 * count
    constants = {"COUNT": count, "ADDS": adds}
    if scales is None:
        block, programs = blocks(out.numel(), each)
        args = (*_four(snapshots), *_four(weights), base, out, out.numel())
        launch(combine_flat, programs, out, *args, **constants, BLOCK=block)
    else:
        columns = out.shape[-1]
        rows = out.numel() // columns
        block, programs = blocks(columns, each, rows)
        args = (*_four(snapshots), *_four(scales), *_four(weights), base, out, rows, columns)
        launch(combine_rows, programs, out, *args, **constants, BLOCK=block)


def _four(items: Sequence[Any]) -> tuple[Any, ...]:
    """The first one stands in for those that the kernel does not read."""
    return (*items, *[items[0]] * (MOST_IN_ONE_PASS - len(items)))
