"""Blocks that are replayed from a captured graph return the same memory every time: what is kept has to be a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import JointBlock, JointModel, joint_inputs, quiet

from mindie_cache import CacheAgent, CacheConfig, enable_cache
from mindie_cache.placement import OnDevice

STEPS, BLOCKS = 14, 8


class Captured(nn.Module):
    """A module as a graph replays it: inputs are copied into fixed memory, outputs lie in fixed memory, the same each time.

    That is what `torch.cuda.make_graphed_callables` and torch_npu's graphs do, without the device.
    """

    def __init__(self, module: Callable[..., Any]):
        super().__init__()
        self.module = module
        self.inputs: dict[str, Tensor] = {}
        self.outputs: Any = None

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        given = {**{str(index): arg for index, arg in enumerate(args)}, **kwargs}
        if not self.inputs:
            self.inputs = {name: tensor.clone() for name, tensor in given.items()}
        for name, tensor in given.items():
            self.inputs[name].copy_(tensor)
        results = self.module(*list(self.inputs.values())[: len(args)], **{name: self.inputs[name] for name in kwargs})
        if self.outputs is None:
            self.outputs = results.clone() if isinstance(results, Tensor) else tuple(part.clone() for part in results)
            return self.outputs
        whole = isinstance(results, Tensor)
        for fixed, part in zip((self.outputs,) if whole else self.outputs, (results,) if whole else results, strict=True):
            fixed.copy_(part)
        return self.outputs


def generate(config: CacheConfig | None, captured: bool, each_attention: bool) -> list[Tensor]:
    agent = None if config is None else CacheAgent(config)
    model = JointModel(BLOCKS, **{"attention_agent" if each_attention else "block_agent": agent})
    if captured:
        for index, block in enumerate(model.blocks):
            if each_attention:
                block.attention = Captured(block.attention)
            else:
                model.blocks[index] = Captured(block)
    with quiet(), torch.no_grad():
        results = [model(**row).clone() for row in joint_inputs(STEPS)]
    assert agent is None or agent.report().calls_reused
    return results


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


LINE = {"order": 1}
CASES = [
    (CacheConfig("dit_block_cache", BLOCKS, STEPS, 1, 3), False),
    (CacheConfig("dit_block_cache", BLOCKS, STEPS, 1, 3, block_start=2, block_end=6, options=LINE), False),
    (CacheConfig("taylorseer", BLOCKS, STEPS, options={"interval": 3, "order": 2, "lite": True}), False),
    (CacheConfig("taylorseer", BLOCKS, STEPS, options={"interval": 3, "order": 1}), False),
    (CacheConfig("teacache", BLOCKS, STEPS, options={"threshold": 0.5}), False),
    (CacheConfig("custom", BLOCKS, STEPS, options={"threshold": 0.5}), False),
    (CacheConfig("first_block", BLOCKS, STEPS, options={"threshold": 0.3}), False),
    (CacheConfig("dynamic_block", BLOCKS, STEPS, options={"threshold": 0.4}), False),
    (CacheConfig("attention_cache", BLOCKS, STEPS, 1, 3), True),
    (CacheConfig("attention_cache", BLOCKS, STEPS, 1, 3, options=LINE), True),
    (CacheConfig("fastercache", BLOCKS, STEPS), True),
    (CacheConfig("pab", BLOCKS, STEPS, options={"broadcast": 3}), True),
]


@pytest.mark.parametrize(("config", "each_attention"), CASES, ids=lambda value: getattr(value, "method", ""))
def test_captured_blocks_give_the_same(config, each_attention):
    assert same(generate(config, True, each_attention), generate(config, False, each_attention))
    assert not same(generate(config, False, each_attention), generate(None, False, each_attention))


@pytest.mark.parametrize("each_attention", [False, True])
def test_without_the_copy_the_next_replay_overwrites_what_was_kept(monkeypatch, each_attention):
    fields = ("attention_cache", BLOCKS, STEPS, 1, 3) if each_attention else ("taylorseer", BLOCKS, STEPS)
    config = CacheConfig(*fields, options=LINE if each_attention else {"interval": 3, **LINE})  # per module: whole outputs
    right = generate(config, False, each_attention)
    monkeypatch.setattr(OnDevice, "keep_copy", staticmethod(lambda value: value))
    assert not same(generate(config, True, each_attention), right)


def test_through_enable_cache():
    config = CacheConfig("dit_block_cache", BLOCKS, STEPS, 1, 3, options={"order": 1})
    results = []
    for captured in (False, True):
        model = JointModel(BLOCKS)
        if captured:
            for block in model.blocks:  # as make_graphed_callables does with a module
                block.forward = Captured(JointBlock.forward.__get__(block)).forward
        streams = ("hidden_states", "encoder_hidden_states")
        with quiet(), torch.no_grad(), enable_cache(model, config, blocks="blocks", streams=streams) as handle:
            results.append([model(**row).clone() for row in joint_inputs(STEPS)])
            assert handle.report().share_computed < 1
    assert same(*results)
