"""What seacache says about options and calls that do not fit."""

from __future__ import annotations

import pytest
import torch
from open_loop import agent_of, drive, make_inputs, make_model

from mindie_cache import CacheConfig, ConfigError, SeaCacheOptions
from mindie_cache.errors import ParametersInvalid

MODEL = make_model()
GRID = (3, 4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "set grid to the latents' .* Or use signal='latents' around the whole forward"),
        ({"grid": 12}, r"grid=12 must be \(frames, height, width\)"),
        ({"grid": []}, r"grid=\(\) must be"),
        ({"grid": [3, 0]}, "grid=0 is out of range. Use a whole number from 1"),
        ({"grid": [3, 4.0]}, "grid=4.0 must be a whole number"),
        ({"grid": GRID, "threshold": -1}, "threshold=-1 is out of range"),
        ({"grid": GRID, "threshold": float("nan")}, "threshold=nan is out of range"),
        ({"grid": GRID, "spectral_exponent": -0.5}, "spectral_exponent=-0.5 is out of range"),
        ({"grid": GRID, "signal": ""}, "signal='' must name a keyword"),
        ({"grid": GRID, "signal": 3}, "signal=3 must name a keyword"),
        ({"grid": GRID, "sigma_shift": 0}, "sigma_shift=0 leaves no noise"),
        ({"grid": GRID, "sigma_shift": "3"}, "sigma_shift='3' must be a number"),
        ({"grid": GRID, "sigmas": [1.0, 0.5], "sigma_shift": 3.0}, "both set"),
        ({"grid": GRID, "sigmas": [1.0, 0.5]}, "sigmas has 2 entries, but steps_count=4"),
        ({"grid": GRID, "sigmas": []}, "sigmas=.* must be a list"),
        ({"grid": GRID, "sigmas": [1000, 750, 500, 250]}, r"sigmas\[0\]=1000 is out of range"),
        ({"grid": GRID, "sigmas": [1.0, 0.5, 0.2, float("nan")]}, r"sigmas\[3\]=nan must be a finite number"),
        ({"grid": GRID, "sigma": 3}, "unknown key 'sigma' for seacache. Did you mean"),
        ({"signal": "latents"}, "skips whole forwards: set blocks_count=1"),
    ],
)
def test_options(options, said):
    with pytest.raises(ConfigError, match=said):
        CacheConfig("seacache", 4, 4, options=options).validated()


@pytest.mark.parametrize(
    ("fields", "options", "said"),
    [
        ({}, {"grid": GRID}, "grid has no effect on signal='latents'"),
        ({"streams": ("hidden_states",)}, {}, "streams has no effect on signal='latents'"),
        ({"block_end": 1}, {}, "leave block_start and block_end"),
        ({"step_interval": 2}, {}, "decides by itself"),
    ],
)
def test_fields_around_the_whole_forward(fields, options, said):
    with pytest.raises(ConfigError, match=said):
        CacheConfig("seacache", 1, 4, options={"signal": "latents", **options}, **fields).validated()


def test_typed_options():
    options = SeaCacheOptions(grid=GRID, sigma_shift=3.0)
    assert CacheConfig("seacache", 4, 4, options=options).validated().options == options
    assert options.levels(4) == pytest.approx((1.0, 0.9, 0.75, 0.5))
    assert SeaCacheOptions().levels(4) == (1.0, 0.75, 0.5, 0.25)


@pytest.mark.parametrize(
    ("shape", "options", "said"),
    [
        ((1, 13, 6), {"grid": GRID}, r"grid=\(3, 4\) has 12 tokens, but the signal is \(1, 13, 6\): 13 tokens. Set grid"),
        ((1, 12, 6), {"grid": GRID, "signal": "temb"}, r"the signal is \(6,\): 0 tokens"),
        ((1, 12, 6), {"grid": GRID, "signal": "tmeb"}, "signal='tmeb' is NoneType .* hidden_states, temb"),
    ],
)
def test_calls(shape, options, said):
    rows = make_inputs(4, 0, shape=shape)
    with pytest.raises(ParametersInvalid, match=said):
        drive(agent_of("seacache", 4, options=options), MODEL, {"cond": rows})


def test_latents_without_a_grid():
    agent = agent_of("seacache", 4, 1, options={"signal": "latents"})
    with pytest.raises(ParametersInvalid, match=r"The latents have the shape \(12, 6\).*pass \(batch, channels, height"):
        agent.apply(lambda hidden_states: hidden_states, hidden_states=torch.ones(12, 6))
