"""CacheAgent against a simulation of the specification that shares no code with the package.

Drawn at random: method, window, range, prediction order, streams, missing branches, aborted generations, changes of shape,
counted and explicit runs, several generations on one agent. Every value that `apply` returns is compared.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy import quiet

from mindie_cache import CacheAgent, CacheConfig

NAMES = ("hidden_states", "encoder_hidden_states")


class AbortedError(Exception):
    """Raised inside a block."""


@dataclass(frozen=True)
class Setting:
    """A configuration in the specification's terms. `first`, `stop`: reuse at steps strictly between them."""

    attention: bool
    blocks: int
    steps: int
    first: int
    interval: int
    stop: int
    block_start: int
    block_end: int
    streams: int
    order: int
    max_distance: int | None
    computed: frozenset[int] | None

    def config(self) -> CacheConfig:
        options: dict[str, Any] = {"order": self.order}
        if self.max_distance is not None:
            options["max_distance"] = self.max_distance
        window: dict[str, int] = {}
        if self.computed is None:
            step_end = self.stop - 1 if self.attention else self.stop
            window = dict(step_start=self.first, step_interval=self.interval, step_end=step_end)
        else:
            options["compute_steps"] = sorted(self.computed)
        method = "attention_cache" if self.attention else "dit_block_cache"
        span = dict(block_start=self.block_start, block_end=self.block_end)
        return CacheConfig(method, self.blocks, self.steps, **window, **span, options=options)


@dataclass(frozen=True)
class Pass:
    """One branch at one step. `fails_at`: the call that raises, if any."""

    generation: int
    step: int
    branch: str
    shape: int
    fails_at: int | None

    def value(self, call: int, stream: int) -> int:
        """Irregular numbers that tell generation, step, branch, call and stream apart."""
        branch = {"cond": 1, "uncond": 2}[self.branch]
        seed = 7919 * self.generation + 104729 * self.step + 1299709 * branch + 611953 * call + 15485863 * stream
        return seed % 1009 - 500

    def block(self, call: int, streams: tuple[Any, ...]) -> tuple[Any, ...]:
        """What a block does: every output depends on every stream."""
        return tuple(s + sum(streams) + self.value(call, i) for i, s in enumerate(streams))


