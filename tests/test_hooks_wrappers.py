"""Blocks, and models, inside wrappers that pass their arguments on: of other libraries, and of one's own."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from hooked import ENTRIES, EVERY_OTHER, linears_run
from processes import ranks
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from mindie_cache import ParametersInvalid, enable_cache
from mindie_cache.wrappers import unwrapped

STEPS = 8
FLUX, WAN = "FluxTransformer2DModel", "WanTransformer3DModel"
LISTS = {FLUX: ("transformer_blocks", "single_transformer_blocks"), WAN: ("blocks",)}  # called by keyword; by position
METHODS = {
    "dit_block_cache": EVERY_OTHER,
    "teacache": {"method": "teacache", "options": {"threshold": 0.5}},
    "first_block": {"method": "first_block", "options": {"threshold": 0.9}},
    "adacache": {"method": "adacache", "options": {"probe": "norm2"}},
    "pab": {"method": "pab"},
    "taylorseer": {"method": "taylorseer"},
}


class PassOn(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


WRAPPERS = {
    "one's own": PassOn,
    "two": lambda block: PassOn(PassOn(block)),
    "DataParallel": nn.DataParallel,
    "CheckpointWrapper": checkpoint_wrapper,
    "torch.compile": partial(torch.compile, backend="eager"),
}


def wrap_blocks(model, wrapper):
    for name in LISTS[type(model).__name__]:
        blocks = getattr(model, name)
        for index in range(len(blocks)):
            blocks[index] = wrapper(blocks[index])
    return model


@torch.no_grad()
def played(name, config, change=lambda model: model):
    """What a cached model gives, which of its linear layers ran how often, and the report."""
    entry = ENTRIES[name]
    model = change(entry.build())
    with linears_run(model) as runs, enable_cache(model, config, num_inference_steps=STEPS) as handle:
        found = [model(**entry.inputs(1, 1, 0, step / STEPS), return_dict=False)[0] for step in range(STEPS)]
        (report,) = handle.report().models.values()
    return found, sorted(runs.values()), report.steps


def same(one, other):
    return all([torch.equal(*pair) for pair in zip(one[0], other[0], strict=True)]) and one[1:] == other[1:]


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrapper", ["one's own", "DataParallel", "CheckpointWrapper"])
def test_wrapped_blocks_are_cached_like_the_blocks(name, method, wrapper):
    plain = played(name, METHODS[method])
    assert same(played(name, METHODS[method], lambda model: wrap_blocks(model, WRAPPERS[wrapper])), plain)


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("wrapper", ["two", "torch.compile"])
def test_also_compiled_ones_and_wrappers_in_wrappers(name, wrapper):
    plain = played(name, EVERY_OTHER)
    assert any([record.reused for record in plain[2]])
    assert same(played(name, EVERY_OTHER, lambda model: wrap_blocks(model, WRAPPERS[wrapper])), plain)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model_is_cached_like_the_model(wrapper):
    assert same(played(WAN, EVERY_OTHER, WRAPPERS[wrapper]), played(WAN, EVERY_OTHER))


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
@torch.no_grad()
def test_blocks_that_are_wrapped_afterwards(name, wrapper):
    entry, (wanted, _, steps) = ENTRIES[name], played(name, EVERY_OTHER)
    model = entry.build()
    with enable_cache(model, EVERY_OTHER, num_inference_steps=STEPS) as handle:
        wrap_blocks(model, WRAPPERS[wrapper])
        found = [model(**entry.inputs(1, 1, 0, step / STEPS), return_dict=False)[0] for step in range(STEPS)]
        (report,) = handle.report().models.values()
    assert report.steps == steps
    assert all(map(torch.equal, found, wanted))


def test_what_is_no_wrapper():
    linear = nn.Linear(1, 1)
    assert unwrapped(PassOn(PassOn(linear))) is linear
    for module in (linear, nn.Sequential(linear), nn.ModuleList([linear]), nn.ModuleDict({"one": linear})):
        assert unwrapped(module) is module
    around = PassOn(nn.ModuleList([linear]))
    assert unwrapped(around) is around


class Unnamed(nn.Module):
    """A block that names none of its arguments, and is no wrapper either."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ParameterList([nn.Parameter(torch.ones(1, 1)) for _ in range(3)])

    def forward(self, *args):
        return args[0] + args[1]


class OpenEnded(Unnamed):
    def forward(self, hidden_states, *rest):
        return super().forward(hidden_states, *rest)


class ByPlace(Unnamed):
    def forward(self, hidden_states, push, /):
        return super().forward(hidden_states, push)


class Loop(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.blocks = nn.ModuleList([kind() for _ in range(4)])
        self.eval()

    def forward(self, hidden_states, timestep=None):
        for block in self.blocks:
            hidden_states = block(hidden_states, timestep)
        return hidden_states


@pytest.mark.parametrize("kind", [OpenEnded, ByPlace])
def test_arguments_that_cannot_be_told_by_name_stay_where_they_are(kind):
    model = Loop(kind)
    with torch.no_grad(), enable_cache(model, EVERY_OTHER, num_inference_steps=4):
        found = [float(model(torch.ones(1), torch.tensor([4.0 - step]))) for step in range(4)]
    assert found == [17.0, 17.0, 9.0, 9.0]


def test_blocks_without_named_arguments_are_refused_before_anything_is_changed():
    model = Loop(Unnamed)
    with pytest.raises(ParametersInvalid, match=r"Unnamed\.forward names none of its arguments"):
        enable_cache(model, EVERY_OTHER, num_inference_steps=4)
    assert float(model(torch.ones(1), torch.tensor([4.0]))) == 17.0
    assert "forward" not in vars(model)


@pytest.mark.parametrize("name", LISTS)
def test_sharded_models_are_cached_like_the_whole_one(name):
    assert ranks(2, [str(Path(__file__).with_name("fully_sharded.py")), name]) == [0, 0]
