"""The benchmarks of plans: searches beside brute force, what is measured beside a generation by hand, resuming."""

import itertools
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mindie_cache import CacheAgent, CacheConfig
from mindie_cache.demo.attach import attached
from mindie_cache.testbed import generate, load_testbed

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import plan_guards  # noqa: E402
import planners_runs  # noqa: E402
import planners_search  # noqa: E402
import plans  # noqa: E402
import transfer  # noqa: E402
from planners_runs import Runs, Store, calibration, unseen  # noqa: E402

STEPS = 5


@pytest.fixture(scope="module")
def model():
    return load_testbed("cpu")


@pytest.fixture(scope="module")
def guarded(model):
    return plan_guards.Bench(model)


@pytest.fixture
def runs(model, tmp_path):
    return Runs(model, calibration(2, steps=STEPS), Store(tmp_path / "results.jsonl"))


def schedules(steps, budget):
    return [(0, *middle, steps - 1) for middle in itertools.combinations(range(1, steps - 1), budget - 2)]


def by_hand(model, task, config):
    model.cache = CacheAgent(config)
    try:
        return generate(model, task.prompts, **task.arguments).latents
    finally:
        model.cache = None


@pytest.mark.parametrize("budget", [3, 5, 8])
def test_annealing_finds_the_best_schedule_where_it_may_see_all(budget):
    weight = {step: random.Random(step).random() for step in range(10)}
    seen = []

    def score(schedule):
        seen.append(schedule)
        return sum(weight[step] for step in schedule)

    best = planners_search.anneal(10, budget, score, 1000)
    assert best == max(schedules(10, budget), key=lambda schedule: sum(weight[step] for step in schedule))
    assert len(seen) == len({*seen}) == math.comb(8, budget - 2)


def test_annealing_keeps_to_its_evaluations_and_beats_its_beginning():
    seen = {}

    def score(schedule):  # the best one is dense at the end
        return seen.setdefault(schedule, sum(schedule))

    best = planners_search.anneal(30, 8, score, 60)
    assert len(seen) == 60
    assert seen[best] > seen[planners_search.uniform(30, 8)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [3, 4, 6])
def test_the_path_is_the_one_of_brute_force(seed, budget):
    draw, steps = random.Random(seed), 9
    weights = {(i, j): draw.random() for i in range(steps) for j in range(i + 2, steps)}

    def edges(path):
        return sorted((weights.get(edge, 0.0) for edge in itertools.pairwise(path)), reverse=True)

    assert planners_search.smallest_largest(weights, steps, budget) == min(schedules(steps, budget), key=edges)


def test_gaps_without_an_edge_are_not_taken():
    assert planners_search.smallest_largest({(0, 2): 1.0, (1, 3): 1.0, (2, 4): 1.0}, 5, 3) == (0, 2, 4)


def test_an_edge_is_a_generation_in_which_one_gap_is_reused(runs, model):
    runs = Runs(model, runs.task.part(0, 1), runs.store)
    graph = planners_search.Graph(runs)
    exact = generate(model, runs.task.prompts, **runs.task.arguments).latents
    schedule = (0, 1, 4)  # all but 2 and 3
    config = CacheConfig("dit_block_cache", model.config.blocks, STEPS, options={"compute_steps": schedule})
    error = (by_hand(model, runs.task, config) - exact).abs().mean()
    assert graph.weights[1, 4] == pytest.approx(float(error), rel=1e-4)
    assert {*graph.weights} == {(i, j) for i in range(STEPS) for j in range(i + 2, STEPS)}


def test_what_is_measured_is_psnr_and_computed_steps_by_hand(runs, model):
    config = planners_search.reused_seer(model.config.blocks, STEPS, 1)((0, 1, 4))
    found = runs.measure([config])
    exact = generate(model, runs.task.prompts, **runs.task.arguments).latents
    error = (by_hand(model, runs.task, config) - exact).square().mean(dim=(1, 2, 3, 4))
    assert found.psnr == pytest.approx((10 * (4 / error).log10()).tolist(), abs=0.01)
    assert found.computed == pytest.approx(3)


@pytest.mark.parametrize("guard", [None, "plan"])
def test_guards_begin_with_what_the_engine_does(model, guarded, guard):
    bench, task = guarded, unseen(1)
    steps, gain = (plans.uniform(30, 8), 0.0) if guard is None else (bench.plan.at(8).steps, bench.plan.at(8).gain)
    options = {"compute_steps": steps, "sigmas": bench.u, "gain": gain}
    config = CacheConfig("plan", 1, task.steps, options=options)
    with attached(model, [config]) as caches:
        exact = generate(model, task.prompts, forward_cache=caches.forward_cache, **task.arguments).latents
    found, samples = bench.latents(task, 8, guard and plan_guards.GUARDS[guard])
    assert [sample.calls for sample in samples] == [8]
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-3)


def test_a_guard_follows_a_richer_plan_where_the_difference_is_large(guarded, monkeypatch):
    bench, task = guarded, unseen(1)
    recorded = bench._recorded
    calls = {}
    for share in (1e-3, 1e3):  # as if the recording had had so much larger, and smaller, differences
        monkeypatch.setattr(bench, "_recorded", lambda points, step, share=share: recorded(points, step) / share)
        _, (sample,) = bench.latents(task, 10, plan_guards.Guard(follow=0.2))
        calls[share] = sample.calls
    assert calls[1e-3] < 10 < calls[1e3]


def test_what_is_known_is_not_generated_again(runs, model, monkeypatch):
    config = planners_search.reused_seer(model.config.blocks, STEPS, 0)((0, 4))
    first = runs.measure([config])
    again = Runs(model, runs.task, Store(runs.store.path))
    monkeypatch.setattr(planners_runs, "generate", None)
    assert again.measure([config]) == first
    with pytest.raises(TypeError):
        again.measure([config], mark="another file")
    with pytest.raises(TypeError):
        again.measure([config], again=True)


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "results.jsonl"
    Store(path).add("whole", [1.5])
    with path.open("a") as file:
        file.write('["cut", [2.')
    store = Store(path)
    assert (store.get("whole"), store.get("cut")) == ([1.5], None)


def test_nothing_is_searched_on_what_is_evaluated():
    searched, evaluated = calibration(40), unseen(32)
    assert not {*searched.prompts} & {*evaluated.prompts}
    assert not {*searched.seeds} & {*evaluated.seeds}


def test_the_trained_weights_run_in_other_sizes():
    case = next(case for case in transfer.CASES if case.name == "12 frames")
    model = transfer.model_of(case)
    made = generate(model, ["a red square moving left"], seeds=[0], steps=1).latents
    assert made.shape == (1, 3, 12, 24, 24)
    assert torch.isfinite(made).all()


@pytest.mark.parametrize("name", ["planners", "transfer"])
def test_help(name):
    done = subprocess.run([sys.executable, BENCHMARKS / f"{name}.py", "--help"], capture_output=True, text=True, check=True)
    assert "--quick" in done.stdout
