"""How a kernel's work is cut: elements a block, programs a launch; and the launch itself. Needs Triton when called."""

from __future__ import annotations

import functools
import os
from typing import Any

import torch

LOCAL_BYTES = 95 * 1024  # for blocks; of a vector core's unified buffer (192 KiB on Atlas A2) double buffering leaves 96
LARGEST_BLOCK = {"npu": 8192, "cuda": 2048, "cpu": 1024}
WAVES = 8  # programs per multiprocessor of a GPU


def blocks(length: int, element_bytes: int, count: int = 0) -> tuple[int, int]:
    """Return (elements of a block, programs of the launch).

    Args:
        length: elements to cover: of the whole tensor, or of one of its rows.
        element_bytes: local memory that one element of a block takes: what is read, and every intermediate result, none
            in the place of another. The sizes in this folder are those of the buffers that triton-ascend 3.2.0 asks for.
        count: rows; 0: the tensor is one row, whose blocks are shared among the programs.
    """
    kind, cores = _target()
    most = min(LARGEST_BLOCK[kind], LOCAL_BYTES // element_bytes) if kind == "npu" else LARGEST_BLOCK[kind]
    block = max(16, min(_power_of_two_below(most), _power_of_two_above(length)))
    return block, max(1, min(count or -(-length // block), cores))


def local_bytes(tensor: torch.Tensor) -> int:
    """What an element that is read from `tensor` takes of local memory: itself, and its fp32 copy if it is narrower."""
    size = tensor.element_size()
    return size if size >= 4 else size + 4


def launch(kernel: Any, programs: int, like: torch.Tensor, *args: Any, **constants: Any) -> None:
    """Queue `kernel` on the device of `like`, which need not be the current one."""
    if like.device.type == "cpu":
        kernel[(programs,)](*args, **constants)
    else:
        with getattr(torch, like.device.type).device(like.device):
            kernel[(programs,)](*args, **constants)


def _target() -> tuple[str, int]:
    """What Triton compiles for, and how many programs fill it. The interpreter has no device: a few programs."""
    import triton

    if os.environ.get("TRITON_INTERPRET") == "1":
        return "cpu", 4
    driver = triton.runtime.driver.active
    return _fill(driver, driver.get_current_device())


@functools.cache
def _fill(driver: Any, device: int) -> tuple[str, int]:
    properties = driver.utils.get_device_properties(device)
    if driver.get_current_target().backend == "npu":
        return "npu", properties["num_vectorcore"]
    return "cuda", WAVES * properties["multiprocessor_count"]


def _power_of_two_below(number: int) -> int:
    return 1 << (number.bit_length() - 1)


def _power_of_two_above(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
