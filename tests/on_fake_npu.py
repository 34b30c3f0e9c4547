"""Tests that test_npu_device.py runs in a process of its own. The results of the CPU are the oracle."""

from __future__ import annotations

import fake_npu
import pytest
import torch
from hooked import SCHEDULED, Stepper, only
from hooked import marks as marks_of
from method_cases import CASES, STEPS
from toy import Add, JointModel, joint_inputs, marks, quiet

import mindie_cache
from mindie_cache import CacheAgent, CacheConfig, device, enable_cache
from mindie_cache.feature_cache import FeatureCache
from mindie_cache.ops import low_pass, relative_l1
from mindie_cache.ops.dispatch import explain

fake_npu.install()
DEVICES = ("cpu", "npu")
RATIOS = (1.0, *[0.98] * (STEPS - 1))
TOLERANCE = 2e-6  # of the largest value: attention is made of other operators there, and there is no FFT
EVERY_THIRD = dict(step_start=1, step_interval=3)


def rows(where: str) -> list[dict[str, torch.Tensor]]:
    return [{name: value.to(where) for name, value in row.items()} for row in joint_inputs(STEPS)]


def difference(found: dict[str, list[torch.Tensor]]) -> float:
    wanted = torch.stack(found["cpu"])
    return float((torch.stack(found["npu"]) - wanted).abs().max() / wanted.abs().max())


class Waits:
    def __init__(self) -> None:
        self.before = fake_npu.host_waits

    @property
    def count(self) -> int:
        return fake_npu.host_waits - self.before


# ------------------------------------------------------------------------------------------------ the device itself


def test_the_device_counts_waits_and_refuses_what_a_device_refuses():
    x = torch.randn(4, 8, device="npu")
    for count, action in {
        1: (lambda: x.sum().item(), lambda: x.cpu(), lambda: x[x > 0], lambda: torch.zeros(2).to("npu"), lambda: x.tolist()),
        0: (lambda: (x + 1).mean(), lambda: torch.zeros_like(x), lambda: torch.full((2,), 1.0, device="npu")),
    }.items():
        for act in action:
            waits = Waits()
            act()
            assert waits.count == count
    with pytest.raises(RuntimeError, match="npu:0 and cpu"):
        x + torch.ones(4, 8)
    with pytest.raises(RuntimeError, match="float64"):
        x.double().sum()
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    view = x.unsqueeze(0)
    view.zero_()
    assert not x.any()


# ------------------------------------------------------------------------------------------------ the three faces

BLOCKS = {
    "dit_block_cache": EVERY_THIRD,
    "dit_block_cache order 1": dict(**EVERY_THIRD, options={"order": 1}),
    "taylorseer": dict(options={"interval": 3, "order": 2, "warmup_steps": 2, "lite": True}),
    "taylorseer bands": dict(options={"interval": 3, "low_order": 0, "high_order": 1, "lite": True}),
    "magcache": dict(options={"cond_ratios": RATIOS, "retention_ratio": 0.1, "max_skip_steps": 2}),
    "ada_taylor": dict(options={"cond_ratios": RATIOS, "retention_ratio": 0.1, "max_skip_steps": 2}),
    "teacache": dict(options={"threshold": 0.3}),
    "custom": dict(options={"threshold": 0.3}),
    "first_block": dict(options={"threshold": 0.5}),
    "dynamic_block": dict(options={"threshold": 0.2}),
}
ATTENTIONS = {
    "attention_cache": EVERY_THIRD,
    "taylorseer": dict(options={"interval": 3, "order": 1, "warmup_steps": 2}),
    "fastercache": dict(options={"reuse_from": 2, "interval": 2, "phase": 0}),
    "pab": dict(options={"broadcast": 3}),
}
FORWARD = {
    "adastep": dict(options={"skip_thr": 0.5}),
    "easycache": dict(options={"threshold": 0.2, "warmup_steps": 3}),
}
AGENTS = [
    *[("block_agent", name, fields) for name, fields in BLOCKS.items()],
    *[("attention_agent", name, fields) for name, fields in ATTENTIONS.items()],
    *[("", name, fields) for name, fields in FORWARD.items()],
]
ADAPTIVE = ("teacache", "custom", "first_block", "dynamic_block", "adastep", "easycache")


@pytest.mark.parametrize(("face", "name", "fields"), AGENTS, ids=[f"{face or 'forward'}-{name}" for face, name, _ in AGENTS])
@torch.no_grad()
def test_apply(face, name, fields):
    found, patterns = {}, {}
    for where in DEVICES:
        agent = CacheAgent(CacheConfig(name.split()[0], 4 if face else 1, STEPS, **fields))
        model, given = JointModel(**({face: agent} if face else {})).eval().to(where), rows(where)
        waits, outputs = [], []
        with quiet():
            for row in given:
                seen = Waits()
                outputs.append(model(**row) if face else agent.apply(model, **row))
                waits.append(seen.count)
        assert all(output.device.type == where for output in outputs)
        found[where], patterns[where] = [output.cpu() for output in outputs], marks(agent)
    assert patterns["npu"] == patterns["cpu"]
    assert "." in patterns["npu"]
    assert difference(found) < TOLERANCE
    assert max(waits) <= (name in ADAPTIVE), waits


