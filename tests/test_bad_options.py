"""Every option of every method against values that nobody should pass: taken, or refused by a ConfigError that names it."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from toy import quiet

from mindie_cache import CacheAgent, CacheConfig, ConfigError
from mindie_cache.recipes import METHODS

STEPS = 20
NEEDED = {
    "magcache": {"cond_ratios": [1.0] + [0.97] * (STEPS - 1)},
    "ada_taylor": {"cond_ratios": [1.0] + [0.97] * (STEPS - 1)},
    "calibrator": {"model_name": "a model"},
    "seacache": {"grid": [4, 6, 6]},
    "plan": {"compute_steps": [0, 3, 9, STEPS - 1], "sigmas": [1 - step / STEPS for step in range(STEPS + 1)]},
    "plan_blocks": {"compute_steps": [0, 3, 9, STEPS - 1], "sigmas": [1 - step / STEPS for step in range(STEPS + 1)]},
}
STRANGE = [
    *(math.nan, math.inf, -1, -0.5, 10**9, 1e300, 2.5, True, None),
    *("x", "", b"x", [], {}, (1, 2, 3, 4, 5), [1.0], [None], [[1]], [[0.5]], [["a", 1]], [math.nan] * STEPS, [0.5, -1]),
    *(object(), torch.ones(2)),
]
PLACES = [(method, field.name) for method, entry in METHODS.items() for field in fields(entry.options)]


def build(method: str, **options) -> CacheAgent:
    blocks = 1 if METHODS[method].whole_forward else 16
    return CacheAgent(CacheConfig(method, blocks, STEPS, options={**NEEDED.get(method, {}), **options}))


def refusal(method: str, option: str, value: object) -> str | None:
    """What the error says, or None if the value is taken. Any other error is a failure."""
    try:
        with quiet():
            build(method, **{option: value})
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("method", "option"), PLACES)
def test_a_strange_value_is_taken_or_refused_by_name(method, option):
    answers = [refusal(method, option, value) for value in STRANGE]
    refused = [answer for answer in answers if answer is not None]
    assert len(refused) >= 5
    assert all(option.split("_")[0] in answer for answer in refused if option not in ("low_order", "high_order"))


NUMBERS = ("threshold", "skip_thr", "decay_ratio", "retention_ratio", "weight_floor", "motion_scale")


@pytest.mark.parametrize("option", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_no_number_that_is_none(option, value):
    for method in (method for method, name in PLACES if name == option):
        with pytest.raises(ConfigError, match=option):
            build(method, **{option: value})


@pytest.mark.parametrize("window", [[0.5, 0.1], [-0.1, 0.5], [0.1, 1.5], [0.1, 0.5, 0.9], [0.1]])
def test_the_window_of_motion_is_two_shares_in_order(window):
    with pytest.raises(ConfigError, match="motion_window"):
        build("adacache", motion=True, frame_tokens=2, motion_window=window)


def test_a_warm_up_longer_than_the_run_costs_nothing():
    """It once made a set of so many numbers."""
    with quiet():
        assert build("taylorseer", warmup_steps=10**9).config.steps_count == STEPS
