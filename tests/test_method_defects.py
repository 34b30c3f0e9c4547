"""What every method promises where its published implementations fail. Labels in brackets name the defect there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_loop import (
    Inputs,
    agent_of,
    agree,
    drive,
    expected,
    host_reads,
    make_inputs,
    make_model,
    streams,
)
from oracles import Ladder, Tea
from toy import all_warnings, marks, quiet

from mindie_cache import CacheAgent, CacheConfig, ConfigError
from mindie_cache.errors import ParametersInvalid
from mindie_cache.policies.magnitude import plan, resample

BLOCKS, STEPS, SHAPE = 12, 16, (1, 4, 6)
MODEL, OTHER = make_model(BLOCKS), make_model(BLOCKS, seed=1)
FAST = [[0.08, 6], [0.16, 5], [0.24, 4], [0.32, 3], [0.40, 2]]
RATIOS = [1.0] + [0.98] * (STEPS - 1)
SIGNALS = {
    "teacache": {"threshold": 0.12},
    "teacache modulated": {"threshold": 0.12, "signal": "modulated"},
    "custom": {"threshold": 0.12},
    "seacache": {"threshold": 0.2, "signal": "latents", "sigmas": [0.5] * STEPS},
    "adacache": {"codebook": FAST, "otherwise": 2},
    "adacache motion": {"codebook": FAST, "motion": True, "frame_tokens": 2, "motion_scale": 0.9},
    "easycache": {"warmup_steps": 3},
    "first_block": {"threshold": 0.1},
    "first_block previous": {"threshold": 0.05, "compare": "previous"},
    "dual_block": {"threshold": 0.1},
}
PER_CALL = {"dynamic_block": {"threshold": 0.1}, "dynamic_block parity": {"threshold": 0.05, "parity": True}}
SCHEDULED = {
    "magcache": {"cond_ratios": RATIOS},
    "ada_taylor": {"cond_ratios": RATIOS, "order": 2, "threshold": 0.3, "max_skip_steps": 3},
    "taylorseer": {"order": 2, "interval": 3, "warmup_steps": 2, "lite": True},
    "taylorseer published": {"order": 2, "interval": 3, "warmup_steps": 2, "lite": True, "ladder": "published"},
}
ALL = {**SIGNALS, **PER_CALL, **SCHEDULED}


FORWARD = ("easycache", "seacache")  # these skip whole forwards here


def agent_for(case: str, **options: Any) -> CacheAgent:
    method = case.split()[0]
    return agent_of(method, STEPS, 1 if method in FORWARD else BLOCKS, options={**ALL[case], **options})


def blocks_for(case: str, model: Any = MODEL) -> Any:
    return model[:1] if case in FORWARD else model


def walk(seed: int, steps: int = STEPS, **changes: Any) -> list[Inputs]:
    return make_inputs(steps, seed, **{"speed": 0.08, "shape": SHAPE, **changes})


def same(first: Any, second: Any) -> bool:
    return all(
        first[name].ran == second[name].ran
        and all(np.array_equal(a, b) for a, b in zip(first[name].outputs, second[name].outputs, strict=True))
        for name in first
    )


@pytest.mark.parametrize("case", ALL)
def test_a_second_generation_equals_the_first(case):
    """[T1, L2, L3] No reset between them, counted or in run(), also after one that was given up half-way."""
    agent, model = agent_for(case), blocks_for(case)
    branches = {"cond": walk(1), "uncond": walk(2)}
    with quiet():
        first = drive(agent, model, branches)
        assert any("." in outcome.marks for outcome in first.values())
        assert same(first, drive(agent, model, branches))
        with agent.run():
            assert same(first, drive(agent, model, branches))
        with agent.run():
            drive(agent, model, {name: rows[:9] for name, rows in branches.items()})  # given up
        assert agent.report().bytes_now == 0
        assert same(first, drive(agent, model, branches))
        agent.reset()
        assert same(first, drive(agent, model, branches))


SHIPPED = Path(__file__).parent / "data" / "lightx2v"
NOT_CALLABLE = {  # there, at the first forward; the file, and the options that a toy model needs
    "caching__taylorseer__wan_t2v_taylorseer": {},
    "caching__adacache__wan_t2v_ada": {"frame_tokens": 2},
    "caching__custom__wan_t2v_custom_1_3b": {},
    "caching__firstblock__wan_t2v_1_3b": {"threshold": 0.2},
    "caching__dualblock__wan_t2v_1_3b": {"threshold": 0.2},
    "caching__dynamicblock__wan_t2v_1_3b": {"threshold": 0.2},
}


@pytest.mark.parametrize("name", NOT_CALLABLE)
def test_methods_that_raise_at_the_first_forward_there_reuse_here(name):
    """[L1, L16] From the shipped configuration to a generation of both branches that reuses and computes its last step."""
    config = CacheConfig.from_lightx2v(SHIPPED / f"{name}.json", BLOCKS)
    config = replace(config, options=replace(config.options, **NOT_CALLABLE[name]))
    rows = {branch: walk(seed, config.steps_count, speed=0.02) for seed, branch in enumerate(("cond", "uncond"))}
    for outcome in drive(CacheAgent(config), MODEL, rows).values():
        assert "." in outcome.marks
        assert outcome.marks[0] == outcome.marks[-1] == "#"
        assert all(np.isfinite(output).all() for output in outcome.outputs)


@pytest.mark.parametrize("case", ALL)
def test_computed_steps_are_those_of_the_bare_model(case):
    rows = walk(3)
    outcome = drive(agent_for(case), blocks_for(case), {"cond": rows})["cond"]
    assert 0 in outcome.computed
    for step in outcome.computed:
        assert np.array_equal(outcome.outputs[step], streams(blocks_for(case), rows[step])[-1])


@pytest.mark.parametrize("case", ALL)
@pytest.mark.parametrize("shape", [(2, 4, 6), (1, 7, 6)])
@pytest.mark.parametrize("change", [5, 6, 8])
def test_another_shape_in_the_middle_of_a_run_computes(case, shape, change):
    """[T2, L8] At whatever step: nothing old fits, and nothing old is used for what follows."""
    rows = [*walk(4)[:change], *walk(5, shape=shape)[change:]]
    with quiet():
        outcome = drive(agent_for(case), blocks_for(case), {"cond": rows})["cond"]
    assert outcome.marks[change] == "#"
    for step in outcome.computed:
        assert np.array_equal(outcome.outputs[step], streams(blocks_for(case), rows[step])[-1])


@pytest.mark.parametrize("case", SIGNALS)
def test_another_shape_in_both_branches_is_one_change(case):
    """What the first branch has decided by is not dropped when the second one changes too."""
    rows = [*walk(4)[:6], *walk(5, shape=(2, 4, 6))[6:]]
    with quiet():
        alone = drive(agent_for(case), blocks_for(case), {"cond": rows})["cond"]
        both = drive(agent_for(case), blocks_for(case), {"cond": rows, "uncond": rows})
    assert alone.marks == both["cond"].marks == both["uncond"].marks


def test_derivatives_start_anew_after_another_shape():
    """[T2, L8] The plan stays where it is; the ladder has one rung until the next computed step."""
    rows = [*walk(4)[:6], *walk(5, shape=(2, 4, 6))[6:]]
    predictor, start = Ladder(2, derivatives_from=1), 6

    def decide(step: int, *_: Any) -> bool:
        if step == start:
            predictor.rungs = []
        return step in {0, 1, 4, 7, 10, 13, 15, start}

    wanted = expected(MODEL, rows, decide, predictor)
    agree(drive(agent_for("taylorseer published"), MODEL, {"cond": rows})["cond"], wanted)


@pytest.mark.parametrize("case", ALL)
@pytest.mark.parametrize("together", [True, False])
def test_branches_do_not_see_each_other(case, together):
    """With inputs that stay as they are, a reused step reproduces its own branch."""
    options = {"together": together} if case in SIGNALS else {}
    branches = {"cond": walk(1, constant=True), "uncond": walk(2, constant=True)}
    outcomes = drive(agent_for(case, **options), blocks_for(case), branches)
    for name, outcome in outcomes.items():
        assert "." in outcome.marks
        wanted = streams(blocks_for(case), branches[name][0])[-1]
        assert max(np.abs(output - wanted).max() for output in outcome.outputs) <= 1e-6


@pytest.mark.parametrize("case", SIGNALS)
def test_branches_agree_unless_told_otherwise(case):
    branches = {"cond": walk(1), "uncond": walk(2, speed=1.0)}
    with quiet():
        outcomes = drive(agent_for(case), blocks_for(case), branches)
        assert outcomes["cond"].marks == outcomes["uncond"].marks
        apart = drive(agent_for(case, together=False), blocks_for(case), branches)
        for name, rows in branches.items():
            alone = drive(agent_for(case), blocks_for(case), {"cond": rows})["cond"]
            assert apart[name].marks == alone.marks


@pytest.mark.parametrize("case", SIGNALS)
def test_a_second_branch_changes_nothing_for_the_first(case):
    rows = walk(1)
    alone = drive(agent_for(case), blocks_for(case), {"cond": rows})["cond"]
    both = drive(agent_for(case), blocks_for(case), {"cond": rows, "uncond": walk(2)})["cond"]
    assert alone.marks == both.marks


@pytest.mark.parametrize("case", ALL)
def test_a_branch_that_guidance_left_out_is_refreshed(case):
    """Its features are from before the last computed step, so they do not count."""
    agent, model, branches = agent_for(case), blocks_for(case), {"cond": walk(1), "uncond": walk(2)}
    rows = {"cond": [], "uncond": []}
    with quiet(), agent.run():
        for step in range(STEPS):
            named = {name: [row[step]] for name, row in branches.items() if name == "cond" or not 4 <= step < 10}
            for name, outcome in drive(agent, model, named, told=[step]).items():
                rows[name].append((step, outcome))
    cond, uncond = ({step: outcome.marks for step, outcome in rows[name]} for name in branches)
    if any(cond[step] == "#" for step in range(4, 10)) and case not in PER_CALL:
        assert uncond[10] == "#"
    for name, found in rows.items():
        for step, outcome in found:
            if outcome.marks == "#":
                assert np.array_equal(outcome.outputs[0], streams(model, branches[name][step])[-1])


@pytest.mark.parametrize("case", ALL)
@pytest.mark.parametrize("own_agent", [True, False])
@pytest.mark.parametrize("switch", [5, 6, 8])
def test_a_second_expert_starts_cold_and_computes(case, own_agent, switch):
    """[T13, L5] With an agent of its own or the same one; there: an error, or the other expert's residual."""
    agent, rows = agent_for(case), walk(1)
    second = agent_for(case) if own_agent else agent
    with quiet(), agent.run():
        drive(agent, blocks_for(case), {"cond": rows[:switch]})
        late = drive(second, blocks_for(case, OTHER), {"cond": rows[switch:]})["cond"]
    assert late.marks[0] == "#"
    for at in late.computed:
        assert np.array_equal(late.outputs[at], streams(blocks_for(case, OTHER), rows[switch + at])[-1])


