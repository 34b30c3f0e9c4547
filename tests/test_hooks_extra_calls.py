"""Calls of a pipeline's model that are not its own steps: from a callback, between generations, to fill a cache."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import FlowMatchEulerDiscreteScheduler
from hooked import ENTRIES, EVERY_OTHER, TINY, error, latents, marks, only

from mindie_cache import enable_cache
from mindie_cache.hooks import sight

STEPS = 6


class Recorded:
    """The calls of a tiny pipeline's transformer in a bare generation, to be made once more with other latents."""

    def __init__(self, name):
        self.pipe, self.calls = TINY[name].build(), []
        keep = self.pipe.transformer.register_forward_pre_hook(
            lambda _, args, given: self.calls.append((args, dict(given))), with_kwargs=True
        )
        self.bare = latents(name, self.pipe, steps=STEPS)
        keep.remove()
        self.times = list(dict.fromkeys(float(given["timestep"].max()) for _, given in self.calls if "timestep" in given))

    @torch.no_grad()
    def call(self, branch=None, at=0):
        """The first call, but at the timestep of step `at`."""
        model, (args, given) = self.pipe.transformer, self.calls[0]
        given, latent = dict(given), [*args, given.get("hidden_states")][0]
        others = [3 * torch.randn_like(one) for one in latent] if isinstance(latent, list) else 3 * torch.randn_like(latent)
        args = (others, *args[1:]) if args else ()
        if not args:
            given["hidden_states"] = others
        if self.times:
            given["timestep"] = torch.full_like(given["timestep"], self.times[at])
        if branch is None:
            return model(*args, **given)
        with model.cache_context(branch):
            return model(*args, **given)


@pytest.mark.filterwarnings("ignore:The model is used by another pipeline")
@pytest.mark.parametrize("known", ["host", "device"])
@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("at", [0, 1, 2, 5])
def test_a_pipeline_that_tells_its_steps_is_not_disturbed_by_its_callback(at, after, known, monkeypatch):
    """One more forward after a step, at an earlier, the same or a later timestep. Nothing of it comes into the picture."""
    if known == "device":
        monkeypatch.setattr(sight, "host_value", lambda timestep: None)
    found = Recorded("wan")

    def look(pipe, step, timestep, values):
        if step == after:
            found.call("cond", at)
        return values

    with enable_cache(found.pipe, EVERY_OTHER) as handle:
        wanted = latents("wan", found.pipe, steps=STEPS)
        looked = latents("wan", found.pipe, steps=STEPS, callback_on_step_end=look)
        rows = marks(only(handle))
        if known == "device" or at >= after or after == 1:  # else the generation starts afresh, out of step with `wanted`
            assert torch.equal(looked, wanted)
        assert error(looked, found.bare) < 2 * error(wanted, found.bare)
        assert rows["cond"] == rows["uncond"]
        assert torch.equal(latents("wan", found.pipe, steps=STEPS), wanted)


@pytest.mark.filterwarnings("ignore::mindie_cache.CacheWarning")
@pytest.mark.parametrize("known", ["host", "device"])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "branch"), [("wan", None), ("wan", "cond"), ("sd3", None), ("pixart-sigma", None), ("z-image", None)]
)
def test_calls_between_generations_belong_to_none(name, branch, count, known, monkeypatch):
    if known == "device":
        monkeypatch.setattr(sight, "host_value", lambda timestep: None)
    found = Recorded(name)
    with enable_cache(found.pipe, "balanced") as handle:
        wanted, rows = latents(name, found.pipe, steps=STEPS), marks(only(handle))
        for at in (0, STEPS - 1):
            for _ in range(count):
                found.call(branch, at if found.times else 0)
            assert torch.equal(latents(name, found.pipe, steps=STEPS), wanted)
            assert marks(only(handle)) == rows


@torch.no_grad()
def test_a_pass_that_fills_the_models_own_cache_is_no_step():
    """GLM-Image edits a picture: before its scheduler has any steps, the picture is written into `kv_caches`."""
    from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

    entry = ENTRIES["GlmImageTransformer2DModel"]
    pipe = Editing(entry.build(), entry.inputs(), GlmImageKVCache)
    bare = pipe(STEPS)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with enable_cache(pipe, EVERY_OTHER) as handle:
        found = [pipe(STEPS), pipe(4), pipe(STEPS)]
        assert set(marks(only(handle)).values()) == {"#.#.#."}
    assert torch.equal(found[0], found[2])
    assert 0 < error(found[0], bare) < 0.5


class Editing:
    """The loop of diffusers' GlmImagePipeline with a picture to start from."""

    def __init__(self, transformer, inputs, cache):
        self.transformer, self.inputs, self.cache = transformer, inputs, cache
        self.scheduler = FlowMatchEulerDiscreteScheduler()

    def __call__(self, steps):
        torch.manual_seed(0)
        given, latent = dict(self.inputs), torch.randn_like(self.inputs["hidden_states"])
        prompt, tokens = given.pop("encoder_hidden_states"), given["prior_token_id"]
        given = {**given, "kv_caches": self.cache(self.transformer.config.num_layers), "return_dict": False}
        given["kv_caches"].set_mode("write")
        for _ in range(2):
            given.update(hidden_states=torch.randn_like(latent), timestep=torch.zeros(1))
            self.transformer(**{**given, "encoder_hidden_states": prompt[:, :0]})
        self.scheduler.set_timesteps(steps)
        for time in self.scheduler.timesteps:
            given.update(hidden_states=latent, timestep=time.expand(1) - 1)
            both = []
            for mode, words in (("read", prompt), ("skip", torch.zeros_like(prompt))):
                given["kv_caches"].set_mode(mode)
                given["prior_token_drop"] = torch.full_like(tokens, mode == "skip", dtype=torch.bool)
                both.append(self.transformer(**given, encoder_hidden_states=words)[0])
            latent = self.scheduler.step(both[1] + 3 * (both[0] - both[1]), time, latent, return_dict=False)[0]
        return latent
