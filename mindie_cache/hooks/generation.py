"""One generation of one hooked model: which branch and step a forward is, by what was seen of it. Decides no caching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mindie_cache.engine import Engine
from mindie_cache.errors import WarnOnce
from mindie_cache.hooks.sight import Sight, same_condition
from mindie_cache.lanes import Signature, Track, signature
from mindie_cache.sessions import Review, Session

FIRST = "first"
_ORDINALS = (FIRST, "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_MOST_UNREAD = 4  # branches whose embeddings are on a device: no guidance has more


class Generation(Session):
    """A session whose steps are seen, not told.

    Args:
        engine: made for this number of steps.
        sight: of the first forward.
        is_off: nothing is cached with so many steps.
    """

    def __init__(self, engine: Engine, sight: Sight, warn: WarnOnce, review: Review, is_off: bool):
        super().__init__(0, engine.steps_count, warn, review)
        self.engine = engine
        self.is_off = is_off
        self.step = -1
        self.unclear = False  # branches cannot be told apart
        self.origin = sight.begin
        self._last = sight
        self._deaf = False  # the scheduler's index does not move: another one drives this model
        self._conditions: dict[str, Mapping[str, torch.Tensor]] = {}
        self._forms: dict[str, Signature] = {}  # of the last forward, by branch
        self._calls: dict[str, int] = {}  # of each branch in this step
        self._calls_before: dict[str, int] = {}  # in the last step
        self._uneven: set[str] = set()  # branches called more than once in the last step, and not as often before

    @property
    def timesteps(self) -> Any:
        """The scheduler's, to be known by identity."""
        return self._last.timesteps

    def branch_of(self, sight: Sight) -> str | None:
        """The branch of a forward: its name, or that of its conditioning; None if it cannot be known."""
        if sight.branch is not None:
            return sight.branch
        unread = False
        for branch, kept in self._conditions.items():
            same = same_condition(kept, sight.conditions)
            unread = unread or same is None
            if same:
                return branch
        count = len(self._conditions)  # another branch: it begins with nothing, so this is never wrong
        if count == (_MOST_UNREAD if unread else len(_ORDINALS)):  # embeddings that change in every step
            self.unclear = True
            self.forget()
            return None
        self._conditions[_ORDINALS[count]] = sight.conditions
        return _ORDINALS[count]

    def ended(self, sight: Sight, branch: str | None) -> bool:
        """Whether this forward belongs to a later generation."""
        last, is_done = self._last, self.step + 1 >= self.steps_count
        if self.steps.step >= self.steps_count:
            return True  # released
        if last.timesteps is not None and sight.timesteps is not None and last.timesteps is not sight.timesteps:
            return True
        if sight.position is not None and self._told_by(sight.position, sight.timestep):
            assert last.position is not None
            return sight.position < last.position or sight.position - self.origin >= self.steps_count
        if sight.timestep is not None and last.timestep is not None:
            return sight.timestep > last.timestep or (sight.timestep < last.timestep and is_done)
        return is_done and (self._comes_again(branch) or (bool(self._calls) and branch not in self.tracks))

    def is_too_short(self, sight: Sight) -> bool:
        """Whether the timestep goes on falling after the last step."""
        last, now = self._last.timestep, sight.timestep
        same_run = self._last.timesteps is sight.timesteps
        return same_run and self.step + 1 >= self.steps_count and last is not None and now is not None and now < last

    def is_over(self, sight: Sight) -> bool:
        """Whether it came to its end, and no pipeline has set the scheduler for another one since."""
        return self.step + 1 >= self.steps_count and sight.timesteps is not None and self.timesteps is sight.timesteps

    @property
    def is_torn(self) -> bool:
        """Whether only one of its steps has come."""
        return self.steps_count > 1 and len({record.step for record in self.common.log.steps}) == 1

    def is_outdone(self, sight: Sight) -> bool:
        """Whether this generation had one step only, and the next one begins at a higher timestep."""
        last = self._last.timestep
        return self.step == 0 and last is not None and sight.timestep is not None and sight.timestep > last

    def _comes_again(self, branch: str | None) -> bool:
        """Whether this call begins a step, going by calls alone: branches keep their order, also if some are left out."""
        if branch not in self.tracks or branch in self._calls:
            return branch in self._calls
        order = list(self.tracks)
        return any([order.index(other) > order.index(branch) for other in self._calls])

    def _told_by(self, position: int, timestep: float | None) -> bool:
        """Whether the scheduler's index tells the step; not if the timestep moves while it stands still."""
        if (last := self._last).position is None:
            return False
        if position == last.position and last.timestep is not None and timestep != last.timestep:
            self._deaf = True
        return not self._deaf

    def enter(self, sight: Sight, branch: str) -> Track:
        """The track of this forward, at its step."""
        step = self._step_of(sight, branch)
        if step != self.step:
            self._next_step(step)
        count = self._calls.get(branch, 0)
        self._calls[branch] = count + 1
        self._last = sight
        name = branch if not count else f"{branch} #{count + 1}"
        track = self.tracks.get(name)
        if track is None:
            track = self.tracks[name] = self.engine.new_track(name, self.common)
        elif branch in self._uneven and track.step != step:
            track.forget()
        if step != track.step:
            track.step = step
            track.new_step()
        track.new_pass()
        track.index = track.missed = track.reused = 0
        return track

    def _step_of(self, sight: Sight, branch: str) -> int:
        if self.step < 0:
            return 0 if sight.position is None else sight.position - self.origin
        if sight.position is not None and self._told_by(sight.position, sight.timestep):
            return sight.position - self.origin
        if sight.timestep is not None and self._last.timestep is not None:
            return self.step + (sight.timestep != self._last.timestep)
        return self.step + self._comes_again(branch)

    def _next_step(self, step: int) -> None:
        before = self._calls_before
        self._uneven = {branch for branch, count in self._calls.items() if count > 1 and before.get(branch) != count}
        self._calls_before, self._calls, self.step = self._calls, {}, step

    def review_form(self, track: Track, values: Mapping[str, Any]) -> None:
        """Forget what does not fit the model's arguments any more, where no single call sees all of them."""
        now = signature((), dict(values))
        if self._forms.get(track.branch, now) != now:
            track.forget()
        self._forms[track.branch] = now

    def close(self, track: Track) -> None:
        """A forward has come to its end."""
        track.index = self.engine.calls_count
        track.close_pass()
        if self.step >= self.steps_count - 1:
            track.forget()
            track.review()
            self.forget_left_out()
            if self.step and all([other.step != self.step - 1 for other in self.tracks.values()]):  # no branch is to come
                self._conditions.clear()  # embeddings are not kept alive between generations
                self._last = self._last._replace(conditions={})

    def hand_over(self) -> None:
        """Another expert goes on: nothing kept here is needed any more, in this run or while pictures are decoded."""
        has_gone_far = 2 * self.step >= self.steps_count
        reused = {record.branch for record in self.common.log.steps if record.reused}
        for name, track in self.tracks.items():
            if has_gone_far and track.nbytes and name not in reused:
                track.review()
            track.forget()

    def forget_left_out(self) -> None:
        """In the last step: what branches keep that guidance has left out for a while."""
        for track in self.tracks.values():
            if track.step < self.step - 1:
                track.forget()

    def release(self, last_step: int | None, rise: str = "") -> None:
        super().release(last_step, rise)
        self._conditions.clear()
