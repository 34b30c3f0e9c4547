"""Kernel of magnitude_ratio: of every row the ratio of the norms and the cosine, in one pass over both tensors."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mindie_cache.ops.tiling import blocks, launch, local_bytes


@triton.jit
def compare_rows(current, previous, ratios, cosines, rows, columns, eps, BLOCK: tl.constexpr):
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        now_squared = tl.zeros((BLOCK,), dtype=tl.float32)
        before_squared = tl.zeros((BLOCK,), dtype=tl.float32)
        product = tl.zeros((BLOCK,), dtype=tl.float32)
        for start in range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            mask = column < columns
            now = tl.load(current + row * columns + column, mask=mask, other=0.0).to(tl.float32)
            before = tl.load(previous + row * columns + column, mask=mask, other=0.0).to(tl.float32)
            now_squared += now * now
            before_squared += before * before
            product += now * before
        now_norm = tl.sqrt(tl.sum(now_squared, axis=0))
        before_norm = tl.sqrt(tl.sum(before_squared, axis=0))
        tl.store(ratios + row, now_norm / before_norm)
        tl.store(cosines + row, tl.sum(product, axis=0) / (tl.maximum(now_norm, eps) * tl.maximum(before_norm, eps)))


def magnitude_ratio(
    current: torch.Tensor, previous: torch.Tensor, ratios: torch.Tensor, cosines: torch.Tensor, eps: float
) -> None:
    """Write fp32 `ratios` and `cosines`, one a row. All tensors are contiguous."""
    columns = current.shape[-1]
    rows = current.numel() // columns
    block, programs = blocks(columns, local_bytes(current) + local_bytes(previous) + 24, rows)
    launch(compare_rows, programs, current, current, previous, ratios, cosines, rows, columns, eps, BLOCK=block)
