"""Ordinary use that no other file covers: runs from the middle, shared models, copied contexts, what a run leaves behind."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import threading
import warnings
import weakref

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
from hooked import EVERY_OTHER, TINY, Stepper, latents, marks, only
from tiny_pipelines.parts import picture
from zoo.matrix import METHODS

import mindie_cache
from mindie_cache import CacheWarning, ParametersInvalid, enable_cache
from mindie_cache.hooks import sight

SHARED = ("prompt", "height", "width", "max_sequence_length", "guidance_scale")


def from_video(name, kind, strength, scheduler=None, steps=20):
    """A pipeline that starts from a video: it leaves out the first timesteps, and tells its scheduler nothing of it."""
    parts = {key: part for key, part in TINY[name].build().components.items() if key not in ("transformer_2",)}
    pipe = kind(**{key: part for key, part in parts.items() if not key.startswith(("boundary", "expand"))})
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    call = {key: value for key, value in TINY[name].call().items() if key in SHARED}
    video = [picture(call["height"], call["width"])] * 9
    generator = torch.Generator().manual_seed(0)
    fixed = {"video": video, "strength": strength, "num_inference_steps": steps, "output_type": "latent"}
    return pipe, {**call, **fixed, "generator": generator}


@pytest.mark.parametrize("known", ["host", "device"])
@pytest.mark.parametrize(("strength", "wanted"), [(1.0, "#.#.#.#.#..#.#.#.#.#"), (0.5, "#.#.#..#.#"), (0.3, "#.#..#")])
@pytest.mark.parametrize(
    ("name", "kind", "scheduler"),
    [
        ("cogvideox", "CogVideoXVideoToVideoPipeline", None),
        ("cogvideox", "CogVideoXVideoToVideoPipeline", "CogVideoXDPMScheduler"),
        ("wan", "WanVideoToVideoPipeline", None),
    ],
)
def test_a_run_that_starts_from_a_video_has_fewer_steps(name, kind, scheduler, strength, wanted, known, monkeypatch):
    if known == "device":  # where only the pipeline's own count tells
        monkeypatch.setattr(sight, "host_value", lambda timestep: None)
    pipe, call = from_video(name, getattr(diffusers, kind), strength, scheduler and getattr(diffusers, scheduler))
    with warnings.catch_warnings(), enable_cache(pipe, "balanced") as handle:
        warnings.simplefilter("error", CacheWarning)
        for _ in range(2):
            pipe(**call)
            assert set(marks(only(handle)).values()) == {wanted}


@pytest.mark.filterwarnings("ignore:fastercache reused nothing")
@pytest.mark.parametrize("method", ["taylorseer lite", "fastercache", "first_block"])
def test_nothing_is_kept_alive_by_a_finished_run(method):
    """Neither the features of the first expert, nor prompt embeddings."""
    pipe, kept = TINY["wan22"].build(), []
    sd3 = TINY["sd3"].build()
    sd3.transformer.register_forward_pre_hook(
        lambda _, args, given: kept.append(weakref.ref(given["encoder_hidden_states"])), with_kwargs=True
    )
    with enable_cache(pipe, METHODS[method]) as handle:
        latents("wan22", pipe, steps=8)
        reports = handle.report().models
        assert [report.bytes_now for report in reports.values()] == [0, 0]
        assert all(report.bytes_peak for report in reports.values())
    with enable_cache(sd3, METHODS[method]):
        latents("sd3", sd3)
        assert [embeddings() for embeddings in kept] == [None] * 4


def test_an_expert_that_reused_nothing_says_so():
    pipe = TINY["wan22"].build()
    never = {"method": "teacache", "options": {"threshold": 1e-9}}
    pipe.register_to_config(boundary_ratio=0.2)  # most steps are the first one's
    with enable_cache(pipe, never), pytest.warns(CacheWarning, match="reused nothing") as caught:
        latents("wan22", pipe, steps=8)
    assert len(caught) == 2  # one for each model


def play(model, latent, gate=None, steps=8):
    """The step that the features of each call are of; they are no whole number if they are of another generation."""
    found = []
    for step in range(steps):
        if gate is not None:
            gate.wait(10)
        out = model(torch.full((1, 2), latent), torch.tensor([float(steps - 1 - step)]), torch.full((1, 3), latent))
        found.append(steps - 1 - float(out[0, 0] - latent) / 6 + latent)
    return found


def test_generations_in_copied_contexts_are_apart(monkeypatch):
    """asyncio.to_thread, and servers that use threads like it, copy the context that has generated before."""
    monkeypatch.setattr(sight, "_conditions", lambda values: {})  # as of one prompt in both
    model, wanted = Stepper(), [0, 0, 2, 2, 4, 4, 6, 6]
    with enable_cache(model, EVERY_OTHER, num_inference_steps=8):
        assert play(model, 100.0) == wanted
        found, gate = {}, threading.Barrier(2)
        contexts = [contextvars.copy_context() for _ in range(2)]
        jobs = [lambda i=i: found.update({i: contexts[i].run(play, model, 100.0 + 200 * i, gate)}) for i in range(2)]
        threads = [threading.Thread(target=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {0: wanted, 1: wanted}
        assert play(model, 100.0) == wanted


@pytest.mark.parametrize("late", [0, 3])
def test_generations_in_asyncio_tasks_are_apart(monkeypatch, late):
    """Also if the model was called before they were started, so that their contexts are copies of one."""
    monkeypatch.setattr(sight, "_conditions", lambda values: {})  # as of one prompt in both
    model, wanted = Stepper(), [0, 0, 2, 2, 4, 4, 6, 6]

    async def task(latent, wait):
        for _ in range(wait):
            await asyncio.sleep(0)
        found = []
        for step in range(8):
            out = model(torch.full((1, 2), latent), torch.tensor([7.0 - step]), torch.full((1, 3), latent))
            found.append(7 - float(out[0, 0] - latent) / 6 + latent)
            await asyncio.sleep(0)
        return found

    async def server():
        return await asyncio.gather(task(100.0, 0), task(300.0, late))

    with enable_cache(model, EVERY_OTHER, num_inference_steps=8):
        assert play(model, 100.0) == wanted
        assert asyncio.run(server()) == [wanted, wanted]
        assert play(model, 100.0) == wanted


def test_steps_that_are_sent_to_threads_one_by_one():
    """In a run they belong together; without one each begins a generation, which is said."""
    model = Stepper()

    async def generate():
        calls = [(torch.zeros(1, 2), torch.tensor([15.0 - step])) for step in range(16)]
        return [15 - round(float((await asyncio.to_thread(model, *call))[0, 0]) / 6) for call in calls]

    with enable_cache(model, EVERY_OTHER, num_inference_steps=16):
        with mindie_cache.run():
            assert asyncio.run(generate()) == [step - step % 2 for step in range(16)]
        with pytest.warns(CacheWarning, match="contexts of their own"):
            assert asyncio.run(generate()) == list(range(16))


@pytest.mark.parametrize("name", ["flux", "sd3", "cogvideox"])
def test_the_model_in_another_pipeline(name):
    """Its steps are not those of the pipeline that was enabled: that is said, or asked for."""
    pipe = TINY[name].build()
    other = type(pipe)(**{**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)})
    other.set_progress_bar_config(disable=True)
    with enable_cache(pipe, "balanced") as handle:
        with pytest.raises(ParametersInvalid, match="several pipelines share the model"):
            latents(name, other, steps=10)  # not for 1000 steps, of which 10 would all be warm-up
        latents(name, pipe, steps=20)
        with pytest.warns(CacheWarning, match="Its steps are taken to be 20"):
            latents(name, other, steps=10)
        handle.refresh(num_inference_steps=10)
        latents(name, other, steps=10)
        assert set(marks(only(handle)).values()) == {"#.#.#..#.#"}
