"""Plans on schedulers and pipelines of diffusers: the folded correction beside the latents repaired by hand, in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
from hooked import TINY, latents, marks
from test_plan import share
from toy import quiet

from mindie_cache import CacheAgent, CacheConfig, CacheWarning, ParametersInvalid, enable_cache
from mindie_cache.calibration.planning import plan, recording, sampler_of
from mindie_cache.calibration.planning.samplers import reason_against

STEPS = 12
SCHEDULE = (0, 2, 5, 9, 11)
EXACT = {
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow, dynamic shift": lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    "euler": lambda: diffusers.EulerDiscreteScheduler(),
    "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False),
    "ddim, to one": lambda: diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
}
OTHER = {
    "stochastic": lambda: diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ),
    "dpm": lambda: diffusers.DPMSolverMultistepScheduler(),
    "ddim v": lambda: diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False),
    "ddim clipping": lambda: diffusers.DDIMScheduler(),
    "euler v": lambda: diffusers.EulerDiscreteScheduler(prediction_type="v_prediction"),
    "cogvideox": lambda: diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction"),
}
NOISE = torch.randn(1, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WEIGHTS = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 3


def started(make):
    scheduler = make()
    dynamic = scheduler.config.get("use_dynamic_shifting")
    scheduler.set_timesteps(STEPS, **({"mu": 1.1} if dynamic else {}))
    for name in ("sigmas", "alphas_cumprod", "final_alpha_cumprod"):  # their float32 is not what is compared
        if isinstance(getattr(scheduler, name, None), torch.Tensor):
            setattr(scheduler, name, getattr(scheduler, name).double())
    return scheduler


def network(hidden_states, timestep):
    return torch.tanh(hidden_states @ WEIGHTS) * (1 + timestep / 1000)


def scaled(scheduler, latents, t):
    return scheduler.scale_model_input(latents, t) if hasattr(scheduler, "scale_model_input") else latents


def by_agent(scheduler, gain):
    levels = sampler_of(scheduler).levels
    options = {"compute_steps": SCHEDULE, "sigmas": levels, "gain": gain}
    agent, x = CacheAgent(CacheConfig("plan", 1, STEPS, options=options)), start(scheduler)
    for t in scheduler.timesteps:
        out = agent.apply(network, hidden_states=scaled(scheduler, x, t), timestep=float(t))
        x = scheduler.step(out, t, x).prev_sample
    return x


def start(scheduler):
    return NOISE * float(getattr(scheduler, "init_noise_sigma", 1.0))


def by_hand(scheduler, gain):
    """Estimates go into the scheduler; the repair is added to its latents, in the coordinates in which its steps add up."""
    u, x, known, since = np.array(sampler_of(scheduler).levels), start(scheduler), {}, []
    for index, t in enumerate(scheduler.timesteps):
        places = sorted(known)[-2:]
        p, i = (places[0] if len(places) > 1 else None), (places[-1] if places else None)

        def line(at, p=p, i=i):
            return known[i] if p is None else known[i] + (u[at] - u[i]) / (u[i] - u[p]) * (known[i] - known[p])

        computes = index in SCHEDULE
        out = network(scaled(scheduler, x, t), float(t)) if computes else line(index)
        x = scheduler.step(out, t, x).prev_sample
        if computes and since and index < STEPS - 1:
            weight = gain * sum((u[s + 1] - u[s]) * share(u, p, i, index, s) for s in since)
            x = x + weight * (out - line(index)) * unit(scheduler, index)
        known.update({index: out} if computes else {})
        since = [] if computes else [*since, index]
    return x


def unit(scheduler, index):
    """The latents after step `index` in those coordinates: DDIM's are divided by sqrt(a)."""
    if not isinstance(scheduler, diffusers.DDIMScheduler):
        return 1.0
    u = sampler_of(scheduler).levels[index + 1]
    return (1 / (1 + u**2)) ** 0.5


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_the_folded_correction_is_exact(name, gain):
    scheduler = started(EXACT[name])
    sampler = sampler_of(scheduler)
    assert sampler.exact
    assert not reason_against(scheduler)
    assert len(sampler.levels) == STEPS + 1
    assert all(a > b for a, b in itertools.pairwise(sampler.levels))
    found, wanted = by_agent(scheduler, gain), by_hand(started(EXACT[name]), gain)
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-7)  # schedulers go through float32 here and there


