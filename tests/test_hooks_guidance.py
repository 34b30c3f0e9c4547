"""Guidance by separate calls: no branch ever gets the features of another one, whichever calls are left out."""

from __future__ import annotations

import itertools
from contextlib import contextmanager

import pytest
import torch

pytest.importorskip("diffusers")

from hooked import EVERY_OTHER, TINY, Stepper, error, latents, marks, only
from zoo.matrix import METHODS

import mindie_cache
from mindie_cache import enable_cache

STEPS = 8
COND, UNCOND = torch.full((1, 3), 100.0), torch.full((1, 3), 300.0)
EMBEDDINGS = {"cond": COND, "uncond": UNCOND}
SKIPPED = {  # steps without the call of the negative prompt
    "none": (),
    "the first": (0,),
    "first half": (0, 1, 2, 3),
    "a computed one": (2,),
    "a reused one": (3,),
    "the middle": (2, 3, 4),
    "every other": (1, 3, 5, 7),
    "the end": (5, 6, 7),
}
EVERYWHERE = pytest.mark.parametrize("skipped", SKIPPED.values(), ids=SKIPPED.keys())


class InContext(Stepper):
    """Has a `cache_context`, as diffusers' transformers."""

    @contextmanager
    def cache_context(self, name, **fields):
        yield


def sources(model, order, skipped, fresh=False, named=False, timesteps=range(STEPS - 1, -1, -1)):
    """Which step the features of each call are of, by (branch, step); a step of no branch if they are mixed."""
    factor = sum(block.factor for block in model.blocks)
    found = {}
    for step, timestep in enumerate(timesteps):
        for name in order:
            if name == "uncond" and step in skipped:
                continue
            given = dict(timestep=torch.tensor([float(timestep)]), encoder_hidden_states=EMBEDDINGS[name])
            given = {key: value.clone() for key, value in given.items()} if fresh else given
            if named:
                with model.cache_context(name):
                    out = model(torch.zeros(1, 2), **given)
            else:
                out = model(torch.zeros(1, 2), **given)
            pushed = float(out[0, 0]) / factor - float(EMBEDDINGS[name][0, 0])
            found[name, step] = list(timesteps).index(round(pushed)) if round(pushed) in timesteps else f"wrong: {pushed}"
    return found


@pytest.mark.parametrize("order", list(itertools.permutations(EMBEDDINGS)), ids="-".join)
@pytest.mark.parametrize("telling", ["named", "same objects", "copies"])
@EVERYWHERE
def test_every_reuse_is_of_the_own_branch(order, telling, skipped):
    model = InContext() if telling == "named" else Stepper()
    with enable_cache(model, EVERY_OTHER, num_inference_steps=STEPS) as handle:
        calls = [sources(model, order, skipped, telling == "copies", telling == "named") for _ in range(2)]
    assert calls[0] == calls[1]  # the next generation too
    for (name, step), source in calls[0].items():
        own = [s for b, s in calls[0] if b == name and s <= step]
        assert source in own
        assert step - source <= 2
        if name == "cond":
            assert source == step - step % 2
    rows = marks(only(handle))
    assert len(rows) == 2
    if telling == "named":
        assert rows["cond"] == "#.#.#.#."


@EVERYWHERE
@pytest.mark.filterwarnings("ignore:.*reused nothing in branch 'uncond'")
@pytest.mark.parametrize("method", ["taylorseer lite", "first_block", "teacache", "magcache", "custom"])
def test_every_method_gives_what_a_branch_alone_gives(method, skipped):
    """The call of the prompt does not depend on the other call: as in a generation without guidance."""
    model = InContext()
    with enable_cache(model, METHODS[method], num_inference_steps=6):
        alone = sources(model, ["cond"], (), named=True, timesteps=range(5, -1, -1))
        both = sources(model, ["cond", "uncond"], skipped, named=True, timesteps=range(5, -1, -1))
    assert {key: source for key, source in both.items() if key[0] == "cond"} == alone


def test_a_timestep_that_repeats_is_another_branch_or_another_call_by_value():
    """Three branches without a name, of which the second is sometimes left out."""
    model = Stepper()
    third = {**EMBEDDINGS, "image": torch.full((1, 3), 500.0)}
    outputs = {}
    with enable_cache(model, EVERY_OTHER, num_inference_steps=STEPS) as handle:
        for step in range(STEPS):
            for name, embedding in third.items():
                if not (name == "uncond" and step in (2, 3)):
                    time = torch.tensor([float(STEPS - 1 - step)])
                    outputs[name, step] = model(torch.zeros(1, 2), time, embedding.clone())
    factor = sum(block.factor for block in model.blocks)
    for (name, step), out in outputs.items():
        time = float(out[0, 0]) / factor - float(third[name][0, 0])
        assert 0 <= time - (STEPS - 1 - step) <= 3, (name, step)
    assert len(marks(only(handle))) == 3


