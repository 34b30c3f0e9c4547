"""Face 2, the three verbs: TeleFuser's contract, and what it leaves undefined."""

from __future__ import annotations

import threading

import pytest
import torch
from toy import quiet

import mindie_cache
from mindie_cache import CacheWarning, ConfigError, ParametersInvalid
from mindie_cache.feature_cache import BaseFeatureCache, FeatureCache, NoOpCache
from mindie_cache.telefuser import AdaTaylorCache, create_feature_cache

STEPS = 12
EVEN = dict(cond_ratios=[1.0] * STEPS, max_skip_steps=2, retention_ratio=0.1)  # computed: 0, then every third step


def feature(step: int, is_cond: bool) -> float:
    return 10.0 * step + (1 if is_cond else 2)


def drive(cache: BaseFeatureCache, steps: int = STEPS, branches=(True, False), first: int = 0, shape=(1, 2, 3)) -> list[str]:
    """One generation of x -> x + feature(step, branch); a reused output must be x + the feature of a computed step."""
    marks = dict.fromkeys(branches, "")
    newest: dict[bool, float] = {}
    for step in range(first, steps):
        for is_cond in branches:
            x = torch.full(shape, 100.0 + step)
            if cache.should_compute(is_cond):
                newest[is_cond] = feature(step, is_cond)
                cache.update(x + newest[is_cond], x, is_cond)
                marks[is_cond] += "#"
            else:
                estimate = cache.approximate(x, is_cond)
                assert torch.equal(estimate, x + newest[is_cond])
                assert torch.equal(cache.approximate(x, is_cond), estimate)  # may be asked twice
                assert estimate is not x
                marks[is_cond] += "."
    return list(marks.values())


def magcache(**changes) -> FeatureCache:
    cache = create_feature_cache("magcache", num_inference_steps=STEPS, **{**EVEN, **changes})
    assert isinstance(cache, FeatureCache)
    return cache


def test_the_contract():
    assert drive(magcache()) == ["#..#..#..#.#"] * 2


def test_a_second_generation_without_reset_starts_afresh():
    """TeleFuser's counter runs past the plan and everything is skipped (T1), also when its object stays on the model after
    caching was switched off (T6)."""
    cache = magcache()
    for _ in range(3):
        assert drive(cache) == ["#..#..#..#.#"] * 2


def test_reset_begins_a_generation():
    cache = magcache()
    drive(cache, steps=5)
    cache.reset()
    assert drive(cache) == ["#..#..#..#.#"] * 2


def test_a_new_shape_does_not_shift_the_plan():
    """TeleFuser rewinds its counter in the middle of the run (T2)."""
    cache = magcache()
    marks = ""
    for step in range(STEPS):
        x = torch.zeros(1, 2 if step < 6 else 5)
        if cache.should_compute(True):
            cache.update(x + 1, x, True)
            marks += "#"
        else:
            assert torch.equal(cache.approximate(x, True), x + 1)
            marks += "."
    assert marks == "#..#..#..#.#"


def test_a_new_shape_at_a_skipped_step_is_an_error_that_says_what_to_do():
    cache = magcache()
    assert cache.should_compute(True)
    cache.update(torch.ones(1, 2), torch.zeros(1, 2), True)
    assert not cache.should_compute(True)
    with pytest.raises(ParametersInvalid, match=r"\(1, 5\).*\(1, 2\).*reset\(\)"):
        cache.approximate(torch.zeros(1, 5), True)


def test_one_branch_alone_and_a_branch_that_sits_out():
    cache = magcache()
    assert drive(cache, branches=(True,)) == ["#..#..#..#.#"]
    cache.reset()
    assert drive(cache, branches=(False,)) == ["#..#..#..#.#"]
    cache, marks = magcache(), ""
    for step in range(STEPS):
        for is_cond in (True, False) if 4 <= step < 9 else (True,):
            x = torch.zeros(2)
            compute = cache.should_compute(is_cond)
            if compute:
                cache.update(x + step, x, is_cond)
            if not is_cond:
                marks += "#" if compute else "."
    assert marks == "#.#.."  # steps 4 to 8: nothing kept at 4, planned at 6


