"""Plans on schedulers and pipelines of diffusers: the folded correction beside schedulers that get repaired outputs."""

from __future__ import annotations

import itertools
from dataclasses import replace

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
from mindie_cache.calibration.search.targets import PipelineTarget

STEPS = 12
SCHEDULE = (0, 2, 5, 9, 11)
V = {"prediction_type": "v_prediction"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
COG = {**V, "rescale_betas_zero_snr": True, "snr_shift_scale": 1.0, "timestep_spacing": "trailing"}
ONE_STEP = {
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow, dynamic shift": lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    "euler": lambda: diffusers.EulerDiscreteScheduler(),
    "euler v": lambda: diffusers.EulerDiscreteScheduler(**V),
    "euler edm": lambda: diffusers.EDMEulerScheduler(),
    "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False),
    "ddim, to one": lambda: diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "ddim v": lambda: diffusers.DDIMScheduler(clip_sample=False, **V),
    "cogvideox": lambda: diffusers.CogVideoXDDIMScheduler(**COG),
}
MULTISTEP = {
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**FLOW),
    "unipc, noise": lambda: diffusers.UniPCMultistepScheduler(),
    "dpm": lambda: diffusers.DPMSolverMultistepScheduler(**FLOW),
    "dpm, noise": lambda: diffusers.DPMSolverMultistepScheduler(),
    "dpm, karras": lambda: diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True),
    "dpm edm": lambda: diffusers.EDMDPMSolverMultistepScheduler(),
    "deis": lambda: diffusers.DEISMultistepScheduler(),
}
LINEAR = ONE_STEP | MULTISTEP
OTHER = {
    "stochastic": (lambda: diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "noise"),
    "lcm": (lambda: diffusers.FlowMatchLCMScheduler(), "noise"),
    "ancestral": (lambda: diffusers.EulerAncestralDiscreteScheduler(), "noise"),
    "dpm sde": (lambda: diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **FLOW), "noise"),
    "sa": (lambda: diffusers.SASolverScheduler(), "noise"),
    "ddpm": (lambda: diffusers.DDPMScheduler(), "noise"),
    "ddim clipping": (lambda: diffusers.DDIMScheduler(), "bounds"),
    "ddim thresholding": (lambda: diffusers.DDIMScheduler(clip_sample=False, thresholding=True), "bounds"),
    "dpm thresholding": (lambda: diffusers.DPMSolverMultistepScheduler(thresholding=True), "bounds"),
    "cogvideox dpm": (lambda: diffusers.CogVideoXDPMScheduler(**COG), "cannot be tried"),
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


def unaware(hidden_states, timestep):
    """Its output is the same for all latents."""
    return torch.sin(WEIGHTS[:1] * 5 + timestep / 300).expand_as(hidden_states)


def by_agent(scheduler, gain, model):
    options = {"compute_steps": SCHEDULE, "sigmas": sampler_of(scheduler).levels, "gain": gain}
    agent, x = CacheAgent(CacheConfig("plan", 1, STEPS, options=options)), start(scheduler)
    for t in scheduler.timesteps:
        out = agent.apply(model, hidden_states=scaled(scheduler, x, t), timestep=float(t))
        x = scheduler.step(out, t, x).prev_sample
    return x


def start(scheduler):
    return NOISE * min(20.0, float(getattr(scheduler, "init_noise_sigma", 1.0)))


def replayed(make, outputs):
    """A scheduler that was given these outputs, and its latents."""
    scheduler = started(make)
    x = start(scheduler)
    for t, out in zip(scheduler.timesteps, outputs, strict=False):
        scaled(scheduler, x, t)
        x = scheduler.step(out, t, x).prev_sample
    return scheduler, x


def by_hand(make, gain, model):
    """After every gap its estimates are repaired, and all steps are made again by a new scheduler."""
    u, known, outputs, since = np.array(sampler_of(started(make)).levels), {}, [], []
    for index in range(STEPS):
        places = sorted(known)[-2:]
        p, i = (places[0] if len(places) > 1 else None), (places[-1] if places else None)

        def line(at, p=p, i=i):
            return known[i] if p is None else known[i] + (u[at] - u[i]) / (u[i] - u[p]) * (known[i] - known[p])

        if index not in SCHEDULE:
            outputs.append(line(index))
            since.append(index)
            continue
        scheduler, x = replayed(make, outputs)
        t = scheduler.timesteps[index]
        out = model(scaled(scheduler, x, t), float(t))
        if index < STEPS - 1:
            for s in since:
                outputs[s] = outputs[s] + gain * share(u, p, i, index, s) * (out - line(index))
        known[index], since = out, []
        outputs.append(out)
    return replayed(make, outputs)[1]


