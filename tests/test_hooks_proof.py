"""Models whose blocks are no chain show it before anything is reused: with one input, every step has to be the bare one."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from hooked import ENTRIES, EVERY_OTHER, marks, only
from torch import nn

from mindie_cache import CacheWarning, ConfigError, branch, enable_cache

STEPS = 6
METHODS = {
    "dit_block_cache": EVERY_OTHER,
    "taylorseer lite": {"method": "taylorseer", "options": {"lite": True, "warmup_steps": 2}},
    "teacache": {"method": "teacache", "options": {"threshold": 1e9}},
    "first_block": {"method": "first_block", "options": {"threshold": 1e9}},
    "balanced": "balanced",
}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])

    def forward(self, x, t):
        inner = x
        for layer in self.layers:
            inner = torch.tanh(layer(inner))
        return x + (1 + t) * inner


class Chain(nn.Module):
    def __init__(self, blocks=4):
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(blocks)])

    def forward(self, x, timestep):
        for block in self.blocks:
            x = block(x, timestep)
        return x


class Turns(Chain):
    """Two lists take turns, as in models with spatial and temporal blocks."""

    def __init__(self):
        super().__init__()
        self.temporal_blocks = nn.ModuleList([Block() for _ in range(4)])

    def forward(self, x, timestep):
        for spatial, temporal in zip(self.blocks, self.temporal_blocks, strict=True):
            x = temporal(spatial(x, timestep).transpose(0, 1), timestep).transpose(0, 1)
        return x


class Reordered(Chain):
    def forward(self, x, timestep):
        for index in (0, 2, 3, 1):
            x = self.blocks[index](x, timestep)
        return x


class Recurrent(Chain):
    """All blocks but the first one run twice."""

    def forward(self, x, timestep):
        x = self.blocks[0](x, timestep)
        for _ in range(2):
            for block in self.blocks[1:]:
                x = block(x, timestep)
        return x


class Parallel(Chain):
    def forward(self, x, timestep):
        return sum([block(x, timestep) for block in self.blocks])


class Collecting(Chain):
    """Also the state after every block counts, as in a ControlNet."""

    def forward(self, x, timestep):
        states = []
        for block in self.blocks:
            x = block(x, timestep)
            states.append(x)
        return x + sum(states)


class Registers(Block):
    """Changes what it does not return."""

    def forward(self, x, t, registers):
        registers += x.mean(0, keepdim=True)
        return super().forward(x + registers, t)


class WithRegisters(Chain):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Registers() for _ in range(4)])

    def forward(self, x, timestep):
        registers = torch.zeros(1, *x.shape[1:])
        for block in self.blocks:
            x = block(x, timestep, registers)
        return x + registers


BROKEN = [Turns, Reordered, Recurrent, Parallel, Collecting, WithRegisters]


def build(kind):
    torch.manual_seed(0)
    return kind().eval()


@torch.no_grad()
def errors(model, config, steps=STEPS, **settings):
    """Of every step, relative to the bare model, with the same input in all of them; and the report."""
    x = torch.randn(5, 5, 8, generator=torch.Generator().manual_seed(1))
    bare = model(x, timestep=0.3)
    found = []
    with enable_cache(model, config, num_inference_steps=steps, **settings) as handle:
        for step in range(steps):
            with branch(step=step):
                found.append(float((model(x, timestep=0.3) - bare).abs().max() / bare.abs().max()))
        report = only(handle)
    assert torch.equal(model(x, timestep=0.3), bare)
    return found, report


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_chain_is_computed_and_said(kind, method):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found, report = errors(build(kind), METHODS[method])
    assert max(found) < 1e-5
    if method != "first_block":  # whose first block is outside of the region, so that some of these are chains for it
        assert report.calls_reused == 0
        (said,) = [str(one.message) for one in caught if one.category is CacheWarning]
        assert "Everything is computed" in said
        assert report.note == said


@pytest.mark.parametrize("method", METHODS)
def test_a_chain_is_reused(method):
    found, report = errors(build(Chain), METHODS[method])
    assert max(found) < 1e-5
    assert "." in marks(report)["first"]


def test_one_of_the_lists_that_take_turns_can_be_cached():
    found, report = errors(build(Turns), EVERY_OTHER, blocks="blocks")
    assert max(found) < 1e-5
    assert marks(report) == {"first": "#.#.#."}


@pytest.mark.parametrize(("start", "end", "is_whole"), [(0, 6, True), (4, 6, True), (0, 5, False), (1, 4, False)])
@torch.no_grad()
def test_states_that_are_handed_past_the_end_of_the_range(start, end, is_whole):
    """The blocks of HunyuanDiT's second half take over the states of the first half."""
    entry = ENTRIES["HunyuanDiT2DModel"]
    model, inputs = entry.build(), entry.inputs(1, 1, 0, 0.5)
    bare = model(**inputs, return_dict=False)[0]
    config = {**EVERY_OTHER, "block_start": start, "block_end": end}
    with warnings.catch_warnings(record=True) as caught, enable_cache(model, config, num_inference_steps=4) as handle:
        warnings.simplefilter("always")
        for step in range(4):
            with branch(step=step):
                torch.testing.assert_close(model(**inputs, return_dict=False)[0], bare)
        assert (only(handle).calls_reused > 0) == is_whole
    assert bool(caught) != is_whole


