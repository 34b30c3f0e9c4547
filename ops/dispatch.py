"""Which implementation of an op runs on which device, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mindie_cache.ops.fourier import has_fft


class Choice(NamedTuple):
    """`op` on tensors of `device` runs by `implementation`, because of `reason`."""

    op: str
    device: str
    implementation: str
    reason: str


def explain(device: str = "cpu") -> list[Choice]:
    """List the implementation of every op for tensors on `device` ("cpu", "cuda" or "npu")."""
    return [Choice(op, device, *choose(device)) for op, choose in OPS.items()]


def _reference(device: str) -> tuple[str, str]:
    reason = {
        "cpu": "the PyTorch reference is the implementation for the CPU",
    }.get(device, "this version ships no fused kernel; the PyTorch reference runs on every device that PyTorch runs on")
    return "reference", reason


def _frequencies(device: str) -> tuple[str, str]:
    if has_fft(device):
        return "fft", "PyTorch has an FFT for this device"
    return "matrix products", "no FFT of all sizes there; products with Fourier matrices give the same numbers"


def _matrices(device: str) -> tuple[str, str]:
    return "matrix products", "a dimension has some tens of samples; products with real Fourier matrices need no FFT"


OPS: dict[str, Callable[[str], tuple[str, str]]] = {
    "axis_filter": _matrices,
    "band_split": _frequencies,
    "combine": _reference,
    "low_pass": _frequencies,
    "relative_l1": _reference,
}
