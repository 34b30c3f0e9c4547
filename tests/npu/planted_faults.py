"""Kernels with one fault each, and two without any: what the tests of the lowering have to see, and must not see.

Each takes `x`, `y` and their length `n`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def doubles(x, y, n, BLOCK: tl.constexpr):
    """No fault."""
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        at = block * BLOCK + tl.arange(0, BLOCK)
        tl.store(y + at, tl.load(x + at, mask=at < n, other=0.0) * 2, mask=at < n)


@triton.jit
def sums(x, y, n, BLOCK: tl.constexpr):
    """No fault."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + tl.program_id(0), tl.sum(tl.load(x + at, mask=at < n, other=0.0), axis=0))


@triton.jit
def without_mask(x, y, n, BLOCK: tl.constexpr):
    """Reads and writes past the end."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at) * 2)


@triton.jit
def one_too_far(x, y, n, BLOCK: tl.constexpr):
    """`<=` where `<` is meant."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at <= n, other=0.0) * 2, mask=at <= n)


@triton.jit
def before_the_start(x, y, n, BLOCK: tl.constexpr):
    """Reads one element before the first."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at - 1, mask=at < n, other=0.0), mask=at < n)


@triton.jit
def far_away(x, y, n, BLOCK: tl.constexpr):
    """Reads some blocks past the end."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at + n * 64, mask=at < n, other=0.0), mask=at < n)


@triton.jit
def running_mean(x, y, n, BLOCK: tl.constexpr):
    """Each program reads what another one wrote."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.sum(tl.load(x + at, mask=at < n, other=0.0), axis=0)
    tl.store(y, tl.load(y) * 0.5 + value)


@triton.jit
def overlapping(x, y, n, BLOCK: tl.constexpr):
    """Two programs write the same element, and the last one wins."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK * 2)
    tl.store(y + at, tl.load(x + at, mask=at < n, other=0.0) + tl.program_id(0), mask=at < n)


@triton.jit
def sums_the_tail(x, y, n, BLOCK: tl.constexpr):
    """Adds up what the mask left undefined on CUDA: the load lacks `other`."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + tl.program_id(0), tl.sum(tl.load(x + at, mask=at < n), axis=0))


@triton.jit
def in_float64(x, y, n, BLOCK: tl.constexpr):
    """Vector cores have no double."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=0.0).to(tl.float64)
    tl.store(y + at, (value * value + 1).to(tl.float32), mask=at < n)


@triton.jit
def in_int64(x, y, n, BLOCK: tl.constexpr):
    """Vectors of 64-bit integers are computed element by element."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=0.0).to(tl.int64)
    tl.store(y + at, (value * value).to(tl.float32), mask=at < n)


@triton.jit
def compares_integers(x, y, n, BLOCK: tl.constexpr):
    """So are comparisons of integers, outside of the masks of loads and stores."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=0.0)
    tl.store(y + at, tl.where((at ^ 3) < 100, value, 0.0), mask=at < n)


@triton.jit
def by_scalars(x, y, n, BLOCK: tl.constexpr):
    """One element at a time."""
    for at in range(tl.program_id(0), n, tl.num_programs(0)):
        tl.store(y + at, tl.load(x + at) * 2)


@triton.jit
def calls_out(x, y, n, BLOCK: tl.constexpr):
    """A cumulative sum comes from the vendor's library, which is not here."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.cumsum(tl.load(x + at, mask=at < n, other=0.0), axis=0), mask=at < n)


@triton.jit
def _halving(left, right):
    return left * 0.5 + right


@triton.jit
def reduces_by_itself(x, y, n, BLOCK: tl.constexpr):
    """A reduction by a function of one's own in bf16 starts from memory that nobody set."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=0.0).to(tl.bfloat16)
    tl.store(y + tl.program_id(0), tl.reduce(value, 0, _halving).to(tl.float32))


@triton.jit
def with_a_name_that_the_runtime_of_the_device_would_cut(x, y, n, BLOCK: tl.constexpr):
    """Two kernels with the same last 49 characters would be one."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < n, other=0.0), mask=at < n)


@triton.jit
def multiplies_matrices(x, y, n, BLOCK: tl.constexpr):
    """Uses the cube core."""
    row = tl.arange(0, 16)
    at = row[:, None] * 16 + row[None, :]
    value = tl.load(x + at)
    tl.store(y + at, tl.dot(value, value))
