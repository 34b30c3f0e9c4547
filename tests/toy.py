"""Toy models of the tests: blocks with closed-form answers, small real blocks, and the loops around them."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mindie_cache import CacheAgent, CacheConfig, CacheWarning

FIELDS = {
    "dit_block_cache": dict(step_start=1, step_interval=3),
    "attention_cache": dict(step_start=1, step_interval=3),
    "adastep": dict(),
}
METHODS = tuple(FIELDS)


def agent_for(method: str, blocks_count: int, steps_count: int, **changes: Any) -> CacheAgent:
    """An agent that computes steps 0, 1, 4, 7, ... unless `changes` say otherwise."""
    return CacheAgent(CacheConfig(method, blocks_count, steps_count, **{**FIELDS[method], **changes}))


class Add(nn.Module):
    """hidden_states + amount * (step + 1), counting its executions; `in_place` changes its input as some models do."""

    def __init__(self, amount: float, in_place: bool = False):
        super().__init__()
        self.amount = amount
        self.in_place = in_place
        self.runs = 0

    def forward(self, hidden_states: Any, step: float = 0.0) -> Any:
        self.runs += 1
        change = self.amount * (step + 1)
        if self.in_place:
            return hidden_states.add_(change)
        return hidden_states + change


class AddBoth(Add):
    """Two streams: hidden_states + amount * (step + 1), encoder_hidden_states - amount * (step + 1)."""

    def forward(self, hidden_states: Any, encoder_hidden_states: Any, step: float = 0.0) -> Any:
        self.runs += 1
        change = self.amount * (step + 1)
        if self.in_place:
            return hidden_states.add_(change), encoder_hidden_states.sub_(change)
        return hidden_states + change, encoder_hidden_states - change


class Constant(nn.Module):
    """An attention whose output tells who computed it and when: amount + step / 1000."""

    def __init__(self, amount: float):
        super().__init__()
        self.amount = amount
        self.runs = 0

    def forward(self, hidden_states: Tensor, step: float = 0.0) -> Tensor:
        self.runs += 1
        return torch.full_like(hidden_states, self.amount + step / 1000)


class JointBlock(nn.Module):
    """A small but real transformer block: joint attention over two streams, feed-forward, residuals, modulation.

    With `attention_agent`, the attention goes through that agent.
    """

    def __init__(self, dim: int = 16, heads: int = 2, attention_agent: CacheAgent | None = None):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = JointAttention(dim, heads)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.agent = attention_agent

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:
        tokens = torch.cat((encoder_hidden_states, hidden_states), dim=1)
        normed = self.norm(tokens) * (1 + temb)
        mixed = self.attention(normed) if self.agent is None else self.agent.apply(self.attention, normed)
        tokens = tokens + 0.3 * mixed
        tokens = tokens + 0.3 * self.feed_forward(self.norm(tokens))
        encoder_count = encoder_hidden_states.shape[1]
        return tokens[:, encoder_count:], tokens[:, :encoder_count]


class JointAttention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(dim, 3 * dim)

    def forward(self, tokens: Tensor) -> Tensor:
        split = self.project(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


class JointModel(nn.Module):
    """JointBlocks in a row; the blocks go through `block_agent`, their attentions through `attention_agent`."""

    def __init__(
        self,
        blocks: int = 4,
        block_agent: CacheAgent | None = None,
        attention_agent: CacheAgent | None = None,
        seed: int = 0,
    ):
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = nn.ModuleList([JointBlock(attention_agent=attention_agent) for _ in range(blocks)])
        self.agent = block_agent

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor) -> Tensor:
        for block in self.blocks:
            inputs = dict(hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, temb=temb)
            streams = block(**inputs) if self.agent is None else self.agent.apply(block, **inputs)
            hidden_states, encoder_hidden_states = streams
        return hidden_states


def joint_inputs(steps: int, seed: int = 0, smooth: bool = True) -> list[dict[str, Tensor]]:
    """One set of inputs a step; `smooth=False` gives the same inputs at every step."""
    generator = torch.Generator().manual_seed(seed)
    hidden, change = (torch.randn(1, 6, 16, generator=generator) for _ in range(2))
    encoder = torch.randn(1, 3, 16, generator=generator)
    times = [0.05 * step if smooth else 0.0 for step in range(steps)]
    return [dict(hidden_states=hidden + t * change, encoder_hidden_states=encoder, temb=torch.full((16,), t)) for t in times]


def plain(value: Any) -> Any:
    """Tensors as Python numbers or lists, for comparison."""
    if isinstance(value, tuple | list):
        return tuple(plain(item) for item in value)
    return value.tolist() if isinstance(value, Tensor) else value


def block_step(agent: CacheAgent | None, blocks: Sequence[Callable[..., Any]], step: int, start: float) -> list[Any]:
    """One step through one-stream blocks; returns what each call returned."""
    hidden: Any = torch.full((2,), float(start), dtype=torch.float64)
    row = []
    for block in blocks:
        if agent is None:
            hidden = block(hidden, step=float(step))
        else:
            hidden = agent.apply(block, hidden_states=hidden, step=float(step))
        row.append(plain(hidden.clone()))
    return row


def block_rows(
    agent: CacheAgent | None, blocks: Sequence[Callable[..., Any]], steps: int | Sequence[int], offset: float = 0.0
) -> list[list[Any]]:
    """One generation of `block_step`; the input of a step is the step itself plus `offset`."""
    steps = range(steps) if isinstance(steps, int) else steps
    return [block_step(agent, blocks, step, offset + step) for step in steps]


def call_rows(agent: CacheAgent, functions: Sequence[Callable[..., Any]], steps: int | Sequence[int]) -> list[list[Any]]:
    """One generation of attention calls on a tensor."""
    steps = range(steps) if isinstance(steps, int) else steps
    return [[plain(agent.apply(f, torch.zeros(1), step=float(step)))[0] for f in functions] for step in steps]


def marks(agent: CacheAgent, branch: str = "cond") -> str:
    """The last run of a branch, one mark a pass: # computed, . reused."""
    return "".join("." if record.reused else "#" for record in agent.report().steps if record.branch == branch)


@contextmanager
def quiet() -> Iterator[None]:
    """Let CacheWarnings pass, where a test is about numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        yield


@contextmanager
def all_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Record every CacheWarning, also repeated ones."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CacheWarning)
        yield caught


def collect() -> None:
    """Collect cycles, so that only what is really held stays alive."""
    gc.collect()
