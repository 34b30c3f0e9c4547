"""cfg_cache under enable_cache: no picture is ever predicted from another picture, or from another tile of it."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers")

import diffusers
from hooked import TINY, latents, marks, only
from toy import quiet

import mindie_cache
from mindie_cache import CacheWarning, enable_cache

STEPS = 10
REUSED, COMPUTED = "###.#....#", "#" * STEPS
BATCH = {"method": "cfg_cache", "options": {"layout": "batch", "uncond_first": True}}
LATENTS = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS, NEGATIVE = torch.tensor([0.4, -1.1]), torch.tensor([2.0, 1.5])


class Painter(nn.Module):
    """Each row by itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.ModuleList([nn.Linear(8, 8) for _ in range(3)]) for _ in range(2)])
        self.requires_grad_(False).eval()
        self.rows: list[int] = []

    def forward(self, hidden_states, timestep, encoder_hidden_states, left_out=0):
        self.rows.append(len(hidden_states))
        push = encoder_hidden_states[:, None, None, None] + timestep
        for block in self.blocks[left_out:]:
            for layer in block:
                hidden_states = hidden_states + 0.5 * torch.tanh(layer(hidden_states) + push)
        return hidden_states


class Pipe:
    """A pipeline that names no branch, and paints one picture for each prompt."""

    def __init__(self, model: Painter, guided: bool = True):
        self.transformer = model
        self.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        self.do_classifier_free_guidance = guided

    def __call__(self, which: slice) -> torch.Tensor:
        picture, (prompt, negative) = LATENTS[which], (PROMPTS[which], NEGATIVE[which])
        self.scheduler.set_timesteps(STEPS)
        for t in self.scheduler.timesteps:
            velocity = self.velocity(picture, t / 1000, prompt, negative)
            picture = self.scheduler.step(velocity, t, picture).prev_sample
        return picture

    def velocity(self, picture, t, prompt, negative):
        uncond, cond = self.transformer(torch.cat([picture] * 2), t, torch.cat([negative, prompt])).chunk(2)
        return uncond + 3 * (cond - uncond)


class CallByCall(Pipe):
    def velocity(self, picture, t, prompt, negative):
        cond, uncond = (self.transformer(picture, t, text) for text in (prompt, negative))
        return uncond + 3 * (cond - uncond)


class WithoutGuidance(Pipe):
    def velocity(self, picture, t, prompt, negative):
        return self.transformer(picture, t, prompt)


class Perturbed(Pipe):
    """Three rows a picture."""

    do_perturbed_attention_guidance = True

    def velocity(self, picture, t, prompt, negative):
        text = torch.cat([negative, prompt, prompt / 2])
        uncond, cond, worse = self.transformer(torch.cat([picture] * 3), t, text).chunk(3)
        return uncond + 3 * (cond - uncond) + 2 * (cond - worse)


class LayersLeftOut(Pipe):
    """A call with the prompts alone beside the batch, in some steps."""

    def velocity(self, picture, t, prompt, negative):
        guided = super().velocity(picture, t, prompt, negative)
        if 0.3 < t < 0.95:
            cond = self.transformer(picture, t, prompt)
            guided = guided + (cond - self.transformer(picture, t, prompt, left_out=1))
        return guided


PAIR = slice(0, 2)


@pytest.mark.parametrize("kind", [Pipe, LayersLeftOut])
def test_two_pictures_are_as_each_alone(kind):
    painted = {}
    for which in (PAIR, slice(0, 1), slice(1, 2)):
        pipe = kind(Painter())
        with warnings.catch_warnings():
            warnings.simplefilter("error", CacheWarning)
            with enable_cache(pipe, BATCH) as handle:
                painted[which.start, which.stop] = pipe(which)
                assert next(iter(marks(only(handle)).values())) == REUSED
    torch.testing.assert_close(painted[0, 2], torch.cat((painted[0, 1], painted[1, 2])))
    assert not torch.allclose(painted[0, 2], kind(Painter())(PAIR))


@pytest.mark.parametrize(
    ("kind", "guided"), [(CallByCall, True), (CallByCall, False), (WithoutGuidance, False), (Perturbed, True)]
)
def test_a_batch_of_pictures_is_no_guidance(kind, guided):
    pipe = kind(Painter(), guided)
    with enable_cache(pipe, BATCH), pytest.warns(CacheWarning, match=r"both branches.*branch\(\"both\"\)"):
        painted = pipe(PAIR)
    assert torch.equal(painted, kind(Painter())(PAIR))


def test_a_pipeline_does_not_speak_for_another_one():
    pipe, other = Pipe(Painter()), WithoutGuidance(Painter(), guided=False)
    other.transformer = pipe.transformer
    bare = pipe(PAIR), other(PAIR)
    with enable_cache(pipe, BATCH), quiet():
        for _ in range(2):
            assert not torch.equal(pipe(PAIR), bare[0])
            assert torch.equal(other(PAIR), bare[1])


