"""One generation of one hooked model: which branch and step a forward is, by what was seen of it. Decides no caching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mindie_cache.engine import Engine
from mindie_cache.errors import WarnOnce
from mindie_cache.hooks.sight import Sight, same_condition, writes
from mindie_cache.lanes import Signature, Track, shown, signature
from mindie_cache.sessions import Review, Session

FIRST = "first"
ORDINALS = (FIRST, "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_MOST_UNREAD = 4  # branches whose embeddings are on a device: no guidance has more
_MOST_CALLS = 64  # of one branch in one step: more are no tiles

SEVERAL = (
    "{} calls in each step have the same conditioning (branch {!r}), so that only their order tells which is which, and "
    "guidance may leave the first ones out. Only the last one is reused, the others are computed. Name the branch of each "
    'call: `with mindie_cache.branch("cond"):`.'
)

ENDLESS = (
    "Branch {!r} has more than {} calls in one step, as if the timestep stood still. Further ones are computed. If each "
    "call is a step, say so: `with mindie_cache.branch(step=i):`."
)

COUNTED = (
    "Steps are counted by branch, because no timestep can be read: after a generation that is broken off, call "
    "handle.reset(), or put each generation into `with mindie_cache.run():`."
)

_ONLY = range(1, 2)  # of the calls of a branch in one step: the first
_NONE = range(0)


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
        self.timesteps = sight.timesteps  # the scheduler's, to be known by identity
        self.is_open = True  # nobody says where it ends
        self._is_shown = sight.told and bool(sight.driven)  # the pipeline tells its steps: a call without one is not its own
        self._is_counted = False  # only the order of calls tells some steps
        self._last = sight
        self._deaf = False  # the scheduler's index does not move: another one drives this model
        self._conditions: dict[str, tuple[Mapping[str, torch.Tensor], list[int]]] = {}
        self._forms: dict[str, Signature] = {}  # of the last forward, by branch
        self._calls: dict[str, int] = {}  # of each branch in this step
        self._calls_before: dict[str, int] = {}  # in the last step that had the branch
        self._usual: dict[str, int] = {}  # where several calls of a branch have come two steps in a row: how many
        self._certain: dict[str, range] = {}  # which calls of a branch in this step are known to be the same as before

    def branch_of(self, sight: Sight) -> str | None:
        """The branch of a forward: its name, or that of its conditioning; None if it cannot be known."""
        if sight.branch is not None:
            return f"{sight.branch} aside" if self._is_shown and not sight.told else sight.branch
        unread = False
        for branch, (kept, written) in self._conditions.items():
            same = same_condition(kept, sight.conditions)
            if same and written != writes(kept):  # what is kept is not what it was
                same = None
            unread = unread or same is None
            if same:
                return branch
        count = len(self._conditions)  # another branch: it begins with nothing, so this is never wrong
        if count == (_MOST_UNREAD if unread else len(ORDINALS)):  # embeddings that change in every step
            self.unclear = True
            self.forget()
            return None
        self._conditions[ORDINALS[count]] = sight.conditions, writes(sight.conditions)
        return ORDINALS[count]

    def ended(self, sight: Sight, branch: str | None) -> bool:
        """Whether this forward belongs to a later generation."""
        last, is_done = self._last, self.step + 1 >= self.steps_count
        if self.steps.step >= self.steps_count:
            return True  # released
        if sight.timesteps is not None:
            if sight.timesteps is not self.timesteps:
                return True  # also if this one is not of the pipeline, which has gone on or begins now
        elif self.steps_count == 1 and branch in self._calls:
            return True
        if (position := self._told_by(sight)) is not None:
            since = self.step if last.position is None else last.position - self.origin
            return not since <= position < self.steps_count
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
    def note(self) -> str:
        """What its user should know."""
        return COUNTED if self._is_counted and self.is_open and self.timesteps is None else ""

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

    def _told_by(self, sight: Sight) -> int | None:
        """The step, if somebody says it: the caller, or the scheduler's index, unless the timestep moves while that one
        stands still."""
        position, last = sight.position, self._last
        if position is None or (last.position is None and not sight.told):
            return None
        if not sight.told:
            if position == last.position and last.timestep is not None and sight.timestep != last.timestep:
                self._deaf = True
            if self._deaf:
                return None
        return position - self.origin

    def enter(self, sight: Sight, branch: str) -> Track | None:
        """The track of this forward, at its step; none for calls without end in one step."""
        step = self._step_of(sight, branch)
        if step != self.step:
            self._next_step(step)
        turn = self._calls[branch] = self._calls.get(branch, 0) + 1
        self._last = sight
        if turn > _MOST_CALLS:
            self.common.warn("endless", ENDLESS.format(branch, _MOST_CALLS))
            return None
        name = shown(branch, turn)
        track = self.tracks.get(name)
        if track is None:
            track = self.tracks[name] = self.engine.new_track(branch, self.common, turn)
        elif track.step != step and turn not in self._certain.get(branch, _ONLY):
            if branch in self._usual and track.nbytes:
                self.common.warn("several", SEVERAL.format(self._usual[branch], branch))
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
        if (told := self._told_by(sight)) is not None:
            return told
        if sight.timestep is not None and self._last.timestep is not None:
            return self.step + (sight.timestep != self._last.timestep)
        self._is_counted = True
        return self.step + self._comes_again(branch)

    def _next_step(self, step: int) -> None:
        for branch, count in self._calls.items():
            before = self._calls_before.get(branch, 1)
            self._certain[branch] = self._known(branch, count) if count == before else _NONE
        self._calls_before.update(self._calls)
        self._calls, self.step = {}, step

    def _known(self, branch: str, count: int) -> range:
        """Of as many calls as in two steps in a row, those that cannot be mixed up if there are fewer of them now. Where
        guidance has a name they are tiles, which come together; else guidance may leave out any but the last one."""
        if branch not in self._conditions:
            return range(1, count + 1)
        if count > 1:
            self._usual[branch] = max(count, self._usual.get(branch, 1))
        usual = self._usual.get(branch, 1)
        return range(usual, usual + 1)

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
