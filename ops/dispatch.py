"""Which implementation of an op runs on which device, and why."""

from __future__ import annotations

from typing import NamedTuple

OPS = ("combine", "relative_l1")


class Choice(NamedTuple):
    """`op` on tensors of `device` runs by `implementation`, because of `reason`."""

    op: str
    device: str
    implementation: str
    reason: str


def explain(device: str = "cpu") -> list[Choice]:
    """List the implementation of every op for tensors on `device` ("cpu", "cuda" or "npu")."""
    reason = {
        "cpu": "the PyTorch reference is the implementation for the CPU",
    }.get(device, "this version ships no fused kernel; the PyTorch reference runs on every device that PyTorch runs on")
    return [Choice(op, device, "reference", reason) for op in OPS]
