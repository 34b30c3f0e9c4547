"""Plans for pipelines whose models take turns: the program against brute force, and what each expert of Wan2.2 computes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from test_plan import error_of, levels, recorded, share, walk

from mindie_cache import ParametersInvalid
from mindie_cache.calibration.planning import Entry, Plan, make_plan
from mindie_cache.calibration.planning.program import Program, largest_gap
from mindie_cache.calibration.planning.relay import Relay


def error_in_turns(v, u, schedule, starts, gain):
    """A turn is a generation of its own, that knows nothing of the one before, and goes on until the next one's first step,
    which corrects nothing."""
    return sum(error_of(*part, gain) for part in parts(v, u, schedule, starts))


def parts(v, u, schedule, starts):
    for begin, end in itertools.pairwise((*starts, len(v))):
        stop = min(end + 1, len(v))
        yield v[begin:stop], u[begin : stop + 1], tuple(step - begin for step in schedule if begin <= step < stop)


def joined(v, u, starts, limit, gain):
    """All that can be made of the best schedules of each turn."""
    turns = []
    for begin, (own, levels_of_turn, _) in zip(starts, parts(v, u, (), starts), strict=True):
        alone = [(begin,)] if len(own) == 1 else []
        found = Program(own @ own.T, levels_of_turn, gain).within(limit) if len(own) > 1 else {}
        turns.append(alone + [tuple(begin + step for step in schedule.steps) for schedule in found.values()])
    return [tuple(sorted(set().union(*some))) for some in itertools.product(*turns)]


@pytest.mark.parametrize("starts", [(0, 4), (0, 1), (0, 8), (0, 3, 6)])
@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_turns_share_the_budget_in_the_best_way(starts, gain):
    steps = 9
    v, u = walk(steps, seed=5), levels(steps)
    relay = Relay(v @ v.T, u, gain, 0.0, starts)
    budgets = list(range(2, steps + 1))
    found = relay.solve(budgets)
    assert list(found) == budgets[len({*starts, steps - 1}) - 2 :]
    for budget, schedule in found.items():
        allowed, limit = [], largest_gap(steps, budget)
        while not allowed:  # turns that end early leave too few steps for gaps as short as that
            allowed = [one for one in joined(v, u, starts, limit, gain) if len(one) == budget]
            limit += 1
        best = min(error_in_turns(v, u, one, starts, gain) for one in allowed)
        assert {*starts, steps - 1} <= set(schedule.steps)
        assert len(schedule.steps) == budget
        assert schedule.predicted == pytest.approx(best, rel=1e-9, abs=1e-9)
        assert error_in_turns(v, u, schedule.steps, starts, gain) == pytest.approx(best, rel=1e-9, abs=1e-9)
        assert relay.cost(schedule.steps) == pytest.approx(best, rel=1e-9, abs=1e-9)


def test_one_turn_is_the_program():
    v, u = walk(9), levels(9)
    budgets = list(range(2, 10))
    assert Relay(v @ v.T, u, 1.0, 3.0, (0,)).solve(budgets) == Program(v @ v.T, u, 1.0, 3.0).solve(budgets)


def test_whether_levels_are_shares_of_noise_is_the_same_in_all_turns():
    """The second turn begins below 1, but the levels of the generation are noise over signal."""
    v, u = walk(9), levels(9, shift=1.0) * 2.4
    assert u[6] < 1
    schedule = 0, 1, 2, 3, 4, 5, 6, 8
    plain = Relay(v @ v.T, u, 1.0, 0.0, (0, 6)).cost(schedule)
    grown = Relay(v @ v.T, u, 1.0, 5.0, (0, 6)).cost(schedule)
    assert grown == pytest.approx(plain * math.exp(5 * (u[8] / (1 + u[8]) - 0.5)), rel=1e-9)


def test_recordings_of_other_turns_are_not_added():
    one = recorded(walk(6), levels(6))
    with pytest.raises(ParametersInvalid, match=r"\[0, 2\] in one recording and \[0, 3\] in another"):
        replace(one, starts=(0, 2)) + replace(one, starts=(0, 3))


def test_the_plan_says_where_experts_begin():
    found = make_plan(replace(recorded(walk(8), levels(8)), starts=(0, 3)))
    assert found.provenance["experts begin at"] == [0, 3]
    assert all(3 in entry.steps for entry in found.front)


@pytest.mark.parametrize(
    ("steps", "starts"), [(4, (0, 1)), (4, (0, 2)), (5, (0, 1)), (5, (0, 3)), (5, (0, 1, 2)), (12, (0, 2))]
)
def test_there_is_a_plan_for_every_budget_that_turns_leave(steps, starts):
    found = make_plan(replace(recorded(walk(steps), levels(steps)), starts=starts))
    least = len(starts) + 1
    assert [entry.budget for entry in found.front] == list(range(least, steps + 1))
    assert found.budget == max(least, steps // 2)


def test_turns_without_correction():
    recording = replace(recorded(walk(9), levels(9)), starts=(0, 4))
    wanted = Relay(recording.gram, recording.sigmas, 1.0, 5.0, (0, 4)).solve(list(range(2, 10)))
    found = make_plan(recording, correct=False)
    assert [(entry.steps, entry.gain) for entry in found.front] == [(one.steps, 0.0) for one in wanted.values()]


def test_the_weights_know_where_experts_begin():
    """The second one begins without a history, and corrects nothing of the first one's."""
    u = levels(8)
    steps = 0, 1, 4, 6, 7
    found = Plan(tuple(u.tolist()), (Entry(steps, 1.0, 0.1),), 5, {"experts begin at": [0, 4]}).weights()
    assert found["5"] == {"4": 1.0}
    assert "4" not in found
    lengths = np.diff(u)
    assert found["6"] == {"correction": pytest.approx(lengths[5] * share(u, None, 4, 6, 5) / lengths[6])}
    assert set(found["3"]) == {"0", "1"}


