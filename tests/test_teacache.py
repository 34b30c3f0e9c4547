"""teacache and custom against the published rule, restated in oracles.py."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_loop import Inputs, agent_of, agree, drive, expected, host_reads, make_inputs, make_model
from oracles import Hold, Ladder, Tea
from toy import all_warnings, quiet

POLYNOMIALS = json.loads(Path(__file__).with_name("data").joinpath("teacache_polynomials.json").read_text())
MODEL = make_model()
STEPS = 30


def modulated(row: Inputs) -> np.ndarray:
    """The first block's norm and modulation, in NumPy."""
    hidden, temb = row.hidden.numpy(), row.temb.numpy()
    centred = hidden - hidden.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * (1 + temb) + 0.5 * temb


def embedding(row: Inputs) -> np.ndarray:
    return row.temb.numpy()


def forced_steps(steps: int, first: int, last: int) -> set[int]:
    return {*range(first), *range(steps - last, steps)}


def threshold_for(polynomial: list[float], rows: list[Inputs], signal=embedding) -> float:
    """About three typical contributions, so that both answers occur."""
    ruler = Tea(polynomial, 0.0, set())
    signals = [signal(row) for row in rows]
    parts = [ruler.contribution(np.abs(b - a).mean() / np.abs(a).mean()) for a, b in pairwise(signals)]
    return float(3 * np.mean(parts)) or 0.1


@pytest.mark.parametrize("name", POLYNOMIALS)
@pytest.mark.parametrize("ret_steps", [False, True])
def test_wan_form_for_every_published_polynomial(name, ret_steps):
    """The time embedding is watched. Forced: five steps at the start with ret-steps, else the first and the last."""
    rows = make_inputs(STEPS, seed=len(name), speed=0.3)
    polynomial, (first, last) = POLYNOMIALS[name], (5, 0) if ret_steps else (1, 1)
    threshold = threshold_for(polynomial, rows)
    oracle = Tea(polynomial, threshold, forced_steps(STEPS, first, last))
    wanted = expected(MODEL, rows, lambda step, row, _: oracle.compute(step, embedding(row)), Hold())
    assert not oracle.unclear
    limits = {"warmup_steps": first, "final_steps": last, "max_skip_steps": 0}
    agent = agent_of("teacache", STEPS, options={"threshold": threshold, "coefficients": polynomial, **limits})
    with quiet():
        agree(drive(agent, MODEL, {"cond": rows})["cond"], wanted)
    assert "." in wanted.marks


@pytest.mark.parametrize("name", ["HunyuanVideo", "FLUX.1-dev", "hy_15_t2v_480p_teacache", "Lumina-Image-2.0", "LTX-Video"])
@pytest.mark.parametrize("together", [True, False])
def test_hunyuan_form_watches_the_modulated_input(name, together):
    """The signal depends on the latents, so the branches differ unless they decide together, by the first one."""
    branches = {"cond": make_inputs(STEPS, 3, 0.2), "uncond": make_inputs(STEPS, 8, 0.2)}
    polynomial = POLYNOMIALS[name]
    threshold = threshold_for(polynomial, branches["cond"], modulated)
    options = {"threshold": threshold, "coefficients": polynomial, "signal": "modulated", "max_skip_steps": 0}
    agent = agent_of("teacache", STEPS, options={**options, "together": together})
    got = drive(agent, MODEL, branches)
    for branch, rows in branches.items():
        watched = branches["cond"] if together else rows
        oracle = Tea(polynomial, threshold, forced_steps(STEPS, 1, 1))
        decisions = [oracle.compute(step, modulated(row)) for step, row in enumerate(watched)]
        assert not oracle.unclear
        agree(got[branch], expected(MODEL, rows, lambda step, *_, d=decisions: d[step], Hold()))