@pytest.mark.parametrize("name", OTHER)
def test_other_schedulers_get_no_correction(name):
    scheduler = started(OTHER[name])
    sampler = sampler_of(scheduler)
    assert not sampler.exact
    assert sampler.why == reason_against(scheduler) != ""
    assert len(sampler.levels) == STEPS + 1


# ------------------------------------------------------------------------------------------------------------- pipelines


def planned(name, budget, steps=8):
    pipe = TINY[name].build()
    call = TINY[name].call(steps=steps, seed=0, prompt="a red ball")
    for key in ("prompt", "generator", "output_type"):
        call.pop(key, None)
    return pipe, plan(pipe, ["a red ball", "two blue cubes"], budget=budget, **call)


@pytest.mark.parametrize("name", ["flux", "qwen-image", "sd3"])
def test_a_plan_on_a_pipeline(name, tmp_path):
    pipe, found = planned(name, 5)
    assert found.provenance["samples"] == 2
    assert found.provenance["scheduler"] == "FlowMatchEulerDiscreteScheduler"
    assert found.chosen.gain == 1.0
    bare = latents(name, pipe, steps=8)
    found.save(tmp_path / "plan.json")
    with enable_cache(pipe, tmp_path / "plan.json") as handle:
        cached = latents(name, pipe, steps=8)
        rows = [row for report in handle.report().models.values() for row in marks(report).values()]
    expected = "".join("#" if step in found.chosen.steps else "." for step in range(8))
    assert rows == [expected] * len(rows)
    error = float((cached - bare).square().sum() / bare.square().sum())
    assert error < 0.05
    assert torch.equal(latents(name, pipe, steps=8), bare)


def test_a_plan_of_all_steps_changes_nothing():
    pipe, found = planned("flux", 8)
    bare = latents("flux", pipe, steps=8)
    options = {"compute_steps": found.chosen.steps, "sigmas": found.sigmas, "gain": 1.0}
    with enable_cache(pipe, {"method": "plan", "options": options}), quiet():
        assert torch.equal(latents("flux", pipe, steps=8), bare)


def test_a_multistep_scheduler_gets_a_plan_without_correction(tmp_path):
    pipe, found = planned("wan", 5)
    assert type(pipe.scheduler).__name__ == "UniPCMultistepScheduler"
    assert {entry.gain for entry in found.front} == {0.0}
    assert "UniPC" in found.provenance["no correction"]
    found.save(tmp_path / "plan.json")
    with enable_cache(pipe, tmp_path / "plan.json") as handle:
        latents("wan", pipe, steps=8)
        assert "without correction" in str(handle.report())


def test_another_number_of_steps_is_said(tmp_path):
    pipe, found = planned("flux", 5)
    found.save(tmp_path / "plan.json")
    with enable_cache(pipe, tmp_path / "plan.json"), pytest.warns(CacheWarning, match="made for 8 steps"):
        latents("flux", pipe, steps=12)


def test_a_pipeline_with_a_cache_is_not_recorded():
    """What it reuses would be taken for the model's own."""
    pipe = TINY["flux"].build()
    with enable_cache(pipe, "fast"), pytest.raises(ParametersInvalid, match=r"has a cache.*disable_cache"):
        plan(pipe, ["a red ball"], num_inference_steps=4)


def test_recording_leaves_the_pipeline_as_it_was():
    pipe = TINY["flux"].build()
    bare = latents("flux", pipe, steps=4)
    with recording(pipe.scheduler):
        assert torch.equal(latents("flux", pipe, steps=4), bare)
    assert "step" not in vars(pipe.scheduler)
