"""`apply` around compiled blocks: no graph break inside a block, and nothing is compiled again while the cache works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import agent_for, marks

STEPS = 50


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Backend:
    """Runs graphs as they are and counts how many were compiled."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


class Block(nn.Module):
    """One stream, with a residual and a time embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 8)

    def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        return hidden_states + torch.tanh(self.project(hidden_states) + temb)


class JointBlock(Block):
    """Two streams."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:
        mixed = self.project(torch.cat((encoder_hidden_states, hidden_states))) + temb
        return hidden_states + mixed[2:], encoder_hidden_states + mixed[:2]


class Model:
    """Compiled blocks behind an agent, in MindIE-SD's calling convention."""

    def __init__(self, kind: type[Block], method: str, backend: Backend, **changes: Any):
        torch.manual_seed(0)
        self.joint, self.blocks = kind is JointBlock, [kind().eval() for _ in range(4)]
        self.compiled = [torch.compile(block, backend=backend, fullgraph=True) for block in self.blocks]
        self.agent = agent_for(method, 4, STEPS, **changes)

    def step(self, step: int, blocks: list[Callable[..., Any]]) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        hidden, encoder = torch.randn(4, 8, generator=generator) + step / 20, torch.randn(2, 8, generator=generator)
        for block in blocks:
            streams = {"hidden_states": hidden, **({"encoder_hidden_states": encoder} if self.joint else {})}
            out = self.agent.apply(block, **streams, temb=torch.full((8,), step / STEPS))
            hidden, encoder = out if self.joint else (out, encoder)
        return hidden


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    ("kind", "method", "changes"),
    [
        (Block, "dit_block_cache", {}),
        (Block, "dit_block_cache", {"options": {"order": 1}, "block_start": 1, "block_end": 3}),
        (JointBlock, "dit_block_cache", {"block_start": 1}),
        (JointBlock, "dit_block_cache", {"options": {"order": 1}}),
        (Block, "attention_cache", {}),
        (Block, "attention_cache", {"options": {"order": 1}}),
    ],
)
def test_compiled_blocks_are_compiled_once_and_give_the_eager_result(kind, method, changes, mode):
    backend = Backend()
    model = Model(kind, method, backend, **changes)
    with mode():
        compiled = [model.step(step, model.compiled) for step in range(2)]
        graphs = backend.graphs
        assert graphs >= 1  # fullgraph=True: a graph break would have raised
        compiled += [model.step(step, model.compiled) for step in range(2, STEPS)]
        seen = marks(model.agent)
        assert backend.graphs == graphs
        eager = [model.step(step, model.blocks) for step in range(STEPS)]
    assert seen == marks(model.agent)
    assert seen.count(".") > STEPS / 2
    for got, wanted in zip(compiled, eager, strict=True):
        torch.testing.assert_close(got, wanted)


def test_after_a_second_generation_and_a_branch_nothing_is_compiled_again():
    backend = Backend()
    model = Model(JointBlock, "dit_block_cache", backend)
    with torch.no_grad():
        model.step(0, model.compiled)
        graphs = backend.graphs
        model.agent.reset()
        for _ in range(2):
            for step in range(STEPS):
                for branch in ("cond", "uncond"):
                    with model.agent.branch(branch):
                        model.step(step, model.compiled)
    assert backend.graphs == graphs


def test_the_counting_backend_sees_a_recompilation():
    backend = Backend()
    block = torch.compile(Block(), backend=backend, fullgraph=True)
    with torch.no_grad():
        block(torch.zeros(4, 8), torch.zeros(8))
        block(torch.zeros(4, 8, dtype=torch.float32), torch.zeros(8))
        assert backend.graphs == 1
        block(torch.zeros(5, 8), torch.zeros(8))
        assert backend.graphs == 2