@pytest.mark.parametrize("name", ONE_STEP)
@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_the_folded_correction_repairs_the_latents_of_the_next_step(name, gain):
    """Also for a network that looks at latents: from the computed step on they are the repaired ones."""
    found = by_agent(started(ONE_STEP[name]), gain, network)
    wanted = by_hand(ONE_STEP[name], gain, network)
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)  # schedulers go through float32 here and there


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("gain", [0.5, 1.0])
def test_the_folded_correction_repairs_the_final_latents(name, gain):
    """Multistep schedulers keep the correction in their history, and the factor allows for what it does from there."""
    found = by_agent(started(LINEAR[name]), gain, unaware)
    wanted = by_hand(LINEAR[name], gain, unaware)
    without = by_hand(LINEAR[name], 0.0, unaware)
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, without, rtol=0, atol=3e-4)


def test_levels_are_those_of_the_theory():
    """Flow: sigma. Noise by DDIM: noise over signal, times the final signal. v by DDIM: x' = cos(d) x - sin(d) v, where d is
    the step of the angle whose cosine is the signal (Salimans and Ho, 2022)."""
    flow = started(ONE_STEP["flow"])
    assert sampler_of(flow).levels == pytest.approx(flow.sigmas.tolist(), abs=1e-6)
    ddim = started(ONE_STEP["ddim, to one"])
    last = int(ddim.timesteps[-1]) - 1000 // STEPS
    signal = np.sqrt([*[float(ddim.alphas_cumprod[t]) for t in ddim.timesteps], float(ddim.alphas_cumprod[max(last, 0)])])
    ratio = np.sqrt(1 - signal**2) / signal
    assert np.diff(sampler_of(ddim).levels) == pytest.approx(signal[-1] * np.diff(ratio), rel=1e-6)
    turning = started(ONE_STEP["ddim v"])
    signal = np.sqrt([*[float(turning.alphas_cumprod[t]) for t in turning.timesteps], 1.0])
    turns = -np.diff(np.arccos(signal))
    wanted = [-np.sin(turn) * np.prod(np.cos(turns[at + 1 :])) for at, turn in enumerate(turns)]
    assert np.diff(sampler_of(turning).levels) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("name", LINEAR)
def test_linear_schedulers_are_recognised(name):
    before = torch.get_rng_state()
    scheduler = started(LINEAR[name])
    sampler = sampler_of(scheduler)
    assert sampler.exact
    assert not sampler.why
    assert not reason_against(LINEAR[name]())  # before its timesteps are set
    assert len(sampler.levels) == STEPS + 1
    assert all(a > b for a, b in itertools.pairwise(sampler.levels))
    assert sampler_of(scheduler) == sampler  # it is as it was
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", OTHER)
def test_other_schedulers_get_no_correction(name):
    make, why = OTHER[name]
    before = torch.get_rng_state()
    scheduler = started(make)
    sampler = sampler_of(scheduler)
    assert not sampler.exact
    assert sampler.why == reason_against(make())
    assert why in sampler.why
    assert type(scheduler).__name__ in sampler.why
    assert len(sampler.levels) == STEPS + 1
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "make",
    [
        lambda: diffusers.DPMSolverMultistepScheduler(solver_order=3, **FLOW),  # a late output is subtracted in the end
        lambda: diffusers.PNDMScheduler(),
        lambda: diffusers.DDIMScheduler(clip_sample=False, prediction_type="sample"),  # the last output is the result
    ],
)
def test_outputs_that_cannot_carry_what_others_were_off(make):
    sampler = sampler_of(started(make))
    assert not sampler.exact
    assert "count for nothing, or with another sign" in sampler.why


# ------------------------------------------------------------------------------------------------------------- pipelines


def planned(name, budget, steps=8):
    pipe = TINY[name].build()
    call = TINY[name].call(steps=steps, seed=0, prompt="a red ball")
    for key in ("prompt", "generator", "output_type"):
        call.pop(key, None)
    return pipe, plan(pipe, ["a red ball", "two blue cubes"], budget=budget, **call)


PIPELINES = {
    "flux": "FlowMatchEulerDiscreteScheduler",
    "qwen-image": "FlowMatchEulerDiscreteScheduler",
    "sd3": "FlowMatchEulerDiscreteScheduler",
    "wan": "UniPCMultistepScheduler",
    "cogvideox": "CogVideoXDDIMScheduler",
    "pixart-sigma": "DPMSolverMultistepScheduler",
}
MODERATE = {"flux", "qwen-image"}  # guidance of the others is above 4: see test_strong_guidance_corrects_nothing


@pytest.mark.parametrize("name", PIPELINES)
def test_a_plan_on_a_pipeline(name, tmp_path):
    pipe, found = planned(name, 5)
    assert found.provenance["samples"] == 2
    assert found.provenance["scheduler"] == PIPELINES[name]
    assert found.chosen.gain == (1.0 if name in MODERATE else 0.0)
    bare = latents(name, pipe, steps=8)
    for gain in (0.0, 1.0):
        entries = tuple([replace(entry, gain=gain) for entry in found.front])
        replace(found, front=entries).save(tmp_path / "plan.json")
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