def test_experts_move_with_the_number_of_steps():
    """To the same noise level: half of 8 steps is half of 16, though the last one, 7, goes to 15."""
    found = make_plan(replace(recorded(walk(8), levels(8)), starts=(0, 4)), budget=3)
    moved = found.for_steps(16).checked()
    assert moved.provenance["experts begin at"] == [0, 8]
    assert np.allclose(levels(16)[8], levels(8)[4])
    assert all(8 in entry.steps for entry in moved.front)
    assert moved.at(3).steps == (0, 8, 15)
    assert moved.choose(budget=3).weights()["9"] == {"8": 1.0}
    assert found.provenance["experts begin at"] == [0, 4]


# ------------------------------------------------------------------------------------------------------------- Wan2.2


def wan22(budget, steps=8):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from hooked import TINY

    from mindie_cache.calibration.planning import plan

    pipe, call = TINY["wan22"].build(), TINY["wan22"].call(steps=steps)
    for name in ("prompt", "generator", "output_type"):
        call.pop(name)
    return pipe, plan(pipe, ["a red ball", "two blue cubes"], budget=budget, **call)


def test_each_expert_runs_its_part_of_the_plan(tmp_path):
    pipe, found = wan22(5)
    from hooked import latents, marks

    from mindie_cache import enable_cache

    assert found.provenance["experts begin at"] == [0, 4]
    assert not any(model._forward_pre_hooks for model in (pipe.transformer, pipe.transformer_2))
    bare = latents("wan22", pipe, steps=8)
    for budget in (3, 5, 6):
        chosen = found.choose(budget=budget)
        chosen.save(tmp_path / "plan.json")
        wanted = "".join("#" if step in chosen.chosen.steps else "." for step in range(8))
        with enable_cache(pipe, tmp_path / "plan.json") as handle:
            cached = latents("wan22", pipe, steps=8)
            reports = [marks(report) for report in handle.report().models.values()]
        assert [set(report.values()) for report in reports] == [{wanted[:4]}, {"____" + wanted[4:]}]
        assert 0 < float((cached - bare).square().sum() / bare.square().sum()) < 0.05


def test_a_plan_that_knows_no_experts_still_computes_where_one_begins():
    """The first step of the second expert has nothing to reuse; the number of the step is that of the generation."""
    pipe, found = wan22(5)
    from hooked import latents, marks

    from mindie_cache import enable_cache

    options = {"compute_steps": (0, 2, 6, 7), "sigmas": found.sigmas, "gain": 1.0}
    with enable_cache(pipe, {"method": "plan", "options": options}) as handle:
        latents("wan22", pipe, steps=8)
        reports = [set(marks(report).values()) for report in handle.report().models.values()]
    assert reports == [{"#.#."}, {"____#.##"}]