def test_a_branch_that_missed_the_last_computed_step_is_refreshed():
    """It would go on with a feature that the other branch has replaced since."""
    cache, marks = create_feature_cache("teacache", num_inference_steps=STEPS, threshold=0.5), {True: "", False: ""}
    for step in range(STEPS):
        signal, x = torch.full((2,), 1.0 if step < 4 else 9.0), torch.zeros(2)  # changes at step 4 only
        for is_cond in (True, False) if not 3 <= step < 6 else (True,):
            compute = cache.should_compute(is_cond, signal=signal)
            if compute:
                cache.update(x + step, x, is_cond)
            marks[is_cond] += "#" if compute else "."
    assert marks == {True: "#...#......#", False: "#..#....#"}


def test_threads_and_requests_do_not_mix():
    """One object per model, several requests at once: TeleFuser's counters corrupt each other (T14)."""
    cache, outcomes = magcache(), []

    def work():
        outcomes.append(drive(cache))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [["#..#..#..#.#"] * 2] * 3

    marks = {"a": "", "b": ""}
    for step in range(STEPS):
        for request in marks:
            with mindie_cache.run(request):
                x = torch.zeros(2)
                compute = cache.should_compute(True)
                if compute:
                    cache.update(x + step, x, True)
                marks[request] += "#" if compute else "."
    assert list(marks.values()) == ["#..#..#..#.#"] * 2
    assert cache.report().note == "not called yet"  # outside of the requests, and they are over


def test_the_kept_feature_is_a_copy_and_is_released():
    cache = create_feature_cache("attention_cache", num_inference_steps=4, step_interval=2)
    x = torch.zeros(4)
    assert cache.should_compute(True)
    out = x + 1
    cache.update(out, x, True)
    out.add_(100)
    assert not cache.should_compute(True)
    assert cache.approximate(x, True).tolist() == [1.0] * 4
    assert cache.report().bytes_now == 16
    for _ in range(2):
        if cache.should_compute(True):
            cache.update(x + 1, x, True)
    assert magcache().report().note == "not called yet"


def test_no_cache_computes_always_and_returns_its_argument():
    cache, x = create_feature_cache("none", whatever=1), torch.ones(2)
    assert isinstance(cache, NoOpCache)
    assert cache.should_compute(True)
    cache.update(x, x, True)
    assert cache.approximate(x, True) is x
    cache.reset()


def test_approximate_without_data_returns_its_input_and_says_so():
    cache, x = magcache(), torch.ones(2)
    assert cache.should_compute(True)
    with pytest.warns(CacheWarning, match="before any update"):
        assert cache.approximate(x, True) is x


@pytest.mark.parametrize("verb", ["update", "approximate"])
def test_verbs_before_the_question(verb):
    x = torch.ones(2)
    arguments = (x, x, True) if verb == "update" else (x, True)
    with pytest.raises(ParametersInvalid, match="should_compute"):
        getattr(magcache(), verb)(*arguments)


@pytest.mark.parametrize("is_cond", ["uncond", "cond", None, 2])
def test_the_flag_is_no_name(is_cond):
    """A name is true in Python: "uncond" would be taken for the conditional branch."""
    with pytest.raises(ParametersInvalid, match="is_cond="):
        magcache().should_compute(is_cond)


@pytest.mark.parametrize("bad", [None, (torch.ones(2),), 1.0])
@pytest.mark.parametrize("place", [0, 1])
def test_one_tensor_goes_in_and_one_comes_out(bad, place):
    cache, given = magcache(), [torch.ones(2), torch.ones(2)]
    assert cache.should_compute(True)
    given[place] = bad
    with pytest.raises(ParametersInvalid, match=["output", "ori_input"][place]):
        cache.update(*given, True)
    cache.update(torch.ones(2), torch.ones(2), True)
    assert not cache.should_compute(True)
    with pytest.raises(ParametersInvalid, match="approximate: input"):
        cache.approximate(bad, True)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "words"),
    [
        ("ada_tailor", {}, ConfigError, "ada_taylor"),
        (None, {}, ConfigError, "none"),
        ("magcache", {}, TypeError, "num_inference_steps"),
        ("magcache", {"num_inference_steps": 4, "treshold": 1.0}, ConfigError, "threshold"),
        ("ada_taylor", {"num_inference_steps": 4}, TypeError, "model_type"),
        ("ada_taylor", {"model_type": "Wan2.1-T2V-1.3B", "num_inference_steps": 4, "n": 1}, TypeError, "n"),
        ("ada_taylor", {"model_type": "Wan2.1-T2V-1.3B", "num_inference_steps": 0}, ValueError, "num_inference_steps=0"),
        ("ada_taylor", {"model_type": "Wan2.1-T2V-1.3B", "num_inference_steps": 4, "n_derivatives": -1}, ValueError, "-1"),
        ("ada_taylor", {"model_type": "Wan2.1-T2V-1.3B", "num_inference_steps": 4, "taylor_threshold": 0}, ValueError, "0"),
        ("ada_taylor", {"model_type": "no such model", "num_inference_steps": 4}, FileNotFoundError, "no such model"),
        ("dit_block_cache", {"num_inference_steps": 4, "step_interval": 0}, ConfigError, "step_interval"),
        ("magcache", {"num_inference_steps": 4, "cond_ratios": [1.0] * 4, "init_step": 4}, ConfigError, "init_step=4"),
        ("cfg_cache", {"num_inference_steps": 4}, ConfigError, "CacheAgent.apply"),
    ],
)
def test_bad_arguments(name, arguments, error, words):
    with pytest.raises(error, match=words):
        create_feature_cache(name, **arguments)