@pytest.mark.parametrize("name", ["LatteTransformer3DModel", "MotifVideoTransformer3DModel"])
@torch.no_grad()
def test_a_derived_class_is_known_by_the_one_that_it_is_derived_from(name):
    entry = ENTRIES[name]
    model, inputs = entry.build(), entry.inputs(1, 1, 0, 0.5)
    bare = model(**inputs, return_dict=False)[0]
    model.__class__ = type(f"Own{name}", (type(model),), {})
    with enable_cache(model, EVERY_OTHER, num_inference_steps=4) as handle:
        for step in range(4):
            with branch(step=step):
                torch.testing.assert_close(model(**inputs, return_dict=False)[0], bare)
        assert marks(only(handle)) == {"first": "#.#."}


@torch.no_grad()
def test_it_is_tried_once_for_a_model():
    model, x = build(Chain), torch.randn(1, 5, 8)
    forwards = []
    model.blocks[0].layers[0].register_forward_hook(lambda *_: forwards.append("first"))
    with enable_cache(model, {**EVERY_OTHER, "block_start": 1}, num_inference_steps=4):
        for generation in range(3):
            for step in range(4):
                with branch(step=step):
                    model(x + generation, timestep=1 - step / 4)
            assert len(forwards) == 4 * (generation + 1) + 1


@torch.no_grad()
def test_rounding_of_low_precision_is_no_fault():
    model, x = build(Chain).bfloat16(), torch.randn(1, 5, 8, dtype=torch.bfloat16)
    with enable_cache(model, EVERY_OTHER, num_inference_steps=4) as handle:
        for step in range(4):
            model(x, timestep=1 - step / 4)
        assert marks(only(handle)) == {"first": "#.#."}


