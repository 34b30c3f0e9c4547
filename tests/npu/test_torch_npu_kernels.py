"""Our kernels on tensors of torch_npu: triton-ascend's JIT and its lowering, run on the CPU, on the memory of the simulated
device; and the operator of torch_npu that can stand for one of them."""

from __future__ import annotations

import ascend_on_cpu
import pytest
import sim_npu
import torch
from method_cases import INT8, PLAIN, STEPS
from toy import quiet

from mindie_cache.demo.attach import attached
from mindie_cache.ops.cases import cases
from mindie_cache.ops.dispatch import use
from mindie_cache.testbed import generate, load_testbed

pytestmark = pytest.mark.filterwarnings("ignore:Cannot create tensor with internal format")
CASES = [case for case in cases() if "channels_last" not in case.name]  # torch_npu does not make such tensors
# What the vendor's operator makes of Inf and NaN is not known.
FINITE_ROWS = [case for case in CASES if case.op == "quantize_rows" and not case.name.endswith(("inf", "nan"))]
ASKED = dict(prompts=["a red square moving left"], seeds=[3], steps=STEPS)
TOLERANCE = 2e-5
OF_INT8 = 1e-2  # where an element is near the middle of two codes
CHOSEN = ("dit_block_cache order=1", "teacache", "taylorseer order=2 lite=True", "first_block")
METHODS = [*[case for case in PLAIN if case.name in CHOSEN], *INT8]


@pytest.fixture(scope="module")
def driver():
    made = ascend_on_cpu.install()
    made.before_launch = arrive
    yield made
    made.before_launch = lambda: None


def arrive() -> None:
    """A launch comes after what is queued on its stream."""
    with sim_npu.not_counted():
        torch.npu.current_stream().synchronize()


@pytest.fixture(autouse=True)
def lazy_copies():
    sim_npu.lazy()
    yield
    torch.npu.synchronize()
    sim_npu.lazy(False)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case_of_every_op(driver, case):
    with use("triton"), driver.using() as launches:
        assert not case.error("npu")
    assert launches, "no kernel ran"


@pytest.mark.parametrize("case", FINITE_ROWS, ids=str)
def test_the_operator_of_torch_npu(case):
    with use("torch_npu"):
        assert not case.error("npu")


@pytest.fixture(scope="module")
def model():
    return load_testbed("npu")


def play(model, case):
    latents, waits = [], sim_npu.HostWaits()
    with quiet(), attached(model, [case.config]) as places:
        generate(model, **ASKED, forward_cache=places.forward_cache, callback=lambda step, x: latents.append(x))
        report = places.agents[0].report()
    waited = waits.count
    return torch.stack(latents).cpu(), [(record.step, record.reused) for record in report.steps], waited


@pytest.mark.parametrize("case", METHODS, ids=[case.name for case in METHODS])
def test_generations(driver, model, case):
    """By kernels as by PyTorch's operators, with as many waits."""
    with use("reference"):
        wanted, decided, waits = play(model, case)
    with use("triton"), driver.using() as launches:
        found, decided_by_kernels, waits_of_kernels = play(model, case)
    assert launches
    assert decided_by_kernels == decided
    assert waits_of_kernels == waits
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    assert difference < (TOLERANCE if case.is_exact else OF_INT8)