@pytest.mark.parametrize("case", ALL)
def test_interleaved_requests_equal_those_one_after_the_other(case):
    """[T14] A server that advances two requests in turns, on one model and one agent."""
    agent, model, inputs = agent_for(case), blocks_for(case), {"a": walk(1), "b": walk(2)}
    with quiet():
        alone = {name: drive(agent, model, {"cond": rows})["cond"] for name, rows in inputs.items()}
        for step in range(STEPS):
            for name, rows in inputs.items():
                with agent.run(f"{case} {name}"):
                    now = drive(agent, model, {"cond": rows[step : step + 1]})["cond"]
                assert now.marks == alone[name].marks[step]
                assert np.array_equal(now.outputs[0], alone[name].outputs[step])


@pytest.mark.parametrize("case", ["taylorseer", "magcache", "teacache"])
def test_more_steps_than_configured_start_afresh_and_say_so(case):
    """[T1, T4] A loop of another length: nothing is skipped for ever."""
    rows = walk(1, steps=STEPS + 6)
    agent = agent_for(case)
    with all_warnings() as caught, agent.run():
        outcome = drive(agent, MODEL, {"cond": rows})["cond"]
    assert outcome.marks[STEPS - 1 : STEPS + 1] == "##"
    assert any("goes on after steps_count" in warning.message.args[0] for warning in caught)


