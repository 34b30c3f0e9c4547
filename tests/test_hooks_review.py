"""Ordinary use of pipelines that no other file covers: runs from the middle, schedulers, prompts that change, threads, memory."""

from __future__ import annotations

import warnings

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
from hooked import TINY, marks, only
from tiny_pipelines.parts import picture

from mindie_cache import CacheWarning, enable_cache
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
@pytest.mark.parametrize("strength, wanted", [(1.0, "####..#..#..#..#..##"), (0.5, "##..#..#.#"), (0.3, "##..##")])
@pytest.mark.parametrize(
    "name, kind, scheduler",
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
