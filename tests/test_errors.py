"""Warnings name the line of the user's program that led to them."""

import linecache
from functools import partial

import pytest
import torch
from torch import nn
from toy import Add

from mindie_cache import CacheAgent, CacheConfig, CacheWarning

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