class HandReuse:
    """The cache written by hand for Wan: hooks on the blocks that put what is kept in the place of what was computed."""

    def __init__(self, model, calls):
        self.calls = iter(calls)  # (branch, whether it is reused) of each forward
        self.kept = {}
        blocks = list(model.blocks)
        self.handles = [model.register_forward_pre_hook(lambda *_: setattr(self, "now", next(self.calls)))]
        for index, block in enumerate(blocks):
            self.handles.append(block.register_forward_hook(self.hook(index, index == len(blocks) - 1)))

    def hook(self, index, is_last):
        def put(_, inputs, output):
            branch, reused = self.now
            entered = inputs[0]
            if index == 0:
                self.entered = entered
            if reused:
                return self.entered + self.kept[branch] if index == 0 or is_last else entered
            if is_last:
                self.kept[branch] = output - self.entered
            return output

        return put

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("without", [(), (2,), (1,), (1, 2), (3, 4, 5)])
def test_wan_with_guidance_in_some_steps_is_as_by_hand(without):
    """The callback switches guidance off for some steps."""
    pipe = TINY["wan"].build()

    def switch(pipe, step, timestep, values):
        pipe._guidance_scale = 1.0 if step + 1 in without else 5.0
        return values

    with enable_cache(pipe, EVERY_OTHER) as handle:
        found = latents("wan", pipe, steps=6, callback_on_step_end=switch)
        again = latents("wan", pipe, steps=6, callback_on_step_end=switch)
    assert torch.equal(again, found)
    calls = [(record.branch, record.reused) for record in only(handle).steps]
    assert len(calls) == 12 - len(without)
    rows = marks(only(handle))
    assert rows["cond"] == "#.#.#."
    assert all((mark == "_") == (step in without) for step, mark in enumerate(rows["uncond"].ljust(6, "_")))
    with HandReuse(pipe.transformer, calls):
        assert error(found, latents("wan", pipe, steps=6, callback_on_step_end=switch)) < 1e-5


def test_the_users_own_names():
    """`mindie_cache.branch` names what embeddings that are new in every step do not."""
    model, names = Stepper(), {"cond": 100.0, "uncond": 300.0}
    with enable_cache(model, EVERY_OTHER, num_inference_steps=4) as handle:
        for step in range(4):
            for name, value in names.items():
                pushes = [3.0 - s + value + s / 8 for s in range(4)]
                with mindie_cache.branch(name):
                    out = model(torch.zeros(1, 2), torch.tensor([3.0 - step]), torch.full((1, 3), value + step / 8))
                assert float(out[0, 0]) / 6 == pytest.approx(pushes[step - step % 2])
    assert marks(only(handle)) == {"cond": "#.#.", "uncond": "#.#."}


@EVERYWHERE
@pytest.mark.parametrize("order", list(itertools.permutations(EMBEDDINGS)), ids="-".join)
def test_the_step_alone_may_be_told(order, skipped):
    """`branch(step=...)` names no branch, so the embeddings tell it."""
    model, factor = Stepper(), 6
    with enable_cache(model, EVERY_OTHER, num_inference_steps=STEPS) as handle:
        for step in range(STEPS):
            for name in order:
                if name == "cond" or step not in skipped:
                    with mindie_cache.branch(step=step):
                        out = model(torch.zeros(1, 2), torch.tensor([7.0 - step]), EMBEDDINGS[name])
                    lag = float(out[0, 0]) / factor - float(EMBEDDINGS[name][0, 0]) - (7.0 - step)
                    assert lag in (0, 1), (name, step)
    assert "#.#.#.#." in marks(only(handle)).values()


def test_embeddings_that_are_new_in_every_step_are_never_mixed_up():
    """Nothing tells which call is which: what cannot be told apart is computed, and that is said."""
    model = Stepper()

    def play():
        for step in range(STEPS):
            for value in (100.0, 300.0):
                push = 7.0 - step + value + step / 8
                out = model(torch.zeros(1, 2), torch.tensor([7.0 - step]), torch.full((1, 3), value + step / 8))
                assert float(out[0, 0]) / 6 == pytest.approx(push)

    with enable_cache(model, EVERY_OTHER, num_inference_steps=STEPS) as handle:
        with pytest.warns(match="cannot be told apart"):
            play()
        play()  # without saying it again
    assert "cannot be told apart" in only(handle).note


def test_a_model_in_training_is_computed_and_says_so():
    model = Stepper().train()
    with enable_cache(model, EVERY_OTHER, num_inference_steps=4) as handle, pytest.warns(match="training mode"):
        found = sources(model, ["cond"], (), timesteps=range(3, -1, -1))
    assert list(found.values()) == [0, 1, 2, 3]
    assert "model.eval()" in only(handle).note