@settings(deadline=None, max_examples=40)
@given(
    steps=st.integers(1, 20),
    seed=st.integers(0, 10**6),
    speed=st.sampled_from([0.0, 0.05, 0.3, 2.0]),
    threshold=st.sampled_from([0.0, 0.03, 0.2, 5.0]),
    coefficients=st.lists(st.floats(-3, 3), min_size=1, max_size=5),
    first=st.integers(0, 6),
    last=st.integers(0, 3),
    most=st.integers(0, 4),
    span=st.sampled_from([(0, 4), (1, 3), (3, 4)]),
    method=st.sampled_from(["teacache", "custom"]),
)
def test_any_settings(steps, seed, speed, threshold, coefficients, first, last, most, span, method):
    rows = make_inputs(steps, seed, speed)
    oracle = Tea(coefficients, threshold, forced_steps(steps, first, last), most=most or None)
    predictor = Ladder(1) if method == "custom" else Hold()
    wanted = expected(MODEL, rows, lambda step, row, _: oracle.compute(step, embedding(row)), predictor, span)
    assume(not oracle.unclear)
    options = {"threshold": threshold, "coefficients": coefficients}
    limits = {"warmup_steps": first, "final_steps": last, "max_skip_steps": most}
    agent = agent_of(method, steps, options={**options, **limits}, block_start=span[0], block_end=span[1])
    with quiet():
        agree(drive(agent, MODEL, {"cond": rows})["cond"], wanted)


@pytest.mark.parametrize("ret_steps", [False, True])
@pytest.mark.parametrize("together", [True, False])
def test_custom_draws_a_line_through_two_residuals(ret_steps, together):
    """LightX2V's CustomCache: TeaCache's decision; its derivative is over the distance of the two computed steps."""
    branches = {"cond": make_inputs(STEPS, 1, 0.3), "uncond": make_inputs(STEPS, 2, 0.3)}
    polynomial, (first, last) = POLYNOMIALS["wan_t2v_1_3b_tea_480p 1"], (5, 0) if ret_steps else (1, 1)
    threshold = threshold_for(polynomial, branches["cond"])
    limits = {"warmup_steps": first, "final_steps": last, "max_skip_steps": 0, "together": together}
    agent = agent_of("custom", STEPS, options={"threshold": threshold, "coefficients": polynomial, **limits})
    got = drive(agent, MODEL, branches)
    for branch, rows in branches.items():
        oracle = Tea(polynomial, threshold, forced_steps(STEPS, first, last))
        watched = branches["cond"] if together else rows
        decisions = [oracle.compute(step, embedding(row)) for step, row in enumerate(watched)]
        agree(got[branch], expected(MODEL, rows, lambda step, *_, d=decisions: d[step], Ladder(1)))
    assert "." in got["cond"].marks


def test_the_signal_is_compared_with_the_previous_step_also_after_a_skip():
    """A signal that swings back: against the last computed step it would seem unchanged."""
    rows = make_inputs(6, 0, constant=True)
    rows = [row._replace(temb=row.temb * (1.0 if at % 2 == 0 else 1.1)) for at, row in enumerate(rows)]
    agent = agent_of("teacache", 6, options={"threshold": 0.15, "final_steps": 0})
    assert drive(agent, MODEL, {"cond": rows})["cond"].marks == "#.#.#."


@pytest.mark.parametrize("method", ["teacache", "custom"])
@pytest.mark.parametrize("signal", ["temb", "modulated"])
def test_same_input_every_step_reproduces_the_model(method, signal):
    rows = make_inputs(8, 5, constant=True)
    agent = agent_of(method, 8, options={"threshold": 0.1, "signal": signal})
    got = drive(agent, MODEL, {"cond": rows})["cond"]
    assert got.marks == "#......#"
    for output in got.outputs:
        assert np.abs(output - got.outputs[0]).max() <= 1e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_signal_computes_and_says_so_once(bad):
    rows = make_inputs(8, 5, constant=True)
    for step in (3, 5):
        rows[step] = rows[step]._replace(temb=torch.full_like(rows[step].temb, bad))
    agent = agent_of("teacache", 8)
    with all_warnings() as caught:
        marks = drive(agent, MODEL, {"cond": rows})["cond"].marks
    assert marks == "#..####" + "#"  # a broken signal, and the step that is compared with it
    assert [warning.message.args[0].startswith("The signal") for warning in caught] == [True]


@pytest.mark.parametrize("signal", ["temb", "modulated"])
def test_one_host_read_a_step_for_all_branches(signal):
    branches = {"cond": make_inputs(8, 1), "uncond": make_inputs(8, 2)}
    agent = agent_of("teacache", 8, options={"signal": signal, "threshold": 0.02})
    counts = host_reads(agent, MODEL, branches)
    assert max(counts) == 1
    assert counts[0] == counts[-1] == 0  # the first and the last step are computed whatever is measured
