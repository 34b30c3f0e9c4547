"""Every op on its Triton kernels as triton-ascend lowers them, run on the CPU with traps, against float64."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import NamedTuple

import ascend_on_cpu
import pytest
import torch
from ascend_on_cpu import Kernel, Launch
from linalg_lint import lint
from written_kernels import written_kernels

from mindie_cache.ops.cases import Case, cases

DRIVER = ascend_on_cpu.install()
CASES = list(cases())
# What the rules of the lint may say of a kernel, and why that is right.
ALLOWED: dict[tuple[str, str], str] = {}

each_case = pytest.mark.parametrize("case", CASES, ids=str)


class Run(NamedTuple):
    """All that the cases launch, the kernels without repetitions, and what triton-ascend printed meanwhile."""

    launches: list[Launch]
    kernels: list[Kernel]
    printed: str


@pytest.fixture(autouse=True)
def poisoned_tensors() -> Iterator[None]:
    """What `torch.empty` returns is NaN, so an element that no program writes shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def run() -> Run:
    with DRIVER.using() as launches, redirect_stdout(io.StringIO()) as printed:
        for case in CASES:
            case.run(*case.arguments("cpu"))
    return Run(launches, list(dict.fromkeys(launch.kernel for launch in launches)), printed.getvalue())


@each_case
def test_right_whatever_lies_beyond_the_tensors(case: Case):
    """A page that must not be touched at each end in turn; local memory full of NaN, then of the largest numbers."""
    with DRIVER.using(guard="end", seed=1, poison=0xFF) as launches:
        assert not case.error()
    assert launches, "no kernel ran"
    with DRIVER.using(guard="start", seed=2, poison=0x7F):
        assert not case.error()


@each_case
def test_right_where_programs_take_several_blocks(case: Case):
    with DRIVER.using(cores=3) as launches:
        assert not case.error()
    assert all(launch.grid[0] <= 3 for launch in launches)


@each_case
def test_no_program_depends_on_another_one(case: Case):
    results = []
    for order in ("forward", "reverse", "shuffled"):
        with DRIVER.using(order=order):
            results.append(case.run(*case.arguments("cpu")))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0, equal_nan=True)


@each_case
def test_right_in_the_other_form_of_linalg(case: Case):
    """The same TTIR by another way of the adapter: a fault of the adapter would have to be in both."""
    with DRIVER.using(named=False):
        assert not case.error()


def test_no_kernel_was_forgotten(run: Run):
    assert {kernel.name for kernel in run.kernels} == written_kernels()


def test_the_lowered_kernels_keep_the_rules_of_the_vendor(run: Run):
    found = {
        (kernel.name, finding.rule): (finding.detail, kernel.signature, kernel.constants)
        for kernel in run.kernels
        for finding in lint(kernel.linalg, kernel.local_bytes)
    }
    assert not {key: where for key, where in found.items() if key not in ALLOWED}
    assert set(ALLOWED) <= set(found), "an allowance that is not needed"


def test_no_launch_passes_options_that_ascend_ignores(run: Run):
    """triton-ascend prints a warning at each compilation with num_warps, num_stages and their like."""
    assert not run.printed


def test_no_more_programs_than_vector_cores(run: Run):
    grids = {launch.grid for launch in run.launches}
    assert all(x <= DRIVER.settings.cores and (y, z) == (1, 1) for x, y, z in grids), grids
    assert max(grids)[0] > 1, "the cases are too small to show anything"