@pytest.mark.parametrize("case", [*SIGNALS, *PER_CALL])
def test_limits_overrule_every_measurement(case):
    """[L14] Warm-up, last steps, most reused steps in a row."""
    rows = walk(1, constant=True)
    limits = {"warmup_steps": 4, "final_steps": 2, "max_skip_steps": 3}
    outcome = drive(agent_for(case, **limits), blocks_for(case), {"cond": rows})["cond"]
    assert outcome.marks == "####...#...#..##"


@pytest.mark.parametrize("case", ["first_block", "dynamic_block"])
@pytest.mark.parametrize("published", [True, False])
def test_a_slow_drift_does_not_go_on_for_ever(case, published):
    """[L14] Every step changes by less than the threshold, all of them together by much more."""
    still = walk(1, constant=True)
    rows = [Inputs(row.hidden * 1.03**step, row.temb * 1.03**step) for step, row in enumerate(still)]
    rule = {"compare": "previous"} if case == "first_block" else {"parity": True}
    options = {**(rule if published else {}), "max_skip_steps": 0, "final_steps": 0}
    with quiet():
        outcome = drive(agent_for(case, **options), MODEL, {"cond": rows})["cond"]
    assert (outcome.marks.count("#") == 1) == published


def test_a_polynomial_below_zero_does_not_run_away():
    """[L7] Published: one contribution of -5 keeps the sum under the threshold for the rest of the run."""
    polynomial = [-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404]  # Wan 14B
    ruler = Tea(polynomial, 0.1, set(), clamp=False)
    assert ruler.contribution(0.04) < 0 < ruler.contribution(0.3)
    scale, rows = 1.0, []
    for step, row in enumerate(walk(1, constant=True)):
        scale *= 1.0 if not step else 1.04 if step < 8 else 1.3
        rows.append(row._replace(temb=row.temb * scale))
    answers = {}
    for clamp in (True, False):
        oracle = Tea(polynomial, 0.15, {0, STEPS - 1}, clamp=clamp)
        answers[clamp] = [oracle.compute(step, row.temb.numpy()) for step, row in enumerate(rows)]
    options = {"coefficients": polynomial, "threshold": 0.15, "max_skip_steps": 0}
    outcome = drive(agent_of("teacache", STEPS, BLOCKS, options=options), MODEL, {"cond": rows})["cond"]
    assert outcome.computed == [step for step, answer in enumerate(answers[True]) if answer]
    assert sum(answers[True]) > sum(answers[False])


