"""What enable_cache takes as its configuration: levels, methods, presets, mappings, files; and what it says of others."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from mindie_cache import CacheConfig, ConfigError, TeaCacheOptions, enable_cache
from mindie_cache.hooks.known import model_names
from mindie_cache.hooks.levels import LEVELS
from mindie_cache.hooks.wish import read_wish
from mindie_cache.presets import all_presets

CALLS = 30


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, hidden_states, temb):
        for layer in self.layers:
            hidden_states = hidden_states + 0.1 * torch.tanh(layer(hidden_states)) * temb
        return hidden_states


class WanTransformer3DModel(nn.Module):
    """Looks like Wan2.1-T2V-1.3B: its class name and the numbers of its configuration."""

    def __init__(self, **config):
        super().__init__()
        self.config = {"num_layers": 30, "num_attention_heads": 12, "in_channels": 16, **config}
        self.blocks = nn.ModuleList(Block() for _ in range(self.config["num_layers"]))

    def forward(self, hidden_states, timestep):
        for block in self.blocks:
            hidden_states = block(hidden_states, timestep[:, None, None])
        return hidden_states


def generate(model, steps):
    with torch.no_grad():
        for step in range(steps):
            model(torch.ones(1, 4, 8), torch.full((1,), 1 - step / steps))


def marks(handle):
    (report,) = handle.report().models.values()
    return "".join("." if record.reused else "#" for record in report.steps)


SCHEDULES = {  # of 20 steps
    "quality": "########.#.#.#.#.#.#",
    "balanced": "#.#.#.#.#..#.#.#.#.#",
    "fast": "#..#..#...#..#..#..#",
}


@pytest.mark.parametrize("name", LEVELS)
def test_levels_are_schedules_for_an_unknown_model(name):
    model = WanTransformer3DModel(num_layers=6).eval()
    with enable_cache(model, name, num_inference_steps=20) as handle:
        generate(model, 20)
        assert marks(handle) == SCHEDULES[name]
        assert handle.report().asked.startswith(f"{name}: {LEVELS[name].speedup:g} times fewer steps computed")


@pytest.mark.filterwarnings("ignore:plan_blocks reused nothing")  # of two steps
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("name", LEVELS)
def test_levels_of_few_steps(name, steps):
    model = WanTransformer3DModel(num_layers=6).eval()
    with enable_cache(model, name, num_inference_steps=steps) as handle:
        generate(model, steps)
        seen = marks(handle)
    assert seen[0] == seen[-1] == "#"
    assert seen.count("#") == max(min(2, steps), math.ceil(steps / LEVELS[name].speedup))


def test_levels_take_the_magnitude_table_of_a_known_model():
    model = WanTransformer3DModel().eval()
    shares = {}
    for name in LEVELS:
        with enable_cache(model, name, num_inference_steps=50) as handle:
            generate(model, 50)
            assert handle.report().asked == f"{name}: ada_taylor with the preset Wan2.1-T2V-1.3B"
            shares[name] = handle.report().share_computed
    assert shares["quality"] > shares["balanced"] > shares["fast"] > 0.15


def test_every_known_model_has_presets():
    names = {preset.model for preset in all_presets()}
    assert model_names(WanTransformer3DModel()) == ("Wan2.1-T2V-1.3B",)
    assert model_names(WanTransformer3DModel(num_layers=31)) == ()
    assert model_names(nn.Linear(2, 2)) == ()
    from mindie_cache.hooks.known import _KNOWN

    assert {name for _, _, found in _KNOWN for name in found} <= names


def test_a_preset_by_name():
    assert read_wish("magcache:FLUX.1-dev").config(CALLS, 28).method == "magcache"
    assert read_wish("Wan2.1-T2V-14B@" + _variant("teacache", "Wan2.1-T2V-14B")).config(CALLS, 50).options is not None
    with pytest.raises(ConfigError, match=r"no level.*no method, no file and no preset.*Did you mean 'FLUX.1-dev'"):
        read_wish("FLUX.1-def")


def _variant(method, model):
    return next(preset.variant for preset in all_presets(method) if preset.model == model and preset.variant)


def test_a_mapping_needs_no_counts_and_a_configuration_has_to_fit():
    mapping = {"method": "teacache", "options": {"threshold": 0.2}}
    wanted = CacheConfig("teacache", CALLS, 40, options=TeaCacheOptions(threshold=0.2)).validated()
    assert read_wish(mapping).config(CALLS, 40) == wanted
    assert read_wish(wanted).config(CALLS, 40) == wanted
    with pytest.raises(ConfigError, match=r"blocks_count=30, but 31 calls.*Set blocks_count=31"):
        read_wish(wanted).config(31, 40)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("balancd", "no level"),
        (3, "enable_cache got int"),
        (None, "enable_cache got NoneType"),
        ({"metod": "teacache"}, "Unknown key 'metod'.*Did you mean 'method'"),
        ({"method": "teacach"}, "Did you mean 'teacache'"),
        ({}, "method=None is not supported"),
        ({"method": "teacache", "options": {"treshold": 1}}, "unknown key 'treshold'.*Did you mean 'threshold'"),
        ({"method": "dit_block_cache", "step_interval": 0}, "step_interval=0"),
        ("nowhere.yaml", "nowhere.yaml cannot be read"),
    ],
)
def test_anything_else_is_an_error_and_leaves_the_model_alone(asked, message):
    model = WanTransformer3DModel(num_layers=4)
    before = dict(vars(model))
    with pytest.raises(ConfigError, match=message):
        enable_cache(model, asked, num_inference_steps=10)
    assert vars(model) == before


def test_files(tmp_path):
    config = CacheConfig("dit_block_cache", CALLS, 40, step_interval=3)
    config.to_yaml(tmp_path / "a.yaml")
    config.to_json(tmp_path / "a.json")
    (tmp_path / "few.yaml").write_text("method: dit_block_cache\nstep_interval: 3\n")
    (tmp_path / "twice.json").write_text('{"method": "pab", "method": "pab"}')
    (tmp_path / "list.json").write_text(json.dumps([1]))
    for name in ("a.yaml", "a.json", "few.yaml"):
        assert read_wish(str(tmp_path / name)).config(CALLS, 40) == config.validated()
    assert read_wish(tmp_path / "a.yaml").title == str(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match=r"twice.json"):
        read_wish(tmp_path / "twice.json")
    with pytest.raises(ConfigError, match=r"list.json holds no mapping"):
        read_wish(tmp_path / "list.json")


def test_without_a_pipeline_the_number_of_steps_is_asked_for():
    model = WanTransformer3DModel(num_layers=4).eval()
    with enable_cache(model, "balanced") as handle:
        with pytest.raises(ValueError, match=r"needs the number of steps.*num_inference_steps=50"):
            generate(model, 1)
        handle.refresh(num_inference_steps=20)
        generate(model, 20)
        assert marks(handle) == SCHEDULES["balanced"]
        with pytest.raises(ConfigError, match="num_inference_steps"):
            handle.refresh(num_inference_steps=0)
