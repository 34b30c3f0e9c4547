"""Every method on tensors of torch_npu, through all faces: the CPU's results, hardly a wait, no operator that an NPU lacks.

The testbed's generations in float32 are compared with the same ones on the CPU. Copies are lazy throughout, so a missing
wait would show as wrong data.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import pytest
import sim_npu
import torch
from method_cases import CASES, STEPS, Case
from npu_operators import Operators
from toy import JointModel, quiet

from mindie_cache import enable_cache
from mindie_cache.demo.attach import attached
from mindie_cache.feature_cache import FeatureCache
from mindie_cache.ops.dispatch import use
from mindie_cache.testbed import generate, load_testbed

pytestmark = pytest.mark.filterwarnings("ignore:Cannot create tensor with internal format")  # they are in the plain one
TOLERANCE = 2e-5  # of the largest value: rounding of float32 in attention, through twelve steps
OF_INT8 = 1e-2  # where an element is near the middle of two codes
ASKED = dict(prompts=["a red square moving left"], seeds=[3], steps=STEPS)


@pytest.fixture(autouse=True)
def lazy_copies():
    sim_npu.lazy()
    with use("reference"):
        yield
    torch.npu.synchronize()
    assert sim_npu.pending() == 0
    sim_npu.lazy(False)


class Played:
    """One generation: latents after each step, on the CPU, and how often the host waited in each step."""

    def __init__(self, model, **cache):
        self.latents, self.waits = [], []
        waits = sim_npu.HostWaits()

        def note(step, latents):
            nonlocal waits
            self.waits.append(waits.count)
            with sim_npu.not_counted():
                self.latents.append(latents.cpu().clone())
            waits = sim_npu.HostWaits()

        generate(model, **ASKED, callback=note, **cache)


@pytest.fixture(scope="module")
def models():
    return {device: load_testbed(device) for device in ("cpu", "npu")}


@pytest.fixture(scope="module")
def bare(models):
    return {device: Played(model) for device, model in models.items()}


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def reused_steps(report) -> set[tuple[str, int]]:
    return {(record.branch, record.step, record.reused) for record in report.steps}


@contextmanager
def through_apply(model, case: Case):
    with attached(model, [case.config]) as places:
        yield {"forward_cache": places.forward_cache}, places.agents[0].report


@contextmanager
def through_enable_cache(model, case: Case):
    with enable_cache(model, case.mapping, num_inference_steps=STEPS) as handle:
        yield {}, lambda: next(iter(handle.report().models.values()))


FACES = {"apply": through_apply, "enable_cache": through_enable_cache}


def test_the_testbed_without_a_cache(bare):
    assert difference(bare["npu"].latents[-1], bare["cpu"].latents[-1]) < TOLERANCE
    assert bare["npu"].waits == [3, *[0] * (STEPS - 1)]  # the prompts and the noise go to the device


PAIRS = [
    *[("apply", case) for case in CASES],
    *[("enable_cache", case) for case in CASES if "sync" not in case.options],
]


@pytest.mark.parametrize(("face", "case"), PAIRS, ids=[f"{face}-{case.name}" for face, case in PAIRS])
def test_generations(models, bare, face, case, record_property):
    played, reports = {}, {}
    operators = Operators()
    for device, model in models.items():
        with quiet(), FACES[face](model, case) as (given, report), operators if device == "npu" else nullcontext():
            played[device] = Played(model, **given)
            reports[device] = report()
    found, wanted = played["npu"], played["cpu"]
    assert reused_steps(reports["npu"]) == reused_steps(reports["cpu"])
    worst = max(map(difference, found.latents, wanted.latents))
    assert worst < (TOLERANCE if case.is_exact else OF_INT8)

    # A computed step is the model's own, to the last bit.
    first_reused = min([record.step for record in reports["npu"].steps if record.reused], default=STEPS)
    assert first_reused < STEPS or case.method == "calibrator"
    assert all(map(torch.equal, found.latents[:first_reused], bare["npu"].latents[:first_reused]))

    waits = [ours - models_own for ours, models_own in zip(found.waits, bare["npu"].waits, strict=True)]
    record_property("waits per step", waits)
    record_property("difference to the CPU", worst)
    beyond = [max(0, wait - case.waits_allowed) for wait in waits]
    assert sum(beyond) <= (face == "enable_cache"), waits  # one: the trial of what is kept first

    assert not operators.on_cpu
    assert not operators.doubles


VERBS = [case for case in CASES if case.method != "cfg_cache"]  # which works on both branches together


@pytest.mark.parametrize("case", VERBS, ids=[case.name for case in VERBS])
def test_the_three_verbs(case):
    """Around a whole model, with its input as the tensor that decides."""
    outputs, marks, waits = {}, {}, []
    operators = Operators()
    for device in ("cpu", "npu"):
        model, rows = JointModel().eval().to(device), tokens(device)
        outputs[device], marks[device] = [], ""
        with torch.no_grad(), quiet(), operators if device == "npu" else nullcontext():
            cache = FeatureCache(case.config)
            for row in rows:
                seen, hidden = sim_npu.HostWaits(), row["hidden_states"]
                if cache.should_compute(True, signal=hidden):
                    out = model(**row)
                    cache.update(out, hidden, True, observed=out - hidden)
                    marks[device] += "#"
                else:
                    out = cache.approximate(hidden, True)
                    marks[device] += "."
                waits.append(seen.count)
                outputs[device].append(out)
    assert marks["npu"] == marks["cpu"]
    assert "." in marks["npu"] or case.method in ("calibrator", "adacache")
    worst = max(difference(out.cpu(), wanted) for out, wanted in zip(outputs["npu"], outputs["cpu"], strict=True))
    assert worst < (TOLERANCE if case.is_exact else OF_INT8)
    assert max(waits) <= min(case.waits_allowed, 1)
    assert not operators.on_cpu
    assert not operators.doubles


def tokens(device: str) -> list[dict[str, torch.Tensor]]:
    """Inputs of a JointModel on a walk, with as many tokens as the testbed has: 4 frames of 6 x 6."""
    generator = torch.Generator().manual_seed(0)
    hidden, change = torch.randn(2, 1, 144, 16, generator=generator)
    text = torch.randn(1, 3, 16, generator=generator).to(device)
    temb = torch.zeros(16, device=device)
    rows = [(hidden + 0.05 * step * change).to(device) for step in range(STEPS)]
    return [dict(hidden_states=row, encoder_hidden_states=text, temb=temb) for row in rows]