class Simulation:
    """The specification: which steps are computed, and what a reused one returns."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.kept: dict[tuple[str, int], list[tuple[int, tuple[Any, ...]]]] = {}  # (branch, region) -> (step, feature)s
        self.shape: dict[str, int] = {}

    def reuses(self, branch: str, region: int, step: int) -> bool:
        mine, snapshots = self.setting, self.kept.get((branch, region))
        if not snapshots:
            return False
        if mine.computed is None:
            wanted = mine.first < step < mine.stop and (step - mine.first) % mine.interval != 0
            due = step - (step - mine.first) % mine.interval
        else:
            fixed = mine.computed | {0, mine.steps - 1}
            wanted, due = step not in fixed, max(s for s in fixed if s <= step)
        return wanted and snapshots[-1][0] >= due  # a refresh that the branch missed is made up for

    def feature(self, branch: str, region: int, step: int) -> tuple[Any, ...]:
        """The newest feature, or the polynomial through the newest order + 1 ones, by Neville's scheme."""
        snapshots = self.kept[branch, region][-(self.setting.order + 1) :]
        far = self.setting.max_distance is not None and step - snapshots[-1][0] > self.setting.max_distance
        if far or len(snapshots) == 1:
            return snapshots[-1][1]
        points, table = [s for s, _ in snapshots], [list(f) for _, f in snapshots]
        for width in range(1, len(points)):
            for i in range(len(points) - width):
                t = Fraction(step - points[i], points[i + width] - points[i])
                table[i] = [a + (b - a) * t for a, b in zip(table[i], table[i + 1], strict=True)]
        return tuple(table[0])

    def run(self, now: Pass, streams: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        mine, rows = self.setting, []
        if self.shape.setdefault(now.branch, now.shape) != now.shape:
            self.shape[now.branch] = now.shape
            self.kept = {key: kept for key, kept in self.kept.items() if key[0] != now.branch}
        if mine.attention:
            for call in range(mine.blocks):
                inside = mine.block_start <= call < mine.block_end
                if inside and self.reuses(now.branch, call, now.step):
                    rows.append(self.feature(now.branch, call, now.step))
                    continue
                rows.append(now.block(call, streams))
                if inside:
                    self.kept.setdefault((now.branch, call), []).append((now.step, rows[-1]))
            return rows
        first, last = mine.block_start, mine.block_end - 1
        reuse = self.reuses(now.branch, first, now.step)
        for call in range(mine.blocks):
            if call == first:
                reference = streams
                delta = self.feature(now.branch, first, now.step) if reuse else ()
            if reuse and first <= call <= last:
                streams = tuple(r + d for r, d in zip(reference, delta, strict=True))
            else:
                streams = now.block(call, streams)
            if call == last and not reuse:
                delta = tuple(o - r for o, r in zip(streams, reference, strict=True))
                self.kept.setdefault((now.branch, first), []).append((now.step, delta))
            rows.append(streams)
        return rows


def drive(agent: CacheAgent, setting: Setting, now: Pass, streams: tuple[Any, ...], dress: Any) -> list[tuple[Any, ...]]:
    """The same pass through the agent; `dress` turns the numbers into what the model works on."""
    rows: list[tuple[Any, ...]] = []
    given = tuple(dress(value, now.shape) for value in streams)
    for call in range(setting.blocks):

        def block(*inputs: Any, call: int = call) -> Any:
            if call == now.fails_at:
                raise AbortedError
            outputs = tuple(dress(v, now.shape) for v in now.block(call, tuple(bare(i) for i in inputs)))
            return outputs if setting.streams == 2 else outputs[0]

        if setting.attention:
            result = agent.apply(block, *given)
        else:
            result = agent.apply(block, **dict(zip(NAMES, given, strict=False)))
        outputs = result if setting.streams == 2 else (result,)
        rows.append(tuple(bare(out) for out in outputs))
        if not setting.attention:
            given = outputs
    return rows


def bare(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    assert (value == value.flatten()[0]).all()
    return value.flatten()[0].item()


def as_number(value: Any, shape: int) -> Any:
    return value


def as_real(value: Any, shape: int) -> Any:
    """Whole numbers (lengths, counts) are never extrapolated."""
    return float(value)


def as_tensor(value: Any, shape: int) -> Any:
    return torch.full((shape,), float(value), dtype=torch.float64)


def close(got: Any, wanted: Any, exact: bool) -> bool:
    return got == wanted if exact else math.isclose(got, wanted, rel_tol=1e-9, abs_tol=1e-6)


@st.composite
def settings_of(draw: st.DrawFn) -> Setting:
    attention, blocks, steps = draw(st.booleans()), draw(st.integers(1, 4)), draw(st.integers(2, 9))
    block_start = draw(st.integers(0, blocks - 1))
    first = draw(st.integers(0, steps - 1))
    order = draw(st.integers(0, 2))
    computed = draw(st.none() | st.frozensets(st.integers(0, steps - 1)))
    return Setting(
        attention=attention,
        blocks=blocks,
        steps=steps,
        first=first if computed is None else -1,
        interval=draw(st.integers(2, 4)),
        stop=draw(st.integers(first + (2 if attention else 1), steps + 2)),
        block_start=block_start,
        block_end=draw(st.integers(block_start + 1, blocks)),
        streams=draw(st.integers(1, 2)),
        order=order,
        max_distance=draw(st.none() | st.integers(0, 3)) if order else None,
        computed=computed,
    )


@st.composite
def generations_of(draw: st.DrawFn, setting: Setting, shapes: bool) -> list[tuple[bool, list[Pass]]]:
    """Generations, each explicit or counted, as lists of passes; an aborted one ends with the pass that fails."""
    generations = []
    for generation in range(draw(st.integers(1, 3))):
        uncond = draw(st.lists(st.booleans(), min_size=setting.steps, max_size=setting.steps))
        change = draw(st.integers(1, setting.steps)) if shapes else setting.steps
        passes = [
            Pass(generation, step, branch, 2 if step < change else 3, None)
            for step in range(setting.steps)
            for branch in ("cond", "uncond")[: 1 + uncond[step]]
        ]
        if draw(st.integers(0, 3)) == 0:
            last = draw(st.integers(0, len(passes) - 1))
            call = draw(st.integers(0, setting.blocks - 1))
            passes[last:] = [Pass(generation, passes[last].step, passes[last].branch, passes[last].shape, call)]
        generations.append((draw(st.booleans()), passes))
    return generations


def compare(setting: Setting, generations: list[tuple[bool, list[Pass]]], dress: Any) -> None:
    exact = setting.order == 0
    with quiet():
        agent = CacheAgent(setting.config())
        for explicit, passes in generations:
            simulation = Simulation(setting)
            try:
                with agent.run() if explicit else nullcontext():
                    for now in passes:
                        streams = tuple(now.value(99, stream) for stream in range(setting.streams))
                        with agent.branch(now.branch):
                            got = drive(agent, setting, now, streams, dress)
                        wanted = simulation.run(now, streams)
                        for mine, theirs in zip(got, wanted, strict=True):
                            pairs = zip(mine, theirs, strict=True)
                            assert all(close(a, b, exact) for a, b in pairs), (now, got, wanted)
                if passes[-1].fails_at is not None and not explicit:
                    agent.reset()  # the call that was to fail was skipped: the caller gives up between two calls instead
            except AbortedError:
                pass


SLOW = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@SLOW
@given(data=st.data())
def test_numbers_follow_the_specification(data):
    setting = data.draw(settings_of())
    dress = as_real if setting.order else as_number
    compare(setting, data.draw(generations_of(setting, shapes=False)), dress)


@settings(SLOW, max_examples=60)
@given(data=st.data())
def test_tensors_whose_shape_changes_follow_the_specification(data):
    setting = data.draw(settings_of())
    compare(setting, data.draw(generations_of(setting, shapes=True)), as_tensor)
