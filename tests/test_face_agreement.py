"""Agreement of the faces: through should_compute, update and approximate a method gives the images that `apply` gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import JointModel, joint_inputs, quiet

from mindie_cache import CacheAgent, CacheConfig, ConfigError
from mindie_cache.clock import current_scope
from mindie_cache.feature_cache import FeatureCache
from mindie_cache.recipes import METHODS
from mindie_cache.telefuser import create_feature_cache
from mindie_cache.testbed import generate, load_testbed

STEPS = 12
EVEN = dict(cond_ratios=[1.0] * STEPS, max_skip_steps=2, retention_ratio=0.1)
BLOCKS = 12
STACK, ALONE = [(0, BLOCKS)], [(block, block + 1) for block in range(BLOCKS)]

Signal = Callable[..., Tensor]


def temb_of(block: Any, front: Tensor, hidden: Tensor, temb: Tensor) -> Tensor:
    return temb


def modulated(block: Any, front: Tensor, hidden: Tensor, temb: Tensor) -> Tensor:
    return block.modulated_input(hidden, temb)


def added(block: Any, front: Tensor, hidden: Tensor, temb: Tensor) -> Tensor:
    return hidden - front


def entering(block: Any, front: Tensor, hidden: Tensor, temb: Tensor) -> Tensor:
    return hidden


class Verbs:
    """The three verbs around spans of the testbed's blocks, one cache each, in the place of an agent.

    A cache has one tensor, so both streams go in as one. `look_into` is the block whose gated attention is observed.
    """

    def __init__(
        self, make: Callable[[], FeatureCache], spans: list[tuple[int, int]], signal: Signal | None, look_into: int = -1
    ):
        self.caches = {span: make() for span in spans}
        self.signal, self.look_into = signal, look_into
        self.index, self.compute, self.reused = 0, True, 0
        self.front = self.entered = self.seen = torch.empty(0)

    def apply(self, block, /, *, hidden_states, encoder_hidden_states, temb):
        index, is_cond = self.index, current_scope().branch == "cond"
        self.index = (index + 1) % BLOCKS
        if index == 0:
            self.front = hidden_states
        span = next((span for span in self.caches if span[0] <= index < span[1]), None)
        if span is None:
            return block(hidden_states, encoder_hidden_states, temb)
        cache, sizes = self.caches[span], [hidden_states.shape[1], encoder_hidden_states.shape[1]]
        if index == span[0]:
            self.entered = torch.cat((hidden_states, encoder_hidden_states), 1)
            signal = self.signal and self.signal(block, self.front, hidden_states, temb)
            self.compute = cache.should_compute(is_cond, signal=signal)
        if not self.compute:
            self.reused += 1
            if index < span[1] - 1:
                return hidden_states, encoder_hidden_states
            return cache.approximate(self.entered, is_cond).split(sizes, 1)
        outputs = self.run(block, index, hidden_states, encoder_hidden_states, temb)
        if index == span[1] - 1:
            observed = {"observed": self.seen} if self.look_into >= 0 else {}
            cache.update(torch.cat(outputs, 1), self.entered, is_cond, **observed)
        return outputs

    def run(self, block, index, hidden_states, encoder_hidden_states, temb):
        if index != self.look_into:
            return block(hidden_states, encoder_hidden_states, temb)
        caught: list[Tensor] = []
        handle = block.norm2.register_forward_pre_hook(lambda module, given: caught.append(given[0]))
        outputs = block(hidden_states, encoder_hidden_states, temb)
        handle.remove()
        self.seen = caught[0] - hidden_states
        return outputs


def build(method: str, fields: dict[str, Any], options: dict[str, Any]) -> FeatureCache:
    if method == "ada_taylor":
        return FeatureCache(CacheConfig(method, BLOCKS, STEPS, options=options))
    cache = create_feature_cache(method, num_inference_steps=STEPS, **fields, **options)
    assert isinstance(cache, FeatureCache)
    return cache


FAST = {"codebook": [[0.08, 4], [0.2, 3]], "otherwise": 2}
ON_BLOCKS = [  # method, step window, options, blocks of the agent, spans, signal, block that is looked into
    ("dit_block_cache", dict(step_start=2, step_interval=2), {}, {}, STACK, None, -1),
    ("dit_block_cache", dict(step_start=2, step_interval=3), {"order": 1}, {}, STACK, None, -1),
    ("taylorseer", {}, {"interval": 3, "order": 2, "lite": True}, {}, STACK, None, -1),
    ("taylorseer", {}, {"interval": 3, "low_order": 0, "high_order": 1, "lite": True}, {}, STACK, None, -1),
    ("plan_blocks", {}, {"compute_steps": [0, 3, 5, 8, STEPS - 1]}, {}, STACK, None, -1),
    ("teacache", {}, {"threshold": 0.2}, {}, STACK, temb_of, -1),
    ("teacache", {}, {"threshold": 0.4, "signal": "modulated", "together": False}, {}, STACK, modulated, -1),
    ("custom", {}, {"threshold": 0.2}, {}, STACK, temb_of, -1),
    ("seacache", {}, {"threshold": 0.2, "grid": (4, 6, 6)}, {}, STACK, modulated, -1),
    ("magcache", {}, EVEN, {}, STACK, None, -1),
    ("ada_taylor", {}, EVEN, {}, STACK, None, -1),
    ("adacache", {}, FAST, {}, STACK, None, BLOCKS // 2),
    ("adacache", {}, {**FAST, "motion": True, "frame_tokens": 36, "together": False}, {}, STACK, None, BLOCKS // 2),
    ("first_block", {}, {"threshold": 0.3}, {}, [(1, BLOCKS)], added, -1),
    ("first_block", {}, {"threshold": 0.15, "compare": "previous"}, {}, [(1, BLOCKS)], added, -1),
    ("dual_block", {}, {"threshold": 0.3}, {}, [(5, 7)], added, -1),
    ("dynamic_block", {}, {"threshold": 0.4}, {}, ALONE, entering, -1),
    ("dynamic_block", {}, {"threshold": 0.2, "parity": True}, {}, ALONE, entering, -1),
]


@pytest.mark.parametrize(("method", "fields", "options", "where", "spans", "signal", "look_into"), ON_BLOCKS)
def test_around_blocks(method, fields, options, where, spans, signal, look_into):
    model = load_testbed("cpu")
    assert model.config.blocks == BLOCKS
    asked = dict(prompts=["a red square moving left"], seeds=[3], steps=STEPS)
    agent = CacheAgent(CacheConfig(method, BLOCKS, STEPS, **fields, **where, options=options or None))
    model.cache = agent
    through_apply = generate(model, **asked).latents
    model.cache = verbs = Verbs(partial(build, method, fields, options), spans, signal, look_into)
    through_verbs = generate(model, **asked).latents
    model.cache = None
    assert 0 < agent.report().calls_reused < agent.report().calls
    assert verbs.reused == agent.report().calls_reused
    # A split along the tokens is one of both streams together there: the same decisions, other values.
    if "low_order" not in options:
        assert torch.equal(through_verbs, through_apply)
    assert not torch.equal(through_apply, generate(model, **asked).latents)


ON_CALLS = [
    ("attention_cache", dict(step_start=1, step_interval=3), {}),
    ("attention_cache", dict(step_start=1, step_interval=3), {"order": 1}),
    ("taylorseer", {}, {"interval": 3, "order": 2}),
    ("fastercache", {}, {}),
    ("pab", {}, {"broadcast": 3}),
]


class EachAttention:
    """One cache an attention, in the place of an agent."""

    def __init__(self, make: Callable[[], FeatureCache], calls: int):
        self.caches, self.index = [make() for _ in range(calls)], 0

    def apply(self, function, tokens):
        cache = self.caches[self.index]
        self.index = (self.index + 1) % len(self.caches)
        if not cache.should_compute(True):
            return cache.approximate(tokens, True)
        output = function(tokens)
        cache.update(output, tokens, True)
        return output


@pytest.mark.parametrize(("method", "fields", "options"), ON_CALLS)
def test_around_each_attention(method, fields, options):
    agent = CacheAgent(CacheConfig(method, 4, STEPS, **fields, options=options or None))
    verbs, rows = EachAttention(partial(build, method, fields, options), 4), joint_inputs(STEPS)
    outputs = {
        name: [model(**row) for row in rows]
        for name, model in {
            "apply": JointModel(attention_agent=agent),
            "verbs": JointModel(attention_agent=verbs),
            "bare": JointModel(),
        }.items()
    }
    assert all(map(torch.equal, outputs["apply"], outputs["verbs"]))
    assert not all(map(torch.equal, outputs["apply"], outputs["bare"]))
    assert sum(cache.report().calls_reused for cache in verbs.caches) == agent.report().calls_reused


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("easycache", {"threshold": 0.2, "warmup_steps": 3}),
        ("adastep", {"skip_thr": 0.5}),
        ("plan", {"compute_steps": [0, 2, 5, 8, STEPS - 1]}),
    ],
)
def test_around_the_whole_forward(method, options):
    model, rows = JointModel(), joint_inputs(STEPS)
    agent, cache = CacheAgent(CacheConfig(method, 1, STEPS, options=options)), build(method, {}, options)
    reused = 0
    for row in rows:
        latents, through_apply = row["hidden_states"], agent.apply(model, **row)
        if cache.should_compute(True, signal=latents):
            assert torch.equal(through_apply, model(**row))
            cache.update(model(**row), latents, True)
        else:
            reused += 1
            assert torch.equal(through_apply, cache.approximate(latents, True))
            assert not torch.equal(through_apply, model(**row))
    assert reused == agent.report().calls_reused > 2


def test_no_method_is_left_out():
    tested = {row[0] for row in ON_BLOCKS} | {row[0] for row in ON_CALLS} | {"easycache", "adastep", "plan"}
    assert set(METHODS) - tested == {"cfg_cache", "calibrator"}  # the latter reuses nothing; test_feature_cache.py measures
    with pytest.raises(ConfigError, match=r"both branches.*CacheAgent\.apply"), quiet():
        create_feature_cache("cfg_cache", num_inference_steps=STEPS)
