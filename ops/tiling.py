"""How a kernel's work is cut: elements a block, programs a launch; and the launch itself. Needs Triton when called."""

from __future__ import annotations

from typing import Any

import torch

LOCAL_BYTES = 96 * 1024  # of a vector core's unified buffer (192 KiB on Atlas A2), which double buffering halves
LARGEST_BLOCK = {"npu": 8192, "cuda": 2048, "cpu": 1024}
WAVES = 8  # programs per multiprocessor of a GPU


def blocks(length: int, element_bytes: int, count: int = 0) -> tuple[int, int]:
    """Return (elements of a block, programs of the launch).

    Args:
        length: elements to cover: of the whole tensor, or of one of its rows.
        element_bytes: local memory that one element of a block takes, all its copies together.
        count: rows; 0: the tensor is one row, whose blocks are shared among the programs.
    """
    kind, cores = _target()
    most = min(LARGEST_BLOCK[kind], LOCAL_BYTES // element_bytes) if kind == "npu" else LARGEST_BLOCK[kind]
    block = max(16, min(_power_of_two_below(most), _power_of_two_above(length)))
    return block, max(1, min(count or -(-length // block), cores))


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

    if triton.knobs.runtime.interpret if hasattr(triton, "knobs") else False:
        return "cpu", 4
    driver = triton.runtime.driver.active
    kind, device = driver.get_current_target().backend, driver.get_current_device()
    properties = driver.utils.get_device_properties(device)
    if kind == "npu":
        return "npu", properties["num_vectorcore"]
    return "cuda", WAVES * properties["multiprocessor_count"]


def _power_of_two_below(number: int) -> int:
    return 1 << (number.bit_length() - 1)


def _power_of_two_above(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
