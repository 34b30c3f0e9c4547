"""first_block, dual_block and dynamic_block against the published rules, restated in oracles.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_loop import Inputs, Outcome, agent_of, agree, drive, expected, host_reads, make_inputs, make_model
from oracles import Dynamic, Hold, Ladder, ProbeChange
from toy import all_warnings, quiet

MODEL = make_model(12)
STEPS = 30
SPANS = {"first_block": (1, 12), "dual_block": (5, 7)}  # 5 blocks at both ends of dual_block are always computed


def follow(oracle: ProbeChange, start: int, forced: set[int]):
    """The probe is what the blocks in front have added."""

    def decide(step: int, row: Inputs, entered: list[np.ndarray]) -> bool:
        return oracle.compute(entered[start] - entered[0], step in forced)

    return decide


def forced_steps(steps: int, first: int, last: int) -> set[int]:
    return {*range(first), *range(steps - last, steps)}


@pytest.mark.parametrize("method", SPANS)
@pytest.mark.parametrize("compare", ["previous", "computed"])
@pytest.mark.parametrize("together", [True, False])
def test_probe_of_the_blocks_in_front(method, compare, together):
    """Published: compared with the previous step, no limit, no last step. Ours: with the last computed step."""
    published, span = compare == "previous", SPANS[method]
    branches = {"cond": make_inputs(STEPS, 1, 0.1), "uncond": make_inputs(STEPS, 2, 0.1)}
    limits = {"final_steps": 0, "max_skip_steps": 0} if published else {"max_skip_steps": 3}
    options = {"threshold": 0.03, "compare": compare, "together": together, **limits}
    got = drive(agent_of(method, STEPS, 12, options=options), MODEL, branches)
    plans = {}
    for name, rows in branches.items():
        oracle = ProbeChange(0.03, 2, published, None if published else 3)
        plans[name] = expected(
            MODEL, rows, follow(oracle, span[0], forced_steps(STEPS, 1, not published)), Hold(), span
        ).marks
        assert not oracle.unclear
    assert plans["cond"] != plans["uncond"]
    for name, rows in branches.items():
        plan = plans["cond" if together else name]
        agree(got[name], expected(MODEL, rows, lambda step, *_, p=plan: p[step] == "#", Hold(), span))
        for mark, ran in zip(plan, got[name].ran, strict=True):
            assert ran == [mark == "#" or not span[0] <= block < span[1] for block in range(12)]


@settings(deadline=None, max_examples=30)
@given(
    method=st.sampled_from(list(SPANS)),
    span=st.sampled_from([None, (1, 12), (3, 8), (2, 3)]),
    steps=st.integers(1, 16),
    seed=st.integers(0, 10**6),
    speed=st.sampled_from([0.02, 0.1, 0.6]),
    threshold=st.sampled_from([0.0, 0.01, 0.05, 0.9]),
    factor=st.integers(1, 4),
    compare=st.sampled_from(["previous", "computed"]),
    first=st.integers(0, 4),
    last=st.integers(0, 2),
    most=st.integers(0, 3),
    order=st.integers(0, 1),
)
def test_any_settings(method, span, steps, seed, speed, threshold, factor, compare, first, last, most, order):
    rows = make_inputs(steps, seed, speed)
    fields = {} if span is None else {"block_start": span[0], "block_end": span[1]}
    start, stop = span or SPANS[method]
    oracle = ProbeChange(threshold, factor, compare == "previous", most or None)
    decide = follow(oracle, start, forced_steps(steps, first, last))
    wanted = expected(MODEL, rows, decide, Ladder(order), (start, stop))
    assume(not oracle.unclear)
    options = {"threshold": threshold, "downsample": factor, "compare": compare, "order": order}
    limits = {"warmup_steps": first, "final_steps": last, "max_skip_steps": most}
    with quiet():
        agent = agent_of(method, steps, 12, options={**options, **limits}, **fields)
        agree(drive(agent, MODEL, {"cond": rows})["cond"], wanted)


def dynamic(rows: list[Inputs], oracles: list[Dynamic], forced: set[int]) -> Outcome:
    """Each block by itself, on what the blocks before it really returned."""
    marks, ran, outputs = "", [], []
    for step, row in enumerate(rows):
        hidden, executed = row.hidden, []
        for block, oracle in zip(MODEL, oracles, strict=False):
            computed = oracle.compute(step, hidden.numpy(), step in forced)
            if computed:
                out = block(hidden, row.temb)
                oracle.feature = (out - hidden).numpy()
            else:
                out = torch.from_numpy(hidden.numpy() + oracle.feature)
            hidden = out
            executed.append(computed)
        marks += "#" if all(executed) else "."
        ran.append(executed)
        outputs.append(hidden.numpy())
    return Outcome(marks, ran, outputs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("speed", [0.02, 0.1])
@pytest.mark.parametrize("parity", [True, False])
def test_dynamic_block(seed, speed, parity):
    """Published: this step's change of each block's input. Ours: the changes since the block's last computed step."""
    rows = make_inputs(STEPS, seed, speed, shape=(1, 4, 6))
    limits = {"final_steps": 0, "max_skip_steps": 0} if parity else {"max_skip_steps": 4}
    oracles = [Dynamic(0.02, 2, parity, None if parity else 4) for _ in MODEL]
    wanted = dynamic(rows, oracles, forced_steps(STEPS, 1, not parity))
    assert not any(oracle.unclear for oracle in oracles)
    with quiet():
        agent = agent_of("dynamic_block", STEPS, 12, options={"threshold": 0.02, "parity": parity, **limits})
        got = drive(agent, MODEL, {"cond": rows})["cond"]
    assert got.ran == wanted.ran
    assert "." in wanted.marks
    assert speed < 0.1 or any(len(set(row)) == 2 for row in wanted.ran)  # blocks of one step differ
    for mine, theirs in zip(got.outputs, wanted.outputs, strict=True):
        assert np.abs(mine - theirs).max() < 1e-10


