"""The one counter: which run, branch, step and call a model call belongs to. Knows nothing of caching.

A `Run` is one generation; a `Scope` is one branch of it and the place where agents keep their state; a `Cursor` says where
one agent is inside that branch. The current scope is a context variable, so threads never share one, and neither do
asyncio tasks that open a run of their own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol
from weakref import ref

from mindie_cache.errors import ParametersInvalid

DEFAULT_BRANCH = "cond"


class Cursor(Protocol):
    """Where one agent is: `step` of its current pass, next call `index`, whether it is `running` inside a call, and when its
    pass `began`, in the order of all passes of the run (0: inside a call of another agent)."""

    step: int
    index: int
    running: bool
    began: int
    steps_count: int

    def release(self, last_step: int | None) -> None:
        """Drop everything kept. `last_step` is given if the run came to its natural end with it."""


class Scope:
    """One branch of one run. `cursors` maps an agent's key to what that agent keeps here; the agent owns it, so that the
    clock of a thread keeps no model alive."""

    __slots__ = ("__weakref__", "branch", "cursors", "run")

    def __init__(self, run: Run, branch: str):
        self.run = run
        self.branch = branch
        self.cursors: dict[int, ref[Any]] = {}  # to Cursor

    def cursor(self, key: int) -> Any:
        """The Cursor of agent `key`, or None."""
        found = self.cursors.get(key)
        return found and found()


class Run:
    """One generation: its step, its branches, and how a call is recognised as the start of the next step or run.

    The step advances when an agent that has done its pass of the current step starts another one in the same branch.
    Agents called in one run share this clock, so a second stack, a nested attention, or a branch that guidance leaves out
    for some steps is at the right step; inside `run()` so is a second expert that takes over half-way.
    """

    __slots__ = ("__weakref__", "_timestep", "explicit", "passes", "scopes", "step", "told")

    def __init__(self, *, explicit: bool):
        self.explicit = explicit  # opened by the caller, who says where it ends
        self.scopes: dict[str, Scope] = {}
        self._rewind()

    def _rewind(self) -> None:
        self.step = -1
        self.passes = 0
        self.told = False  # inside `branch(step=...)` or `branch(timestep=...)`: nothing is counted
        self._timestep = math.inf

    def scope(self, branch: str = DEFAULT_BRANCH) -> Scope:
        found = self.scopes.get(branch)
        if found is None:
            found = self.scopes[branch] = Scope(self, branch)
        return found

    def _cursors(self) -> Iterator[Cursor]:
        found = (cursor() for scope in self.scopes.values() for cursor in scope.cursors.values())
        return (cursor for cursor in found if cursor is not None)

    @property
    def busy(self) -> bool:
        """Whether an agent is inside a call."""
        return any([cursor.running for cursor in self._cursors()])

    @property
    def done(self) -> bool:
        """Whether every agent has done its last step."""
        return all([not cursor.index and self.step >= cursor.steps_count - 1 for cursor in self._cursors()])

    def restart(self, *, finished: bool = False) -> None:
        """Start a new generation: every agent's state in every branch is dropped."""
        last_step = self.step if finished else None
        for cursor in list(self._cursors()):
            cursor.release(last_step)
        for scope in self.scopes.values():
            scope.cursors.clear()
        self._rewind()

    def tell(self, step: int | None, timestep: float | None) -> None:
        """Take the step, or the timestep (descending as in sampling), from the caller instead of counting."""
        if step is not None:
            if step < self.step:
                self.restart(finished=True)
            self.step, self.told = step, True
        elif timestep is not None:
            if timestep > self._timestep or (timestep < self._timestep and self.done):
                self.restart(finished=True)
            if timestep != self._timestep or self.step < 0:
                self.step += 1
            self._timestep, self.told = timestep, True

    def next_step(self, key: int, cursor: Cursor | None) -> int | None:
        """Return the step of the pass that agent `key` begins now, or None if this call belongs to a new run."""
        if self.step < 0:
            return 0
        if self.told:
            return self.step
        if cursor is not None and cursor.step == self.step:  # this pass was done already
            return None if self._broken_off(cursor) else self.step + 1
        if self.busy:  # nested in a call of another agent
            return self.step
        mine = [scope.cursor(key).step for scope in self.scopes.values() if scope.cursor(key)]
        if max(mine, default=-1) < self.step - 1:  # it sat out a step: a second expert, or another model
            return self.step + 1 if self.explicit else None
        return self.step

    def _broken_off(self, cursor: Cursor) -> bool:
        """Whether another branch or stack stopped inside its pass, after the last one of `cursor`: an interrupted run.

        Passes inside a call of another agent may be cut short by that agent; in `run()` the caller says where a run ends.
        """
        if self.explicit or self.busy:
            return False
        return any([other.index and other.began > cursor.began for other in self._cursors()])


