"""A plan on something else than what it was made on: what is said, when, how often, and refused if it is strict."""

from __future__ import annotations

import warnings

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
from hooked import TINY, latents

from mindie_cache import CacheWarning, ConfigError, enable_cache
from mindie_cache.calibration.planning import Plan, plan
from mindie_cache.calibration.planning.identity import checksum

STEPS = 6


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """A plan of each tiny pipeline, made once."""
    made = {}

    def path(name):
        if name not in made:
            call = TINY[name].call(steps=STEPS)
            for key in ("prompt", "generator", "output_type"):
                call.pop(key)
            made[name] = tmp_path_factory.mktemp("plans") / f"{name}.json"
            plan(TINY[name].build(), ["a red ball"], budget=4, **call).save(made[name])
        return made[name]

    return path


def said(pipe, asked, runs):
    """The warnings of enabling, and of each generation."""
    found = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with enable_cache(pipe, asked):
            for run in (None, *runs):
                if run is not None:
                    run()
                found.append([str(one.message) for one in caught if issubclass(one.category, CacheWarning)])
                caught.clear()
    return found


def strict(path):
    return {"method": "plan", "options": {"plan": str(path), "strict": True}}


@pytest.mark.parametrize("name", ["flux", "wan", "wan22", "cogvideox", "qwen-image"])
def test_nothing_is_said_of_a_plan_that_fits(plans, name):
    pipe = TINY[name].build()
    assert said(pipe, plans(name), [lambda: latents(name, pipe, steps=STEPS)] * 2) == [[], [], []]
    with enable_cache(pipe, strict(plans(name))):
        latents(name, pipe, steps=STEPS)
        with pytest.raises(ConfigError, match="was made for 6 steps, but steps_count=8"):
            latents(name, pipe, steps=8)


def other_layers(pipe):
    transformer = pipe.transformer
    pipe.transformer = type(transformer).from_config({**transformer.config, "num_single_layers": 2}).eval()


def other_scheduler(pipe):
    pipe.scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, use_dynamic_shifting=True, time_shift_type="exponential"
    )


def other_shift(pipe):
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, flow_shift=8.0)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("flux", other_layers, "FluxTransformer2DModel has another configuration"),
        ("flux", other_scheduler, "made with FlowMatchEulerDiscreteScheduler, not UniPCMultistepScheduler"),
        ("wan", other_shift, "shift was 3.0, and is 8.0"),
    ],
)
def test_what_differs_is_said_when_the_plan_is_enabled(plans, name, change, message):
    pipe = TINY[name].build()
    change(pipe)
    ((words,),) = said(pipe, plans(name), [])
    assert message in words
    assert "Plan again" in words
    with pytest.raises(ConfigError, match="does not fit") as error:
        enable_cache(pipe, strict(plans(name)))
    assert message in str(error.value)


def test_a_plan_of_another_model(plans):
    ((words,),) = said(TINY["sd3"].build(), plans("qwen-image"), [])
    assert "made on QwenImageTransformer2DModel, not SD3Transformer2DModel" in words


def test_a_model_without_its_pipeline_is_compared_too(plans):
    other = TINY["sd3"].build().transformer
    with pytest.warns(CacheWarning, match="made on FluxTransformer2DModel"), enable_cache(other, plans("flux")):
        pass
    same = TINY["flux"].build().transformer
    assert said(same, plans("flux"), []) == [[]]


def test_another_guidance_is_said_once(plans):
    pipe = TINY["wan"].build()

    def run():
        latents("wan", pipe, steps=STEPS, guidance_scale=2.5)

    enabled, first, second = said(pipe, plans("wan"), [run, run])
    assert not enabled
    assert not second
    assert ["guidance_scale was 5, and is 2.5" in words for words in first] == [True]
    with enable_cache(pipe, strict(plans("wan"))), pytest.raises(ConfigError, match=r"guidance_scale was 5, and is 2\.5"):
        run()


