"""Which run, branch and step a call belongs to: threads, tasks, requests, nesting, experts, guidance, interruptions."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import io
import pickle
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import Add, Constant, agent_for, all_warnings, block_rows, block_step, call_rows, marks, plain, quiet

import mindie_cache
from mindie_cache import CacheAgent, CacheConfig, CacheWarning

STEPS = 9
SCHEDULE = "##..#..#."  # of toy.agent_for: refresh at 1, 4, 7


def adds(*amounts: float) -> list[Add]:
    return [Add(amount) for amount in amounts or (1.0, 10.0, 100.0)]


def block_agent(calls: int = 3, steps: int = STEPS, **changes: Any) -> CacheAgent:
    return agent_for("dit_block_cache", calls, steps, **changes)


def expected(offset: float = 0.0, amounts: tuple[float, ...] = (1.0, 10.0, 100.0), steps: int = STEPS) -> list[Any]:
    """What a fresh agent gives in a run of its own."""
    agent = block_agent(len(amounts), steps)
    with agent.run():
        return block_rows(agent, adds(*amounts), steps, offset)


def uncached(offset: float = 0.0, amounts: tuple[float, ...] = (1.0, 10.0, 100.0), steps: int = STEPS) -> list[Any]:
    return block_rows(None, adds(*amounts), steps, offset)


# --- threads, tasks, requests


def test_two_threads_on_one_agent_never_mix():
    agent, blocks, barrier = block_agent(), adds(), threading.Barrier(2, timeout=30)

    def generate(offset):
        rows = []
        for _ in range(2):
            for step in range(STEPS):
                barrier.wait()  # both are inside the same step
                rows.append(block_step(agent, blocks, step, offset + step))
        return rows

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(generate, (0.0, 0.5)))
    assert results == [expected(0.0) * 2, expected(0.5) * 2]


def test_threads_with_runs_of_their_own_share_an_agent():
    agent, blocks, barrier = block_agent(), adds(), threading.Barrier(2, timeout=30)

    def generate(offset):
        with agent.run():
            rows = []
            for step in range(STEPS):
                barrier.wait()
                rows.append(block_step(agent, blocks, step, offset + step))
            return rows

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(generate, (0.0, 0.5))) == [expected(0.0), expected(0.5)]


def test_the_features_of_a_finished_thread_are_released(monkeypatch):
    kept = remember_kept(monkeypatch)
    agent = block_agent()
    thread = threading.Thread(target=block_rows, args=(agent, adds(), 3))
    thread.start()
    thread.join()
    assert kept
    gc.collect()
    assert not [ref for ref in kept if ref() is not None]


def remember_kept(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Tensor]]:
    """Weak references to every tensor that is kept from now on."""
    kept: list[weakref.ref[Tensor]] = []
    original = mindie_cache.placement.OnDevice.keep

    def keep(self, feature):
        kept.append(weakref.ref(feature))
        return original(self, feature)

    monkeypatch.setattr(mindie_cache.placement.OnDevice, "keep", keep)
    return kept


def test_two_asyncio_tasks_with_a_run_each_never_mix():
    agent, blocks = block_agent(), adds()

    async def generate(offset):
        rows = []
        with agent.run():
            for step in range(STEPS):
                hidden = torch.full((2,), offset + step, dtype=torch.float64)
                row = []
                for block in blocks:
                    hidden = agent.apply(block, hidden_states=hidden, step=float(step))
                    row.append(plain(hidden))
                    await asyncio.sleep(0)  # the other task makes its call here
                rows.append(row)
        return rows

    async def both():
        return await asyncio.gather(generate(0.0), generate(0.5))

    assert asyncio.run(both()) == [expected(0.0), expected(0.5)]


async def generated(agent, blocks, offset, wait=0, steps=STEPS):
    """A generation whose task gives way to others after each step."""
    rows = []
    for _ in range(wait):
        await asyncio.sleep(0)
    for step in range(steps):
        rows.append(block_step(agent, blocks, step, offset + step))
        await asyncio.sleep(0)
    return rows


@pytest.mark.parametrize("warm", [0, 4, STEPS])
@pytest.mark.parametrize("wait", [0, 3])
def test_asyncio_tasks_never_mix_whatever_their_parent_has_done(warm, wait):
    agent, blocks = block_agent(), adds()

    async def server():
        block_rows(agent, blocks, warm)
        return await asyncio.gather(*[generated(agent, blocks, 0.5 * i, wait * i) for i in range(3)])

    block_rows(agent, blocks, warm)  # their contexts are copies of this one
    for _ in range(2):
        assert asyncio.run(server()) == [expected(0.0), expected(0.5), expected(1.0)]


def test_tasks_and_threads_inside_a_run_are_one_generation():
    agent, blocks = block_agent(), adds()

    async def step_by_step(send):
        with agent.run():
            return [await send(block_step, agent, blocks, step, step) for step in range(STEPS)]

    async def in_a_task(function, *args):
        async def call():
            return function(*args)

        return await asyncio.create_task(call())

    for send in (in_a_task, asyncio.to_thread):
        assert asyncio.run(step_by_step(send)) == expected()


def test_tasks_for_single_steps_compute():
    """Each counts by itself: nothing tells them from generations."""
    agent, blocks = block_agent(), adds()

    async def generate():
        block_rows(agent, blocks, STEPS)
        return [(await asyncio.create_task(generated(agent, blocks, step, steps=1)))[0] for step in range(STEPS)]

    assert asyncio.run(generate()) == [block_rows(None, blocks, 1, float(step))[0] for step in range(STEPS)]


def test_what_a_finished_task_kept_is_released(monkeypatch):
    kept = remember_kept(monkeypatch)
    agent = block_agent()

    async def server():
        await asyncio.create_task(generated(agent, adds(), 0.0, steps=3))
        await asyncio.sleep(0)  # the loop lets go of it
        gc.collect()
        return [ref for ref in kept if ref() is not None]

    assert not asyncio.run(server())
    assert kept


def test_interleaved_named_requests_never_mix():
    agent, blocks = block_agent(), adds()
    rows = {name: [] for name in "abc"}
    for turn in range(STEPS + 4):
        for name, late in (("a", 0), ("b", 1), ("c", 4)):  # continuous batching: requests join and leave
            step = turn - late
            if 0 <= step < STEPS:
                with agent.run(request=name):
                    rows[name].append(block_step(agent, blocks, step, ord(name) + step))
    assert rows == {name: expected(ord(name)) for name in "abc"}
    assert agent.report().bytes_now == 0


def test_a_finished_request_name_can_be_used_again():
    agent, blocks = block_agent(), adds()
    for _ in range(2):
        rows = []
        for step in range(STEPS):
            with agent.run(request=("user", 7)):
                rows.append(block_step(agent, blocks, step, step))
        assert rows == expected()


@pytest.mark.parametrize("leave", ["forget", "exception"])
def test_an_abandoned_request_leaves_nothing_behind(leave, monkeypatch):
    kept = remember_kept(monkeypatch)
    agent, blocks = block_agent(), adds()
    for step in range(3):
        with agent.run(request="a"):
            block_step(agent, blocks, step, step)
    if leave == "forget":
        mindie_cache.forget_request("a")
        mindie_cache.forget_request("never seen")  # harmless
    else:
        with pytest.raises(ZeroDivisionError), agent.run(request="a"):
            raise ZeroDivisionError
    gc.collect()
    assert kept
    assert not [ref for ref in kept if ref() is not None]
    rows = []
    for step in range(STEPS):
        with agent.run(request="a"):
            rows.append(block_step(agent, blocks, step, step))
    assert rows == expected()


def test_an_inner_run_does_not_touch_the_outer_one():
    agent, blocks, rows = block_agent(), adds(), []
    with agent.run():
        for step in range(STEPS):
            if step == 5:
                with agent.run():
                    assert block_rows(agent, blocks, STEPS, 0.25) == expected(0.25)
            rows.append(block_step(agent, blocks, step, step))
    assert rows == expected()


# --- several agents


def test_double_and_single_stacks_with_an_agent_each():
    double, single = block_agent(2), block_agent(3, block_start=1)
    stacks = adds(1.0, 2.0), adds(10.0, 20.0, 30.0)
    for _ in range(2):
        for step in range(STEPS):
            block_step(double, stacks[0], step, step)
            block_step(single, stacks[1], step, step)
        assert marks(double) == marks(single) == SCHEDULE
    assert [block.runs for block in stacks[0] + stacks[1]] == [2 * 4, 2 * 4, 2 * 9, 2 * 4, 2 * 4]


def test_two_models_in_turn_each_start_at_step_0():
    first, second, blocks = block_agent(), block_agent(2, 5), (adds(), adds(2.0, 3.0))
    for _ in range(2):
        assert block_rows(first, blocks[0], STEPS) == expected()
        assert block_rows(second, blocks[1], 5) == expected(amounts=(2.0, 3.0), steps=5)


def test_a_model_that_counts_after_one_that_tells():
    teller, counter, blocks = block_agent(), block_agent(), adds()
    for step in range(STEPS):
        with teller.branch(step=step):
            block_step(teller, blocks, step, step)
    assert block_rows(counter, adds(), STEPS) == expected()
    assert block_rows(teller, blocks, STEPS) == expected()


class NestedBlock(nn.Module):
    """A block whose attention goes through an agent of its own."""

    def __init__(self, amount: float, agent: CacheAgent, wrap: Callable[[nn.Module], Any]):
        super().__init__()
        self.attention = Constant(amount)
        self.agent = agent
        self.wrap = wrap
        self.served: list[tuple[int, int]] = []  # the amount and the step of the attention that was served

    def forward(self, hidden_states: Tensor, step: float = 0.0) -> Tensor:
        attended = self.agent.apply(self.wrap(self.attention), hidden_states, step=step)
        amount = round(attended[0].item())
        self.served.append((amount, round((attended[0].item() - amount) * 1000)))
        return hidden_states + attended


@pytest.mark.parametrize("interval", [2, 3, 5])
@pytest.mark.parametrize("span", [(0, 4), (1, 4), (2, 4), (0, 3), (1, 3), (0, 2)])
@pytest.mark.parametrize(
    "wrap", [lambda attention: attention, lambda attention: attention.forward], ids=["module", "method"]
)
def test_an_attention_inside_cached_blocks_keeps_its_place(span, interval, wrap):
    """Whatever the outer cache skips, an attention gets its own features, none older than its last refresh."""
    inner = agent_for("attention_cache", 4, 12, step_start=0, step_interval=interval)
    outer = block_agent(4, 12, step_start=1, step_interval=3, block_start=span[0], block_end=span[1])
    blocks = [NestedBlock(10.0 * place, inner, wrap) for place in range(4)]
    for _ in range(3):
        with all_warnings() as caught:
            for step in range(12):
                hidden = torch.zeros(1, dtype=torch.float64)
                for place, block in enumerate(blocks):
                    executed = len(block.served)
                    hidden = outer.apply(block, hidden_states=hidden, step=float(step))
                    for amount, source in block.served[executed:]:
                        assert amount == 10 * place
                        assert 0 <= step - source < interval
        assert not caught
        assert marks(outer) == "##..#..#..#."
        assert "." in marks(inner)


def test_an_attention_that_cannot_be_told_apart_computes_and_says_so():
    inner = agent_for("attention_cache", 4, 12, step_start=0, step_interval=2)
    outer = block_agent(4, 12, step_start=1, step_interval=3, block_start=1, block_end=3)
    blocks = [NestedBlock(10.0 * place, inner, lambda attention: lambda *a, **k: attention(*a, **k)) for place in range(4)]
    with pytest.warns(CacheWarning, match="cannot be told apart"):
        block_rows(outer, blocks, 12)
    assert [{amount for amount, _ in block.served} for block in blocks] == [{0}, {10}, {20}, {30}]


# --- experts and guidance


@pytest.mark.parametrize("explicit", [False, True])
def test_one_agent_for_two_experts_computes_after_the_change(explicit):
    agent, experts = block_agent(), (adds(), adds(2.0, 20.0, 200.0))
    for _ in range(2):
        with agent.run() if explicit else nullcontext():
            rows = [block_step(agent, experts[step >= 6], step, step) for step in range(STEPS)]
        assert marks(agent) == "##..#.##."
        source = (0, 1, 1, 1, 4, 4, 6, 7, 7)  # the step whose residual is in the result
        amounts = [111.0] * 6 + [222.0] * 3
        last = [step + amount * (s + 1) for step, (amount, s) in enumerate(zip(amounts, source, strict=True))]
        assert [row[-1][0] for row in rows] == last


def test_one_agent_for_two_experts_and_two_branches():
    agent, experts = block_agent(), (adds(), adds(2.0, 20.0, 200.0))
    for step in range(STEPS):
        for branch in ("cond", "uncond"):
            with agent.branch(branch):
                block_step(agent, experts[step >= 6], step, step)
    assert marks(agent) == marks(agent, "uncond") == "##..#.##."


def test_an_agent_for_each_of_two_experts_inside_run():
    high, low, experts = block_agent(), block_agent(), (adds(), adds(2.0, 20.0, 200.0))
    for _ in range(2):
        with high.run():
            for step in range(6):
                block_step(high, experts[0], step, step)
            for step in range(6, STEPS):
                block_step(low, experts[1], step, step)
        assert marks(high) == "##..#."
        assert [(record.step, record.reused) for record in low.report().steps] == [(6, False), (7, False), (8, True)]
        assert high.report().bytes_now == low.report().bytes_now == 0


def test_an_agent_for_each_of_two_experts_without_run_never_mixes_generations():
    """Counted, each agent counts its own steps, of which there are fewer than steps_count: some more are computed."""
    agents = (block_agent(), block_agent())
    for generation in range(5):
        experts = (adds(1.0 + generation), adds(-1.0 - generation))
        reused = 0
        for step in range(STEPS):
            expert = step >= 6
            row = block_step(agents[expert], experts[expert][:1] * 3, step, 0.0)[-1][0]
            assert row / 3 / experts[expert][0].amount in range(6 * expert + 1, step + 2)
            reused += row / 3 / experts[expert][0].amount != step + 1
        assert reused


@pytest.mark.parametrize("method", ["dit_block_cache", "attention_cache"])
def test_guidance_intervals_keep_the_steps_of_both_branches(method):
    """uncond runs at steps 3 to 6 only: it computes at its first call, and makes up for what it missed."""
    agent, block = agent_for(method, 1, STEPS), Add(1.0)
    for _ in range(2):
        for step in range(STEPS):
            for branch in ("cond", "uncond")[: 1 + (step in (3, 5, 6))]:
                with agent.branch(branch):
                    agent.apply(block, hidden_states=torch.full((1,), float(step)))
        assert marks(agent) == SCHEDULE
        assert [(r.step, r.reused) for r in agent.report().steps if r.branch == "uncond"] == [
            (3, False),  # no data
            (5, False),  # the refresh of step 4 was missed
            (6, True),
        ]


def test_guidance_that_returns_never_gets_old_features_from_adastep():
    """One decision serves both branches; a branch that missed the last computed step has nothing to reuse."""
    agent, transformer, produced = (
        agent_for("adastep", 1, 20, options={"skip_thr": 10.0, "max_skip_steps": 2}),
        Constant(0.0),
        {},
    )
    for step in range(20):
        for branch in ("cond", "uncond")[: 1 + (step < 5 or step >= 11)]:  # step 11 is reused
            transformer.amount = float(step)
            with agent.branch(branch):
                out = agent.apply(transformer, torch.full((2,), float(step)))
            produced[branch, step] = round(out[0].item())
        if ("uncond", step) in produced:
            assert produced["uncond", step] >= produced["cond", step], f"step {step}: uncond is older than cond"
    assert "." in marks(agent)
    assert "." in marks(agent, "uncond")


def test_branches_may_alternate_block_by_block():
    agent, blocks = block_agent(), adds()
    for _ in range(2):
        rows = {"cond": [], "uncond": []}
        for step in range(STEPS):
            hidden = {name: torch.full((2,), step, dtype=torch.float64) for name in rows}
            row = {"cond": [], "uncond": []}
            for block in blocks:
                for name in hidden:
                    with agent.branch(name):
                        hidden[name] = agent.apply(block, hidden_states=hidden[name], step=float(step))
                    row[name].append(plain(hidden[name]))
            for name in rows:
                rows[name].append(row[name])
        assert rows == {"cond": expected(), "uncond": expected()}


# --- told steps and timesteps


@pytest.mark.parametrize(
    "tell", [lambda i: dict(step=i), lambda i: dict(timestep=1000.0 - 10 * i)], ids=["step", "timestep"]
)
def test_told_steps_equal_counted_ones(tell):
    agent, blocks = block_agent(), {name: adds() for name in ("cond", "uncond")}
    for _ in range(2):
        rows = {name: [] for name in blocks}
        for step in range(STEPS):
            for name in blocks:
                with agent.branch(name, **tell(step)):
                    rows[name].append(block_step(agent, blocks[name], step, step))
        assert rows == {name: expected() for name in blocks}


@pytest.mark.parametrize("done", range(1, STEPS))
@pytest.mark.parametrize("tell", [lambda i: dict(step=i), lambda i: dict(timestep=999 - i)], ids=["step", "timestep"])
def test_a_told_step_that_jumps_back_is_a_new_run(tell, done):
    agent, blocks = block_agent(), adds()

    def generate(steps):
        rows = []
        for step in range(steps):
            with agent.branch(**tell(step)):
                rows.append(block_step(agent, blocks, step, step))
        return rows

    with quiet():  # the first run is shorter than configured
        generate(done)
        assert generate(STEPS) == expected()


def test_told_steps_may_start_late_and_leave_gaps():
    """Image to image starts at a later step; a distilled schedule leaves some out."""
    agent, block = block_agent(1), Add(1.0)
    for step in (3, 4, 5, 6, 8):
        with agent.branch(step=step):
            block_step(agent, [block], step, step)
    assert [(r.step, r.reused) for r in agent.report().steps] == [(3, False), (4, False), (5, True), (6, True), (8, False)]


def test_equal_timesteps_are_one_step():
    """A second-order solver evaluates the model twice a step; the second evaluation is the same step."""
    agent, block = block_agent(1), Add(1.0)
    for step in range(STEPS):
        for _ in range(2):
            with agent.branch(timestep=1.0 - step / 100):
                block_step(agent, [block], step, step)
    assert marks(agent)[:-2] == "".join(2 * mark for mark in SCHEDULE[:-1])  # after the last step all is released


def test_a_told_step_past_the_configured_ones_is_announced():
    agent, block = block_agent(1, 4), Add(1.0)
    with all_warnings() as caught:
        for step in range(6):
            with agent.branch(step=step):
                assert block_step(agent, [block], step, step) == block_step(None, [block], step, step) or step in (2, 3)
    assert any("steps_count=4" in str(w.message) for w in caught)


def test_an_interrupted_pass_that_is_repeated_keeps_its_told_step():
    agent, blocks = block_agent(), adds()
    for step in range(STEPS):
        if step == 5:
            with agent.branch(step=step):
                block_step(agent, blocks[:2], step, step)  # interrupted after two of three calls
        with agent.branch(step=step):
            block_step(agent, blocks, step, step)
    assert [record.step for record in agent.report().steps] == list(range(5, STEPS))  # nothing from before is left


# --- interruptions without an exception


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("done", [0, 1, 2, 3, 5, 8])
def test_a_generation_that_stops_inside_a_pass_leaves_nothing_behind(done, calls):
    agent, blocks = block_agent(), adds()
    with quiet():
        block_rows(agent, blocks, done)
        block_step(agent, blocks[:calls], done, 100.0)
        for _ in range(2):
            assert block_rows(agent, blocks, STEPS) == expected()


@pytest.mark.parametrize("done", [1, 2, 3, 5])
def test_a_generation_that_stops_inside_the_second_branch_leaves_nothing_behind(done):
    agent, blocks = block_agent(), {name: adds() for name in ("cond", "uncond")}

    def generate(steps, stop=None):
        rows = {name: [] for name in blocks}
        for step in range(steps):
            for name in blocks:
                with agent.branch(name):
                    last = name == "uncond" and step == steps - 1
                    rows[name].append(block_step(agent, blocks[name][: stop if last else None], step, step))
        return rows

    with quiet():
        generate(done + 1, stop=2)
        assert generate(STEPS) == {name: expected() for name in blocks}


@pytest.mark.parametrize("done", [1, 2, 3, 5])
def test_a_generation_that_stops_inside_the_second_stack_leaves_nothing_behind(done):
    double, single, stacks = block_agent(), block_agent(), (adds(), adds())

    def generate(steps, stop=None):
        rows = []
        for step in range(steps):
            rows.append(block_step(double, stacks[0], step, step))
            rows.append(block_step(single, stacks[1][: stop if step == steps - 1 else None], step, step))
        return rows

    with quiet():
        generate(done + 1, stop=2)
        assert generate(STEPS) == [row for row in expected() for _ in range(2)]


@pytest.mark.parametrize("skipped", [0, 1, 2])
def test_a_branch_that_leaves_a_block_out_keeps_its_steps(skipped):
    """Skip-layer guidance: a third branch without one of the blocks, be it the last one."""
    agent, blocks = block_agent(), adds()
    fewer = blocks[:skipped] + blocks[skipped + 1 :]
    for _ in range(2):
        with agent.run():
            for step in range(STEPS):
                block_step(agent, blocks, step, step)
                with agent.branch("skip"):
                    assert block_step(agent, fewer, step, step) == block_step(None, fewer, step, step)
        assert marks(agent) == SCHEDULE


def test_a_skipped_first_block_of_the_range_is_no_reuse():
    """Skip-layer guidance leaves a block out at some steps, here the first of the range: nothing there to predict from."""
    agent, blocks = block_agent(4, block_start=1), adds(1.0, 10.0, 100.0, 1000.0)
    with quiet():
        for step in range(STEPS):
            hidden, skip = torch.full((2,), float(step), dtype=torch.float64), step in (3, 4)
            for place, block in enumerate(blocks):
                if not (skip and place == 1):
                    hidden = agent.apply(block, hidden_states=hidden, step=float(step))
            if skip:
                assert hidden[0].item() == step + 1101.0 * (step + 1)


def test_a_model_left_inside_its_first_pass_does_not_disturb_another_model():
    left, other, blocks = block_agent(), block_agent(), adds()
    block_step(left, adds()[:2], 0, 0.0)
    for _ in range(2):
        assert block_rows(other, blocks, STEPS) == expected()


@pytest.mark.parametrize("done", [1, 2, 5])
def test_an_agent_that_was_left_behind_does_not_hide_a_new_generation(done):
    """It stopped in the step in which this one raises, long ago: they are not two stacks of one model."""
    left, agent, blocks = block_agent(), block_agent(), adds()
    block_rows(left, adds(), done + 1)
    block_rows(agent, blocks, done)
    with pytest.raises(TypeError):
        agent.apply(blocks[0], hidden_states=torch.zeros(2), step="no number")
    for _ in range(2):
        assert block_rows(agent, blocks, STEPS) == expected()


def test_a_reset_in_run_does_not_trust_an_order_that_was_lost():
    agent, blocks = block_agent(), adds()
    with quiet(), agent.run():
        for step in range(STEPS):
            if step == 2:
                with pytest.raises(ZeroDivisionError):
                    agent.apply(lambda *args, **kwargs: 1 / 0, hidden_states=torch.zeros(2))
                agent.reset()
            lambdas = [lambda *args, block=block, **kwargs: block(*args, **kwargs) for block in blocks]
            assert block_step(agent, lambdas, step, step) == block_step(None, blocks, step, step)


def test_two_stacks_whose_calls_alternate():
    """Spatial and temporal blocks take turns, with an agent each."""
    agents, stacks = (block_agent(), block_agent(block_start=1)), (adds(), adds())
    for _ in range(2):
        for step in range(STEPS):
            hidden = torch.full((2,), float(step))
            for pair in zip(*stacks, strict=True):
                for agent, block in zip(agents, pair, strict=True):
                    hidden = agent.apply(block, hidden_states=hidden, step=float(step))
        assert [marks(agent) for agent in agents] == [SCHEDULE] * 2


def test_a_refresh_without_the_last_block_of_the_range_is_made_up_for():
    """The model leaves that block out at step 4, so there is no feature of step 4: step 5 must not reuse the one before."""
    agent, blocks = block_agent(4, block_start=1, block_end=3), adds(1.0, 10.0, 100.0, 1000.0)
    for step in range(STEPS):
        block_step(agent, [block for block in blocks if not (step == 4 and block is blocks[2])], step, step)
    assert marks(agent) == "##..##.#."


# --- what may be passed to apply


@pytest.mark.parametrize("count", [1, 2, 4, 5])
@pytest.mark.parametrize("method", ["dit_block_cache", "attention_cache"])
def test_a_wrong_blocks_count_is_announced_and_stays_exact(method, count):
    agent, blocks = agent_for(method, count, STEPS), adds()
    plain_rows = uncached() if method == "dit_block_cache" else [[b.amount * (s + 1) for b in blocks] for s in range(STEPS)]
    with all_warnings() as caught:
        for _ in range(4):
            rows = block_rows(agent, blocks, STEPS) if method == "dit_block_cache" else call_rows(agent, blocks, STEPS)
            assert rows == plain_rows
    assert caught
    assert all(w.category is CacheWarning and "blocks_count" in str(w.message) for w in caught)


class TwoCalls(nn.Module):
    """Self- and cross-attention as two methods of one block."""

    def __init__(self, amount: float):
        super().__init__()
        self.amount = amount

    def self_attention(self, step: int) -> Tensor:
        return torch.tensor([self.amount + 1 + step / 1000])

    def cross_attention(self, step: int) -> Tensor:
        return torch.tensor([self.amount + 2 + step / 1000])


def two_call_rows(agent: CacheAgent, blocks: list[TwoCalls], steps: int) -> list[list[float]]:
    calls = [(block, name) for block in blocks for name in ("self_attention", "cross_attention")]
    return [[round(agent.apply(getattr(*call), step).item(), 3) for call in calls] for step in range(steps)]


def test_self_and_cross_attention_as_two_methods_of_one_block():
    agent, blocks = agent_for("attention_cache", 4, STEPS), [TwoCalls(10.0), TwoCalls(20.0)]
    for _ in range(2):
        sources = (0, 1, 1, 1, 4, 4, 4, 7, 7)
        assert two_call_rows(agent, blocks, STEPS) == [[a + s / 1000 for a in (11, 12, 21, 22)] for s in sources]


@pytest.mark.parametrize("count", [3, 5])
def test_a_wrong_blocks_count_is_noticed_where_two_calls_share_a_module(count):
    agent, blocks = agent_for("attention_cache", count, STEPS), [TwoCalls(10.0), TwoCalls(20.0)]
    with all_warnings() as caught:
        for _ in range(4):
            for row in two_call_rows(agent, blocks, STEPS):
                assert [int(value) for value in row] == [11, 12, 21, 22]
    assert any("blocks_count" in str(w.message) for w in caught)


CALLABLES = {
    "modules": lambda blocks: blocks,
    "bound methods": lambda blocks: [block.forward for block in blocks],
    "partials": lambda blocks: [functools.partial(block) for block in blocks],
    "lambdas": lambda blocks: [lambda *args, block=block, **kwargs: block(*args, **kwargs) for block in blocks],
    "one module for all": lambda blocks: [blocks[0]] * len(blocks),
}


@pytest.mark.parametrize("kind", CALLABLES)
def test_every_kind_of_callable_is_cached(kind):
    agent = block_agent()
    amounts = (1.0, 1.0, 1.0) if kind == "one module for all" else (1.0, 10.0, 100.0)
    blocks = adds(*amounts)
    for _ in range(2):
        rows = [block_step(agent, CALLABLES[kind](blocks), step, step) for step in range(STEPS)]  # made anew every step
        assert rows == expected(amounts=amounts)


# --- copies


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.agent = block_agent(2)
        self.blocks = nn.ModuleList(adds(1.0, 10.0))

    def forward(self, hidden_states: Tensor, step: float = 0.0) -> Tensor:
        for block in self.blocks:
            hidden_states = self.agent.apply(block, hidden_states=hidden_states, step=step)
        return hidden_states


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def saved(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled, saved])
def test_a_copy_of_an_agent_has_the_configuration_and_features_of_its_own(duplicate):
    agent, blocks = block_agent(2, options={"order": 1}, block_start=1), adds(1.0, 10.0)
    block_rows(agent, blocks, 3)
    other = duplicate(agent)
    assert other.config == agent.config
    assert other.report().steps == ()
    fresh = block_rows(block_agent(2, options={"order": 1}, block_start=1), adds(1.0, 10.0), STEPS)
    with other.run():
        assert block_rows(other, blocks, STEPS) == fresh


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_a_model_that_holds_an_agent_can_be_copied(duplicate):
    model = Holder()
    with mindie_cache.run():
        wanted = [model(torch.full((1,), float(step)), step).item() for step in range(STEPS)]
    with quiet():
        model(torch.ones(1))
    other = duplicate(model)
    assert other.agent is not model.agent
    with mindie_cache.run():
        assert [other(torch.full((1,), float(step)), step).item() for step in range(STEPS)] == wanted
    assert marks(other.agent) == SCHEDULE


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("call", ["module", "lambda"])
def test_a_model_is_freed_although_its_blocks_know_the_agent(finished, call):
    """The clock of the thread must not keep a model alive that nobody else holds."""

    class Known(Add):
        def __init__(self, agent):
            super().__init__(1.0)
            self.agent = agent

        def forward(self, hidden_states):
            inner = super().forward
            function = self if call == "module" else (lambda hidden: self and inner(hidden))
            return inner(hidden_states) if function is self else self.agent.apply(function, hidden_states=hidden_states)

    agent = block_agent(1)
    block = Known(agent)
    for _ in range(STEPS if finished else 3):
        hidden = torch.zeros(1)
        block(hidden) if call == "lambda" else agent.apply(block, hidden_states=hidden)
    watch = weakref.ref(block)
    del block, agent, hidden
    gc.collect()
    assert watch() is None


def test_an_agent_reports_from_another_thread_what_it_served_last():
    agent = block_agent()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(block_rows, agent, adds(), STEPS).result()
    assert marks(agent) == SCHEDULE


def test_reset_reaches_every_thread():
    agent, blocks = block_agent(), adds()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(block_rows, agent, blocks, 3).result()
        agent.reset()
        assert pool.submit(block_rows, agent, blocks, STEPS).result() == expected()


def test_config_is_shared_by_agents_that_do_not_mix():
    config = CacheConfig("dit_block_cache", 3, STEPS, step_start=1, step_interval=3)
    agents, rows = (CacheAgent(config), CacheAgent(config)), ([], [])
    blocks = adds(), adds()
    for step in range(STEPS):
        for i in range(2):
            rows[i].append(block_step(agents[i], blocks[i], step, i + step))
    assert rows == (expected(0.0), expected(1.0))