def test_guidance_may_be_switched_between_generations():
    pipe = Pipe(Painter())
    with enable_cache(pipe, BATCH) as handle, quiet():
        for guided in (True, False, True):
            pipe.do_classifier_free_guidance = guided
            pipe(PAIR)
            assert marks(only(handle)) == ({"both": REUSED} if guided else {"first": COMPUTED})


@pytest.mark.parametrize("name", ["sd3", "cogvideox", "ltx", "pixart-sigma"])
def test_pipelines_that_batch_both_branches_without_guidance(name):
    pipe, call = TINY[name].build(), dict(steps=STEPS, prompt=["a red ball", "two blue cubes"], guidance_scale=1.0)
    if isinstance(negative := TINY[name].call().get("negative_prompt"), str):
        call["negative_prompt"] = [negative] * 2
    bare = latents(name, pipe, **call)
    with enable_cache(pipe, BATCH), pytest.warns(CacheWarning, match="several pictures"):
        assert torch.equal(latents(name, pipe, **call), bare)


@pytest.mark.parametrize("name", ["sd3", "cogvideox", "ltx"])
def test_pipelines_that_batch_both_branches(name):
    pipe = TINY[name].build()
    with enable_cache(pipe, BATCH) as handle:
        latents(name, pipe, steps=STEPS)
        assert marks(only(handle)) == {"both": REUSED}


def test_a_pipeline_that_does_not_tell_is_told_for():
    pipe = TINY["pixart-sigma"].build()
    with enable_cache(pipe, BATCH) as handle, mindie_cache.branch("both"):
        latents("pixart-sigma", pipe, steps=STEPS)
        assert marks(only(handle)) == {"both": REUSED}


# ------------------------------------------------------------------------------------------------ tiles


BRANCHES = {"cond": torch.tensor([0.4]), "uncond": torch.tensor([2.0])}
TILES = LATENTS[:1], LATENTS[1:]
ORDERS = {
    "branch by branch": [("cond", 0), ("cond", 1), ("uncond", 0), ("uncond", 1)],
    "tile by tile": [("cond", 0), ("uncond", 0), ("cond", 1), ("uncond", 1)],
}


def paint(model, order, extra=()):
    """Outputs and rows computed, by (branch, tile, step); in the steps `extra` another picture is looked at first."""
    found = {}
    for step in range(STEPS):
        for branch, tile in ([("cond", None)] if step in extra else []) + order:
            before = len(model.rows)
            picture = 10 * LATENTS[:1] if tile is None else TILES[tile]
            with mindie_cache.branch(branch, step=step):
                out = model(picture * (1 - step / 20), torch.tensor(1 - step / STEPS), BRANCHES[branch])
            found[branch, tile, step] = SimpleNamespace(out=out, computed=len(model.rows) > before)
    return found


def paint_alone(order, tile):
    model = Painter()
    with enable_cache(model, "cfg_cache", num_inference_steps=STEPS):
        return paint(model, [one for one in order if one[1] == tile])


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
def test_each_tile_is_as_alone(order):
    model = Painter()
    with enable_cache(model, "cfg_cache", num_inference_steps=STEPS) as handle:
        together = paint(model, order)
        assert marks(only(handle)) == {"cond": COMPUTED, "cond #2": COMPUTED, "uncond": REUSED, "uncond #2": REUSED}
    for tile in (0, 1):
        for place, wanted in paint_alone(order, tile).items():
            assert torch.equal(together[place].out, wanted.out), place


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
@pytest.mark.parametrize("extra", [(4,), (5,), (2, 3, 4), (6,), (1, 3, 5, 7)], ids=str)
def test_a_call_that_comes_between_is_taken_for_no_tile(order, extra):
    """A picture that is looked at in some steps, as by a callback: its tile alone is not predicted any better."""
    model, bare, alone = Painter(), paint(Painter(), order), {}
    for tile in (0, 1):
        alone |= paint_alone(order, tile)
    with enable_cache(model, "cfg_cache", num_inference_steps=STEPS), quiet():
        found = paint(model, order, extra)
    for place, truth in bare.items():
        off, alone_off = ((one[place].out - truth.out).abs().max() for one in (found, alone))
        assert off <= (0.0 if found[place].computed else alone_off + 1e-6), place


def test_a_call_of_the_model_in_a_callback_disturbs_nothing():
    pipe = TINY["wan"].build()

    def look(pipe, step, t, given):
        latent = given["latents"]
        for name in ("uncond", "cond") if step in (3, 6) else ():
            with pipe.transformer.cache_context(name), torch.no_grad():
                pipe.transformer(hidden_states=-latent, timestep=t[None], encoder_hidden_states=torch.ones(1, 16, 32))
        return given

    with enable_cache(pipe, "cfg_cache") as handle, quiet():
        alone = latents("wan", pipe, steps=STEPS)
        wanted = marks(only(handle))
        looked = latents("wan", pipe, steps=STEPS, callback_on_step_end=look)
        found = marks(only(handle))
    bare = latents("wan", pipe, steps=STEPS)
    assert wanted == {"cond": COMPUTED, "uncond": REUSED}
    assert found["cond"] == COMPUTED
    assert (looked - bare).abs().max() <= 1.2 * (alone - bare).abs().max()
