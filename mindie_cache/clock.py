"""Where a call is: which run, branch and step it belongs to. The one place that counts; knows nothing of caching.

A `Run` is one generation. Inside `run()` every agent shares it; otherwise each agent has a counted run of its own in each
context, which the agents called inside its calls join. The current `Scope` is a context variable. Threads and asyncio tasks
may start with a copy of another context: what is counted belongs to the one that it was begun in.
"""

from __future__ import annotations

import itertools
import math
from asyncio import _get_running_loop, current_task
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral, Real
from threading import get_ident
from typing import Any
from weakref import WeakKeyDictionary, ref

from mindie_cache.errors import ParametersInvalid
from mindie_cache.steps import DEFAULT_BRANCH, Level, Run

new_key = itertools.count().__next__  # what an agent is known by in a Run


class Counted:
    """The counted runs of one context, by the agent that each belongs to. `place`: where it was made."""

    def __init__(self) -> None:
        self.place = get_ident() if _get_running_loop() is None else _in_loop()
        self.runs: WeakKeyDictionary[Any, Run] = WeakKeyDictionary()
        self._scopes: dict[tuple[str, bool], Scope] = {}
        self._ticks = 0

    @property
    def base(self) -> Scope:
        """Where no branch is named."""
        return self.scope(DEFAULT_BRANCH)

    def run(self, owner: Any, first_step: int = 0) -> Run:
        found = self.runs.get(owner)
        if found is None:
            found = Run(explicit=False, first_step=first_step)
            found.ticks = (self._ticks, self._ticks)
            found.strays.update([other for other in self.runs.values() if other.turned or other.step > other.first_step])
            self.runs[owner] = found
        return found

    def scope(self, branch: str, named: bool = False) -> Scope:
        found = self._scopes.get((branch, named))
        if found is None:
            other = self._scopes.get((branch, not named))
            level = Level(None, branch) if other is None else other.now
            found = self._scopes[branch, named] = Scope(level, self, named=named)
        return found

    def outlived(self, run: Run, is_turn: bool) -> bool:
        """Take note that `run` begins a step; return whether what it keeps may be of an earlier generation.

        That is so if another agent has begun two steps since the last one of `run`, which was left out, as guidance may be,
        or is an expert. From then on its own count does not tell where generations end, but the other's first and last
        steps do: `is_turn`.
        """
        mine, self._ticks = run.ticks[1], self._ticks + 1
        others = [other for other in self.runs.values() if other is not run]
        run.strays.update([other for other in others if other.ticks[0] > mine])
        is_birth = run.ticks[0] == mine
        run.ticks = (mine, self._ticks)
        if is_turn and not is_birth:
            run.turned = self._ticks
        return any(other.ticks[0] > mine or (other.turned > mine and other in run.strays) for other in others)

    def level_with(self, run: Run) -> list[Run]:
        """The other runs of this context that take turns with `run`, and are in the same step: agents of the same model."""
        return [other for other in self._company(run) if other.step == run.step >= 0]

    def _company(self, run: Run) -> list[Run]:
        return [other for other in self.runs.values() if other is not run and other.ticks[1] > run.ticks[0]]

    def broken_off(self, run: Run, cursor: Any) -> bool:
        """Whether the generation was interrupted in a pass that began after the last one of `cursor`: in another branch, or
        in another agent of the same model."""
        return cursor.step == run.step and any([other.broken_off(cursor) for other in (run, *self.level_with(run))])

    def restart(self, run: Run) -> None:
        """The generation was interrupted: it is over for the agents of the same model too."""
        same = [other for other in self._company(run) if other.step >= 0 and run.step - other.step in (0, 1)]
        for other in (*same, run):
            other.restart()


class Scope:
    """Where this context is. `now` is what agents keep their state by; it is another one while an agent is in a call."""

    __slots__ = ("branch", "counted", "named", "now", "tell", "told")

    def __init__(
        self,
        now: Level,
        counted: Counted | None,
        told: bool = False,
        tell: tuple[int | None, float | None] | None = None,
        named: bool = False,
    ):
        self.now = now
        self.branch = now.branch
        self.counted = counted
        self.told = told  # the caller says which step this is: nothing is counted
        self.named = named  # the caller says which branch this is
        self.tell = tell  # the step or timestep, for the counted run of each agent that is called here

    @property
    def is_base(self) -> bool:
        """Whether nothing has been opened or told here: neither a run nor a branch, and no call is under way."""
        return self.counted is not None and self is self.counted.base and not self.now.nested

    def run_of(self, owner: Any, first_step: int = 0) -> Run:
        """The run that a call of `owner` belongs to here."""
        run = self.now.run()
        if run is not None:
            return run
        assert self.counted is not None
        return self.counted.runs.get(owner) or self.counted.run(owner, first_step)


