"""What is kept fits the call that it serves: changed shapes, changed experts, unknown outputs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from toy import Add, agent_for, quiet

from mindie_cache import CacheAgent, CacheConfig, ModelExecError

STEPS = 12


class Sum(nn.Module):
    def forward(self, pair):
        return pair[0] + pair[1]


class Double(nn.Module):
    def forward(self, hidden_states):
        return 2 * hidden_states


def size(step: int) -> int:
    return 2 if step < 6 else 3


@pytest.mark.parametrize("changes_at", [0, 1])
def test_one_attention_alone_changes_its_shape(changes_at):
    agent, modules = agent_for("attention_cache", 2, STEPS), [Double(), Double()]
    with agent.run():
        for step in range(STEPS):
            for index, module in enumerate(modules):
                count = size(step) if index == changes_at else 2
                assert agent.apply(module, torch.ones(count)).tolist() == [2.0] * count
    assert agent.report().calls_reused


def test_inputs_inside_of_a_tuple_change_their_shape():
    agent, module = agent_for("attention_cache", 1, STEPS), Sum()
    with agent.run():
        for step in range(STEPS):
            pair = (torch.ones(size(step)), torch.ones(size(step)))
            assert agent.apply(module, pair).tolist() == [2.0] * size(step)
    assert agent.report().calls_reused


@pytest.mark.parametrize("method", ["attention_cache", "dit_block_cache"])
def test_two_passes_of_one_step_have_different_shapes(method):
    """Tiles of an image: never the feature of another tile's shape."""
    agent, module = agent_for(method, 1, STEPS), Double()
    with quiet(), agent.run():
        for step in range(STEPS):
            with agent.branch(step=step):
                for count in (2, 3):
                    assert agent.apply(module, hidden_states=torch.ones(count)).tolist() == [2.0] * count


def test_the_order_of_keywords_is_no_change():
    agent, module = agent_for("dit_block_cache", 1, STEPS), Add(1.0)
    with agent.run():
        for step in range(STEPS):
            keywords = {"hidden_states": torch.ones(2), "step": 0.0}
            agent.apply(module, **(keywords if step % 2 else dict(reversed(keywords.items()))))
    assert agent.report().calls_reused == STEPS - len([0, 1, 4, 7, 10])


def test_an_expert_that_takes_over_in_a_reused_step_does_not_add_to_the_estimate():
    """Both experts begin with the same block; the others of the second one are new at a step that is reused."""
    shared, first, second = Add(1.0), [Add(2.0), Add(3.0)], [Add(2.0), Add(3.0)]
    agent = CacheAgent(CacheConfig("dit_block_cache", 3, STEPS, 1, 3))
    with agent.run():
        for step in range(STEPS):
            hidden = torch.zeros(2)
            for block in (shared, *(first if step < 6 else second)):
                hidden = agent.apply(block, hidden_states=hidden)
            assert hidden.tolist() == [6.0, 6.0], step
    assert [block.runs for block in second] != [0, 0]


@dataclass
class Holder:
    parts: list[torch.Tensor]


class Slots:
    __slots__ = ("x",)

    def __init__(self, x: torch.Tensor):
        self.x = x


@pytest.mark.parametrize("form", [lambda x: Holder([x]), Slots, lambda x: type("Own", (dict,), {})(x=x)])
def test_an_output_whose_tensors_cannot_be_copied_is_refused(form):
    """It would be handed out, and a model that works in place would change what is kept."""
    agent = agent_for("attention_cache", 1, STEPS)
    agent.apply(lambda: form(torch.ones(2)))
    with pytest.raises(ModelExecError, match=r"cannot be kept.*register_pytree_node"):
        agent.apply(lambda: form(torch.ones(2)))


def test_a_boolean_stream_is_refused():
    agent = CacheAgent(CacheConfig("dit_block_cache", 1, STEPS, 0, 2, streams=("hidden_states", "mask")))
    block = lambda hidden_states, mask: (hidden_states, mask)  # noqa: E731
    with pytest.raises(ModelExecError, match="boolean"):
        agent.apply(block, hidden_states=torch.ones(2), mask=torch.ones(2, dtype=torch.bool))
