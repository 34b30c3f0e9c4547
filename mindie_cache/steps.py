"""A run counts its steps: which step the pass of an agent belongs to. Knows neither contexts nor caching."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakSet, ref

DEFAULT_BRANCH = "cond"
_order = itertools.count(1)  # of passes


class Cursor(Protocol):
    """Where one agent is in one branch of a run: the `step` of its last pass, and whether it is `open`: still under way.

    `nested`: inside the calls of another agent. `began`: when the pass did, in the order of all passes.
    `opened`: the pass was the first one of its step.
    """

    key: int  # of the agent
    step: int
    began: int
    opened: bool
    nested: bool
    steps_count: int

    @property
    def open(self) -> bool: ...

    def stop(self) -> None:
        """The pass under way will not go on."""

    def forget(self) -> None:
        """Drop everything kept, but not the place."""

    def release(self, last_step: int | None, rise: str = "") -> None:
        """Drop everything: the generation is over. `last_step` is given if it came to its natural end with it, `rise` if
        a timestep that rose was taken for that end."""


class Level:
    """One branch of one run, for agents that the loop calls; `inside`: for those called in the calls of these.

    What agents keep their state by. Knows its run weakly; without a run, each agent has a counted one of its own here.
    """

    __slots__ = ("branch", "inside", "nested", "run")

    def __init__(self, run: Run | None, branch: str, nested: bool = False):
        self.run: Callable[[], Run | None] = _no_run if run is None else ref(run)
        self.branch = branch
        self.nested = nested
        self.inside: Level = self if nested or run is None else Level(run, branch, True)


def _no_run() -> None:
    return None


class Run:
    """One generation: its step, its branches, and how a pass is recognised as the start of the next step or run.

    The step advances when an agent that has done its pass of the current step begins another one in the same branch. Agents
    that are called inside calls of others never advance it. Agents in one run share this clock, so a second stack, a branch
    that guidance leaves out for some steps, and a second expert that takes over half-way are at the right step.

    Args:
        explicit: the caller says where the run ends; otherwise it wraps, and belongs to one agent.
        first_step: where counting begins, e.g. for the second of two experts.
    """

    __slots__ = (
        *("__weakref__", "_by_count", "_cursors", "_guests", "_levels", "_timestep"),
        *("explicit", "failed", "first_step", "step", "ticks", "strays", "turned"),
    )

    def __init__(self, *, explicit: bool = True, first_step: int = 0):
        self.explicit = explicit
        self.first_step = first_step
        self.ticks = (0, 0)  # when its last two steps began, among the counted runs of its context
        self.turned = 0  # when a generation of it ended, or another one than its first began
        self.strays: WeakSet[Run] = WeakSet()  # other runs of its context that it does not keep step with
        self._levels: dict[str, Level] = {}
        self._rewind()

    def _rewind(self) -> None:
        self.step = -1
        self.failed = False  # an exception has left a call
        self._cursors: list[ref[Any]] = []  # to Cursor; the agents own them, so that a run keeps no model alive
        self._guests = -1  # the step that was opened by an agent that is new in the run
        self._timestep = math.inf
        self._by_count = False  # the step was advanced by counting since it was last told

    def level(self, branch: str = DEFAULT_BRANCH) -> Level:
        found = self._levels.get(branch)
        if found is None:
            found = self._levels[branch] = Level(self, branch)
        return found

    def join(self, cursor: Any) -> None:
        if cursor not in self.cursors():
            self._cursors.append(ref(cursor))

    def leave(self, cursor: Any) -> None:
        self._cursors = [found for found in self._cursors if found() is not cursor]

    def cursors(self) -> list[Any]:
        return [cursor for cursor in [found() for found in self._cursors] if cursor is not None]

    @property
    def done(self) -> bool:
        """Whether every agent has reached its last step."""
        return all([self.step >= cursor.steps_count - 1 for cursor in self.cursors()])

    def restart(self, *, finished: bool = False, rise: str = "") -> None:
        """Start a new generation: every agent's state in every branch is dropped."""
        last_step = self.step if finished and not self.failed else None
        for cursor in self.cursors():
            cursor.stop()
            cursor.release(last_step, rise)
        self._rewind()

    def fail(self) -> None:
        """An exception has left a call: nothing that is kept is trusted any more. Places are, see `Track.failed`."""
        self.failed = True
        self.forget()

    def forget(self) -> None:
        for cursor in self.cursors():
            cursor.forget()

    def tell(self, step: int | None, timestep: float | None) -> None:
        """Take the step, or the timestep (descending as in sampling), from the caller instead of counting."""
        if step is not None:
            if step < self.step:
                self.restart(finished=True)
            self.move(step)
        elif timestep is not None:
            last = self._timestep
            if timestep > last:
                self.restart(finished=True, rise=f"from {last:g} to {timestep:g}")
            elif timestep < last and self.done and not self._by_count:
                self.restart(finished=True)
            if self.step < 0:
                self.move(self.first_step)
            elif timestep != last and not self._by_count:  # else a branch that does not tell has been there already
                self.move(self.step + 1)
            self._timestep = timestep
        self._by_count = False

    def move(self, step: int) -> None:
        """Go to `step`. No pass of another step goes on after this."""
        if step != self.step:
            for cursor in self.cursors():
                cursor.stop()
            self.step = step

    def begin(self, cursor: Any, step: int) -> None:
        """`cursor` begins a pass of `step`."""
        cursor.opened = step != self.step
        if cursor.opened:
            self.move(step)
            self._by_count = True
        cursor.began = next(_order)

    def next_step(self, cursor: Any, told: bool) -> int:
        """Return the step of the pass that `cursor` begins now."""
        if self.step < 0:
            return self.first_step
        if told or cursor.nested:
            return self.step
        if cursor.step == self.step:  # this pass was done already
            return self.step + 1
        return self._joined(cursor) if self.explicit else self.step  # another branch

    def broken_off(self, cursor: Any) -> bool:
        """Whether a pass that began after the last one of `cursor` has not come to its end."""
        return any([other.open and not other.nested and other.began > cursor.began for other in self.cursors()])

    def _joined(self, cursor: Any) -> int:
        """The step at which an agent joins, or comes back to, the others. See docs/adr/0015."""
        mine = [other for other in self.cursors() if other.key == cursor.key]
        latest = max([other.step for other in mine], default=-1)
        if latest == self.step - 1 and self._guests == self.step:
            self._send_back()  # so those who opened this step were no experts: they came last in the step before
            return self.step + 1
        if latest >= self.step - 1:
            return self.step
        if latest >= 0:  # it was left out for some steps: does it come first in a step, or after others?
            return self.step + any([other.opened for other in mine if other.step == latest])
        if self.step in (self.first_step, self._guests):
            return self.step
        self._guests = self.step + 1  # a second expert takes over
        return self._guests

    def _send_back(self) -> None:
        for other in self.cursors():
            if other.step == self.step:
                other.step -= 1
                other.opened = False
        self.step -= 1
        self._guests = -1


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