def test_a_scheduler_with_noise_gets_a_plan_without_correction(tmp_path):
    pipe = TINY["flux"].build()
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    call = {"num_inference_steps": 8, "height": 64, "width": 64, "max_sequence_length": 16}
    found = plan(pipe, ["a red ball"], budget=5, **call)
    assert {entry.gain for entry in found.front} == {0.0}
    assert "adds noise" in found.provenance["no correction"]
    found.save(tmp_path / "plan.json")
    with enable_cache(pipe, tmp_path / "plan.json") as handle:
        latents("flux", pipe, steps=8)
        assert "without correction" in str(handle.report())


def with_ddim():
    """A pipeline that passes `eta` on to its scheduler."""
    pipe = TINY["pixart-sigma"].build()
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    return pipe


def ddim(**given):
    call = TINY["pixart-sigma"].call(steps=8)
    for key in ("prompt", "generator", "output_type"):
        call.pop(key, None)
    return plan(with_ddim(), "a red ball", budget=5, **{**call, **given})


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_what_is_recorded_is_what_is_generated_with_noise(eta):
    """Pipelines look at the signature of `step` before they pass on `eta` and the generator of the noise."""
    pipe = with_ddim()

    def made():
        return pipe(**{**TINY["pixart-sigma"].call(steps=4), "output_type": "latent", "eta": eta})[0]

    bare = made()
    with recording(pipe.scheduler):
        assert torch.equal(made(), bare)


def test_a_call_that_asks_for_noise_gets_a_plan_without_correction():
    """`eta` is an argument of the call; the scheduler itself does not know of it."""
    found = ddim(eta=1.0)
    assert {entry.gain for entry in found.front} == {0.0}
    assert found.provenance["no correction"] == "DDIMScheduler: it is given eta=1.0, and adds noise in its steps"
    assert {entry.gain for entry in ddim(eta=0.0, guidance_scale=2.0).front} == {1.0}


@pytest.mark.parametrize(
    ("name", "scale", "budgets", "said"),
    [
        ("wan", 1.0, {2, 3, 4, 5, 6, 7, 8}, None),
        ("wan", 2.0, {2, 3, 4, 5, 6, 7, 8}, None),
        ("wan", 3.0, {4, 5, 6, 7, 8}, "from 4 computed steps on, because of guidance by 3"),
        ("wan", 5.0, set(), "none, because of guidance by 5"),
        ("flux", 5.0, {2, 3, 4, 5, 6, 7, 8}, None),  # the model is told of it: there is one branch
    ],
)
def test_strong_guidance_corrects_nothing(name, scale, budgets, said):
    call = TINY[name].call(steps=8)
    for key in ("prompt", "generator", "output_type"):
        call.pop(key)
    found = plan(TINY[name].build(), "a red ball", **{**call, "guidance_scale": scale})
    assert {entry.budget for entry in found.front if entry.gain == 1.0} == budgets
    assert {entry.gain for entry in found.front if entry.budget not in budgets} <= {0.0}
    assert found.provenance.get("correction") == said


def test_the_expert_with_the_strongest_guidance_counts():
    call = TINY["wan22"].call(steps=8)
    for key in ("prompt", "generator", "output_type"):
        call.pop(key)
    weak = {**call, "guidance_scale": 1.5}
    both = [plan(TINY["wan22"].build(), "a ball", **{**weak, "guidance_scale_2": scale}) for scale in (2.0, 6.0)]
    assert [{entry.gain for entry in found.front} for found in both] == [{1.0}, {0.0}]
    assert [found.provenance["cfg_scale"] for found in both] == [2.0, 6.0]


def test_prompts_of_a_plan():
    """One string is one prompt, and not as many as it has letters; none are said."""
    found = ddim()
    assert found.provenance["prompts"] == ["a red ball"]
    assert found.provenance["samples"] == 1
    for wrong in ({"prompts": []}, {"prompts": ["a"], "seeds": []}):
        with pytest.raises(ParametersInvalid, match="Give at least one of each"):
            plan(TINY["flux"].build(), **wrong)


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


def test_the_tuner_records_multistep_schedulers_with_their_correction():
    """Twice: the state that a generation leaves in the scheduler is not tried."""
    call = {name: value for name, value in TINY["wan"].call().items() if name not in ("prompt", "generator", "output_type")}
    call.pop("num_inference_steps")
    target = PipelineTarget(subject=TINY["wan"].build(), name="wan", steps=5, device=torch.device("cpu"), call=call)
    for _ in range(2):
        _, found = target.record("a red ball", 0)
        assert found.exact
        wanted = diffusers.UniPCMultistepScheduler(**FLOW)
        wanted.set_timesteps(5)
        assert found.sigmas == pytest.approx(np.array(sampler_of(wanted).levels))
