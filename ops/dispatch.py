"""Which implementation of an op runs on which device, and why. The tensor's device decides; a fallback is announced."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from mindie_cache.errors import ConfigError, ModelExecError, WarnOnce, did_you_mean
from mindie_cache.ops.fourier import has_fft

VARIABLE = "MINDIE_CACHE_OPS"
KERNEL_DEVICES = ("cuda", "npu")
MODES = ("auto", "triton", "reference", "torch_npu")
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.int8)  # that kernels read
MOST_ELEMENTS = 2**31 - 2**20  # offsets of the kernels have 32 bits


class Choice(NamedTuple):
    """`op` on tensors of `device` runs by `implementation`, because of `reason`."""

    op: str
    device: str
    implementation: str
    reason: str


class Rule(NamedTuple):
    """What is known about an op.

    Args:
        eager: operators that PyTorch launches for the reference.
        vendor: the operator of torch_npu that does the job, if there is one.
        smallest: by kind of device, the elements below which the reference is at least as fast.
    """

    eager: int
    vendor: str = ""
    smallest: dict[str, int] = {}  # noqa: RUF012 - never changed


RULES: dict[str, Rule] = {
    "combine": Rule(eager=4),
    "relative_l1": Rule(eager=7),
    "residual_delta": Rule(eager=1),
    "magnitude_ratio": Rule(eager=14),
    "quantize_rows": Rule(eager=8, vendor="npu_dynamic_quant"),
    "quantized_delta": Rule(eager=9),  # the vendor's operator would be given a difference that is rounded already
    "dequantize_rows": Rule(eager=3),
}
WORTH_A_LAUNCH = 3  # eager operators: on Ascend a Triton launch costs the host about as much as two of them

_mode = os.environ.get(VARIABLE, "auto")
_settled: dict[tuple[str, str], Choice] = {}
_failed: dict[tuple[str, str], str] = {}
_warn = WarnOnce()


def explain(device: str = "cpu") -> list[Choice]:
    """List the implementation of every op for tensors on `device` ("cpu", "cuda" or "npu")."""
    kernels = [_settle(op, device) for op in RULES]
    frequencies = [Choice(op, device, *choose(device)) for op, choose in FREQUENCIES.items()]
    return sorted(kernels + frequencies)


@contextmanager
def use(mode: str) -> Iterator[None]:
    """Choose implementations as if MINDIE_CACHE_OPS were `mode`, in this process, until the block ends."""
    global _mode
    before, _mode = _mode, _checked(mode)
    _settled.clear()
    try:
        yield
    finally:
        _mode = before
        _settled.clear()


def implementation(op: str, like: torch.Tensor) -> str:
    """ "reference", "triton" or "torch_npu": what runs `op` on tensors like this one."""
    kind = like.device.type
    choice = _settled.get((op, kind)) or _settle(op, kind)
    if choice.implementation == "reference" or (like.requires_grad and torch.is_grad_enabled()):
        return "reference"
    elements = like.numel()
    if not elements or elements > MOST_ELEMENTS or like.dtype not in DTYPES:
        return "reference"
    if _mode == "auto" and elements < RULES[op].smallest.get(kind, 0):
        return "reference"
    return choice.implementation


def guarded(op: str, like: torch.Tensor, kernel: Callable[[], Any], reference: Callable[[], Any]) -> Any:
    """The result of `kernel`. If it cannot be compiled or launched: say so once, and take the reference from then on."""
    try:
        return kernel()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler or a driver may raise anything
        kind = like.device.type
        chosen = _settled[op, kind].implementation
        cause = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no message')}"
        if _mode != "auto":
            raise ModelExecError(
                f"{op} by {chosen} failed on {kind}: {cause}. {VARIABLE}={_mode} allows no other implementation; "
                "unset it to fall back to the PyTorch reference."
            ) from error
        _failed[op, kind] = cause
        _settled.pop((op, kind), None)
        _warn(
            f"{op} {kind}",
            f"{op} by {chosen} failed on {kind}, so the PyTorch reference runs instead, which is right but slower. "
            f"Cause: {cause}. `mindie-cache doctor` shows what runs; {VARIABLE}=reference silences this.",
        )
    return reference()


def _settle(op: str, kind: str) -> Choice:
    choice = _settled[op, kind] = Choice(op, kind, *_choose(op, kind))
    return choice


def _choose(op: str, kind: str) -> tuple[str, str]:
    rule, mode = RULES[op], _checked(_mode)
    asked = f"{VARIABLE}={mode}"
    if mode == "reference":
        return "reference", asked
    if (op, kind) in _failed:
        return "reference", f"the kernel failed: {_failed[op, kind]}"
    vendor = rule.vendor if kind == "npu" and mode in ("auto", "torch_npu") else ""
    if vendor and hasattr(torch.ops.npu, vendor):
        return "torch_npu", f"torch_npu has {vendor}"
    if mode == "torch_npu":
        return "reference", f"{asked}, and torch_npu has no operator for it"
    if mode == "auto" and kind not in KERNEL_DEVICES:
        return "reference", f"the PyTorch reference is the implementation for the {kind.upper()}"
    if rule.eager < WORTH_A_LAUNCH:
        return "reference", f"{rule.eager} operator of PyTorch, already one pass over memory"
    if importlib.util.find_spec("triton") is None:
        package = "triton-ascend" if kind == "npu" else "triton"
        if mode == "triton":
            raise ConfigError(f"{asked}, but Triton is not installed. pip install {package}, or unset {VARIABLE}.")
        return "reference", f"{package} is not installed, so {rule.eager} operators of PyTorch do its work"
    least = rule.smallest.get(kind, 0) if mode == "auto" else 0
    return "triton", f"one pass over memory instead of {rule.eager} operators" + (
        f", from {least} elements" if least else ""
    )


def _checked(mode: str) -> str:
    if mode not in MODES:
        raise ConfigError(f"{VARIABLE}={mode!r} is not known. {did_you_mean(mode, MODES)}")
    return mode


def _fourier(device: str) -> tuple[str, str]:
    if has_fft(device):
        return "fft", "PyTorch has an FFT for this device"
    return "matrix products", "no FFT of all sizes there; products with Fourier matrices give the same numbers"


def _matrices(device: str) -> tuple[str, str]:
    return "matrix products", "a dimension has some tens of samples; products with real Fourier matrices need no FFT"


FREQUENCIES: dict[str, Callable[[str], tuple[str, str]]] = {
    "axis_filter": _matrices,
    "band_split": _fourier,
    "low_pass": _fourier,
}