class StepCounter:
    """Steps for callers that say which branch begins: the step advances when a branch begins that was there already."""

    __slots__ = ("_begun", "step")

    def __init__(self, first_step: int = 0):
        self.step = first_step - 1
        self._begun: set[str] = set()  # branches of this step

    def begin(self, branch: str) -> int:
        """Return the step that `branch` begins."""
        if not self._begun or branch in self._begun:
            self.step += 1
            self._begun.clear()
        self._begun.add(branch)
        return self.step


_scope: ContextVar[Scope | None] = ContextVar("mindie_cache_scope", default=None)
_requests: dict[Hashable, Run] = {}
get_scope = _scope.get
new_key = itertools.count().__next__  # what an agent is known by in a Scope


def current_scope() -> Scope:
    """The scope of this context. Without `run()` each thread has a run of its own, which never ends but wraps."""
    scope = _scope.get()
    if scope is None:
        scope = Run(explicit=False).scope()
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
    outer = _scope.get()
    if outer is not None and not outer.run.explicit:
        outer.run.restart()  # whatever was counted before is over
    entered = Run(explicit=True) if request is None else _requests.setdefault(request, Run(explicit=True))
    token = _scope.set(entered.scope())
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


@contextmanager
def branch(name: str = DEFAULT_BRANCH, *, step: int | None = None, timestep: float | None = None) -> Iterator[Scope]:
    """Calls inside belong to the conditioning branch `name` ("cond", "uncond", or any other name).

    Args:
        name: the branch; each has its own kept features.
        step: 0-based denoising step, if the caller knows it; counted otherwise.
        timestep: alternatively the timestep as a host number that falls during sampling: equal to the last one means
            the same step, lower the next step, higher a new run.
    """
    if not isinstance(name, str) or not name:
        raise ParametersInvalid(f"branch({name!r}): a branch is a non-empty string such as 'cond' or 'uncond'.")
    if step is not None and (isinstance(step, bool) or not isinstance(step, int) or step < 0):
        raise ParametersInvalid(
            f"branch(step={step!r}): the step is a whole number from 0. Leave it out to have it counted."
        )
    if step is not None and timestep is not None:
        raise ParametersInvalid(f"branch(step={step}, timestep={timestep}): both tell the step. Give one of them.")
    if isinstance(timestep, bool) or not isinstance(timestep, int | float | None):
        raise ParametersInvalid(
            f"branch(timestep={type(timestep).__name__}): needs a Python number, because reading a tensor would "
            "synchronise the device. Pass float(timestep) once per step, or step=."
        )
    if timestep is not None and not math.isfinite(timestep):
        raise ParametersInvalid(f"branch(timestep={timestep}): the timestep must be finite. Pass step= instead.")
    this_run = current_scope().run
    told_outside = this_run.told
    this_run.tell(step, timestep)
    scope = this_run.scope(name)
    token = _scope.set(scope)
    try:
        yield scope
    finally:
        _scope.reset(token)
        this_run.told = told_outside  # the next call in this thread may be another model's, whose steps are counted
