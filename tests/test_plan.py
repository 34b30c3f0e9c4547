"""The planner against brute force, and the method `plan` against the latents repaired by hand, both in float64."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy import quiet

from mindie_cache import CacheAgent, CacheConfig, CacheWarning, ConfigError, ParametersInvalid, branch
from mindie_cache.calibration.planning import (
    Entry,
    Plan,
    Program,
    Recorder,
    make_plan,
    record_testbed,
    recording,
)
from mindie_cache.calibration.planning.program import largest_gap
from mindie_cache.feature_cache import FeatureCache
from mindie_cache.testbed import all_prompts, generate, load_testbed


def levels(steps: int, shift: float = 3.0) -> np.ndarray:
    even = np.linspace(1, 0, steps + 1)
    return shift * even / (1 + (shift - 1) * even)


def walk(steps: int, seed: int = 0, size: int = 20) -> np.ndarray:
    """Velocities that turn slowly."""
    return np.cumsum(np.random.default_rng(seed).normal(size=(steps, size)), axis=0)


def line(v: np.ndarray, u: np.ndarray, p: int | None, i: int, t: int) -> np.ndarray:
    return v[i] if p is None else v[i] + (u[t] - u[i]) / (u[i] - u[p]) * (v[i] - v[p])


def share(u: np.ndarray, p: int | None, i: int, j: int, t: int) -> float:
    """Of the difference at j, what step t was off."""
    part = (u[t] - u[i]) / (u[j] - u[i])
    return part if p is None else part * (u[t] - u[p]) / (u[j] - u[p])


def error_of(v: np.ndarray, u: np.ndarray, schedule: tuple[int, ...], gain: float, growth: float = 0.0) -> float:
    """The objective as it is defined: the sum over gaps of the squared signed error, the first two gaps taken together."""
    lengths, steps, errors = np.diff(u), len(v), []
    for place, i in enumerate(schedule):
        p = schedule[place - 1] if place else None
        j = schedule[place + 1] if place + 1 < len(schedule) else steps
        gap = range(i + 1, j)
        error = sum((lengths[t] * (line(v, u, p, i, t) - v[t]) for t in gap), np.zeros(v.shape[1]))
        if j < steps - 1 and gap:  # the last step corrects nothing
            error = error + gain * sum(lengths[t] * share(u, p, i, j, t) for t in gap) * (v[j] - line(v, u, p, i, j))
        errors.append(np.exp(growth / 2 * (u[j] - 0.5)) * error)
    return float(sum(error @ error for error in [sum(errors[:2]), *errors[2:]]))


def is_even(schedule: tuple[int, ...]) -> bool:
    """After the first gap, gaps get longer and then shorter."""
    gaps = np.diff(schedule)[1:]
    return any((np.diff(gaps[:top]) >= 0).all() and (np.diff(gaps[top:]) <= 0).all() for top in range(len(gaps) + 1))


@pytest.mark.parametrize("gain", [0.0, 0.5, 1.0, 1.2])
@pytest.mark.parametrize(("factor", "growth"), [(1.0, 0.0), (1.3, 0.0), (1.3, 5.0), (2.0, 5.0)])
def test_the_program_finds_the_best_schedule_of_every_budget(gain, factor, growth):
    steps = 9
    v, u = walk(steps), levels(steps)
    program = Program(v @ v.T, u, gain, growth)
    found = program.solve(factor=factor)
    assert list(found) == list(range(2, steps + 1))
    for budget, schedule in found.items():
        limit = largest_gap(steps, budget, factor)
        inner = itertools.combinations(range(1, steps - 1), budget - 2)
        allowed = [s for s in ((0, *c, steps - 1) for c in inner) if max(np.diff(s)) <= limit and is_even(s)]
        best = min(error_of(v, u, s, gain, growth) for s in allowed)
        assert len(schedule.steps) == budget
        assert schedule.predicted == pytest.approx(best, rel=1e-9, abs=1e-9)
        assert error_of(v, u, schedule.steps, gain, growth) == pytest.approx(best, rel=1e-9, abs=1e-9)
        assert program.cost(schedule.steps) == pytest.approx(best, rel=1e-9, abs=1e-9)


def test_the_cost_of_a_given_schedule():
    v, u = walk(12, seed=3), levels(12)
    program = Program(v @ v.T, u, 1.0)
    for schedule in ((0, 3, 4, 9, 11), (0, 5), (0, 1, 2, 6, 8)):
        assert program.cost(schedule) == pytest.approx(error_of(v, u, schedule, 1.0), rel=1e-9)


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_early_errors_count_more(scale):
    """exp(growth (s - 0.5)) with the share of noise s at the end of the gap; sigmas above 1 are noise over signal."""
    v, u = walk(12, seed=3), levels(12) * scale
    share = u if scale == 1 else u / (1 + u)
    plain, grown = Program(v @ v.T, u, 1.0), Program(v @ v.T, u, 1.0, growth=3.0)
    for gap in ((2, 5), (6, 8)):
        schedule = tuple(step for step in range(12) if not gap[0] < step < gap[1])
        assert grown.cost(schedule) == pytest.approx(plain.cost(schedule) * np.exp(3 * (share[gap[1]] - 0.5)), rel=1e-9)


def test_a_line_is_predicted_without_error():
    u = levels(20)
    v = np.outer(1 - u[:-1], [1.0, -2.0]) + np.array([3.0, 1.0])
    plan = make_plan(recorded(v, u))
    assert all(entry.predicted < 1e-9 for entry in plan.front if entry.steps[1] == 1)


@pytest.mark.parametrize(
    ("gram", "sigmas", "message"),
    [
        (np.eye(3), levels(4), "does not fit"),
        (np.full((4, 4), np.nan), levels(4), "NaN or infinite"),
        (np.eye(4), levels(4)[::-1], "have to fall"),
        (np.eye(1), levels(1), "at least 2 steps"),
    ],
)
def test_recordings_that_cannot_be_planned(gram, sigmas, message):
    with pytest.raises(ParametersInvalid, match=message):
        Program(gram, sigmas)


@pytest.mark.parametrize("budget", [1, 5])
def test_budgets_that_do_not_exist(budget):
    with pytest.raises(ParametersInvalid, match=f"budget={budget}"):
        Program(np.eye(4), levels(4)).solve([budget])


# ------------------------------------------------------------------------------------------------------------- execution


def model(branch_number: int) -> Callable[..., torch.Tensor]:
    """A smooth field that depends on where the latents are, so that errors come back."""
    weights = torch.randn(6, 6, generator=torch.Generator().manual_seed(branch_number), dtype=torch.float64)

    def forward(hidden_states: torch.Tensor, sigma: float) -> torch.Tensor:
        forward.runs += 1
        return torch.tanh(hidden_states @ weights * (0.4 + sigma)) + sigma**2

    forward.runs = 0
    return forward


NOISE = torch.randn(2, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def sample(call: Callable[[str, torch.Tensor, float], torch.Tensor], u: list[float], guidance: float = 3.0) -> torch.Tensor:
    latents = NOISE.clone()
    for sigma, following in itertools.pairwise(u):
        cond, uncond = call("cond", latents, sigma), call("uncond", latents, sigma)
        latents = latents + (following - sigma) * (uncond + guidance * (cond - uncond))
    return latents


def repaired(u: list[float], schedule: tuple[int, ...], gain: float, guidance: float = 3.0) -> torch.Tensor:
    """The algorithm on guided velocities, with the repair added to the latents."""
    fields = {"cond": model(1), "uncond": model(2)}
    latents, known, since = NOISE.clone(), [], []
    for t, (sigma, following) in enumerate(itertools.pairwise(u)):
        places = [place for place, _ in known]
        if t in schedule:
            cond, uncond = fields["cond"](latents, sigma), fields["uncond"](latents, sigma)
            v = uncond + guidance * (cond - uncond)
            latents = latents + (following - sigma) * v
            if since and t < len(u) - 2:
                p, i = (places[-2] if len(places) > 1 else None), places[-1]
                stack = dict(known)
                weight = sum((u[s + 1] - u[s]) * share(np.array(u), p, i, t, s) for s in since)
                latents = latents + gain * weight * (v - line(stack, np.array(u), p, i, t))
            known, since = [*known[-1:], (t, v)], []
        else:
            p, i = (places[-2] if len(places) > 1 else None), places[-1]
            stack = dict(known)
            latents = latents + (following - sigma) * line(stack, np.array(u), p, i, t)
            since.append(t)
    return latents


SCHEDULE = (0, 2, 5, 6, 10, 15, 18, 19)


@pytest.mark.parametrize("gain", [0.0, 0.5, 1.0])
def test_the_folded_correction_repairs_the_latents(gain):
    u = levels(20).tolist()
    fields = {"cond": model(1), "uncond": model(2)}
    agent = CacheAgent(CacheConfig("plan", 1, 20, options={"compute_steps": SCHEDULE, "sigmas": u, "gain": gain}))

    def call(name: str, latents: torch.Tensor, sigma: float) -> torch.Tensor:
        with branch(name):
            return agent.apply(fields[name], hidden_states=latents, sigma=sigma)

    found = sample(call, u)
    assert torch.allclose(found, repaired(u, SCHEDULE, gain), rtol=1e-9, atol=1e-12)
    assert fields["cond"].runs == fields["uncond"].runs == len(SCHEDULE)
    assert "".join("." if record.reused else "#" for record in agent.report().steps if record.branch == "cond") == "".join(
        "#" if step in SCHEDULE else "." for step in range(20)
    )


class Adds(torch.nn.Module):
    """A block: hidden + field(hidden, sigma), and a second stream that it leaves alone."""

    def __init__(self, number: int):
        super().__init__()
        self.field = model(number)

    def forward(self, hidden_states, encoder_hidden_states, sigma):
        return hidden_states + 0.3 * self.field(hidden_states, sigma), encoder_hidden_states


@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_a_range_of_blocks(gain):
    """What the blocks add follows the line, and is corrected; blocks outside of the range are computed."""
    u, steps, schedule = levels(12).tolist(), 12, (0, 2, 5, 9, 11)
    blocks, text = [Adds(number) for number in (1, 2, 3, 4)], torch.ones(2, 3, dtype=torch.float64)
    options = {"compute_steps": schedule, "sigmas": u, "gain": gain}
    agent = CacheAgent(CacheConfig("plan_blocks", 4, steps, block_start=1, options=options))
    x = NOISE.clone()
    for sigma, following in itertools.pairwise(u):
        streams = x, text
        for block in blocks:
            streams = agent.apply(block, hidden_states=streams[0], encoder_hidden_states=streams[1], sigma=sigma)
        assert torch.equal(streams[1], text)
        x = x + (following - sigma) * streams[0]

    wanted, known = NOISE.clone(), {}
    for t, (sigma, following) in enumerate(itertools.pairwise(u)):
        entered = blocks[0](wanted, text, sigma)[0]
        places = sorted(known)[-2:]
        p, i = (places[0] if len(places) > 1 else None), (places[-1] if places else None)
        if t in schedule:
            out = entered
            for block in blocks[1:]:
                out = block(out, text, sigma)[0]
            added = out - entered
            if i is not None and t - i > 1 and t < steps - 1:
                weight = sum((u[s + 1] - u[s]) * share(np.array(u), p, i, t, s) for s in range(i + 1, t))
                out = out + gain * weight / (following - sigma) * (added - line(known, np.array(u), p, i, t))
            known[t] = added
        else:
            out = entered + line(known, np.array(u), p, i, t)
        wanted = wanted + (following - sigma) * out
    assert torch.allclose(x, wanted, rtol=1e-9, atol=1e-12)


def test_the_correction_helps_on_a_plan():
    u = levels(20).tolist()
    exact = sample(lambda name, x, sigma: model(1 if name == "cond" else 2)(x, sigma), u)
    errors = {gain: float((repaired(u, SCHEDULE, gain) - exact).norm()) for gain in (0.0, 1.0)}
    assert errors[1.0] < 0.5 * errors[0.0]


def test_a_branch_that_was_left_out_in_the_gap_is_not_corrected():
    """Guidance left the second branch out at step 3: what its estimates were off is not known for that step."""
    u = levels(10).tolist()
    options = {"compute_steps": (0, 1, 5, 9), "sigmas": u, "gain": 1.0}
    agent, field = CacheAgent(CacheConfig("plan", 1, 10, options=options)), model(1)
    with quiet():
        for step in range(6):
            with branch("cond", step=step):
                agent.apply(field, hidden_states=NOISE, sigma=u[step])
            if step == 3:
                continue
            with branch("uncond", step=step):
                given = agent.apply(field, hidden_states=NOISE, sigma=u[step])
            if step == 5:
                assert torch.equal(given, field(NOISE, u[5]))


def test_the_output_keeps_its_type():
    u = levels(6).tolist()
    agent = CacheAgent(CacheConfig("plan", 1, 6, options={"compute_steps": (0, 3, 5), "sigmas": u, "gain": 1.0}))
    outputs = [agent.apply(lambda hidden_states: (hidden_states * 2,), hidden_states=NOISE.bfloat16() + k) for k in range(6)]
    assert all(isinstance(out, tuple) and out[0].dtype == torch.bfloat16 for out in outputs)


def test_the_three_verbs_say_that_they_do_not_correct():
    options = {"compute_steps": (0, 3, 5), "sigmas": levels(6).tolist(), "gain": 1.0}
    with pytest.warns(CacheWarning, match="nothing is corrected"):
        FeatureCache(CacheConfig("plan", 1, 6, options=options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give plan"),
        ({"compute_steps": (0, 5), "plan": "x.json"}, "Give plan"),
        ({"compute_steps": (0, 5), "budget": 3}, "budget chooses among"),
        ({"compute_steps": (0, 3)}, "first and the last step, 0 and 5"),
        ({"compute_steps": (1, 5)}, "first and the last step"),
        ({"compute_steps": (0, 7, 5)}, "compute_steps=7 is out of range"),
        ({"compute_steps": (0, 5), "gain": 1.0}, "gain needs sigmas"),
        ({"compute_steps": (0, 5), "sigmas": (1.0, 0.5), "gain": 1.0}, "needs 7 that fall"),
        ({"compute_steps": (0, 5), "sigmas": (0, 1, 2, 3, 4, 5, 6)}, "needs 7 that fall"),
        ({"compute_steps": (0, 5), "sigmas": levels(6).tolist(), "gain": 3.0}, "gain=3.0 is out of range"),
        ({"plan": "nowhere.json"}, "cannot be read"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        CacheConfig("plan", 1, 6, options=options).validated()


# ------------------------------------------------------------------------------------------------------ recording, files


def recorded(v: np.ndarray, u: np.ndarray, exact: bool = True):
    recorder = Recorder()
    for row in v:
        recorder.step(torch.tensor(row).view(1, -1), torch.ones(1, v.shape[1]))
    return recorder.result(torch.tensor(u), exact, "" if exact else "it is another sampler")


def test_a_recording_is_the_gram_matrix():
    v, u = walk(7), levels(7)
    found = recorded(v, u)
    assert np.allclose(found.gram, v @ v.T, rtol=1e-5)
    assert (found.energy, found.samples) == (v.shape[1], 1)
    both = found + recorded(2 * v, u)
    assert np.allclose(both.gram, 5 * v @ v.T, rtol=1e-5)
    with pytest.raises(ParametersInvalid, match="different noise levels"):
        found + recorded(walk(7), levels(7, shift=1.0))


def test_recordings_that_are_not_whole():
    recorder = Recorder()
    recorder.step(torch.ones(1, 4), torch.ones(1, 4))
    with pytest.raises(ParametersInvalid, match="1 outputs were recorded, but there are 6 steps"):
        recorder.result(levels(6))
    with pytest.raises(ParametersInvalid, match="changed their size"):
        recorder.step(torch.ones(1, 5), torch.ones(1, 5))


def test_the_scheduler_is_as_before():
    class Scheduler:
        def step(self, output, t, sample):
            return SimpleNamespace(prev_sample=sample - output)

    scheduler = Scheduler()
    with recording(scheduler) as recorder:
        scheduler.step(torch.ones(1, 3), 0, torch.zeros(1, 3))
    assert vars(scheduler) == {}
    assert recorder.result([1.0, 0.0]).gram.tolist() == [[3.0]]
    with pytest.raises(ZeroDivisionError), recording(scheduler):
        raise ZeroDivisionError
    assert vars(scheduler) == {}


def test_files(tmp_path):
    plan = make_plan(recorded(walk(12), levels(12)), budget=6, provenance={"model": "a toy"})
    path = tmp_path / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan
    document = json.loads(path.read_text())
    assert document["compute_steps"] == list(plan.chosen.steps)
    assert document["provenance"] == {"model": "a toy", "samples": 1}
    assert [len(entry["steps"]) for entry in document["front"]] == list(range(2, 13))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.pop("kind"), "is no plan"),
        (lambda document: document.pop("sigmas"), "damaged: KeyError"),
        (lambda document: document.update(budget=40), "budget=40: the plan has 2 to 12"),
        (lambda document: document["front"][0].update(steps=[0, 5]), "must rise from 0 to the last step, 11"),
        (lambda document: document["front"][3].update(steps=[0, 5, 4, 6, 11]), "must rise"),
        (lambda document: document.update(sigmas=document["sigmas"][::-1]), "must fall"),
        (lambda document: document.update(front=7), "damaged: TypeError"),
    ],
)
def test_damaged_files(tmp_path, change, message):
    path = tmp_path / "plan.json"
    make_plan(recorded(walk(12), levels(12))).save(path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=message):
        Plan.load(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="is no JSON"):
        Plan.load(path)


def test_targets():
    steps = 30
    plan = make_plan(recorded(walk(steps), levels(steps)))
    assert plan.budget == 15
    assert plan.choose(speedup=3).budget == 10
    assert plan.choose(speedup=4).budget == 7
    assert plan.choose(budget=9).chosen.steps == plan.at(9).steps
    wanted = plan.at(12).predicted
    chosen = plan.choose(max_error=wanted)
    assert chosen.chosen.predicted <= wanted
    assert all(entry.predicted > wanted for entry in plan.front if entry.budget < chosen.budget)
    assert plan.choose(max_error=0).budget == plan.choose(speedup=1).budget == steps


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"speedup": 40.0}, "No budget of the plan reaches speedup=40"),
        ({"speedup": -2}, "speedup=-2 is out of range. Use a number from 1"),
        ({"speedup": 0.5}, "speedup=0.5 is out of range"),
        ({"speedup": float("nan")}, "speedup=nan is out of range"),
        ({"max_error": -1}, "max_error=-1 is out of range"),
        ({"max_error": "1e-3"}, "max_error='1e-3' must be a number"),
        ({"budget": 0}, "budget=0: the plan has 2 to 12"),
        ({}, "no target"),
        ({"budget": 3, "speedup": 2.0}, "Give one"),
    ],
)
def test_targets_that_cannot_be(target, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(recorded(walk(12), levels(12))).choose(**target)


def with_errors(*predicted: float) -> Plan:
    """Of eight steps, with 2, 3, ... computed."""
    front = [Entry((*range(count + 1), 7), 1.0, error) for count, error in enumerate(predicted)]
    return Plan(tuple(levels(8).tolist()), tuple(front), 2).checked()


def test_more_steps_are_not_taken_where_fewer_are_predicted_to_be_better():
    plan = with_errors(0.5, 0.1, 0.3, 0.2, 0.01, 0.02, 0.0)
    assert plan.choose(speedup=1.5).budget == 3
    assert plan.choose(speedup=1.1).budget == 6
    assert plan.choose(speedup=2.7).budget == 2


def test_an_error_is_kept_by_all_larger_budgets_and_measured_ones_count():
    plan = with_errors(0.5, 0.1, 0.3, 0.2, 0.01, 0.02, 0.0)
    assert plan.choose(max_error=0.15).budget == 6
    assert plan.choose(max_error=0.3).budget == 3
    assert plan.with_verified({6: 0.4}).choose(max_error=0.3).budget == 7
    assert plan.with_verified({4: 0.05, 5: 0.06}).choose(max_error=0.1).budget == 3


def test_growth_and_gain():
    recording = recorded(walk(12), levels(12))
    assert {entry.gain for entry in make_plan(recording).front} == {1.0}
    assert make_plan(recording).at(5).steps == Program(recording.gram, recording.sigmas, 1.0, growth=5.0).solve([5])[5].steps
    assert {entry.gain for entry in make_plan(recorded(walk(12), levels(12), exact=False)).front} == {0.0}


@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_what_is_predicted(gain):
    """The error of the latents, with the growth of errors or without: the larger one, in its share of the latents."""
    v, u = walk(12), levels(12)
    recording = recorded(v, u)
    for entry in make_plan(recording, correct=bool(gain)).front:
        both = [error_of(v, u, entry.steps, gain, growth) for growth in (0.0, 5.0)]
        assert entry.predicted == pytest.approx(max(both) / recording.energy, rel=1e-5, abs=1e-9)


def test_a_plan_without_correction():
    recording = recorded(walk(12), levels(12))
    found = make_plan(recording, correct=False)
    wanted = Program(recording.gram, recording.sigmas, 1.0, growth=5.0).solve()  # they are better than with 0
    assert {entry.steps for entry in found.front} == {schedule.steps for schedule in wanted.values()}
    assert {entry.gain for entry in found.front} == {0.0}
    assert found.provenance["no correction"] == "it was planned without"
    assert "no correction" not in make_plan(recording).provenance


def test_with_guidance_few_steps_are_not_corrected():
    recording = recorded(walk(12), levels(12))
    sure, strong = make_plan(recording, guidance=2.0), make_plan(recording, guidance=3.0)
    assert {entry.gain for entry in sure.front} == {1.0}
    assert {entry.budget: entry.gain for entry in strong.front} == {b: float(b >= 6) for b in range(2, 13)}
    assert [entry.steps for entry in strong.front] == [entry.steps for entry in sure.front]
    assert {entry.gain for entry in make_plan(recording, guidance=7.0).front} == {0.0}
    assert {entry.gain for entry in make_plan(recording, guidance=7.0, correct=True).front} == {1.0}


@pytest.mark.parametrize("energy", [0.0, float("nan"), float("inf")])
def test_latents_that_no_error_can_be_set_beside(energy):
    with pytest.raises(ParametersInvalid, match=f"latents sum to {energy}"):
        make_plan(replace(recorded(walk(6), levels(6)), energy=energy))


def test_other_step_counts(tmp_path):
    plan = make_plan(recorded(walk(30), levels(30)), budget=10)
    moved = plan.for_steps(50)
    assert moved.steps_count == 50
    assert moved.chosen.steps == tuple(round(step * 49 / 29) for step in moved_from(plan, moved))
    assert np.allclose(moved.sigmas, levels(50), atol=0.02)
    assert plan.for_steps(20).checked().chosen.steps[-1] == 19
    path = tmp_path / "plan.json"
    plan.save(path)
    with pytest.warns(CacheWarning, match=r"made for 30 steps, but steps_count=50.*estimate"):
        CacheAgent(CacheConfig("plan", 1, 50, options={"plan": str(path)}))
    with pytest.raises(ConfigError, match="strict is set"):
        CacheConfig("plan", 1, 50, options={"plan": str(path), "strict": True}).validated()


def moved_from(plan: Plan, moved: Plan) -> tuple[int, ...]:
    """The entry of `plan` that became the chosen one of `moved`."""
    scaled = {tuple(round(step * 49 / 29) for step in entry.steps): entry.steps for entry in plan.front}
    return scaled[moved.chosen.steps]


def test_on_the_testbed():
    """A plan beats the uniform schedule of as many computed steps, on prompts that it has not seen."""
    model_, prompts = load_testbed("cpu"), all_prompts()
    found = make_plan(record_testbed(model_, [prompts[0], prompts[50]], seeds=[1, 2], steps=20), budget=8)
    asked = dict(prompts=prompts[7::17][:6], seeds=list(range(6)), steps=20)
    exact, even = generate(model_, **asked).latents, tuple(np.linspace(0, 19, 8).round().astype(int).tolist())
    decibels = {}
    for name, schedule, gain in (("plan", found.chosen.steps, found.chosen.gain), ("uniform", even, 0.0)):
        options = {"compute_steps": schedule, "sigmas": found.sigmas, "gain": gain}
        agent = CacheAgent(CacheConfig("plan", 1, 20, options=options))
        error = (generate(model_, **asked, forward_cache=agent).latents - exact).square().flatten(1).mean(1)
        decibels[name] = float((-10 * torch.log10(error)).mean())
    assert decibels["plan"] > decibels["uniform"] + 2, decibels  # 42.8 and 36.8 where it was written


def test_a_plan_through_a_configuration_file(tmp_path):
    plan = make_plan(recorded(walk(20), levels(20)), budget=8)
    plan.save(tmp_path / "plan.json")
    config = CacheConfig("plan", 1, 20, options={"plan": str(tmp_path / "plan.json"), "budget": 6})
    config.to_yaml(tmp_path / "cache.yaml")
    read = CacheConfig.from_yaml(tmp_path / "cache.yaml")
    full, notes = read.options.resolved(read)
    assert (full.compute_steps, full.sigmas, notes) == (plan.at(6).steps, plan.sigmas, ())
    assert isinstance(plan.at(6), Entry)


def test_the_weights_of_a_plan_file_are_what_is_executed(tmp_path):
    """Another program that only reads the file makes the outputs that the engine makes."""
    sigmas = tuple((1 - i / 8) ** 1.3 for i in range(9))
    entry = Entry((0, 2, 5, 7), 1.0, 0.1)
    Plan(sigmas, (entry,), 4).save(tmp_path / "plan.json")
    document = json.loads((tmp_path / "plan.json").read_text())
    torch.manual_seed(3)
    truth = torch.randn(8, 6, dtype=torch.float64)
    agent = CacheAgent(CacheConfig("plan", 1, 8, options={"plan": str(tmp_path / "plan.json")}))
    with agent.run():
        executed = [
            agent.apply(lambda hidden_states, step=step: truth[step], hidden_states=truth[step]) for step in range(8)
        ]
    by_hand = []
    for step in range(8):
        weights = document["weights"].get(str(step), {})
        correction = weights.pop("correction", 0.0)
        if step not in document["compute_steps"]:
            by_hand.append(sum([factor * truth[int(source)] for source, factor in weights.items()]))
        elif correction:
            known = [s for s in document["compute_steps"] if s < step][-2:]
            i, p = known[-1], known[0]
            line = (
                truth[i] + (sigmas[step] - sigmas[i]) / (sigmas[i] - sigmas[p]) * (truth[i] - truth[p])
                if i != p
                else truth[i]
            )
            by_hand.append(truth[step] + correction * (truth[step] - line))
        else:
            by_hand.append(truth[step])
    torch.testing.assert_close(torch.stack(executed), torch.stack(by_hand), rtol=1e-9, atol=1e-9)
    assert "correction" in json.loads((tmp_path / "plan.json").read_text())["weights"]["2"]
