"""Several calls in one step with the same conditioning: what cannot be told apart is computed, never mixed up."""

from __future__ import annotations

import warnings

import pytest
import torch
from hooked import EVERY_OTHER, SCHEDULED, Stepper, marks, only
from torch import nn

import mindie_cache
from mindie_cache import enable_cache

STEPS = 8
TEXT = torch.zeros(1, 3)
PICTURES = {"with": 100.0, "without": 300.0}
WITHOUT_SAYING = pytest.mark.filterwarnings("ignore:.*(calls in each step|cannot be told|reused nothing)")
LEFT_OUT = {  # steps without the call that is not guided
    "none": (),
    "the end": (5, 6, 7),
    "from a reused one": (3, 4, 5, 6, 7),
    "from a computed one": (4, 5, 6, 7),
    "every other": (1, 3, 5, 7),
    "one": (3,),
    "the middle": (3, 4, 5),
}


class Pushed(Stepper):
    """Takes its picture with the latents: what its blocks add depends on it."""

    def forward(self, hidden_states, timestep=None, encoder_hidden_states=None, image_embeds=None):
        push = timestep + hidden_states[:, :1] + (0 if image_embeds is None else image_embeds[:, :1])
        for block in self.blocks:
            hidden_states = block(hidden_states, push)
        return hidden_states


def sources(model, order, left_out, how):
    """The step that the features of each call are of, by (name, step); far away if they are of the other call."""
    found, factor, buffer = {}, sum(block.factor for block in model.blocks), torch.zeros(1, 3)
    for step in range(STEPS):
        for name in order:
            if name == "without" and step in left_out:
                continue
            picture, latent = PICTURES[name], torch.zeros(1, 2)
            given = {"encoder_hidden_states": TEXT, "timestep": torch.tensor([7.0 - step])}
            if how == "latents":
                latent = latent + picture
            elif how == "embeddings":
                given["image_embeds"] = torch.full((1, 4), picture)
            else:
                given["encoder_hidden_states"] = buffer.fill_(picture)
            out = model(latent, **given)
            found[name, step] = 7 - (float(out[0, 0] - latent[0, 0]) / factor - picture)
    return found


