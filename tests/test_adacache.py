"""adacache against the published code book and motion regularisation, restated in oracles.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_loop import Inputs, TokenBlock, agent_of, agree, drive, expected, host_reads, make_inputs, make_model
from oracles import CODEBOOK_100, Ada, Hold, Ladder
from toy import all_warnings, quiet

MODEL = make_model()
STEPS = 40
FAST = ((0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2))
SHAPE = (1, 12, 6)


def probe_of(entered: list[np.ndarray], row: Inputs, block: int = 2) -> np.ndarray:
    """The gated attention residual of the decisive block: number layers // 2."""
    return MODEL[block].attention_residual(torch.from_numpy(entered[block]), row.temb).numpy()


def follow(oracle: Ada, block: int = 2):
    def decide(step: int, row: Inputs, entered: list[np.ndarray]) -> bool:
        if not oracle.compute(step):
            return False
        oracle.observe(step, probe_of(entered, row, block))
        return True

    return decide


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("speed", [0.02, 0.1, 0.3, 0.6, 2.0])
@pytest.mark.parametrize(("codebook", "otherwise"), [(CODEBOOK_100, 3), (FAST, 1)])
def test_codebook(last, speed, codebook, otherwise):
    """Step 0 and 1 are computed, then the code book gives the distance to the next; published: no last step."""
    rows = make_inputs(STEPS, 2, speed)
    oracle = Ada(STEPS, codebook, otherwise, last=last)
    wanted = expected(MODEL, rows, follow(oracle), Hold())
    assert not oracle.unclear
    assert wanted.marks.startswith("##")
    options = {"codebook": codebook, "otherwise": otherwise, "final_steps": last}
    with quiet():
        agree(drive(agent_of("adacache", STEPS, options=options), MODEL, {"cond": rows})["cond"], wanted)


@settings(deadline=None, max_examples=40)
@given(
    steps=st.integers(1, 40),
    seed=st.integers(0, 10**6),
    speed=st.sampled_from([0.02, 0.1, 0.5, 2.0]),
    frame=st.sampled_from([1, 2, 3, 4, 6]),
    scale=st.sampled_from([0.385, 0.7, 1.0]),
    power=st.sampled_from([1.0, 2.0, 8.0]),
    gradient=st.sampled_from([0.0, 1.0, 10.0]),
    codebook=st.sampled_from([CODEBOOK_100, FAST]),
    block=st.integers(0, 3),
    order=st.integers(0, 1),
)
def test_motion_regularisation(steps, seed, speed, frame, scale, power, gradient, codebook, block, order):
    rows = make_inputs(steps, seed, speed, shape=SHAPE)
    oracle = Ada(steps, codebook, frame_tokens=frame, scale=scale, power=power, gradient=gradient, last=1)
    wanted = expected(MODEL, rows, follow(oracle, block), Ladder(order))
    assume(not oracle.unclear)
    options = {"codebook": codebook, "motion": True, "frame_tokens": frame, "probe_block": block, "order": order}
    hyper = {"motion_scale": scale, "motion_power": power, "motion_gradient": gradient}
    with quiet():
        agree(drive(agent_of("adacache", steps, options={**options, **hyper}), MODEL, {"cond": rows})["cond"], wanted)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("motion", [False, True])
def test_two_branches(together, motion):
    branches = {"cond": make_inputs(STEPS, 4, 0.3, SHAPE), "uncond": make_inputs(STEPS, 5, 0.8, SHAPE)}
    frame = 4 if motion else None
    options = {"codebook": FAST, "together": together, "motion": motion, "frame_tokens": frame, "motion_scale": 0.9}
    got = drive(agent_of("adacache", STEPS, options=options), MODEL, branches)
    marks = {}
    for name, rows in branches.items():
        oracle = Ada(STEPS, FAST, frame_tokens=frame, scale=0.9, last=1)
        marks[name] = expected(MODEL, rows, follow(oracle), Hold()).marks
    assert marks["cond"] != marks["uncond"]
    for name, rows in branches.items():
        plan = marks["cond" if together else name]
        agree(got[name], expected(MODEL, rows, lambda step, *_, p=plan: p[step] == "#", Hold()))


def test_a_probe_of_a_submodules_output():
    """`attn.output`: before the gate."""
    rows = make_inputs(STEPS, 2, 0.3)
    oracle = Ada(STEPS, FAST, 1, last=1)

    def decide(step: int, row: Inputs, entered: list[np.ndarray]) -> bool:
        if not oracle.compute(step):
            return False
        block: TokenBlock = MODEL[2]
        oracle.observe(step, block.attn(block.norm1(torch.from_numpy(entered[2]), emb=row.temb)[0]).numpy())
        return True

    options = {"codebook": FAST, "otherwise": 1, "probe": "attn.output"}
    agree(
        drive(agent_of("adacache", STEPS, options=options), MODEL, {"cond": rows})["cond"],
        expected(MODEL, rows, decide, Hold()),
    )


@pytest.mark.parametrize(("most", "first"), [(2, 1), (0, 6), (3, 4)])
def test_limits_on_top_of_the_codebook(most, first):
    """A computed step that a limit forced is recorded: the next distance is counted from it, over the real gap."""
    rows = make_inputs(STEPS, 2, 0.02)
    marks = drive(
        agent_of("adacache", STEPS, options={"max_skip_steps": most, "warmup_steps": first}), MODEL, {"cond": rows}
    )["cond"].marks
    assert marks[:first] == "#" * first
    assert max(map(len, marks.split("#"))) == (most or 11)


def test_same_input_every_step_reproduces_the_model():
    rows = make_inputs(20, 5, constant=True)
    got = drive(agent_of("adacache", 20), MODEL, {"cond": rows})["cond"]
    assert got.marks == "##" + "." * 11 + "#" + "." * 5 + "#"
    for output in got.outputs:
        assert np.abs(output - got.outputs[0]).max() <= 1e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("motion", [False, True])
def test_a_broken_probe_computes_and_says_so_once(bad, motion):
    """Published: NaN compares false with everything, so the next three steps are skipped."""
    rows = make_inputs(20, 5, 0.0, SHAPE)
    rows[1].hidden[0, 0, 0] = bad
    with all_warnings() as caught:
        options = {"motion": motion, "frame_tokens": 4}
        marks = drive(agent_of("adacache", 20, options=options), MODEL, {"cond": rows})["cond"].marks
    assert marks.startswith("####.")  # broken at 1, compared at 2 and 3 with something broken
    assert sum(warning.message.args[0].startswith("The signal") for warning in caught) == 1


def test_one_host_read_after_a_computed_step():
    branches = {"cond": make_inputs(20, 1, 0.3, SHAPE), "uncond": make_inputs(20, 2, 0.3, SHAPE)}
    agent = agent_of("adacache", 20, options={"motion": True, "frame_tokens": 4, "codebook": FAST})
    counts = host_reads(agent, MODEL, branches)
    computed = {record.step for record in agent.report().steps if not record.reused}
    assert {step for step, count in enumerate(counts) if count} <= {step + 1 for step in computed}
    assert max(counts) == 1
