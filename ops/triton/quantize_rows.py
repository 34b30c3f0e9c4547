"""Kernel of quantize_rows and residual_delta: the codes of x, or of x - reference, row by row in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mindie_cache.ops.tiling import blocks, launch, local_bytes


@triton.jit
def _difference(x, reference, at, mask, SUBTRACTS: tl.constexpr):
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if SUBTRACTS:
        value -= tl.load(reference + at, mask=mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def _codes(value, factor):
    """floor(v + 0.5) between -127 and 127."""
    return tl.minimum(tl.maximum(tl.floor(value * factor + 0.5), -127.0), 127.0).to(tl.int8)


@triton.jit
def quantize(x, reference, codes, scales, rows, columns, SUBTRACTS: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr):
    """WHOLE: a row fits into one block and is read once; otherwise it is read a second time for the codes."""
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        first = row * columns
        if WHOLE:
            column = tl.arange(0, BLOCK)
            mask = column < columns
            value = _difference(x, reference, first + column, mask, SUBTRACTS)
            largest = tl.max(tl.abs(value), axis=0)
            invalid = tl.sum(value * 0.0, axis=0)  # 0, or NaN if anything is not finite: tl.max need not see it
        else:
            largest = 0.0
            invalid = 0.0
            for start in range(0, columns, BLOCK):
                column = start + tl.arange(0, BLOCK)
                mask = column < columns
                value = _difference(x, reference, first + column, mask, SUBTRACTS)
                largest = tl.maximum(largest, tl.max(tl.abs(value), axis=0))
                invalid += tl.sum(value * 0.0, axis=0)
        tl.store(scales + row, largest / 127.0 + invalid)
        factor = 127.0 / tl.maximum(largest, 1e-30)
        if WHOLE:
            tl.store(codes + first + column, _codes(value, factor), mask=mask)
        else:
            for start in range(0, columns, BLOCK):
                column = start + tl.arange(0, BLOCK)
                mask = column < columns
                value = _difference(x, reference, first + column, mask, SUBTRACTS)
                tl.store(codes + first + column, _codes(value, factor), mask=mask)


def quantize_rows(x: torch.Tensor, reference: torch.Tensor | None, codes: torch.Tensor, scales: torch.Tensor) -> None:
    """Write int8 `codes` and fp32 `scales`. All tensors are contiguous."""
    columns = x.shape[-1]
    rows = x.numel() // columns
    subtracts = reference is not None
    base = reference if reference is not None else x
    block, programs = blocks(columns, local_bytes(x) + subtracts * local_bytes(base) + 37, rows)
    launch(
        quantize, programs, x, x, base, codes, scales, rows, columns,
        SUBTRACTS=subtracts, WHOLE=columns <= block, BLOCK=block,
    )  # fmt: skip