@pytest.mark.parametrize("frame_tokens", [4, 5, 1536])
def test_motion_with_a_frame_larger_than_the_stream_is_an_error(frame_tokens):
    """[L4] Published: two empty slices, NaN, and the code book has no effect any more."""
    agent = agent_for("adacache motion", frame_tokens=frame_tokens)
    with pytest.raises(ParametersInvalid, match=f"frame_tokens={frame_tokens}"):
        drive(agent, MODEL, {"cond": walk(1)})


def test_motion_without_the_tokens_of_a_frame_is_an_error():
    """[L4]"""
    with pytest.raises(ConfigError, match="frame_tokens"):
        agent_for("adacache motion", frame_tokens=None)


@pytest.mark.parametrize("steps", [1, 2, 5, 12, 30, 50, 77, 120])
def test_a_table_of_another_length_is_resampled_and_the_last_step_computed(steps):
    """[L9, T3] Published: the first entries count, or an IndexError; nearest entries misjudge the growth of a step."""
    ratios = [1.0] + [0.97] * 49
    fitted = resample(ratios, steps)
    assert len(fitted) == steps
    assert steps - 1 in plan(fitted, steps, 0.12, 4, 0.2)
    if steps > 1:
        assert fitted[1:] == pytest.approx([0.97 ** (49 / (steps - 1))] * (steps - 1))
        assert set(resample(ratios, steps, "nearest")) <= {1.0, 0.97}
    with quiet():
        agent = agent_of("magcache", steps, 1, options={"cond_ratios": ratios})
        assert drive(agent, MODEL[:1], {"cond": walk(1, steps=steps)})["cond"].marks[-1] == "#"


