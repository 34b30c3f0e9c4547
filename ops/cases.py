"""One list of cases for the tests of every implementation and the benchmarks: inputs, and what float64 says of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from mindie_cache import ops

EPSILON = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-24}  # largest relative error of one rounding
SUM = 2e-6  # relative error of a long fp32 sum of positive numbers
DTYPES = tuple(EPSILON)
# Fewer than a block, a block exactly, tails of one and of many elements, a width that no power of two divides.
FLAT = ((1,), (5,), (2, 3, 16), (12365,), (4, 1024), (1, 97, 321))
ROWS = ((1, 1), (3, 16), (7, 100), (2, 5, 256), (3, 1031), (2, 5120))


class Case(NamedTuple):
    """`run(*arguments)` is the op; `expected(*arguments)` what it has to return, in float64; `allowed` the absolute error.

    `arguments(device)` makes the same inputs on any device; tensors may also stand in lists.
    """

    op: str
    name: str
    run: Callable[..., Any]
    arguments: Callable[[torch.device | str], tuple[Any, ...]]
    expected: Callable[..., torch.Tensor]
    allowed: Callable[..., torch.Tensor]

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"

    def error(self, device: torch.device | str = "cpu", slack: float = 1.0) -> str:
        """Run on `device`; say where the result is further from the expected one than `slack` times what is allowed."""
        arguments = self.arguments(device)
        before = [tensor.clone() for tensor in _tensors(arguments)]
        got = self.run(*arguments)
        if any(not _same(now, then) for now, then in zip(_tensors(arguments), before, strict=True)):
            return "an input was changed"
        on_host = tuple(_moved(argument, "cpu") for argument in arguments)
        return difference(got, self.expected(*on_host), self.allowed(*on_host) * slack)


def difference(got: torch.Tensor, expected: torch.Tensor, allowed: torch.Tensor) -> str:
    """Where `got` is further from `expected` than `allowed`, or one is finite and the other is not; empty if nowhere."""
    if got.shape != expected.shape:
        return f"shape {tuple(got.shape)} instead of {tuple(expected.shape)}"
    wide = got.cpu().double()
    same = (wide == expected) | (wide.isnan() & expected.isnan())  # Inf by sign
    wrong = ~same & ~(expected.isfinite() & ((wide - expected).abs() <= allowed))
    if not wrong.any():
        return ""
    at = tuple(wrong.nonzero()[0].tolist())
    many = f"{int(wrong.sum())} of {wrong.numel()} elements"
    return f"{many}, first {at}: {wide[at].item()!r} instead of {expected[at].item()!r} +- {allowed.expand_as(wide)[at]:.3g}"


def cases() -> Iterator[Case]:
    """Every op with kernels: all dtypes, odd and aligned sizes, strided inputs, NaN and Inf."""
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        for shape in FLAT:
            size = "x".join(map(str, shape))
            for count in (1, 2, 3, 4):
                yield _combine(f"{count}-{name}-{size}", shape, dtype, count, reference=count != 3)
            yield _relative_l1(f"{name}-{size}", shape, dtype)
        for shape in ROWS:
            size = "x".join(map(str, shape))
            for count in (1, 2, 4):
                yield _combine_codes(f"int8-{count}-{name}-{size}", shape, dtype, count)
            yield _quantize(f"{name}-{size}", shape, dtype, residual=False)
            yield _quantize(f"{name}-{size}", shape, dtype, residual=True)
            yield _dequantize(f"{name}-{size}", shape, dtype)
            yield _magnitude(f"{name}-{size}", shape, dtype)
        for view in ("transposed", "sliced", "channels_last"):
            yield _combine(f"{name}-{view}", (2, 6, 5, 32), dtype, 2, reference=True, view=view)
            yield _relative_l1(f"{name}-{view}", (2, 6, 5, 32), dtype, view=view)
            yield _quantize(f"{name}-{view}", (2, 6, 5, 32), dtype, residual=True, view=view)
            yield _magnitude(f"{name}-{view}", (2, 6, 5, 32), dtype, view=view)
        for value in (math.nan, math.inf, -math.inf):
            yield _combine(f"{name}-{value}", (3, 700), dtype, 2, reference=True, spoilt=value)
            yield _relative_l1(f"{name}-{value}", (3, 700), dtype, spoilt=value)
            yield _quantize(f"{name}-{value}", (3, 700), dtype, residual=False, spoilt=value)
        yield _quantize(f"{name}-zeros", (3, 64), dtype, residual=False, zero_row=True)
    yield _combine("mixed-bfloat16-on-float32", (3, 999), torch.bfloat16, 2, reference=True, reference_dtype=torch.float32)
    yield _combine("mixed-float32-on-bfloat16", (3, 999), torch.float32, 2, reference=True, reference_dtype=torch.bfloat16)


# ---------------------------------------------------------------------------------------------------------- the inputs


def _inputs(
    count: int, shape: tuple[int, ...], dtype: torch.dtype, view: str = "", spoilt: float = 0.0
) -> Callable[[torch.device | str], list[torch.Tensor]]:
    """`count` normal tensors, the same ones every time; the last one with `spoilt` in its middle, if that is not 0."""

    def make(device: torch.device | str) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(sum(shape) + 31 * count)
        stored = {"transposed": shape[::-1], "sliced": (*shape[:-1], 2 * shape[-1])}.get(view, shape)
        tensors = []
        for index in range(count):
            tensor = torch.randn(stored, generator=generator)
            if spoilt and index == count - 1:
                tensor.view(-1)[tensor.numel() // 2] = spoilt
            tensor = tensor.to(dtype).to(device)
            if view == "transposed":
                tensor = tensor.permute(*range(tensor.dim())[::-1])
            elif view == "sliced":
                tensor = tensor[..., ::2]
            elif view == "channels_last":
                tensor = tensor.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
            tensors.append(tensor)
        return tensors

    return make


def _moved(argument: Any, device: str) -> Any:
    if isinstance(argument, torch.Tensor):
        return argument.to(device)
    return [_moved(item, device) for item in argument] if isinstance(argument, list) else argument


def _tensors(arguments: tuple[Any, ...]) -> list[torch.Tensor]:
    lists = [argument if isinstance(argument, list) else [argument] for argument in arguments]
    return [item for items in lists for item in items if isinstance(item, torch.Tensor)]


def _same(now: torch.Tensor, then: torch.Tensor) -> bool:
    return bool(((now == then) | ((now != now) & (then != then))).all())


# ------------------------------------------------------------------------------------------------------------- the ops

WEIGHTS = (2.5, -1.75, 0.5, -0.25)


def _combine(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    count: int,
    *,
    reference: bool,
    reference_dtype: torch.dtype | None = None,
    view: str = "",
    spoilt: float = 0.0,
) -> Case:
    weights = WEIGHTS[:count]
    made = _inputs(count + reference, shape, dtype, view, spoilt)

    def arguments(device: torch.device | str) -> tuple[Any, ...]:
        tensors = made(device)
        base = tensors.pop(0).to(reference_dtype or dtype) if reference else None
        return tensors, weights, base

    def terms(snapshots: list[torch.Tensor], weights: tuple[float, ...], base: torch.Tensor | None) -> torch.Tensor:
        parts = [weight * snapshot.double() for weight, snapshot in zip(weights, snapshots, strict=True)]
        return torch.stack(parts + ([] if base is None else [base.double()]))

    def expected(*arguments: Any) -> torch.Tensor:
        return terms(*arguments).sum(0)

    def allowed(*arguments: Any) -> torch.Tensor:
        parts, out = terms(*arguments), reference_dtype or dtype
        return parts.sum(0).abs() * EPSILON[out] * 1.01 + parts.abs().sum(0) * 5 * EPSILON[torch.float32] + _tiny(out)

    return Case("combine", name, ops.combine, arguments, expected, allowed)


def _combine_codes(name: str, shape: tuple[int, ...], dtype: torch.dtype, count: int) -> Case:
    def arguments(device: torch.device | str) -> tuple[Any, ...]:
        base, *tensors = _inputs(count + 1, shape, dtype)("cpu")
        pairs = [ops.quantize_rows(tensor) for tensor in tensors]
        codes, scales = ([part.to(device) for part in parts] for parts in zip(*pairs, strict=True))
        return codes, WEIGHTS[:count], base.to(device), scales

    def terms(codes: Any, weights: Any, base: torch.Tensor, scales: Any) -> torch.Tensor:
        parts = [w * s.double().unsqueeze(-1) * c.double() for c, w, s in zip(codes, weights, scales, strict=True)]
        return torch.stack([*parts, base.double()])

    def expected(*arguments: Any) -> torch.Tensor:
        return terms(*arguments).sum(0)

    def allowed(*arguments: Any) -> torch.Tensor:
        parts = terms(*arguments)
        return parts.sum(0).abs() * EPSILON[dtype] * 1.01 + parts.abs().sum(0) * 6 * EPSILON[torch.float32] + _tiny(dtype)

    return Case("combine", name, ops.combine, arguments, expected, allowed)


def _relative_l1(name: str, shape: tuple[int, ...], dtype: torch.dtype, view: str = "", spoilt: float = 0.0) -> Case:
    made = _inputs(2, shape, dtype, view, spoilt)

    def expected(current: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        now, before = current.double(), previous.double()
        return torch.stack(((now - before).abs().sum(), before.abs().sum()))

    def allowed(current: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        return SUM * expected(current, previous).abs().nan_to_num(0.0, 0.0, 0.0)

    return Case("relative_l1", name, ops.relative_l1, lambda device: tuple(made(device)), expected, allowed)


def _quantize(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    residual: bool,
    view: str = "",
    spoilt: float = 0.0,
    zero_row: bool = False,
) -> Case:
    """The result is looked at as (decoded values, scales): which of two codes a tie gets is left open, and whether what is
    not finite is NaN or Inf."""
    made = _inputs(1 + residual, shape, dtype, view, spoilt)

    def arguments(device: torch.device | str) -> tuple[Any, ...]:
        tensors = made(device)
        if zero_row:
            tensors[0][0] = 0
        return tuple(tensors)

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        codes, scales = (ops.quantized_delta if residual else ops.quantize_rows)(*tensors)
        decoded = codes.cpu().double() * scales.cpu().double().unsqueeze(-1)
        together = torch.cat((decoded, scales.cpu().double().unsqueeze(-1)), dim=-1)
        return together.masked_fill(~together.isfinite(), math.nan)

    def values(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value = tensors[0].double() - tensors[1].double() if residual else tensors[0].double()
        scale = value.abs().amax(dim=-1, keepdim=True) / 127
        invalid = ~value.isfinite().all(dim=-1, keepdim=True)
        return value.masked_fill(invalid, math.nan), scale.masked_fill(invalid, math.nan)

    def expected(*tensors: torch.Tensor) -> torch.Tensor:
        return torch.cat(values(*tensors), dim=-1)

    def allowed(*tensors: torch.Tensor) -> torch.Tensor:
        value, scale = values(*tensors)
        return torch.cat(((scale * 0.5001).expand_as(value), scale * 4 * EPSILON[torch.float32]), dim=-1)

    return Case("quantized_delta" if residual else "quantize_rows", name, run, arguments, expected, allowed)


def _dequantize(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    def arguments(device: torch.device | str) -> tuple[Any, ...]:
        codes, scales = ops.quantize_rows(_inputs(1, shape, torch.float32)("cpu")[0])
        return codes.to(device), scales.to(device), dtype

    def expected(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return codes.double() * scales.double().unsqueeze(-1)

    def allowed(*arguments: Any) -> torch.Tensor:
        return expected(*arguments).abs() * (1.01 * EPSILON[dtype] + 2 * EPSILON[torch.float32]) + _tiny(dtype)

    return Case("dequantize_rows", name, ops.dequantize_rows, arguments, expected, allowed)


def _magnitude(name: str, shape: tuple[int, ...], dtype: torch.dtype, view: str = "") -> Case:
    def arguments(device: torch.device | str) -> tuple[Any, ...]:
        current, previous = _inputs(2, shape, dtype, view)(device)
        return current, previous

    def expected(current: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        now, before = current.double(), previous.double()
        now_norm, before_norm = now.norm(dim=-1), before.norm(dim=-1)
        ratio = now_norm / before_norm
        deviation = ratio.std() if ratio.numel() > 1 else ratio.new_zeros(())
        return torch.stack((ratio.mean(), deviation, (1 - (now * before).sum(-1) / (now_norm * before_norm)).mean()))

    def allowed(*tensors: torch.Tensor) -> torch.Tensor:
        mean, deviation, _ = expected(*tensors)
        size = mean.abs() + deviation
        return torch.stack((size, size, torch.ones_like(size))) * 4e-6

    return Case("magnitude_ratio", name, ops.magnitude_ratio, arguments, expected, allowed)


def _tiny(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
