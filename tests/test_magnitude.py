"""magcache and ada_taylor against the published walks, restated in oracles.py, for every published table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_loop import agent_of, agree, drive, expected, make_inputs, make_model
from oracles import Hold, Ladder, Magnitude, Polynomial, ada_taylor_plan, nearest_table
from toy import all_warnings, quiet

from mindie_cache import CacheConfig, ConfigError
from mindie_cache.policies.magnitude import resample

DATA = Path(__file__).with_name("data")
TABLES = json.loads(DATA.joinpath("ada_taylor_tables.json").read_text())
MAG = json.loads(DATA.joinpath("magcache_table.json").read_text())
MODEL = make_model()
BRANCHES = ("cond", "uncond")


def ada_taylor_options(name: str, **changes):
    table = TABLES[name]
    return {
        "threshold": table["thresh"],
        "max_skip_steps": table["K"],
        "retention_ratio": table["retention_ratio"],
        "cond_ratios": table["cond_mag_ratios"],
        "uncond_ratios": table["uncond_mag_ratios"],
        "resampling": "nearest",
        **changes,
    }


def telefuser_plan(name: str, branch: str, steps: int, init_step: int) -> list[int]:
    table = TABLES[name]
    ratios = nearest_table(table[f"{branch}_mag_ratios"], steps)
    return ada_taylor_plan(ratios, steps, table["K"], table["thresh"], table["retention_ratio"], init_step)


@pytest.mark.parametrize("name", TABLES)
def test_telefuser_plans_of_every_table_for_every_number_of_steps(name):
    for steps in range(1, 121):
        inits = sorted({0, 1, steps // 3, steps // 2, max(0, steps - 2), steps - 1, steps, steps + 5})
        for init_step in inits:
            options = ada_taylor_options(name, init_step=init_step)
            checked = CacheConfig("ada_taylor", 1, steps, options=options).validated().options
            full, _ = checked.resolved(CacheConfig("ada_taylor", 1, steps))
            for branch in BRANCHES:
                ours = sorted(full.plan(getattr(full, f"{branch}_ratios"), steps))
                assert ours == telefuser_plan(name, branch, steps, init_step), (steps, init_step, branch)


@pytest.mark.parametrize("ladder", ["newton", "published"])
@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("max_distance", [None, 1, 2, 3])
def test_ada_taylor_numbers(ladder, order, max_distance):
    """Plan, real gaps, and the hold beyond a distance; both branches with a plan of their own."""
    name, steps = "Wan2_1-T2V-14B", 31
    branches = {"cond": make_inputs(steps, 1), "uncond": make_inputs(steps, 2)}
    extrapolation = (
        {"order": order, "max_distance": max_distance, "ladder": ladder} if order else {"order": 0, "max_distance": None}
    )
    with quiet():
        agent = agent_of("ada_taylor", steps, options=ada_taylor_options(name, **extrapolation))
    got = drive(agent, MODEL, branches)
    rule = Ladder if ladder == "published" else Polynomial
    for branch, rows in branches.items():
        plan = telefuser_plan(name, branch, steps, 0)
        predictor = rule(order, np.inf if max_distance is None else max_distance)
        agree(got[branch], expected(MODEL, rows, lambda step, *_, p=plan: step in p, predictor))
    assert "..." in got["cond"].marks


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 53])
def test_ada_taylor_as_published_for_every_table(name, steps):
    branches = {"cond": make_inputs(steps, 3), "uncond": make_inputs(steps, 4)}
    with quiet():
        agent = agent_of("ada_taylor", steps, options=ada_taylor_options(name, ladder="published"))
        got = drive(agent, MODEL, branches)
    for branch, rows in branches.items():
        plan = telefuser_plan(name, branch, steps, 0)
        agree(got[branch], expected(MODEL, rows, lambda step, *_, p=plan: step in p, Ladder(1, hold_beyond=2)))


@settings(deadline=None, max_examples=40)
@given(
    ratios=st.lists(st.floats(0.7, 1.3), min_size=1, max_size=16),
    threshold=st.sampled_from([0.0, 0.05, 0.3, 2.0]),
    most=st.integers(0, 6),
    retention=st.sampled_from([0.0, 0.1, 0.35, 1.0]),
    init_step=st.integers(0, 18),
    order=st.integers(1, 4),
    distance=st.one_of(st.none(), st.integers(0, 4)),
    ladder=st.sampled_from(["newton", "published"]),
)
def test_ada_taylor_of_any_table(ratios, threshold, most, retention, init_step, order, distance, ladder):
    steps = len(ratios)
    rows = make_inputs(steps, seed=steps)
    options = {"cond_ratios": ratios, "threshold": threshold, "max_skip_steps": most, "retention_ratio": retention}
    extrapolation = {"order": order, "max_distance": distance, "ladder": ladder, "init_step": init_step}
    plan = ada_taylor_plan(ratios, steps, most, threshold, retention, init_step)
    predictor = (Ladder if ladder == "published" else Polynomial)(order, np.inf if distance is None else distance)
    with quiet():
        got = drive(agent_of("ada_taylor", steps, options={**options, **extrapolation}), MODEL, {"cond": rows})["cond"]
    agree(got, expected(MODEL, rows, lambda step, *_: step in plan, predictor), tolerance=1e-9)


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize(
    ("threshold", "most", "retention"), [(0.12, 4, 0.2), (0.24, 6, 0.2), (0.12, 2, 0.1), (0.02, 3, 0.5)]
)
def test_magcache_on_the_published_table(last, threshold, most, retention):
    """`final_steps=0` is the published rule, which may skip the last step."""
    steps = MAG["infer_steps"]
    branches = {"cond": make_inputs(steps, 5), "uncond": make_inputs(steps, 6)}
    numbers = {"threshold": threshold, "max_skip_steps": most, "retention_ratio": retention, "final_steps": last}
    tables = dict(zip(BRANCHES, MAG["ratios"], strict=True))
    agent = agent_of("magcache", steps, options={**numbers, **{f"{name}_ratios": row for name, row in tables.items()}})
    got = drive(agent, MODEL, branches)
    for name, rows in branches.items():
        oracle = Magnitude(tables[name], steps, threshold, most, retention, last)
        agree(got[name], expected(MODEL, rows, lambda step, *_, o=oracle: o.compute(step), Hold()))


@settings(deadline=None, max_examples=30)
@given(
    ratios=st.lists(st.floats(0.7, 1.3), min_size=2, max_size=16),
    threshold=st.sampled_from([0.0, 0.05, 0.3, 2.0]),
    most=st.integers(0, 6),
    retention=st.sampled_from([0.1, 0.35, 0.8]),
    last=st.integers(0, 2),
)
def test_magcache_of_any_table(ratios, threshold, most, retention, last):
    """Where the published window is empty, step 0 is computed nevertheless: there is nothing to reuse yet."""
    steps = len(ratios)
    rows = make_inputs(steps, seed=steps)
    oracle = Magnitude(ratios, steps, threshold, most, max(retention, 1.01 / steps), last)
    wanted = expected(MODEL, rows, lambda step, *_: oracle.compute(step), Hold())
    options = {"cond_ratios": ratios, "threshold": threshold, "max_skip_steps": most, "retention_ratio": retention}
    with quiet():
        agent = agent_of("magcache", steps, options={**options, "final_steps": last})
        agree(drive(agent, MODEL, {"cond": rows})["cond"], wanted)


@settings(deadline=None)
@given(ratios=st.lists(st.floats(0.5, 2.0), min_size=1, max_size=60), steps=st.integers(1, 120))
def test_resampled_tables(ratios, steps):
    """Nearest picks entries; product keeps the growth of the magnitude between the same places of the run."""
    ratios[0] = 1.0
    assert list(resample(ratios, steps, "nearest")) == nearest_table(ratios, steps)
    if steps == len(ratios):
        assert list(resample(ratios, steps)) == ratios
    elif steps > 1:
        places = np.linspace(0, len(ratios) - 1, steps)
        grown = np.interp(places, np.arange(len(ratios)), np.cumsum(np.log(ratios)))
        np.testing.assert_allclose(resample(ratios, steps), np.exp(np.diff(grown, prepend=0.0)), rtol=1e-9)
        assert np.prod(resample(ratios, steps)) == pytest.approx(np.prod(ratios), rel=1e-9)


def test_without_its_own_table_a_branch_follows_the_first():
    branches = {"cond": make_inputs(20, 5), "uncond": make_inputs(20, 6), "image": make_inputs(20, 7)}
    agent = agent_of("magcache", 20, options={"cond_ratios": [1.0] + [0.97] * 19})
    assert len({outcome.marks for outcome in drive(agent, MODEL, branches).values()}) == 1


@pytest.mark.parametrize("method", ["magcache", "ada_taylor"])
def test_L9_a_table_of_another_length_is_announced_and_refused_under_strict(method):
    """Resampling is an estimate, also of a table that was given by hand."""
    options = {"cond_ratios": [1.0] + [0.97] * 49}
    with all_warnings() as caught:
        agent_of(method, 30, options=options)
        agent_of(method, 50, options=options)
    assert ["50 entries, but steps_count=30" in str(warning.message) for warning in caught] == [True]
    with pytest.raises(ConfigError, match=r"50 entries.*strict"):
        agent_of(method, 30, options={**options, "strict": True})


@pytest.mark.parametrize("method", ["magcache", "ada_taylor"])
def test_same_input_every_step_reproduces_the_model(method):
    rows = make_inputs(12, 5, constant=True)
    got = drive(agent_of(method, 12, options={"cond_ratios": [1.0] * 12}), MODEL, {"cond": rows})["cond"]
    assert got.marks.count(".") >= 6
    for output in got.outputs:
        assert np.abs(output - got.outputs[0]).max() <= 1e-6
