"""The bounds of policies, at the very number: what is below them and what is not. Random inputs hardly ever meet them."""

from __future__ import annotations

import pytest
import torch

from mindie_cache import CacheConfig
from mindie_cache.distributed import Ranks
from mindie_cache.policies import AdaCache, DynamicBlock, Limits, Motion, ResidualChange, Signal, TeaCache
from mindie_cache.recipes import METHODS

RANKS = Ranks(None)
LIMITS = Limits(steps_count=20, warmup_steps=1, final_steps=1)


def signal(value: float) -> Signal:
    return Signal(torch.full((1, 4, 2), value, dtype=torch.float64), RANKS)


def second_answer(policy, first: float, then: float) -> bool:
    """Whether the policy reuses at step 1, after a computed step 0."""
    _, state, _ = policy.decide(None, 0, signal(first), False)
    return policy.decide(state, 1, signal(then), True).reuse


@pytest.mark.parametrize(("then", "reused"), [(1.25, False), (1.2499, True), (0.75, False)])
@pytest.mark.parametrize("compare", ["computed", "previous"])
def test_a_change_of_the_threshold_itself_computes(then, reused, compare):
    """D >= threshold computes; all numbers are exact in binary."""
    policy = ResidualChange(limits=LIMITS, threshold=0.25, compare=compare)
    assert second_answer(policy, 1.0, then) == reused
    assert second_answer(TeaCache(limits=LIMITS, threshold=0.25, coefficients=(1.0, 0.0)), 1.0, then) == reused
    assert second_answer(DynamicBlock(limits=LIMITS, threshold=0.25, parity=True), 1.0, then) == reused


@pytest.mark.parametrize(("then", "steps"), [(1.25, 2), (1.2499, 5), (1.5, 1)])
def test_the_code_book_counts_what_is_below(then, steps):
    policy = AdaCache(limits=LIMITS, codebook=((0.25, 5), (0.5, 2)), otherwise=1)
    _, state, _ = policy.decide(None, 0, None, False)
    state = policy.observe(state, 0, signal(1.0))
    _, state, _ = policy.decide(state, 1, None, True)
    state = policy.observe(state, 1, signal(then))
    reused = 0
    for step in range(2, 12):
        reuse, state, _ = policy.decide(state, step, None, True)
        if not reuse:
            break
        reused += 1
    assert reused == steps - 1


@pytest.mark.parametrize("steps", [10, 30, 50])
def test_the_window_of_motion_has_both_its_ends(steps):
    motion = Motion(frame_tokens=2)
    first, last = int(0.1 * steps), int(0.9 * steps)
    assert [step for step in range(steps) if motion.covers(step, steps)] == list(range(first, last + 1))


def test_cfg_cache_keeps_differences_from_two_steps_before_it_skips():
    options = CacheConfig("cfg_cache", 1, 50).validated().options
    full, _ = options.resolved(CacheConfig("cfg_cache", 1, 50))
    assert (full.refresh_from, full.skip_from) == (13, 15)
    assert METHODS["cfg_cache"].options is type(full)