VERBS = [case for case in CASES if case.method not in ("cfg_cache", "seacache") and not case.options.get("motion")]


@pytest.mark.parametrize("case", VERBS, ids=[case.name for case in VERBS])
@torch.no_grad()
def test_the_three_verbs(case):
    """Around a whole model, with its input as the tensor that decides. The other methods need both branches, or a grid."""
    found, patterns = {}, {}
    for where in DEVICES:
        model, given = JointModel().eval().to(where), rows(where)
        outputs, pattern = [], ""
        with quiet():
            cache = FeatureCache(case.config)
            for row in given:
                seen, hidden = Waits(), row["hidden_states"]
                if cache.should_compute(True, signal=hidden):
                    out, pattern = model(**row), pattern + "#"
                    cache.update(out, hidden, True, observed=out - hidden)
                else:
                    out, pattern = cache.approximate(hidden, True), pattern + "."
                assert seen.count <= min(case.waits_allowed, 1)
                outputs.append(out)
        found[where], patterns[where] = [output.cpu() for output in outputs], pattern
    assert patterns["npu"] == patterns["cpu"]
    assert difference(found) < (TOLERANCE if case.is_exact else 1e-2)  # a code of int8 may be the next one


@pytest.mark.parametrize("name", SCHEDULED)
@torch.no_grad()
def test_enable_cache_reads_nothing_of_the_device(name):
    """Neither timesteps nor embeddings, which are on the device; branches and steps are counted. Only the trial of what is
    kept first is read, once for a model."""
    model = Stepper().to("npu")
    hidden = torch.zeros(1, 2, device="npu")
    times = torch.arange(8.0, device="npu").flip(0)
    embeddings = [torch.full((1, 3), value, device="npu") for value in (100.0, 300.0)]
    with enable_cache(model, SCHEDULED[name], num_inference_steps=8) as handle:
        for allowed in (1, 0):
            waits = Waits()
            for time in times:
                for embedding in embeddings:
                    out = model(hidden, time, embedding)
            assert waits.count == allowed
        assert out.device.type == "npu"
        assert all("." in row for row in marks_of(only(handle)).values())
        assert len(marks_of(only(handle))) == 2


@torch.no_grad()
def test_enable_cache_on_blocks_gives_what_apply_gives():
    given = rows("npu")
    agent = CacheAgent(CacheConfig("dit_block_cache", 4, STEPS, **EVERY_THIRD))
    through_apply = JointModel(block_agent=agent).eval().to("npu")
    wanted = [through_apply(**row).cpu() for row in given]
    model = JointModel().eval().to("npu")
    mapping = {"method": "dit_block_cache", **EVERY_THIRD}
    streams = ("hidden_states", "encoder_hidden_states")
    with enable_cache(model, mapping, num_inference_steps=STEPS, streams=streams):
        found = []
        for step, row in enumerate(given):
            with mindie_cache.branch("cond", step=step):
                found.append(model(**row).cpu())
    assert all(map(torch.equal, found, wanted))


# ------------------------------------------------------------------------------------------------ devices


def test_a_change_of_device_is_computed():
    agent = CacheAgent(CacheConfig("dit_block_cache", 1, STEPS, **EVERY_THIRD))
    block = Add(1.0)
    for step in range(STEPS):
        hidden = torch.full((2,), float(step), device=DEVICES[step < 6])
        out = agent.apply(block, hidden_states=hidden)
        assert out.device == hidden.device
        assert out.cpu().tolist() == [step + 1.0] * 2
    assert marks(agent)[6] == "#"
    assert "." in marks(agent)[:6]


@torch.no_grad()
def test_devices_that_are_mixed_are_named():
    model, agent = JointModel().eval().to("npu"), CacheAgent(CacheConfig("dit_block_cache", 4, STEPS, **EVERY_THIRD))
    on_cpu = joint_inputs(STEPS)[0]
    with pytest.raises(RuntimeError, match="npu:0 and cpu"):
        agent.apply(model.blocks[0], **on_cpu)
    assert agent.report().bytes_now == 0
    cache = FeatureCache(CacheConfig("dit_block_cache", 1, STEPS, **EVERY_THIRD))
    for step in range(3):
        x = torch.zeros(2, device="npu")
        if cache.should_compute(True):
            cache.update(x + step, x, True)
    with pytest.raises(RuntimeError, match="npu:0 and cpu"):
        cache.approximate(torch.zeros(2), True)


def test_device_py():
    waits = Waits()
    device.synchronize(torch.device("npu:0"))
    assert waits.count == 1
    assert "torch_npu" in device.probe("npu").reason  # a device named npu is not yet torch_npu


def test_ops_choose_by_device():
    choices = {choice.op: choice.implementation for choice in explain("npu")}
    assert choices["low_pass"] == choices["band_split"] == "matrix products"
    x = torch.randn(2, 9, 4)
    waits = Waits()
    found = low_pass(x.to("npu"), 2, 1)
    assert waits.count == 1  # the copy of x
    assert (found.cpu() - low_pass(x, 2, 1)).abs().max() < 1e-6
    waits = Waits()
    sums = relative_l1(torch.ones(3, device="npu"), torch.zeros(3, device="npu"))
    assert waits.count == 0
    assert sums.device.type == "npu"