_NOWHERE = Scope(Level(None, DEFAULT_BRANCH), None)
_scope: ContextVar[Scope] = ContextVar("mindie_cache_scope", default=_NOWHERE)
_requests: dict[Hashable, Run] = {}
get_scope = _scope.get


def _in_loop() -> Any:
    """The asyncio task that is running, weakly, because it owns its context; in a callback of the loop, the thread."""
    task = current_task()
    return get_ident() if task is None else ref(task)


def current_scope() -> Scope:
    """The scope of this context, made if there is none yet.

    A context that was copied to another asyncio task, or to another thread, as asyncio.to_thread does, counts by itself,
    unless it is in a run or a branch that was opened before: two generations in two of them would count as one.
    """
    scope = _scope.get()
    counted = scope.counted
    place = get_ident() if _get_running_loop() is None else _in_loop()
    if scope is _NOWHERE or (counted is not None and counted.place != place and scope.is_base):
        scope = Counted().base
        _scope.set(scope)
    return scope


@contextmanager
def run(request: Hashable = None) -> Iterator[Run]:
    """One generation, for every agent called inside.

    Without `request`: a fresh run; everything kept for it is released at the end, also after an exception.
    With `request`: a named run that can be left and entered again, so that a server can interleave requests step by step;
    it is released after its last step, after an exception, and by `forget_request`.
    """
    if not isinstance(request, Hashable):
        raise ParametersInvalid(
            f"run(request={request!r}): a request is named by a hashable value, e.g. a string or a number."
        )
    outer = current_scope()
    entered = Run() if request is None else _requests.setdefault(request, Run())
    if not entered.cursors():  # a new one, or one whose agents are gone
        entered.restart()
    token = _scope.set(Scope(entered.level(DEFAULT_BRANCH), None if outer.now.nested else outer.counted))
    try:
        yield entered
    except BaseException:
        entered.restart()
        _requests.pop(request, None)
        raise
    finally:
        _scope.reset(token)
    if request is None or entered.done:
        entered.restart(finished=True)
        _requests.pop(request, None)


def forget_request(request: Hashable) -> None:
    """Release a named run that will not be continued, e.g. because its client went away."""
    found = _requests.pop(request, None)
    if found is not None:
        found.restart()


class _Unnamed(str):
    """The branch of a caller who names none: models whose calls are seen may tell it by what they are given."""

    __slots__ = ()


_UNNAMED = _Unnamed(DEFAULT_BRANCH)


@contextmanager
def branch(name: str = _UNNAMED, *, step: int | None = None, timestep: float | None = None) -> Iterator[Scope]:
    """Calls inside belong to the conditioning branch `name` ("cond", "uncond", or any other name).

    Args:
        name: the branch; each has its own kept features.
        step: 0-based denoising step, if the caller knows it; counted otherwise.
        timestep: alternatively the timestep as a host number that falls during sampling: equal to the last one means
            the same step, lower the next step, higher a new run.
    """
    if not isinstance(name, str) or not name:
        raise ParametersInvalid(f"branch({name!r}): a branch is a non-empty string such as 'cond' or 'uncond'.")
    tell = _checked(step, timestep)
    outer = current_scope()
    token = _scope.set(_branched(outer, name, tell))
    try:
        yield _scope.get()
    finally:
        _scope.reset(token)


def _branched(outer: Scope, name: str, tell: tuple[int | None, float | None] | None) -> Scope:
    told, is_named = outer.told or tell is not None, not isinstance(name, _Unnamed)
    this_run = outer.now.run()
    if this_run is not None:
        nested = outer.now.nested
        if tell is not None and not nested:  # inside a call, the step is that of the call
            this_run.tell(*tell)
        level = this_run.level(name)
        return Scope(level.inside if nested else level, outer.counted, told, named=is_named)
    assert outer.counted is not None
    if told:
        return Scope(Level(None, name), outer.counted, True, tell or outer.tell, is_named)
    return outer.counted.scope(name, is_named)


def _checked(step: Any, timestep: Any) -> tuple[int | None, float | None] | None:
    """What the caller tells about the step, as Python's own numbers; None if it is to be counted."""
    if step is not None:
        if isinstance(step, bool) or not isinstance(step, Integral) or step < 0:
            raise ParametersInvalid(
                f"branch(step={step!r}): the step is a whole number from 0. Leave it out to have it counted."
            )
        if timestep is not None:
            raise ParametersInvalid(f"branch(step={step}, timestep={timestep}): both tell the step. Give one of them.")
        return int(step), None
    if timestep is None:
        return None
    if isinstance(timestep, bool) or not isinstance(timestep, Real):
        raise ParametersInvalid(
            f"branch(timestep={type(timestep).__name__}): needs a Python number, because reading a tensor would "
            "synchronise the device. Pass float(timestep) once per step, or step=."
        )
    if not math.isfinite(timestep):
        raise ParametersInvalid(f"branch(timestep={timestep}): the timestep must be finite. Pass step= instead.")
    return None, float(timestep)
