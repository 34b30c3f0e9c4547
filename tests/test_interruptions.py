"""Disturbed generations against an independent account of what each call must do: is executed, and returns what.

Drawn at random: modules that are called twice or in cycles, exceptions that the model answers by trying again, generations
that end anywhere, late agents and such that sit out, attention inside cached blocks, requests that take turns. Every value
tells which call, generation and step it comes from.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toy import quiet

from mindie_cache import CacheAgent, CacheConfig, forget_request, run

PATTERNS = ["A", "AB", "ABC", "ABCD", "AA", "AAA", "AAB", "ABB", "AABB", "ABBA", "ABAB", "ABCABC", "ABAC", "ABCC", "AABC"]
MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


class BreakError(Exception):
    """Raised in a call."""


class Fuse:
    """Blows once, if it is `live`."""

    def __init__(self, live: bool):
        self.live = live

    def check(self) -> None:
        if self.live:
            self.live = False
            raise BreakError


class Module(nn.Module):
    """Adds `tag` at position `place`."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def forward(self, hidden_states: Tensor, place: int, tag: int, fuse: Fuse) -> Tensor:
        fuse.check()
        self.runs += 1
        added = torch.zeros_like(hidden_states)
        added[place] = tag
        return hidden_states + added


@dataclass(frozen=True)
class Setting:
    """Reuse at steps strictly between `first` and `stop` that are no multiple of `interval` after `first`."""

    attention: bool
    pattern: str
    steps: int
    first: int
    interval: int
    stop: int
    start: int
    end: int

    def agent(self) -> CacheAgent:
        method = "attention_cache" if self.attention else "dit_block_cache"
        window = (self.first, self.interval, self.stop - 1 if self.attention else self.stop)
        return CacheAgent(CacheConfig(method, len(self.pattern), self.steps, *window, self.start, self.end))

    @property
    def period(self) -> int:
        """Calls after which the pattern repeats."""
        count = len(self.pattern)
        return next(n for n in range(1, count + 1) if not count % n and self.pattern[:n] * (count // n) == self.pattern)

    @property
    def confirmations(self) -> int:
        """Whole passes before the order of calls is beyond doubt."""
        return 1 if len(set(self.pattern)) == len(self.pattern) or self.period < len(self.pattern) else 2


@st.composite
def settings_of(draw: st.DrawFn, patterns: list[str] = PATTERNS) -> Setting:
    pattern, steps = draw(st.sampled_from(patterns)), draw(st.integers(2, 8))
    first, start = draw(st.integers(0, steps - 1)), draw(st.integers(0, len(pattern) - 1))
    return Setting(
        attention=draw(st.booleans()),
        pattern=pattern,
        steps=steps,
        first=first,
        interval=draw(st.integers(2, 4)),
        stop=draw(st.integers(first + 2, steps + 2)),
        start=start,
        end=draw(st.integers(start + 1, len(pattern))),
    )


@dataclass
class Account:
    """What one branch of one generation must do. `kept`: by call (attention) or for all (blocks), the source step."""

    setting: Setting
    passes: int = 0  # whole ones, of which the order of calls was learned
    kept: dict[int, int] = field(default_factory=dict)
    source: int | None = None  # of the span that is being reused
    doubtful: bool = False  # in this step nothing may be reused any more

    def begin(self) -> None:
        self.doubtful = self.passes < self.setting.confirmations

    def call(self, step: int, place: int) -> int:
        """The step whose result this call must give: `step` itself if it is executed."""
        mine = self.setting
        if not mine.start <= place < mine.end:
            return step
        key = place if mine.attention else mine.start
        if mine.attention or place == mine.start:
            due = step - (step - mine.first) % mine.interval
            wanted = mine.first < step < mine.stop and step != due and not self.doubtful
            self.source = self.kept[key] if wanted and self.kept.get(key, -1) >= due else None
            self.armed = True
        if self.source is not None:
            return self.source
        if mine.attention or (place == mine.end - 1 and self.armed):
            self.kept[key] = step
        return step

    def fail(self) -> None:
        self.kept, self.armed, self.doubtful = {}, False, True


Event = tuple[int, str, int]  # step, branch, call


@dataclass(frozen=True)
class Generation:
    """`explicit`: inside run(). `breaks`: the calls that raise once, and are tried again. `end`: the call at which the
    generation is given up; with an exception from inside the call if `raises`, before it otherwise."""

    explicit: bool
    branches: tuple[str, ...]
    breaks: frozenset[Event]
    end: Event | None
    raises: bool

    @property
    def silent(self) -> bool:
        return self.end is not None and not self.explicit and not self.raises


@st.composite
def generations_of(draw: st.DrawFn, setting: Setting, *, explicit: bool | None = None) -> list[Generation]:
    found, same_as_first = [], [i for i, name in enumerate(setting.pattern) if name == setting.pattern[0]]
    branches = ("cond", "uncond")[: draw(st.integers(1, 2))]
    for _ in range(draw(st.integers(1, 3))):
        named = draw(st.booleans()) if explicit is None else explicit
        events = list(itertools.product(range(setting.steps), branches, range(len(setting.pattern))))
        # Counted, a call that may be the first one of the next generation cannot be told from it.
        clear = [event for event in events if named or event[2] not in same_as_first]
        breaks = draw(st.frozensets(st.sampled_from(clear), max_size=3)) if clear else frozenset()
        end, raises = None, draw(st.booleans())
        if draw(st.integers(0, 2)) == 0:
            silent = not raises and not named
            unclear = silent and (len(set(setting.pattern)) < len(setting.pattern) or any(g.silent for g in found))
            allowed = events if raises or named else [event for event in events if event[2]]
            end = draw(st.sampled_from(allowed)) if allowed and not unclear else None
        found.append(Generation(named, branches, breaks - {end}, end, raises))
    return found


class Loop:
    """A model and its sampling loop on one agent, checked call by call."""

    def __init__(self, setting: Setting, agent: CacheAgent):
        self.setting = setting
        self.agent = agent
        self.modules = {name: Module() for name in setting.pattern}
        self.misled = 0  # calls of the first pass of all, if it was given up without an exception
        self.passes: dict[str, int] = {}  # of counted runs, whose agent keeps what it has learned about the calls

    def generate(self, number: int, plan: Generation, request: Any = None) -> Iterator[None]:
        """One generation, which pauses after each step."""
        known = {} if plan.explicit else self.passes
        accounts = {name: Account(self.setting, known.get(name, 0)) for name in plan.branches}
        context = (lambda: self.agent.run(request)) if request is not None else nullcontext
        for step in range(self.setting.steps):
            with context():
                for branch in plan.branches:
                    with self.agent.branch(branch):
                        if not self.one_pass(1000 * (number + 1), step, branch, plan, accounts):
                            return
                    known[branch] = accounts[branch].passes
            yield

    def one_pass(self, base: int, step: int, branch: str, plan: Generation, accounts: dict[str, Account]) -> bool:
        account = accounts[branch]
        account.begin()
        count = len(self.setting.pattern)
        hidden, wanted = torch.zeros(count), torch.zeros(count)
        for place, name in enumerate(self.setting.pattern):
            event, module = (step, branch, place), self.modules[name]
            if event == plan.end and not plan.raises:
                self.misled = place if not plan.explicit and not self.passes and branch == "cond" else 0
                return False
            if self.misled and not plan.explicit and place == count - self.misled:
                account.fail()  # only here it shows that the first pass of all was given up
                self.misled = 0
            fuse = Fuse(event in plan.breaks or event == plan.end)
            given = torch.zeros(count) if self.setting.attention else hidden
            for _ in range(2):
                runs = module.runs
                try:
                    hidden = self.agent.apply(module, hidden_states=given, place=place, tag=base + step, fuse=fuse)
                    break
                except BreakError:
                    for other in accounts.values():
                        other.fail()
                    if event == plan.end:
                        raise
            source = account.call(step, place)
            assert (module.runs == runs) == (source != step), (step, branch, place, source)
            if self.setting.attention:
                wanted.zero_()
            wanted[place] = base + source
            if self.setting.attention or source == step or place == self.setting.end - 1:
                assert hidden.tolist() == wanted.tolist(), (step, branch, place)
        account.passes += 1
        return True


@MANY
@given(data=st.data())
def test_a_disturbed_generation_never_disturbs_another(data):
    setting = data.draw(settings_of())
    with quiet():
        loop = Loop(setting, setting.agent())
        for number, plan in enumerate(data.draw(generations_of(setting))):
            with suppress(BreakError), run() if plan.explicit else nullcontext():
                list(loop.generate(number, plan))


@MANY
@given(data=st.data())
def test_requests_that_take_turns_never_mix(data):
    setting = data.draw(settings_of())
    plans = data.draw(generations_of(setting, explicit=True))
    with quiet():
        loop = Loop(setting, setting.agent())
        running = {number: loop.generate(number, plan, ("request", number)) for number, plan in enumerate(plans)}
        while running:
            number = data.draw(st.sampled_from(sorted(running)))
            try:
                next(running[number])
            except (StopIteration, BreakError):
                del running[number]
                forget_request(("request", number))


def source_of(value: Tensor, place: int, base: int, step: int, reach: int) -> int:
    """The step that `value` comes from, which must be of this generation, of this call, and not too old."""
    assert value.nonzero().flatten().tolist() == [place]
    source = round(value[place].item()) - base
    assert 0 <= step - source < reach, (step, source)
    return source


@MANY
@given(data=st.data())
def test_agents_that_come_late_or_sit_out_never_mix_generations(data):
    """One agent in every step, another one in some: a ControlNet, guidance in an interval. Both with one schedule."""
    setting = data.draw(settings_of(["A", "AB", "ABC", "AABB", "ABAB"]))
    explicit, late_first = data.draw(st.booleans()), data.draw(st.booleans())
    with quiet():
        main, late = Loop(setting, setting.agent()), Loop(setting, setting.agent())
        plan = Generation(explicit, ("cond",), frozenset(), None, False)
        for number in range(3):
            active = data.draw(st.frozensets(st.integers(0, setting.steps - 1)))
            if not number and late_first and min(active, default=0) == 1:
                active |= {0}  # else it may as well come last in the step before, until the generation ends
            with run() if explicit else nullcontext():
                for step, _ in enumerate(main_steps(main, number, plan, late, active, late_first)):
                    assert step < setting.steps


def main_steps(
    main: Loop, number: int, plan: Generation, late: Loop, active: frozenset[int], late_first: bool
) -> Iterator[None]:
    steps, base = main.generate(number, plan), 1000 * (number + 1)
    for step in range(main.setting.steps):
        order = (0, 1) if late_first else (1, 0)
        for turn in order:
            if turn:
                next(steps)
            elif step in active:
                hidden = torch.zeros(len(late.setting.pattern))
                for place, name in enumerate(late.setting.pattern):
                    given = torch.zeros_like(hidden) if late.setting.attention else hidden
                    hidden = late.agent.apply(
                        late.modules[name], hidden_states=given, place=place, tag=base + step, fuse=Fuse(False)
                    )
                    if late.setting.attention:
                        source_of(hidden, place, base, step, main.setting.steps)
                assert all(base <= value <= base + step for value in hidden[hidden != 0].tolist())
        yield


class Block(nn.Module):
    """Its attention goes through an agent of its own, and is called directly when that raises."""

    def __init__(self, agent: CacheAgent, wrapped: bool):
        super().__init__()
        self.attention = Module()
        self.agent = agent
        self.wrapped = wrapped

    def forward(self, hidden_states: Tensor, place: int, tag: int, fuse: Fuse, fatal: bool) -> Tensor:
        inputs = dict(hidden_states=torch.zeros_like(hidden_states), place=place, tag=tag, fuse=fuse)
        try:
            attention = (lambda *args, **kwargs: self.attention(*args, **kwargs)) if self.wrapped else self.attention
            return hidden_states + self.agent.apply(attention, **inputs)
        except BreakError:
            if fatal:
                raise
            return hidden_states + self.attention(**inputs)


@MANY
@given(data=st.data())
def test_attention_inside_cached_blocks_that_raises_and_is_caught(data):
    count = data.draw(st.integers(2, 4))
    pattern = "ABCD"[:count]
    outer = data.draw(settings_of([pattern]).filter(lambda found: not found.attention))
    inner = data.draw(settings_of([pattern]).filter(lambda found: found.attention))
    agents = outer.agent(), replace(inner, steps=outer.steps, first=0, stop=max(2, inner.stop)).agent()
    wrapped = data.draw(st.booleans())  # not recognised: then the attention is computed
    blocks = [Block(agents[1], wrapped) for _ in range(count)]
    events = st.frozensets(st.tuples(st.integers(0, outer.steps - 1), st.integers(0, count - 1)), max_size=4)
    with quiet():
        for number in range(3):
            broken, last = data.draw(events), data.draw(st.none() | st.tuples(st.integers(0, 7), st.integers(0, count - 1)))
            explicit: AbstractContextManager[Any] = run() if data.draw(st.booleans()) else nullcontext()
            with suppress(BreakError), explicit:
                for step in range(outer.steps):
                    nested_step(agents[0], blocks, 1000 * (number + 1), step, broken, last)


def nested_step(
    agent: CacheAgent,
    blocks: list[Block],
    base: int,
    step: int,
    broken: frozenset[tuple[int, int]],
    last: tuple[int, int] | None,
) -> None:
    hidden = torch.zeros(len(blocks))
    for place, block in enumerate(blocks):
        here = (step, place)
        hidden = agent.apply(
            block,
            hidden_states=hidden,
            place=place,
            tag=base + step,
            fuse=Fuse(here in broken or here == last),
            fatal=here == last,
        )
    for place in range(len(blocks)):
        assert 0 <= step - (round(hidden[place].item()) - base) < step + 1, (step, place, hidden)
