"""Warnings name the line of the user's program that led to them, and settings that can be changed."""

import linecache
from functools import partial

import pytest
import torch
from torch import nn
from toy import Add

from mindie_cache import CacheAgent, CacheConfig, CacheWarning
from mindie_cache.recipes import METHODS, advice

OFF = CacheConfig("dit_block_cache", 3, 6)


def line_of(warning):
    assert warning.filename == __file__
    return linecache.getline(warning.filename, warning.lineno).strip()


def test_a_configuration_that_is_off_is_named_where_the_agent_is_made():
    with pytest.warns(CacheWarning, match="is off") as caught:
        CacheAgent(OFF)
    assert line_of(caught[0]) == "CacheAgent(OFF)"


def generate(model):
    for _ in range(6):
        model(torch.zeros(1, 2))


class Model(nn.Module):
    def __init__(self, agent):
        super().__init__()
        self.blocks = nn.ModuleList([Add(1.0) for _ in range(3)])
        self.agent = agent

    def forward(self, x):
        for block in self.blocks:
            x = self.agent.apply(block, hidden_states=x)
        return x


def test_what_is_found_at_run_time_is_named_where_the_agent_is_called():
    model = Model(CacheAgent(CacheConfig("dit_block_cache", 3, 6, step_start=5, step_interval=3)))
    with pytest.warns(CacheWarning, match="reused nothing") as caught:
        generate(model)
    assert line_of(caught[0]) == "x = self.agent.apply(block, hidden_states=x)"


def test_a_module_of_pytorch_that_calls_the_agent_is_not_the_user():
    agent, model = CacheAgent(CacheConfig("attention_cache", 1, 6, step_start=5, step_interval=3)), nn.Identity()
    model.forward = partial(agent.apply, nn.Identity())
    with pytest.warns(CacheWarning, match="reused nothing") as caught:
        generate(model)
    assert line_of(caught[0]) == "model(torch.zeros(1, 2))"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            CacheConfig("dit_block_cache", 1, 4, step_start=3, step_interval=2),
            "Check step_start, step_interval and step_end",
        ),
        (CacheConfig("dit_block_cache", 1, 4, options={"compute_steps": [0, 1, 2]}), "options: compute_steps."),
        (CacheConfig("adastep", 1, 4), "Run more steps, or check these options: .*skip_thr"),
    ],
)
def test_advice_names_only_settings_that_the_method_takes(config, words):
    agent, block = CacheAgent(config), Add(1.0)
    with pytest.warns(CacheWarning, match=f"reused nothing.*{words}") as caught:
        [agent.apply(block, hidden_states=torch.zeros(1, 2)) for _ in range(4)]
    assert ("step_start" in str(caught[0].message)) == (config.step_start > 0)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"calibrator"}))
def test_there_is_advice_for_every_method(name):
    for text in advice(CacheConfig(name, 1, 4, options=METHODS[name].options())):
        assert "step_" in text if METHODS[name].windowed else text.rpartition(": ")[2] != "."
