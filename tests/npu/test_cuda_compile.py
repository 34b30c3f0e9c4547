"""Every op on its Triton kernels, compiled for CUDA down to the binary, without a GPU: what the compiler and ptxas say."""

from __future__ import annotations

import re

import cuda_without_gpu
import planted_faults
import pytest
import torch
from cuda_without_gpu import MODELS, Compiled
from triton.runtime.jit import JITFunction
from written_kernels import written_kernels

from mindie_cache.ops.cases import cases

DRIVER = cuda_without_gpu.install()
MOST_REGISTERS = 128  # of a thread: so many leave room for four programs of 128 threads on a multiprocessor
FLOATS = {"*bf16", "*fp16", "*fp32"}


@pytest.fixture(scope="module", params=MODELS, ids=lambda model: f"sm_{model.capability}")
def compiled(request: pytest.FixtureRequest) -> list[Compiled]:
    """What the cases compile for one GPU. Their results mean nothing here."""
    with DRIVER.compiling_for(request.param) as done:
        for case in cases():
            case.run(*case.arguments("cpu"))
    return done


def compile_fault(kernel: JITFunction, block: int = 256) -> Compiled:
    with DRIVER.compiling_for(MODELS[0]) as done:
        kernel[(4,)](torch.zeros(1000), torch.zeros(1000), 1000, BLOCK=block)
    assert done[-1].name == kernel.__name__
    return done[-1]


def doubles(kernel: Compiled) -> list[str]:
    """Instructions on float64, of which most GPUs do one where they do 32 or 64 others."""
    return re.findall(r"\b\w+(?:\.\w+)*\.f64\b", kernel.ptx)


def undefined_lanes(kernel: Compiled) -> list[str]:
    """Loads with a mask and without `other`: their masked lanes hold anything. triton-ascend sets them to 0."""
    return re.findall(r"tt\.load %[\w#]+, %[\w#]+ :.*", kernel.ttir)


def test_no_kernel_was_forgotten(compiled: list[Compiled]):
    types: dict[str, set[str]] = {}
    for kernel in compiled:
        types.setdefault(kernel.name, set()).update(kind for _, kind in kernel.signature)
    assert types.keys() == written_kernels()
    assert [name for name, kinds in types.items() if not kinds >= FLOATS] == ["total_sums"]


def test_everything_fits_into_registers(compiled: list[Compiled]):
    assert not [kernel for kernel in compiled if kernel.stack_bytes or kernel.registers > MOST_REGISTERS]


def test_nothing_is_computed_in_float64(compiled: list[Compiled]):
    assert not {kernel.name: found for kernel in compiled if (found := doubles(kernel))}


def test_no_undefined_lane_is_loaded(compiled: list[Compiled]):
    assert not {kernel.name: found for kernel in compiled if (found := undefined_lanes(kernel))}


def test_tensors_of_aligned_lengths_are_read_16_bytes_at_a_time(compiled: list[Compiled]):
    names = set()
    for kernel in compiled:
        if kernel.constants.get("BLOCK", 0) >= 1024 and kernel.aligned & {"n", "columns"}:
            assert re.search(r"ld\.global\S*\.v4\.b32", kernel.ptx), (kernel.name, kernel.signature, kernel.constants)
            names.add(kernel.name)
    assert names == written_kernels() - {"total_sums"}


def test_planted_faults_are_seen():
    assert doubles(compile_fault(planted_faults.in_float64))
    assert undefined_lanes(compile_fault(planted_faults.sums_the_tail))
    crowded = compile_fault(planted_faults.doubles, block=2**15)
    assert crowded.stack_bytes or crowded.registers > MOST_REGISTERS


def test_a_kernel_without_faults_passes():
    good = compile_fault(planted_faults.doubles)
    assert not doubles(good)
    assert not undefined_lanes(good)
    assert good.registers <= MOST_REGISTERS
    assert not good.stack_bytes
