"""Tiny pipelines of diffusers on torch_npu: Flux, Wan, Qwen-Image with enable_cache, beside the same pipelines on the CPU.

diffusers takes its own branches for NPUs here. Copies are lazy. Waits are compared with those of the pipeline without a
cache, which waits by itself.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import sim_npu
import torch
from hooked import LITE, TINY, latents, marks
from npu_operators import Operators
from toy import quiet

from mindie_cache import enable_cache
from mindie_cache.ops.dispatch import use

pytestmark = pytest.mark.filterwarnings("ignore:Cannot create tensor with internal format")
STEPS = 6
TOLERANCE = 2e-5  # of the largest value; measured: up to 3e-6
RATIOS = (1.0, *[0.98] * (STEPS - 1))
PIPELINES = ("flux", "wan", "qwen-image")
SCHEDULED = {
    "dit_block_cache": {"method": "dit_block_cache", "step_interval": 2},
    "attention_cache": {"method": "attention_cache", "step_interval": 2},
    "taylorseer": {"method": "taylorseer", "options": {"interval": 2, "warmup_steps": 2}},
    "taylorseer lite": LITE,
    "magcache": {"method": "magcache", "options": {"cond_ratios": RATIOS, "retention_ratio": 0.0, "max_skip_steps": 1}},
    "fastercache": {"method": "fastercache", "options": {"reuse_from": 2, "interval": 2, "phase": 0}},
}
ADAPTIVE = {
    "first_block": {"method": "first_block", "options": {"threshold": 1e6, "max_skip_steps": 1}},
    "teacache": {"method": "teacache", "options": {"threshold": 1e6, "max_skip_steps": 1}},
    "easycache": {"method": "easycache", "options": {"threshold": 1e6, "warmup_steps": 2, "max_skip_steps": 1}},
}
CONFIGS = {**SCHEDULED, **ADAPTIVE}


@pytest.fixture(autouse=True)
def lazy_copies():
    sim_npu.lazy()
    with use("reference"):
        yield
    torch.npu.synchronize()
    sim_npu.lazy(False)


class Pipelines:
    """One pipeline on both devices, what it gives without a cache, and how often the host waits in each step of that."""

    def __init__(self, name: str):
        self.name = name
        self.pipes = {device: TINY[name].build().to(device) for device in ("cpu", "npu")}
        self.bare = {device: self.generate(device)[0] for device in self.pipes}
        self.waits = self.generate("npu")[1]

    def generate(self, device: str):
        waits, counted = sim_npu.HostWaits(), []

        def note(pipe, step, timestep, tensors):
            nonlocal waits
            counted.append(waits.count)
            waits = sim_npu.HostWaits()
            return tensors

        found = latents(self.name, self.pipes[device], steps=STEPS, callback_on_step_end=note)
        return found.cpu(), counted


@pytest.fixture(scope="module", params=PIPELINES)
def pipelines(request):
    sim_npu.lazy()
    return Pipelines(request.param)


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def test_without_a_cache(pipelines):
    assert difference(pipelines.bare["npu"], pipelines.bare["cpu"]) < TOLERANCE


@pytest.mark.parametrize("name", CONFIGS)
def test_with_a_cache(pipelines, name, record_property):
    found, rows, waits = {}, {}, {}
    operators = Operators()
    for device, pipe in pipelines.pipes.items():
        with enable_cache(pipe, CONFIGS[name]) as handle, quiet(), operators if device == "npu" else nullcontext():
            if device == "npu":
                pipelines.generate(device)  # the trial of what is kept first
            found[device], waits[device] = pipelines.generate(device)
            rows[device] = {model: marks(report) for model, report in handle.report().models.items()}
    assert rows["npu"] == rows["cpu"]
    assert all("." in row for row in rows["npu"]["transformer"].values())
    assert difference(found["npu"], found["cpu"]) < TOLERANCE
    assert difference(found["npu"], pipelines.bare["npu"]) > 10 * TOLERANCE  # the cache did something

    added = [ours - theirs for ours, theirs in zip(waits["npu"], pipelines.waits, strict=True)]
    record_property("waits added to each step", added)
    assert max(added) <= (name in ADAPTIVE), (added, pipelines.waits)
    assert not operators.doubles
    if name in SCHEDULED:
        assert sum(added) <= 0


def test_the_model_is_as_before(pipelines):
    assert torch.equal(pipelines.generate("npu")[0], pipelines.bare["npu"])


def test_operators(pipelines):
    """What the cache adds to those of the pipeline has a kernel on the NPU."""
    with Operators() as bare:
        pipelines.generate("npu")
    for config in CONFIGS.values():
        with Operators() as cached, enable_cache(pipelines.pipes["npu"], config), quiet():
            pipelines.generate("npu")
        assert cached.on_cpu <= bare.on_cpu
