"""The traps of the driver and the rules of the lint see what they are for, and are silent about kernels without faults."""

from __future__ import annotations

import ascend_on_cpu
import planted_faults
import pytest
import torch
from ascend_on_cpu import MemoryFault
from linalg_lint import lint
from triton.runtime.jit import JITFunction

DRIVER = ascend_on_cpu.install()
LENGTH, BLOCK = 1000, 256
PROGRAMS = 4
GOOD = [planted_faults.doubles, planted_faults.sums]

by_name = pytest.mark.parametrize("kernel", GOOD, ids=lambda kernel: kernel.__name__)


def result(kernel: JITFunction, block: int = BLOCK, **settings) -> torch.Tensor:
    x, y = torch.linspace(-3, 5, LENGTH), torch.zeros(LENGTH)
    with DRIVER.using(**settings):
        kernel[(PROGRAMS,)](x, y, LENGTH, BLOCK=block)
    return y


def rules(kernel: JITFunction, block: int = BLOCK) -> set[str]:
    """The rules that the lowered kernel breaks."""
    with DRIVER.using() as launches:
        result(kernel, block, guard="end")
    return {finding.rule for finding in lint(launches[0].kernel.linalg, launches[0].kernel.local_bytes)}


@by_name
def test_kernels_without_faults_pass(kernel: JITFunction):
    expected = result(kernel)
    for settings in (dict(guard="end"), dict(guard="start"), dict(order="reverse"), dict(seed=1), dict(named=False)):
        assert torch.equal(result(kernel, **settings), expected), settings
    assert not rules(kernel)


@pytest.mark.parametrize(
    ("kernel", "side"),
    [
        (planted_faults.without_mask, "end"),
        (planted_faults.one_too_far, "end"),
        (planted_faults.before_the_start, "start"),
        (planted_faults.far_away, "end"),
        (planted_faults.far_away, "start"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_step_out_of_a_tensor_is_a_fault(kernel: JITFunction, side: str):
    with pytest.raises(MemoryFault, match=rf"^{kernel.__name__} with .*guard page was at the {side}"):
        result(kernel, guard=side)


@pytest.mark.parametrize(
    "kernel", [planted_faults.running_mean, planted_faults.overlapping], ids=lambda kernel: kernel.__name__
)
def test_programs_that_depend_on_each_other_differ_by_order(kernel: JITFunction):
    assert not torch.equal(result(kernel, order="forward"), result(kernel, order="reverse"))
    shuffled = [result(kernel, seed=seed) for seed in range(6)]
    assert any(not torch.equal(one, shuffled[0]) for one in shuffled)
    assert torch.equal(result(kernel, seed=3), shuffled[3])


def test_what_comes_of_unset_local_memory_is_nan():
    assert result(planted_faults.reduces_by_itself)[:PROGRAMS].isnan().all()
    assert result(planted_faults.reduces_by_itself, poison=0x7F)[:PROGRAMS].abs().min() > 1e30


@pytest.mark.parametrize(
    ("kernel", "rule"),
    [
        (planted_faults.in_float64, "float64"),
        (planted_faults.in_int64, "vector of int64"),
        (planted_faults.compares_integers, "vector compare of integers"),
        (planted_faults.by_scalars, "scalar access in a loop"),
        (planted_faults.reduces_by_itself, "undefined start of a reduction"),
        (planted_faults.with_a_name_that_the_runtime_of_the_device_would_cut, "name too long"),
        (planted_faults.multiplies_matrices, "not a vector kernel"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_lint_sees(kernel: JITFunction, rule: str):
    assert rule in rules(kernel)


def test_the_lint_sees_too_large_a_block():
    assert rules(planted_faults.doubles, block=8192) == set()  # the block and the product, in fp32: 64 KiB
    assert rules(planted_faults.doubles, block=16384) == {"local memory"}


def test_a_call_of_the_vendors_library_does_not_compile_and_is_named():
    DRIVER.lowered.clear()
    with pytest.raises(Exception, match="ConvertLinalgRToBinary"):
        result(planted_faults.calls_out)
    assert [finding.rule for finding in lint(DRIVER.lowered[-1])] == ["external call"]


def test_arguments_that_overlap_in_memory_are_guarded_as_one():
    x = torch.arange(100.0)
    with DRIVER.using(guard="end"):
        planted_faults.doubles[(1,)](x[:60], x[40:], 60, BLOCK=16)  # in blocks of 16, each read before it is written
    with DRIVER.using(guard="end"), pytest.raises(MemoryFault):
        planted_faults.without_mask[(PROGRAMS,)](x[:60], x[40:], 60, BLOCK=16)


def test_an_empty_argument_must_not_be_touched():
    empty, x = torch.zeros(0), torch.zeros(16)
    with DRIVER.using(guard="end"):
        planted_faults.doubles[(1,)](empty, empty, 0, BLOCK=16)
    with DRIVER.using(guard="end"), pytest.raises(MemoryFault):
        planted_faults.doubles[(1,)](empty, x, 16, BLOCK=16)


def test_results_come_back_from_the_guarded_process():
    y = result(planted_faults.doubles, guard="start")
    assert torch.equal(y, torch.linspace(-3, 5, LENGTH) * 2)