def test_dynamic_block_keeps_branches_apart():
    branches = {"cond": make_inputs(STEPS, 1, 0.05), "uncond": make_inputs(STEPS, 2, 0.2)}
    options = {"threshold": 0.02, "parity": True}
    together = drive(agent_of("dynamic_block", STEPS, 12, options=options), MODEL, branches)
    for name, rows in branches.items():
        alone = drive(agent_of("dynamic_block", STEPS, 12, options=options), MODEL, {"cond": rows})["cond"]
        assert alone.ran == together[name].ran
        assert all(np.array_equal(a, b) for a, b in zip(alone.outputs, together[name].outputs, strict=True))


@pytest.mark.parametrize("method", ["first_block", "dual_block", "dynamic_block"])
def test_same_input_every_step_reproduces_the_model(method):
    rows = make_inputs(16, 5, constant=True)
    got = drive(agent_of(method, 16, 12), MODEL, {"cond": rows})["cond"]
    assert got.marks.count(".") >= 11
    for output in got.outputs:
        assert np.abs(output - got.outputs[0]).max() <= 1e-6


@pytest.mark.parametrize("method", ["first_block", "dual_block", "dynamic_block"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_probe_computes_and_says_so_once(method, bad):
    rows = make_inputs(12, 5, 0.0)
    rows[5].hidden[0, 0, 0] = bad
    with all_warnings() as caught:
        marks = drive(agent_of(method, 12, 12, options={"downsample": 1}), MODEL, {"cond": rows})["cond"].marks
    late = method == "dynamic_block"  # what it sees now counts for the next step
    assert "#" not in marks[2:5]
    assert marks[5 + late : 7 + late] == "##"
    assert "." in marks[8:]
    assert sum(warning.message.args[0].startswith("The signal") for warning in caught) == 1


@pytest.mark.parametrize("method", ["first_block", "dual_block", "dynamic_block"])
def test_at_most_one_host_read_a_step(method):
    branches = {"cond": make_inputs(12, 1), "uncond": make_inputs(12, 2)}
    counts = host_reads(agent_of(method, 12, 12), MODEL, branches)
    assert max(counts) == 1  # also if each branch decides by itself


def test_dynamic_block_as_published_reads_before_every_block():
    counts = host_reads(agent_of("dynamic_block", 12, 12, options={"parity": True}), MODEL, {"cond": make_inputs(12, 1)})
    assert set(counts[1:]) == {12}


@pytest.mark.parametrize(("method", "lanes"), [("first_block", 1), ("dual_block", 1), ("dynamic_block", 12)])
def test_memory_is_one_residual_a_range_and_branch(method, lanes):
    rows = make_inputs(12, 1, 0.01)
    agent = agent_of(method, 12, 12, options={"threshold": 0.5})
    drive(agent, MODEL, {"cond": rows, "uncond": rows})
    assert agent.report().bytes_peak == 2 * lanes * rows[0].hidden.nbytes
    assert agent.report().bytes_now == 0
