"""What an NPU forbids: waiting while a graph is captured, bf16 on some chips; and bf16 where it is allowed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sim_npu
import torch
from torch import nn
from toy import JointModel, joint_inputs, marks, quiet

from mindie_cache import CacheAgent, CacheConfig
from mindie_cache.ops.dispatch import use

pytestmark = pytest.mark.filterwarnings("ignore:Cannot create tensor with internal format")
STEPS = 9
ROUNDING = 2**-8  # of bf16, relative to the largest value
SCHEDULED = {
    "dit_block_cache": dict(step_start=1, step_interval=3),
    "dit_block_cache order 1": dict(step_start=1, step_interval=3, options={"order": 1}),
    "taylorseer": dict(options={"interval": 3, "order": 2, "warmup_steps": 2, "lite": True}),
    "magcache": dict(options={"cond_ratios": (1.0, *[0.98] * (STEPS - 1)), "retention_ratio": 0.1, "max_skip_steps": 2}),
    "ada_taylor": dict(options={"cond_ratios": (1.0, *[0.98] * (STEPS - 1)), "retention_ratio": 0.1, "max_skip_steps": 2}),
}
ADAPTIVE = {
    "teacache": dict(options={"threshold": 1e6, "max_skip_steps": 2}),
    "first_block": dict(options={"threshold": 1e6, "max_skip_steps": 2}),
    "dynamic_block": dict(options={"threshold": 1e6, "max_skip_steps": 2}),
}


@pytest.fixture(autouse=True)
def references():
    with use("reference"):
        yield


class Captured:
    """An agent around the blocks of a model; each step is captured in a graph of its own."""

    def __init__(self, name: str):
        self.agent = CacheAgent(CacheConfig(name.split()[0], 4, STEPS, **{**SCHEDULED, **ADAPTIVE}[name]))
        self.model = JointModel(block_agent=self.agent).eval().to("npu")
        self.rows = [{key: value.npu() for key, value in row.items()} for row in joint_inputs(STEPS)]

    def generate(self, capture: bool) -> list[torch.Tensor]:
        outputs = []
        with torch.no_grad(), quiet():
            for row in self.rows:
                if capture:
                    with torch.npu.graph(torch.npu.NPUGraph()):
                        outputs.append(self.model(**row))
                else:
                    outputs.append(self.model(**row))
        return outputs


def waits_of_an_empty_capture() -> int:
    """Before it begins, torch_npu waits by itself."""
    waits = sim_npu.HostWaits()
    with torch.npu.graph(torch.npu.NPUGraph()):
        pass
    return waits.count


@pytest.mark.parametrize("name", SCHEDULED)
def test_a_scheduled_method_can_be_captured(name):
    """Computed and reused steps alike: nothing waits. Each kind of step is a graph; which one comes next, the host knows."""
    played = Captured(name)
    plain = played.generate(capture=False)
    pattern = marks(played.agent)
    refused, waits = sim_npu.counters()["refused_in_capture"], sim_npu.HostWaits()
    captured = played.generate(capture=True)
    assert waits.count == STEPS * waits_of_an_empty_capture()
    assert sim_npu.counters()["refused_in_capture"] == refused
    assert marks(played.agent) == pattern
    assert "." in pattern
    assert all(map(torch.equal, captured, plain))


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_method_that_looks_at_data_cannot_be_captured_and_leaves_nothing_behind(name):
    played = Captured(name)
    plain = played.generate(capture=False)
    with pytest.raises(RuntimeError, match="107027"):
        played.generate(capture=True)
    assert played.agent.report().bytes_now == 0
    assert all(map(torch.equal, played.generate(capture=False), plain))


class PointwiseBlock(nn.Module):
    """No attention, of which each backend has its own rounding."""

    def __init__(self, dim: int = 16):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mix = nn.Linear(dim, dim)

    def forward(self, hidden_states):
        return hidden_states + 0.3 * torch.tanh(self.mix(self.norm(hidden_states)))


@pytest.mark.parametrize("name", [*SCHEDULED, *ADAPTIVE])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name, dtype):
    torch.manual_seed(0)
    blocks = nn.ModuleList([PointwiseBlock() for _ in range(4)]).to(dtype).requires_grad_(False)
    found, patterns = {}, {}
    for device in ("cpu", "npu"):
        options = dict({**SCHEDULED, **ADAPTIVE}[name])
        if name == "teacache":
            options["options"] = {**options["options"], "signal": "hidden_states"}
        agent = CacheAgent(CacheConfig(name.split()[0], 4, STEPS, **options))
        outputs = []
        for row in joint_inputs(STEPS):
            hidden = row["hidden_states"].to(dtype).to(device)
            for block in blocks.to(device):
                hidden = agent.apply(block, hidden_states=hidden)
            assert hidden.dtype == dtype
            outputs.append(hidden.cpu())
        found[device], patterns[device] = torch.stack(outputs).float(), marks(agent)
    assert patterns["cpu"] == patterns["npu"]
    assert "." in patterns["npu"]
    assert float((found["npu"] - found["cpu"]).abs().max() / found["cpu"].abs().max()) <= ROUNDING


WITHOUT_BF16 = """
import sim_npu, torch
from toy import JointModel, joint_inputs, marks
from mindie_cache import CacheAgent, CacheConfig

agent = CacheAgent(CacheConfig("dit_block_cache", 4, 9, 1, 3, options={"order": 1}))
model = JointModel(block_agent=agent).eval().to("npu")


@torch.no_grad()
def generate(dtype):
    model.to(dtype)
    return [model(**{key: x.to(dtype).npu() for key, x in row.items()}).float().cpu() for row in joint_inputs(9)]


for dtype in (torch.float32, torch.float16):
    assert torch.stack(generate(dtype)).isfinite().all()
    assert marks(agent) == "##..#..#."  # the library converts nothing to bf16
try:
    generate(torch.bfloat16)
except RuntimeError as error:
    assert "bfloat16" in str(error), error
else:
    raise AssertionError("bf16 ran on a 310P")
assert agent.report().bytes_now == 0
generate(torch.float16)
assert marks(agent) == "##..#..#."
print("done on", torch.npu.get_device_name(0))
"""


def test_a_chip_without_bf16_says_so_and_the_agent_goes_on():
    here = Path(__file__).parent
    environment = {**os.environ, "ACL_SIM_SOC": "Ascend310P3", "MINDIE_CACHE_OPS": "reference", "PYTHONPATH": str(here)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_BF16], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done on Ascend310P3\n")
