"""What a model's loop over its blocks sees while a region is reused, and what is left of it afterwards."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from hooked import EVERY_OTHER, LineBlock, Stepper, marks, only
from torch import nn

from mindie_cache import enable_cache

STEPS = 4


class Curious(Stepper):
    """Looks at its blocks in the loop: notes each one and its factor, and skips what is no LineBlock."""

    def __init__(self, blocks: int = 4):
        super().__init__(blocks)
        self.met = []
        self.factors = []

    def forward(self, hidden_states, timestep=None):
        for index, block in enumerate(self.blocks):
            self.met.append(block is self.blocks[index])
            self.factors.append(block.factor)
            if isinstance(block, LineBlock) and block.training is False:
                hidden_states = block(hidden_states=hidden_states, push=timestep)
        return hidden_states


class ByIndex(Stepper):
    def forward(self, hidden_states, timestep=None):
        for index in range(len(self.blocks)):
            hidden_states = self.blocks[index](hidden_states, timestep)
        return hidden_states


def generate(model):
    """Step s has the timestep STEPS - s: uncached, blocks 1..n add n (n + 1) / 2 of it."""
    return [float(model(torch.zeros(1), torch.tensor([float(STEPS - step)]))) for step in range(STEPS)]


def test_the_loop_meets_the_blocks_in_computed_steps_and_stand_ins_with_their_attributes_in_reused_ones():
    model = Curious()
    with enable_cache(model, EVERY_OTHER, num_inference_steps=STEPS) as handle:
        assert generate(model) == [40.0, 40.0, 20.0, 20.0]  # steps 1 and 3 repeat what 0 and 2 added
        assert marks(only(handle)) == {"first": "#.#."}
    computed, reused = [True] * 4, [True, False, False, True]
    tried = reused  # what the first step has kept
    assert model.met == [*computed, *tried, *reused, *computed, *reused]
    assert model.factors == [1, 2, 3, 4] * (STEPS + 1)
    assert [block.runs for block in model.blocks] == [2] * 4


@pytest.mark.parametrize("kind", [Stepper, ByIndex])
def test_positional_arguments_and_loops_by_index_give_the_same(kind):
    model = kind(4)
    with enable_cache(model, EVERY_OTHER, num_inference_steps=STEPS):
        assert generate(model) == [40.0, 40.0, 20.0, 20.0]
    assert [block.runs for block in model.blocks] == [2] * 4


def test_a_list_that_was_changed_since_is_passed_as_it_is():
    model = Curious()
    with enable_cache(model, EVERY_OTHER, num_inference_steps=STEPS):
        generate(model)
        model.met.clear()
        model.blocks[1] = new = LineBlock(10).eval()
        assert generate(model) == [72.0, 72.0, 36.0, 36.0]  # 1 + 10 + 3 + 4
        assert all(model.met)
    assert new.runs == STEPS  # it has no patch, and what it returned in a reused step is not used
    assert [block.runs for block in model.blocks][2:] == [4, 4]


def test_disabling_leaves_a_plain_list():
    model = Curious()
    before = dict(vars(model.blocks))
    with enable_cache(model, EVERY_OTHER, num_inference_steps=STEPS):
        generate(model)
        assert isinstance(model.blocks, nn.ModuleList)
        assert len(model.blocks[1:]) == 3
        part = copy.deepcopy(model.blocks)
    assert type(model.blocks) is nn.ModuleList
    assert vars(model.blocks) == before
    assert [float(block(torch.zeros(1), 1.0)) for block in part] == [1.0, 2.0, 3.0, 4.0]
    model.met.clear()
    assert generate(model) == [40.0, 30.0, 20.0, 10.0]
    assert all(model.met)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_the_list_of_a_copy_goes_by_the_copy(copied):
    model = Curious()
    with enable_cache(model, EVERY_OTHER, num_inference_steps=STEPS) as handle:
        generate(model)
        twin = copied(model)
        handle.disable()
    twin.met.clear()
    assert generate(twin) == [40.0, 40.0, 20.0, 20.0]
    assert twin.met.count(False) == 6  # in two reused steps, and when what was kept is tried
    assert generate(model) == [40.0, 30.0, 20.0, 10.0]


class Two(nn.Module):
    """Adds to two streams, the text first; `scale` may be left out."""

    def forward(self, text, image, push, scale=1.0):
        return text + push * scale, image + 2 * push * scale


class Named(Two):
    def forward(self, text, image, push, **others):
        return super().forward(text, image, push, **others)


class Lanes(Two):
    """A parameter with the name of a local variable of the package."""

    def forward(self, text, image, push, lane=1.0):
        return super().forward(text, image, push, lane)


def _wrapped(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


class Decorated(Two):
    @_wrapped
    def forward(self, text, image, push, scale=1.0):
        return super().forward(text, image, push, scale)


CALLS = {
    "by keyword": lambda block, text, image, push: block(text=text, image=image, push=push),
    "in place": lambda block, text, image, push: block(text, image, push),
    "mixed": lambda block, text, image, push: block(text, push=push, image=image),
}


class TwoStreams(nn.Module):
    def __init__(self, kind, call):
        super().__init__()
        self.blocks = nn.ModuleList([kind() for _ in range(4)])
        self.call = call
        self.kept = []
        self.eval()

    def forward(self, hidden_states, timestep=None):
        text, image = hidden_states, 10 * hidden_states
        for block in self.blocks:
            text, image = self.call(block, text, image, timestep)
            self.kept.append(block)
        return text + image


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("kind", [Two, Named, Lanes, Decorated])
def test_stand_ins_are_called_as_the_block_is(kind, call):
    model = TwoStreams(kind, call)
    with enable_cache(model, EVERY_OTHER, num_inference_steps=STEPS, blocks="blocks", streams=("text", "image")):
        found = [float(model(torch.ones(1), torch.tensor([float(STEPS - step)]))) for step in range(STEPS)]
        assert found == [11.0 + 3 * 4 * 4, 11.0 + 3 * 4 * 4, 11.0 + 3 * 4 * 2, 11.0 + 3 * 4 * 2]
        stand_in = model.kept[5]
        assert stand_in is not model.blocks[1]
        model(torch.ones(1), torch.tensor([4.0]))  # the first step of another generation is computed
        later = call(stand_in, torch.ones(1), torch.ones(1), torch.tensor([5.0]))
        assert [float(one) for one in later] == [6.0, 11.0]


def test_a_stand_in_refuses_what_the_block_refuses():
    model = TwoStreams(Two, lambda block, text, image, push: block(text=text, image=image, push=push))
    with enable_cache(model, EVERY_OTHER, num_inference_steps=STEPS, blocks="blocks", streams=("text", "image")):
        model(torch.ones(1), torch.tensor([4.0]))
        model.call = lambda block, text, image, push: block(text=text, image=image, push=push, colour="red")
        with pytest.raises(TypeError, match="colour"):
            model(torch.ones(1), torch.tensor([3.0]))


def test_enabling_twice_undoes_both():
    model = Curious()
    enable_cache(model, EVERY_OTHER, num_inference_steps=STEPS)
    with pytest.warns(match="had a cache already"):
        handle = enable_cache(model, EVERY_OTHER, num_inference_steps=STEPS)
    assert generate(model) == [40.0, 40.0, 20.0, 20.0]
    assert model.met.count(False) == 6
    handle.disable()
    assert type(model.blocks) is nn.ModuleList
    assert "__iter__" not in vars(model.blocks)