def test_a_method_that_decides_from_data_asks_for_its_signal():
    cache = create_feature_cache("teacache", num_inference_steps=4)
    with pytest.raises(ParametersInvalid, match="signal=tensor"):
        cache.should_compute(True)
    cache, x = create_feature_cache("adacache", num_inference_steps=4), torch.ones(1, 2, 3)
    assert cache.should_compute(True)
    with pytest.raises(ParametersInvalid, match="observed=x"):
        cache.update(x, x, True)


def test_the_calibrator_measures_behind_the_verbs():
    cache = create_feature_cache("calibrator", num_inference_steps=3, model_name="toy", sigma_shift=1.0)
    for step, size in enumerate([1.0, 2.0, 3.0]):
        for is_cond in (True, False):
            assert cache.should_compute(is_cond)
            x = torch.zeros(1, 2, 4)
            cache.update(x + size * (1 if is_cond else step + 1), x, is_cond)
    ratios = {name: curves.ratios for name, curves in cache.calibration().branches.items()}
    assert ratios == {"cond": pytest.approx((1.0, 2.0, 1.5)), "uncond": pytest.approx((1.0, 4.0, 2.25))}
    with pytest.raises(ParametersInvalid, match="measures nothing"):
        magcache().calibration()


# --- AdaTaylorCache


def test_ada_taylor_says_its_plan():
    with quiet():
        cache = AdaTaylorCache("Wan2.1-T2V-1.3B", 30)
    plan = cache.get_compute_steps()
    marks = []
    for step in range(30):
        marks.append(cache.should_compute(True))
        assert cache.last_step_was_compute(True) == marks[-1] == (step in plan)
        if marks[-1]:
            cache.update(torch.ones(2), torch.zeros(2), True)
    assert {0, 1, 29} <= set(plan)
    assert len(plan) < 25


def test_the_second_expert_begins_at_its_own_step_and_computes_it():
    with quiet():
        cache = AdaTaylorCache("Wan2.1-T2V-1.3B", 50, init_step=30)
        alone = AdaTaylorCache("Wan2.1-T2V-1.3B", 50)
    for _ in range(2):  # also in a second generation
        marks = drive_line(cache, range(30, 50))
        assert marks[0] == "#"
        assert [30 + i for i, mark in enumerate(marks) if mark == "#"] == [s for s in cache.get_compute_steps() if s >= 30]
    assert [s for s in cache.get_compute_steps() if s < 30] == [s for s in alone.get_compute_steps() if s < 30]


def drive_line(cache: FeatureCache, steps: range) -> str:
    """A residual that grows linearly is met exactly, up to the distance where the last one is held."""
    marks, computed = "", []
    for step in steps:
        x = torch.zeros(2, dtype=torch.float64)
        if cache.should_compute(True):
            cache.update(x + 3.0 * step, x, True)
            computed.append(step)
            marks += "#"
        else:
            far = step - computed[-1] > 2 or len(computed) < 2
            wanted = 3.0 * (computed[-1] if far else step)
            assert cache.approximate(x, True).tolist() == pytest.approx([wanted] * 2, abs=1e-9)
            marks += "."
    return marks