def test_other_noise_levels_are_said_once(plans):
    """As with another resolution, where the scheduler chooses its shift by that; told by the levels of the run itself."""
    pipe = TINY["flux"].build()
    steep = (torch.linspace(1, 1 / STEPS, STEPS) ** 2).tolist()

    def run():
        latents("flux", pipe, steps=STEPS, sigmas=steep)

    enabled, first, second = said(pipe, plans("flux"), [run, run])
    assert not enabled
    assert not second
    (words,) = first
    assert "of the noise was left when it was recorded" in words
    with enable_cache(pipe, strict(plans("flux"))), pytest.raises(ConfigError, match="of the noise was left"):
        run()


def test_other_levels_in_a_later_generation_are_said(plans):
    pipe = TINY["flux"].build()
    steep = (torch.linspace(1, 1 / STEPS, STEPS) ** 2).tolist()
    usual, other = (
        lambda: latents("flux", pipe, steps=STEPS),
        lambda: latents("flux", pipe, steps=STEPS, sigmas=steep),
    )
    assert [len(words) for words in said(pipe, plans("flux"), [usual, other, other])] == [0, 0, 1, 0]


SWAPPED = {
    "another class": lambda config: diffusers.FlowMatchLCMScheduler.from_config(config),
    "the same class, with noise": lambda config: diffusers.FlowMatchEulerDiscreteScheduler.from_config(
        config, stochastic_sampling=True
    ),
}


@pytest.mark.parametrize("swap", SWAPPED.values(), ids=SWAPPED.keys())
@pytest.mark.parametrize("given", ["file", "numbers"])
def test_a_scheduler_that_is_swapped_afterwards_is_said_once(plans, swap, given):
    pipe, found = TINY["flux"].build(), Plan.load(plans("flux"))
    options = {"compute_steps": found.chosen.steps, "sigmas": found.sigmas, "gain": 1.0}
    if given == "file":
        options = {"plan": str(plans("flux")), "gain": 1.0}
    fitting = pipe.scheduler

    def run():
        torch.manual_seed(0)  # of the schedulers' noise
        return latents("flux", pipe, steps=STEPS)

    def swapped():
        pipe.scheduler = swap(fitting.config)
        run()

    asked = {"method": "plan", "options": options}
    enabled, first, second, third = said(pipe, asked, [run, swapped, run])
    assert not enabled + first + third
    assert ["another scheduler now" in words and "Enable the cache again" in words for words in second] == [True]
    assert not [words for after in said(pipe, asked, [run])[1:] for words in after]  # it was fitted, without correction
    pipe.scheduler = fitting
    with enable_cache(pipe, {**asked, "options": {**options, "strict": True}}):
        run()
        with pytest.raises(ConfigError, match="another scheduler now"):
            swapped()


def test_another_object_of_the_same_scheduler_is_no_other_scheduler(plans):
    pipe = TINY["flux"].build()

    def replaced():
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        latents("flux", pipe, steps=STEPS)

    assert said(pipe, plans("flux"), [replaced, replaced]) == [[], [], []]


def test_the_checksum_is_of_class_and_configuration():
    one, again = TINY["flux"].build().transformer, TINY["flux"].build().transformer
    with torch.no_grad():
        next(again.parameters()).zero_()
    again.register_to_config(_name_or_path="somewhere")
    assert checksum(one) == checksum(again)
    other = type(one).from_config({**one.config, "num_layers": 1})
    assert checksum(other) != checksum(one)
    assert checksum(torch.nn.Linear(1, 1)) is None


def test_verified_errors_are_kept_in_the_file(plans, tmp_path):
    found = Plan.load(plans("flux"))
    with_errors = found.with_verified({4: 2.5e-3, 6: 0.0})
    with_errors.save(tmp_path / "plan.json")
    assert {e.budget: e.verified for e in Plan.load(tmp_path / "plan.json").front if e.verified is not None} == {
        4: 2.5e-3,
        6: 0.0,
    }
    assert with_errors.chosen.steps == found.chosen.steps
    assert with_errors.with_verified({4: 1e-3}).at(6).verified == 0.0
    with pytest.raises(ConfigError, match="budget=1: the plan has"):
        found.with_verified({1: 1e-3})
    with pytest.raises(ConfigError, match="out of range"):
        found.with_verified({4: -1.0})
