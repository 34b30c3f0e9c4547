"""safest: the ways that it tries beside generations by hand, what it keeps, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from hooked import TINY

from mindie_cache import CacheConfig, ModelExecError, ParametersInvalid, enable_cache
from mindie_cache.calibration.planning import Plan, plan, safest
from mindie_cache.calibration.planning.plan import STARTS, Entry
from mindie_cache.calibration.planning.trial import ways

CALL = {"num_inference_steps": 8, "height": 64, "width": 64, "max_sequence_length": 16}
PROMPTS, SEEDS = ["a green cone", "nothing"], (3, 4)
REGULAR = (0, 1, 3, 5, 7)  # of 8 steps, by hand


@pytest.fixture
def pipe():
    made = TINY["flux"].build()
    made.set_progress_bar_config(disable=True)
    return made


def generated(pipe, prompt, seed, **call):
    return pipe(prompt, generator=torch.Generator().manual_seed(seed), output_type="latent", **CALL, **call)[0].double()


def by_hand(pipe, steps, sigmas, gain):
    """The relative squared error over all prompts and seeds."""
    options = {"compute_steps": steps, "sigmas": sigmas, "gain": gain}
    error = energy = 0.0
    for prompt in PROMPTS:
        for seed in SEEDS:
            exact = generated(pipe, prompt, seed)
            with enable_cache(pipe, CacheConfig("plan", 1, 8, options=options)):
                error += float((generated(pipe, prompt, seed) - exact).square().sum())
            energy += float(exact.square().sum())
    return error / energy


@pytest.mark.parametrize(("steps", "gain"), [((0, 1, 2, 3, 7), 2.0), (REGULAR, 2.0), ((0, 2, 4, 5, 7), 0.5)])
def test_the_way_with_the_least_error_is_kept(pipe, tmp_path, steps, gain):
    found = plan(pipe, "a red ball", budget=5, **CALL)
    found = replace(found, front=tuple(Entry(steps, gain, 0.1) if e.budget == 5 else e for e in found.front))
    named = {"as planned": (steps, gain), "without correction": (steps, 0.0), "regular steps": (REGULAR, 0.0)}
    if steps == REGULAR:
        named.pop("regular steps")  # the same as the one before it
    errors = {name: by_hand(pipe, one, found.sigmas, factor) for name, (one, factor) in named.items()}
    best = min(errors, key=lambda name: errors[name])
    safe = safest(pipe, found, PROMPTS, seeds=SEEDS, **CALL)
    tried = dict(safe.provenance["tried"])
    assert (tried.pop("chosen"), tried.pop("prompts"), tried.pop("seeds")) == (best, PROMPTS, list(SEEDS))
    assert tried == pytest.approx(errors, rel=1e-4)
    assert (safe.chosen.steps, safe.chosen.gain) == named[best]
    assert safe.chosen.verified == pytest.approx(errors[best], rel=1e-4)
    others = [[entry for entry in one.front if entry.budget != 5] for one in (safe, found)]
    assert others[0] == others[1]
    safe.save(tmp_path / "plan.json")
    with enable_cache(pipe, tmp_path / "plan.json") as handle:
        generated(pipe, PROMPTS[0], SEEDS[0])
        computed = [row.step for report in handle.report().models.values() for row in report.steps if not row.reused]
    assert tuple(computed) == named[best][0]
    assert Plan.load(tmp_path / "plan.json").provenance["tried"]["chosen"] == best


@pytest.mark.parametrize("count", [6, 9, 13])
def test_regular_steps_begin_every_expert(count):
    sigmas = tuple(1 - step / count for step in range(count + 1))
    for start in range(1, count - 1):
        for budget in range(3, count + 1):
            steps = (0, start, *[step for step in range(1, count) if step != start][: budget - 3], count - 1)
            made = Plan(sigmas, (Entry(tuple(sorted({*steps})), 1.0, 0.1),), len({*steps}), {STARTS: [0, start]})
            even = ways(made).get("regular steps")
            if even is not None:
                assert len(even.steps) == made.budget
                assert {0, start, count - 1} <= {*even.steps}
                assert even.gain == 0.0


def test_without_a_correction_there_is_nothing_to_leave_out():
    sigmas = tuple(1 - step / 8 for step in range(9))
    made = Plan(sigmas, (Entry((0, 1, 2, 3, 7), 0.0, 0.1),), 5)
    assert [*ways(made)] == ["as planned", "regular steps"]
    assert [*ways(replace(made, front=(Entry(REGULAR, 0.0, 0.1),)))] == ["as planned"]


def test_what_is_refused(pipe):
    found = plan(pipe, "a red ball", budget=5, **CALL)
    with pytest.raises(ParametersInvalid, match=r"The plan has 8 steps, and this call of the pipeline makes 6"):
        safest(pipe, found, "a", **{**CALL, "num_inference_steps": 6})
    with pytest.raises(ParametersInvalid, match="Give at least one of each"):
        safest(pipe, found, [], **CALL)
    with enable_cache(pipe, "fast"), pytest.raises(ParametersInvalid, match="has a cache"):
        safest(pipe, found, "a", **CALL)
    with torch.no_grad():
        pipe.transformer.proj_out.weight.fill_(torch.nan)
    with pytest.raises(ModelExecError, match="without a cache"):
        safest(pipe, found, "a", **CALL)


def test_a_way_that_gives_nan_is_not_taken(pipe, monkeypatch):
    found = plan(pipe, "a red ball", budget=5, **CALL)
    forward, calls = pipe.transformer.forward, []

    def overflows(*args, **kwargs):  # in the first cached generation
        calls.append(1)
        made = forward(*args, **kwargs)
        return (made[0] * torch.nan, *made[1:]) if 8 < len(calls) <= 13 else made

    monkeypatch.setattr(pipe.transformer, "forward", overflows)
    safe = safest(pipe, found, "a", **CALL)
    assert safe.provenance["tried"]["as planned"] is None
    assert safe.provenance["tried"]["chosen"] != "as planned"
