"""Copies and files of a cached model, enabling twice, and errors that leave everything as it was."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from hooked import ENTRIES, EVERY_OTHER, TINY, Stepper, latents, linears_run, marks, only, traces
from zoo.matrix import METHODS, STEPS, Player

from mindie_cache import CacheWarning, ConfigError, disable_cache, enable_cache
from mindie_cache.hooks.patches import CallPatch, Patch

FLUX = ENTRIES["FluxTransformer2DModel"]


def torch_file(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": torch_file}


def zeroed(model):
    for parameter in model.parameters():
        parameter.data.zero_()
    return model


@pytest.mark.parametrize("method", ["whole stack", "attention", "taylorseer", "first_block"])
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_cached_and_independent(how, method):
    player = Player(FLUX)
    config = METHODS[method]
    with enable_cache(player.model, config, num_inference_steps=STEPS) as handle:
        wanted = player.generate()
        player.generate(3)  # the copy is taken half-way
        twin = COPIES[how](player.model)
        with linears_run(twin) as runs, linears_run(player.model) as untouched:
            found = [player.call(given, twin) for given in player.inputs]
        assert all(torch.equal(a[0], b[0]) for a, b in zip(found, wanted, strict=True))
        assert 0 < sum(runs.values()) < player.work
        assert not untouched

        zeroed(COPIES[how](twin))
        assert all(torch.equal(a[0], b[0]) for a, b in zip(player.generate(), wanted, strict=True))
        assert "." in "".join(marks(only(handle)).values())
        disable_cache(twin)
        bare = [player.call(given, twin) for given in player.inputs]
        assert all(torch.equal(a[0], b[0]) for a, b in zip(bare, player.bare, strict=True))
        assert not any(isinstance(value, Patch) for module in twin.modules() for value in vars(module).values())
        assert all(torch.equal(a[0], b[0]) for a, b in zip(player.generate(), wanted, strict=True))


def test_a_copy_of_one_block_is_a_plain_block():
    model = Stepper()
    with enable_cache(model, EVERY_OTHER, num_inference_steps=4):
        block = copy.deepcopy(model.blocks[1])
    assert not any(isinstance(value, Patch) for value in vars(block).values())
    block.factor = 7.0
    assert float(block(torch.zeros(1), 2.0)) == 14.0
    assert (block.runs, model.blocks[1].runs) == (1, 0)


@pytest.mark.parametrize("name", ["flux", "wan22", "pixart-sigma"])
def test_a_copy_of_a_pipeline_is_cached_with_its_own_scheduler(name):
    pipe = TINY[name].build()
    with enable_cache(pipe, EVERY_OTHER):
        wanted = latents(name, pipe)
        twin = copy.deepcopy(pipe)
        twin.set_progress_bar_config(disable=True)
        assert torch.equal(latents(name, twin), wanted)
        zeroed(twin.transformer)
        assert torch.equal(latents(name, pipe), wanted)
        disable_cache(twin)
        assert torch.equal(latents(name, pipe), wanted)


def test_a_cached_model_is_saved_as_a_plain_one(tmp_path):
    player = Player(FLUX)
    with enable_cache(player.model, METHODS["whole stack"], num_inference_steps=STEPS):
        player.model.save_pretrained(tmp_path)
    loaded = type(player.model).from_pretrained(tmp_path)
    assert all(torch.equal(player.call(g, loaded)[0], bare[0]) for g, bare in zip(player.inputs, player.bare, strict=True))


def test_enabling_twice_replaces_and_says_so():
    pipe = TINY["flux"].build()
    latents("flux", pipe)
    before = traces(pipe)
    enable_cache(pipe, "fast")
    with pytest.warns(CacheWarning, match="had a cache already: it is replaced"):
        handle = enable_cache(pipe, EVERY_OTHER)
    latents("flux", pipe)
    assert marks(only(handle)) == {"cond": "#.#."}
    handle.disable()
    handle.disable()
    assert traces(pipe) == before


WRONG = {
    "method": ({"method": "teacash"}, "Did you mean 'teacache'"),
    "name": ("balansed", "balanced"),
    "field": ({"method": "dit_block_cache", "step_intervall": 2}, "step_interval"),
    "option": ({"method": "taylorseer", "options": {"lite": True, "ordr": 1}}, "order"),
    "value": ({"method": "dit_block_cache", "step_interval": 0}, "step_interval"),
    "kind": (3.5, "got float"),
    "counts": ({**EVERY_OTHER, "blocks_count": 5}, "blocks_count=5, but 3 calls"),
}


@pytest.mark.parametrize(("config", "message"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("had_one", [False, True])
def test_a_wrong_configuration_changes_nothing(config, message, had_one):
    model = Stepper()
    handle = enable_cache(model, EVERY_OTHER, num_inference_steps=4) if had_one else None
    before = [dict(vars(module)) for module in model.modules()]
    with pytest.raises(ConfigError, match=message):
        enable_cache(model, config, num_inference_steps=4)
    assert [dict(vars(module)) for module in model.modules()] == before
    if handle:
        for step in range(4):
            model(torch.zeros(1, 2), torch.tensor([3.0 - step]))
        assert marks(only(handle)) == {"first": "#.#."}


def attributes(pipe):
    models = [pipe.transformer, getattr(pipe, "transformer_2", None) or nn.Module()]
    return [[sorted(vars(module)) for module in model.modules()] for model in models]


@pytest.mark.filterwarnings("ignore:.* had a cache already")
@pytest.mark.parametrize("had_one", [False, True])
@pytest.mark.parametrize("name", ["flux", "wan22"])
def test_an_error_in_the_middle_of_enabling_leaves_all_as_it_was(name, had_one, monkeypatch):
    pipe = TINY[name].build()
    if had_one:
        handle = enable_cache(pipe, EVERY_OTHER)
    wanted = latents(name, pipe)
    before = attributes(pipe)
    install, calls = CallPatch.install, iter(range(100))

    def fails(patch):
        if next(calls) == 4:
            raise RuntimeError("this module cannot be changed")
        install(patch)

    with monkeypatch.context() as patched:
        patched.setattr(CallPatch, "install", fails)
        with pytest.raises(RuntimeError, match="cannot be changed"):
            enable_cache(pipe, "fast")
    assert attributes(pipe) == before
    assert torch.equal(latents(name, pipe), wanted)
    if had_one:
        assert "." in "".join(marks(next(iter(handle.report().models.values()))).values())
        handle.disable()
    assert not any(isinstance(value, Patch) for module in pipe.transformer.modules() for value in vars(module).values())


def test_a_model_without_blocks_says_what_was_looked_for():
    model = nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)]))
    with pytest.raises(ConfigError, match=r"no list of transformer blocks.*ModuleList.*Lists of any modules: 1 \(1\)"):
        enable_cache(model, EVERY_OTHER, num_inference_steps=4)
    with pytest.raises(ConfigError, match="attentions, but none was found"):
        enable_cache(Stepper(), "attention_cache", num_inference_steps=4)
    with pytest.raises(ConfigError, match="has no transformer: looked for transformer, transformer_2"):
        enable_cache(object(), EVERY_OTHER)
