"""easycache against its published rule, restated in oracles.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_loop import DTYPE, agent_of, agree, drive, expected, host_reads, make_inputs, make_model
from oracles import Easy, Hold, Ladder
from toy import all_warnings, quiet

MODEL = make_model(1)
STEPS = 40


def follow(oracle: Easy):
    def decide(step, row, entered):
        if not oracle.compute(step, entered[0]):
            return False
        oracle.observe(entered[0], entered[-1])
        return True

    return decide


def forced(steps: int, first: int, last: int) -> set[int]:
    return {*range(first), *range(steps - last, steps)}


@pytest.mark.parametrize(("threshold", "first"), [(0.05, 10), (0.025, 5), (0.1, 1)])
@pytest.mark.parametrize("speed", [0.02, 0.1])
@pytest.mark.parametrize("together", [True, False])
def test_published_settings(threshold, first, speed, together):
    """Wan: 0.05 and 10; HunyuanVideo: 0.025 and 5; the last step is forced and cond decides for the pair."""
    branches = {"cond": make_inputs(STEPS, 1, speed), "uncond": make_inputs(STEPS, 2, speed)}
    options = {"threshold": threshold, "warmup_steps": first, "max_skip_steps": 0, "together": together}
    got = drive(agent_of("easycache", STEPS, 1, options=options), MODEL, branches)
    plans = {}
    for name, rows in branches.items():
        oracle = Easy(threshold, forced(STEPS, first, 1))
        plans[name] = expected(MODEL, rows, follow(oracle), Hold()).marks
        assert not oracle.unclear
    for name, rows in branches.items():
        plan = plans["cond" if together else name]
        agree(got[name], expected(MODEL, rows, lambda step, *_, p=plan: p[step] == "#", Hold()))
    assert "." in got["cond"].marks


@settings(deadline=None, max_examples=40)
@given(
    steps=st.integers(1, 24),
    seed=st.integers(0, 10**6),
    speed=st.sampled_from([0.01, 0.05, 0.3]),
    threshold=st.sampled_from([0.0, 0.01, 0.05, 0.3, 5.0]),
    first=st.integers(0, 6),
    last=st.integers(0, 3),
    most=st.integers(0, 4),
    order=st.integers(0, 2),
)
def test_any_settings(steps, seed, speed, threshold, first, last, most, order):
    rows = make_inputs(steps, seed, speed)
    oracle = Easy(threshold, forced(steps, first, last), most or None)
    wanted = expected(MODEL, rows, follow(oracle), Ladder(min(order, 1)))
    assume(not oracle.unclear)
    options = {"threshold": threshold, "warmup_steps": first, "final_steps": last, "max_skip_steps": most}
    with quiet():
        agent = agent_of("easycache", steps, 1, options={**options, "order": min(order, 1)})
        agree(drive(agent, MODEL, {"cond": rows})["cond"], wanted)


def test_an_output_of_another_shape_is_held():
    """`residual=False`: for models whose output does not have the shape of their input."""

    class Pool(torch.nn.Module):
        runs = 0

        def forward(self, hidden_states, temb):
            self.runs += 1
            return hidden_states.mean(-1) * temb.sum()

    rows, pool = make_inputs(STEPS, 3, 0.05), Pool()
    oracle, held, wanted = Easy(0.1, forced(STEPS, 4, 1)), None, []
    for step, row in enumerate(rows):
        x, v = row.hidden.numpy(), (row.hidden.mean(-1) * row.temb.sum()).numpy()
        if oracle.compute(step, x):
            oracle.observe(x, v)
            held = v
        wanted.append(held)
    options = {"threshold": 0.1, "warmup_steps": 4, "residual": False, "max_skip_steps": 0}
    got = drive(agent_of("easycache", STEPS, 1, options=options), [pool], {"cond": rows})["cond"]
    assert "." in got.marks
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(got.outputs, wanted, strict=True))


def test_same_input_every_step_reproduces_the_model():
    rows = make_inputs(20, 5, constant=True)
    got = drive(agent_of("easycache", 20, 1, options={"warmup_steps": 3}), MODEL, {"cond": rows})["cond"]
    assert got.marks == "###" + "." * 10 + "#" + "." * 5 + "#"
    for output in got.outputs:
        assert np.abs(output - got.outputs[0]).max() <= 1e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_input_computes_and_says_so_once(bad):
    rows = make_inputs(20, 5, 0.0)
    rows[6].hidden[0, 0, 0] = bad
    with all_warnings() as caught:
        marks = drive(agent_of("easycache", 20, 1, options={"warmup_steps": 3}), MODEL, {"cond": rows})["cond"].marks
    assert marks[:6] == "###..."
    assert marks[6:8] == "##"  # broken, and compared with something broken
    assert "." in marks[8:]
    assert sum(warning.message.args[0].startswith("The signal") for warning in caught) == 1


def test_one_host_read_a_step():
    branches = {"cond": make_inputs(20, 1), "uncond": make_inputs(20, 2)}
    counts = host_reads(agent_of("easycache", 20, 1), MODEL, branches)
    assert max(counts) == 1


def test_memory_is_one_latent_a_branch():
    rows = make_inputs(20, 1)
    agent = agent_of("easycache", 20, 1)
    drive(agent, MODEL, {"cond": rows, "uncond": rows})
    assert agent.report().bytes_peak == 2 * rows[0].hidden.nbytes
    assert rows[0].hidden.dtype == DTYPE