@pytest.mark.parametrize("steps", [10, 11, 50])
def test_taylorseer_computes_the_last_step(steps):
    """[L16]"""
    agent = agent_of("taylorseer", steps, 1, options={"interval": 4, "lite": True})
    assert drive(agent, MODEL[:1], {"cond": walk(1, steps=steps)})["cond"].marks[-1] == "#"


def test_order_two_is_exact_on_unequal_gaps():
    """[T5] A quadratic residual through ada_taylor, whose gaps differ by design."""

    class Square(torch.nn.Module):
        runs = 0

        def forward(self, hidden: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
            self.runs += 1
            return hidden + float(temb) ** 2 - 3 * float(temb)

    rows = [row._replace(temb=torch.tensor(0.1 * step, dtype=torch.float64)) for step, row in enumerate(walk(1))]
    ratios = [1.0, 1.0, 1.0, 1.0, 0.98, 0.98, 0.9, 0.97, 0.97, 0.97, 0.9, 0.9, 0.99, 0.99, 0.99, 0.99]
    errors = {}
    for ladder in ("newton", "published"):
        options = {"cond_ratios": ratios, "order": 2, "max_distance": None, "ladder": ladder, "max_skip_steps": 3}
        outcome = drive(agent_of("ada_taylor", STEPS, 1, options=options), [Square()], {"cond": rows})["cond"]
        gaps = set(np.diff(outcome.computed))
        assert len(gaps) > 2
        true = [row.hidden.numpy() + float(row.temb) ** 2 - 3 * float(row.temb) for row in rows]
        errors[ladder] = max(np.abs(a - b).max() for a, b in zip(outcome.outputs, true, strict=True))
    assert errors["newton"] < 1e-12 < errors["published"]


@pytest.mark.parametrize("case", ALL)
def test_the_report_says_what_was_skipped_and_why(case):
    """[L17]"""
    agent, model = agent_for(case), blocks_for(case)
    with quiet():
        outcome = drive(agent, model, {"cond": walk(1)})["cond"]
    report = agent.report()
    assert marks(agent) == outcome.marks
    executed = sum(map(sum, outcome.ran))
    assert report.calls == STEPS * len(model)
    assert report.calls_reused == report.calls - executed
    assert all(record.reason for record in report.steps)
    assert json.loads(report.to_json())["calls_reused"] == report.calls_reused
    assert outcome.marks in str(report)
    assert report.bytes_peak > report.bytes_now == 0


@pytest.mark.parametrize("case", SCHEDULED)
def test_scheduled_methods_read_nothing(case):
    """Neither a number on the host nor any value: they run on tensors that have none."""
    branches = {"cond": walk(1), "uncond": walk(2)}
    with quiet():
        assert set(host_reads(agent_for(case), MODEL, branches)) == {0}
        agent, model = agent_for(case), make_model(BLOCKS).to("meta")
        for row in branches["cond"]:
            hidden = row.hidden.to("meta")
            for block in model:
                hidden = agent.apply(block, hidden_states=hidden, temb=row.temb.to("meta"))
    assert "." in marks(agent)


@pytest.mark.parametrize("case", [*SIGNALS, *PER_CALL])
def test_what_is_kept_is_bounded(case):
    rows = walk(1, constant=True)
    agent = agent_for(case)
    drive(agent, blocks_for(case), {"cond": rows, "uncond": rows})
    lanes = BLOCKS if case in PER_CALL else 1
    depth = 2 if case == "custom" else 1
    assert agent.report().bytes_peak == 2 * depth * lanes * rows[0].hidden.nbytes