@torch.no_grad()
def test_an_output_that_is_not_finite_says_nothing_about_the_blocks():
    model, x = build(Chain), torch.randn(1, 5, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with enable_cache(model, EVERY_OTHER, num_inference_steps=4) as handle:
            for step in range(4):
                model(x if step > 1 else x * torch.nan, timestep=1 - step / 4)
            assert marks(only(handle)) == {"first": "#.#."}


@torch.no_grad()
def test_an_interruption_while_it_is_tried_leaves_nothing():
    model, x = build(Chain), torch.randn(1, 5, 8)
    bare = model(x, timestep=1.0)

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    calls = []
    hook = model.blocks[0].register_forward_pre_hook(interrupt)
    with enable_cache(model, {**EVERY_OTHER, "block_start": 1}, num_inference_steps=4) as handle:
        with pytest.raises(KeyboardInterrupt):
            model(x, timestep=1.0)
        hook.remove()
        assert torch.equal(model(x, timestep=1.0), bare)
        assert only(handle).calls_reused == 0


class Replaying(Chain):
    """Returns the same tensor every time, as a captured graph does; each time a little more, to tell which time it is."""

    def __init__(self):
        super().__init__()
        self.static = torch.zeros(1, 5, 8)
        self.forwards = 0

    def forward(self, x, timestep):
        self.forwards += 1
        return self.static.copy_(super().forward(x, timestep) * (1 + 1e-4 * self.forwards))


@torch.no_grad()
def test_the_output_of_the_first_forward_is_not_overwritten():
    model, twin, x = build(Replaying), build(Replaying), torch.randn(1, 5, 8)
    with enable_cache(model, EVERY_OTHER, num_inference_steps=4):
        found = model(x, 0.3)
    assert model.forwards == 2
    assert torch.equal(found, twin(x, 0.3))


class Consuming(Chain):
    """Takes a hint for every block out of the list that it is given, and answers with an object."""

    def forward(self, x, timestep, hints):
        for block in self.blocks:
            x = block(x, timestep) + hints.pop(0)
        return SimpleNamespace(sample=x)


class ConsumingAndCollecting(Consuming):
    def forward(self, x, timestep, hints):
        states = []
        for block in self.blocks:
            x = block(x, timestep) + hints.pop(0)
            states.append(x)
        return SimpleNamespace(sample=x + sum(states))


@pytest.mark.parametrize(("kind", "is_chain"), [(Consuming, True), (ConsumingAndCollecting, False)])
@torch.no_grad()
def test_lists_that_a_model_empties_and_outputs_that_are_objects(kind, is_chain):
    model, x = build(kind), torch.randn(1, 5, 8)
    bare = model(x, 0.3, [1.0, 2.0, 3.0, 4.0]).sample
    with warnings.catch_warnings(record=True), enable_cache(model, EVERY_OTHER, num_inference_steps=4) as handle:
        warnings.simplefilter("always")
        for step in range(4):
            hints = [1.0, 2.0, 3.0, 4.0]
            with branch(step=step):
                torch.testing.assert_close(model(x, 0.3, hints).sample, bare)
            assert not hints
        assert (only(handle).calls_reused > 0) == is_chain


class Twice(Chain):
    def __init__(self):
        super().__init__()
        self.blocks.append(self.blocks[1])


class TwoLists(Chain):
    """The same blocks in a second list."""

    def __init__(self):
        super().__init__()
        self.all_blocks = nn.ModuleList(self.blocks)


def test_a_block_that_stands_twice_is_refused_and_nothing_is_changed():
    model, x = build(Twice), torch.randn(1, 5, 8)
    bare = model(x, timestep=0.3)
    with pytest.raises(ConfigError, match="stand twice"):
        enable_cache(model, EVERY_OTHER, num_inference_steps=4)
    assert torch.equal(model(x, timestep=0.3), bare)


def test_blocks_in_two_lists_are_cached_once():
    found, report = errors(build(TwoLists), EVERY_OTHER)
    assert max(found) < 1e-5
    assert report.calls == 4 * STEPS


@torch.no_grad()
@pytest.mark.parametrize("method", ["pab", "taylorseer"])
def test_one_attention_of_all_blocks(method):
    entry = ENTRIES["WanTransformer3DModel"]
    model = entry.build()
    for block in model.blocks:
        block.attn1 = model.blocks[0].attn1
    bare = [model(**entry.inputs(1, 1, 0, step / 8), return_dict=False)[0] for step in range(8)]
    with enable_cache(model, {"method": method}, num_inference_steps=8):
        found = [model(**entry.inputs(1, 1, 0, step / 8), return_dict=False)[0] for step in range(8)]
    assert torch.equal(found[0], bare[0])
    for step in range(8):
        assert torch.equal(model(**entry.inputs(1, 1, 0, step / 8), return_dict=False)[0], bare[step])
