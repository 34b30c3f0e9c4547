"""Methods for whole forwards find the latents under every name, in a list too, and keep a difference where shapes allow."""

from __future__ import annotations

from inspect import signature

import pytest
import torch
from hooked import ENTRIES, marks, only
from torch import nn

from mindie_cache import ModelExecError, ParametersInvalid, enable_cache

STEPS = 5
EASY = {"method": "easycache", "options": {"threshold": 1e9, "warmup_steps": 2}}
SAME_SHAPE = ("FluxTransformer2DModel", "WanTransformer3DModel", "ZImageTransformer2DModel", "T5FilmDecoder")
OTHER_SHAPE = ("WanTransformer3DModel/i2v", "PixArtTransformer2DModel", "Kandinsky5Transformer3DModel/i2v")


def given_back(model, inputs):
    if "return_dict" not in signature(type(model).forward).parameters:
        return model(**inputs)
    return tensor(model(**inputs, return_dict=False)[0])


def tensor(value):
    return torch.stack([*value]) if isinstance(value, list) else value


@torch.no_grad()
@pytest.mark.parametrize("name", [*SAME_SHAPE, *OTHER_SHAPE])
def test_a_reused_forward_follows_the_published_rule(name):
    entry = ENTRIES[name]
    model = entry.build()
    inputs = [entry.inputs(1, 1, 0, step / STEPS) for step in range(STEPS)]
    bare = [given_back(model, one) for one in inputs]
    with enable_cache(model, EASY, num_inference_steps=STEPS) as handle:
        found = [given_back(model, one) for one in inputs]
        assert marks(only(handle)) == {"first": "##..#"}
    given = [tensor(one[entry.denoised]) for one in inputs]
    for step in (2, 3):
        moved = given[step] - given[1] if name in SAME_SHAPE and given[1].shape == bare[1].shape else 0.0
        torch.testing.assert_close(found[step], bare[1] + moved)
    for step in (0, 1, 4):
        assert torch.equal(found[step], bare[step])


class Official(nn.Module):
    """Latents as the first parameter, under a name of its own; or in a list, as Wan's own code does it."""

    def forward(self, img, timesteps):
        return [one + timesteps for one in img] if isinstance(img, list) else img + timesteps


@pytest.mark.parametrize("form", [lambda x: x, lambda x: [x], lambda x: [x, 2 * x]], ids=["tensor", "one", "several"])
@pytest.mark.parametrize("named", [True, False])
def test_any_first_parameter_counts(form, named):
    model = Official().eval()
    steps = [(form(torch.full((3,), 10.0 - step)), torch.tensor(1.0 - step / STEPS)) for step in range(STEPS)]
    with torch.no_grad(), enable_cache(model, EASY, num_inference_steps=STEPS) as handle:
        found = [model(img=img, timesteps=t) if named else model(img, t) for img, t in steps]
        assert marks(only(handle)) == {"first": "##..#"}
    assert type(found[2]) is type(steps[2][0])
    several = isinstance(found[2], list) and len(found[2]) == 2
    wanted = (9.0 if several else 8.0) + 0.8  # outputs without one shape with the input are kept as they are
    assert float(tensor(found[2]).flatten()[0]) == pytest.approx(wanted)


def test_latents_of_several_shapes_are_refused_with_their_kind():
    model, given = Official().eval(), [torch.ones(3), torch.ones(4)]
    with torch.no_grad(), enable_cache(model, EASY, num_inference_steps=STEPS):  # noqa: SIM117
        with pytest.raises(ParametersInvalid, match="list"):
            model(given, torch.tensor(1.0))


@torch.no_grad()
def test_a_difference_that_is_asked_for_is_refused_where_there_is_none():
    entry = ENTRIES["PixArtTransformer2DModel"]
    model, inputs = entry.build(), entry.inputs(1, 1, 0, 0.0)
    asked = {"method": "easycache", "options": {**EASY["options"], "residual": True}}
    with enable_cache(model, asked, num_inference_steps=STEPS):  # noqa: SIM117
        with pytest.raises(ModelExecError, match="residual"):
            model(**inputs)
