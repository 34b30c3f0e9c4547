"""quantize_rows, dequantize_rows: a tensor as int8 codes with one scale a row (a token), and back."""

from __future__ import annotations

import torch

from mindie_cache.ops.combine import combine
from mindie_cache.ops.dispatch import guarded, implementation
from mindie_cache.ops.memory import portion

HIGHEST = 127.0  # code


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int8 ``codes`` of the shape of `x` and fp32 ``scales`` of its shape without the last dimension.

    Args:
        x: bf16, fp16 or fp32 ``(..., columns)``.

    ``scale = max |row| / 127`` and ``code = row / scale``, rounded to the nearest (which of two at a tie is left open), so
    a value returns within half a scale. A row of zeros has the scale 0. A row with NaN or Inf has the scale NaN or Inf and
    any codes: all of it returns as NaN or Inf, so that nothing invalid passes for a number.
    """
    if not x.is_floating_point() or not x.dim():
        raise ValueError(f"quantize_rows: needs floating-point rows (..., columns), got {x.dtype} of {tuple(x.shape)}.")
    return quantized(x, None)


def dequantize_rows(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return ``codes * scales`` in `dtype`: what `quantize_rows` was given, to within half a scale."""
    return combine((codes,), (1.0,), None, (scales,), dtype)


def quantized(x: torch.Tensor, reference: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of ``x - reference``, which is not rounded before, or of `x`."""
    if implementation(_op(reference), x) == "reference":
        return quantize_rows_reference(x, reference)
    return torch.ops.mindie_cache.quantize_rows(x, reference)


def quantize_rows_reference(x: torch.Tensor, reference: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by PyTorch's operators, some rows at a time."""
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scales = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    if not x.numel():
        return codes, scales.zero_()
    rows = max(1, portion(x) // x.shape[-1])
    parts = (x, x if reference is None else reference, codes, scales.unsqueeze(-1))
    for part, base, code, scale in zip(*[tensor.reshape(-1, tensor.shape[-1]).split(rows) for tensor in parts], strict=True):
        value = part.float() if reference is None else part.float() - base.float()
        largest = value.abs().amax(dim=-1, keepdim=True)
        torch.div(largest, HIGHEST, out=scale)
        scale += (value * 0.0).sum(dim=-1, keepdim=True)  # 0, or NaN if anything is not finite
        code.copy_(
            (value * (HIGHEST / largest.clamp_min(1e-30))).add_(0.5).floor_().clamp_(-HIGHEST, HIGHEST).nan_to_num_(0.0)
        )
    return codes, scales


def _op(reference: torch.Tensor | None) -> str:
    return "quantize_rows" if reference is None else "quantized_delta"


torch.library.define("mindie_cache::quantize_rows", "(Tensor x, Tensor? reference) -> (Tensor, Tensor)")


@torch.library.impl("mindie_cache::quantize_rows", "CompositeExplicitAutograd")
def _run(x: torch.Tensor, reference: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    def by_reference() -> tuple[torch.Tensor, torch.Tensor]:
        return quantize_rows_reference(x, reference)

    def by_kernel() -> tuple[torch.Tensor, torch.Tensor]:
        from mindie_cache.ops.triton import quantize_rows as kernels

        codes, scales = _fake(x, reference)
        kernels.quantize_rows(x.contiguous(), None if reference is None else reference.contiguous(), codes, scales)
        return codes, scales

    def by_vendor() -> tuple[torch.Tensor, torch.Tensor]:
        codes, scales = torch.ops.npu.npu_dynamic_quant(x)
        return codes, scales

    op = _op(reference)
    chosen = implementation(op, x)
    if chosen == "reference":
        return by_reference()
    return guarded(op, x, by_vendor if chosen == "torch_npu" else by_kernel, by_reference)


@torch.library.register_fake("mindie_cache::quantize_rows")
def _fake(x: torch.Tensor, reference: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    return codes, torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