@WITHOUT_SAYING
@pytest.mark.parametrize("how", ["latents", "embeddings", "one buffer"])
@pytest.mark.parametrize("order", [("without", "with"), ("with", "without")], ids="-".join)
@pytest.mark.parametrize("left_out", LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_guidance_by_a_picture_with_one_text(left_out, order, how):
    model = Stepper() if how == "one buffer" else Pushed()
    with enable_cache(model, EVERY_OTHER, num_inference_steps=STEPS) as handle:
        found = [sources(model, order, left_out, how) for _ in range(2)]
        rows = marks(only(handle))
    assert found[0] == found[1]
    for (_, step), source in found[0].items():
        assert source in (step, step - 1, step - 2), (step, source)
    if how == "embeddings":  # which are read here
        assert rows["first" if order[0] == "with" else "second"] == "#.#.#.#."


def tiles(model, branch=None, counts=(3,) * STEPS):
    """The step that the features of each tile are of."""
    found, factor = [], sum(block.factor for block in model.blocks)
    for step, count in enumerate(counts):
        for tile in range(count):
            latent = torch.full((1, 2), 100.0 * tile)
            given = {"timestep": torch.tensor([7.0 - step]), "encoder_hidden_states": TEXT}
            if branch is None:
                out = model(latent, **given)
            else:
                with mindie_cache.branch(branch, step=step):
                    out = model(latent, **given)
            source = 7 - (float(out[0, 0] - latent[0, 0]) / factor - 100.0 * tile)
            assert source in (step, step - 1), (step, tile)
            found.append((tile, step, source))
    return found


@pytest.mark.filterwarnings("ignore:.*reused nothing in branch 'first'")
def test_the_last_of_several_calls_is_reused_and_that_is_said_once():
    model = Pushed()
    with enable_cache(model, EVERY_OTHER, num_inference_steps=STEPS) as handle:
        with pytest.warns(match="same conditioning") as caught:
            found = [tiles(model) for _ in range(2)]
        assert len([one for one in caught if "same conditioning" in str(one.message)]) == 1
        assert marks(only(handle)) == {"first": "#" * STEPS, "first #2": "#" * STEPS, "first #3": "###.#.#."}
    assert found[0] == found[1]


def test_tiles_of_a_named_branch_are_all_reused():
    model = Pushed()
    with enable_cache(model, EVERY_OTHER, num_inference_steps=STEPS) as handle:
        tiles(model, "cond")
        assert marks(only(handle)) == dict.fromkeys(("cond", "cond #2", "cond #3"), "###.#.#.")


@WITHOUT_SAYING
@pytest.mark.parametrize("branch", [None, "cond"])
def test_calls_that_come_once_leave_no_trace(branch):
    """One more call in one step: nothing of it is taken for the usual one."""
    model = Pushed()
    with enable_cache(model, EVERY_OTHER, num_inference_steps=STEPS) as handle:
        tiles(model, branch, (1, 1, 1, 2, 1, 1, 1, 1))
        assert next(iter(marks(only(handle)).values())) == "#.#.###."


# ------------------------------------------------------------------------------------------------ without end


@pytest.mark.parametrize("config", [*SCHEDULED.values(), "easycache"], ids=[*SCHEDULED, "easycache"])
def test_a_timestep_that_stands_still_keeps_no_more_and_more(config):
    """A loop that measures a model with the same arguments."""
    model, kept = Stepper(), []
    with enable_cache(model, config, num_inference_steps=STEPS) as handle, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(300):
            out = model(torch.zeros(1, 2), torch.tensor([5.0]))
            assert out[0, 0] == 30.0
            kept.append((only(handle).bytes_now, len(only(handle).steps)))
    assert ["step=i" in str(one.message) for one in caught] == [True]
    assert kept[-1] == kept[100]
    assert kept[-1][1] <= 64


@pytest.mark.parametrize("guided", [False, True])
def test_a_model_of_one_step_begins_again_with_each_picture(guided):
    model = Stepper()
    with enable_cache(model, EVERY_OTHER, num_inference_steps=1) as handle:
        for picture in range(20):
            for value in (100.0, 300.0)[: 1 + guided]:
                out = model(torch.full((1, 2), float(picture)), torch.tensor([5.0]), torch.full((1, 3), value))
                assert out[0, 0] == picture + 6 * (5 + value)
            assert marks(only(handle)) == ({"first": "#", "second": "#"} if guided else {"first": "#"})
            assert len(only(handle).steps) == 1 + guided


# ------------------------------------------------------------------------------------------------ official FLUX


class Flux(nn.Module):
    """The arguments of Black Forest Labs' model."""

    def __init__(self):
        super().__init__()
        self.blocks = Stepper().blocks
        self.eval()

    def forward(self, img, img_ids, txt, txt_ids, timesteps, y, guidance=None):
        push = timesteps + txt.mean()
        for block in self.blocks:
            img = block(img, push)
        return img


@pytest.mark.parametrize("order", [(100.0, 300.0), (300.0, 100.0)])
@pytest.mark.parametrize("left_out", LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_branches_of_a_model_whose_text_is_called_txt(left_out, order):
    """Position ids are new in every step, and belong to no branch."""
    model, pooled = Flux(), torch.zeros(1, 4)
    with enable_cache(model, EVERY_OTHER, num_inference_steps=STEPS) as handle:
        for step in range(STEPS):
            for value in order:
                if value == 300.0 and step in left_out:
                    continue
                ids = {"img_ids": torch.full((1, 2), float(step)), "txt_ids": torch.full((1, 3), float(step))}
                given = {"txt": torch.full((1, 3, 2), value), "timesteps": torch.tensor([7.0 - step]), "y": pooled}
                source = 7 - (float(model(torch.zeros(1, 2), **ids, **given)[0, 0]) / 6 - value)
                assert source in (step, step - 1, step - 2), (step, value)
        assert len(marks(only(handle))) == 2
