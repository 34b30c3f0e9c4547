"""Code of the model between its blocks is counted once: with the same input in every step, a reused step changes nothing."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")

from hooked import ENTRIES, error, only
from zoo.core import normal
from zoo.matrix import METHODS, STEPS

from mindie_cache import branch, enable_cache

WIDTH = 32  # of the tiny Flux and Qwen-Image


def samples(name, count, tokens=16):
    return [normal(0, f"{name} {i}", 1, tokens, WIDTH) for i in range(count)]


def ip_adapter(model):
    """Image tokens for the attentions of the double blocks."""
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
    from zoo.weights import randomize

    for block in model.transformer_blocks:
        processor = FluxIPAdapterAttnProcessor(hidden_size=WIDTH, cross_attention_dim=12, num_tokens=(4,), scale=1.0)
        block.attn.set_processor(randomize(processor))
    return image_tokens(1.0)


def image_tokens(scale):
    return {"joint_attention_kwargs": {"ip_hidden_states": [scale * normal(0, "image", 1, 4, 12)]}}


FLUX, QWEN = "FluxTransformer2DModel", "QwenImageTransformer2DModel"
CASES = {
    "Flux, double": (FLUX, {"controlnet_block_samples": samples("double", 3)}),
    "Flux, two for three": (FLUX, {"controlnet_block_samples": samples("double", 2)}),
    "Flux, repeated": (FLUX, {"controlnet_block_samples": samples("double", 2), "controlnet_blocks_repeat": True}),
    "Flux, single": (FLUX, {"controlnet_single_block_samples": samples("single", 4)}),
    "Flux, both": (
        FLUX,
        {"controlnet_block_samples": samples("double", 3), "controlnet_single_block_samples": samples("single", 2)},
    ),
    "Flux, IP-adapter": (FLUX, ip_adapter),
    "Qwen-Image": (QWEN, {"controlnet_block_samples": samples("qwen", 2)}),
    "WanVACE, hints": ("WanVACETransformer3DModel", {"control_hidden_states_scale": torch.tensor([1.0, 0.7])}),
    "ConsisID, face": ("ConsisIDTransformer3DModel", {}),
}
WITHOUT = {  # how to see that the code between the blocks does something; for the others, leave it out
    "Flux, IP-adapter": image_tokens(0.0),
    "WanVACE, hints": {"control_hidden_states_scale": torch.zeros(2)},
    "ConsisID, face": {"id_cond": normal(0, "someone else", 1, 20)},
}
CHOSEN = ("block range", "whole stack", "taylorseer lite", "teacache", "magcache", "first_block", "dynamic_block")
ALL_METHODS = {**METHODS, "dynamic_block": {"method": "dynamic_block", "options": {"threshold": 1e6, "max_skip_steps": 1}}}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    name, more = CASES[request.param]
    model, given = ENTRIES[name].build(), ENTRIES[name].inputs()
    more = more(model) if callable(more) else more
    plain = {**given, **WITHOUT.get(request.param, {})}
    return model, {**given, **more}, plain


@torch.no_grad()
def run(model, given):
    return model(**given, return_dict=False)[0]


@pytest.mark.parametrize("method", CHOSEN)
def test_a_reused_step_is_the_computed_one(case, method):
    model, given, plain = case
    bare = run(model, given)
    assert error(run(model, plain), bare) > 0.01

    with enable_cache(model, ALL_METHODS[method], num_inference_steps=STEPS) as handle:
        found = []
        for step in range(STEPS):
            with branch(step=step):
                found.append(run(model, given))
        reused = {record.step for record in only(handle).steps if record.reused}
    assert len(reused) >= 2
    for step, output in enumerate(found):
        assert error(output, bare) <= (1e-6 if step in reused else 0), step


def test_the_residual_of_the_last_block_is_the_one_of_this_step():
    """What the model adds behind the cached blocks is of this step; what it adds between them is of the kept one."""
    torch.manual_seed(0)
    entry = ENTRIES[FLUX]
    model, given = entry.build(), entry.inputs()
    old, new = samples("old", 4), samples("new", 4)
    mixed = [*old[:3], new[3]]
    with enable_cache(model, METHODS["whole stack"], num_inference_steps=4):
        for step, single in ((0, old), (1, new)):
            with branch(step=step):
                found = run(model, {**given, "controlnet_single_block_samples": single})
    assert error(found, run(model, {**given, "controlnet_single_block_samples": mixed})) <= 1e-6
