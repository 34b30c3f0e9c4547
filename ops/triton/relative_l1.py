"""Kernels of relative_l1: partial sums of every program, then one program that adds them up."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mindie_cache.ops.tiling import blocks, launch, local_bytes


@triton.jit
def partial_sums(current, previous, partial, n, BLOCK: tl.constexpr):
    change = tl.zeros((BLOCK,), dtype=tl.float32)
    size = tl.zeros((BLOCK,), dtype=tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        at = block * BLOCK + tl.arange(0, BLOCK)
        mask = at < n
        now = tl.load(current + at, mask=mask, other=0.0).to(tl.float32)
        before = tl.load(previous + at, mask=mask, other=0.0).to(tl.float32)
        change += tl.abs(now - before)
        size += tl.abs(before)
    tl.store(partial + tl.program_id(0), tl.sum(change, axis=0))
    tl.store(partial + tl.num_programs(0) + tl.program_id(0), tl.sum(size, axis=0))


@triton.jit
def total_sums(partial, out, count, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    mask = at < count
    tl.store(out, tl.sum(tl.load(partial + at, mask=mask, other=0.0), axis=0))
    tl.store(out + 1, tl.sum(tl.load(partial + count + at, mask=mask, other=0.0), axis=0))


def relative_l1(current: torch.Tensor, previous: torch.Tensor, out: torch.Tensor) -> None:
    """Write the two sums into `out`, fp32 of shape (2,). The inputs are laid out alike in memory."""
    block, programs = blocks(current.numel(), local_bytes(current) + local_bytes(previous) + 12)
    partial = torch.empty(2 * programs, dtype=torch.float32, device=out.device)
    launch(partial_sums, programs, out, current, previous, partial, current.numel(), BLOCK=block)
    launch(total_sums, 1, out, partial, out, programs, COUNT=max(16, triton.next_power_of_2(programs)))
