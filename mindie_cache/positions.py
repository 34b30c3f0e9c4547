"""Where an agent's calls are: the track and the call index of each, also after surprises. steps.py counts the steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import ref

from mindie_cache.clock import Scope, current_scope, get_scope, new_key
from mindie_cache.engine import Engine
from mindie_cache.errors import WarnOnce
from mindie_cache.lanes import Common, Track
from mindie_cache.layout import Layout, Surprise
from mindie_cache.notices import Notices
from mindie_cache.report import Log
from mindie_cache.steps import Level, Run


class Positions:
    """The tracks of one agent, and how a call finds its own.

    Args:
        engine: makes the tracks.
        method: its name, for messages.
        review: says so if nothing, or everything, was reused in a branch.
    """

    def __init__(self, engine: Engine, method: str, warn: WarnOnce, review: Callable[[str, Log], None]):
        self.tracks: dict[Level, Track] = {}
        self.latest: Common | None = None  # of the run that was served last
        self.notices = Notices(method, engine.calls_count, engine.steps_count, warn)
        self._engine = engine
        self._warn = warn
        self._review = review
        self._key = new_key()

    def find(self, function: Callable[..., Any]) -> Track:
        """Return the track of a call of `function`, with `index` at the call. The slow way: a pass begins, or a surprise."""
        scope = current_scope()
        track = self._track(scope)
        if track.layout.lost:
            self.notices.blind("do not come in one order, or raised an exception")
        if not track.open:
            track = self._begin(scope, track)
        place = track.layout.find(track.index, function)
        if place is Surprise.NEW and track.failed and track.layout.learn_after(track.index, function):
            place = track.index + 1  # the model went on without the call that raised an exception in the first pass
        if isinstance(place, Surprise):
            return self._surprised(scope, track, place, function)
        if place < track.index:
            return self._again(scope, track, place)
        track.missed += place - track.index  # skipped by an outer cache, or by the model
        track.index = place
        return track

    def finish(self, track: Track) -> None:
        """A pass has come to its end."""
        track.cut = -1
        if not track.missed:
            track.layout.passes += 1
            if track.layout.passes == 1:
                self._review_layout(track)
        track.close_pass()
        if track.step == track.steps_count - 1:
            self._release(track)
            track.review()

    def _release(self, track: Track) -> None:
        """After its last step nothing is needed any more, nor in a counted run what agents in its calls keep."""
        run = track.level.run()
        track.forget()
        if run is not None and not run.explicit and not track.nested:
            for other in run.cursors():
                if other.nested and other.level is track.inside:
                    other.forget()

    def failed(self, track: Track, index: int) -> None:
        """An exception has left a call. What follows may be the same call again, the next one, or another generation."""
        run = track.level.run()
        if run is None:
            return
        if not track.released:
            track.index, track.failed = index, True
        run.fail()
        layout, counted = track.layout, not run.explicit and not track.nested
        if counted and (layout.anonymous or layout.lost or self._begins_step(run, track, index)):
            self._interrupted(run)
        elif layout.anonymous and layout.count > 1:
            layout.lost = track.blind = True

    def _begins_step(self, run: Run, track: Track, index: int) -> bool:
        """Whether this function begins the steps, so that the same one again most probably begins a new run."""
        counted = get_scope().counted
        return track.layout.same(index, 0) and track.opened and not (counted and counted.level_with(run))

    def _interrupted(self, run: Run) -> None:
        """A counted run was interrupted."""
        counted = get_scope().counted
        if counted is not None:
            counted.restart(run)
        else:
            run.restart()

    def reset(self) -> None:
        """Drop everything that is kept, in every run and thread. In a counted run the next pass is a first step."""
        for track in list(self.tracks.values()):
            run = track.level.run()
            if run is None or track.released:
                continue
            layout = track.layout
            if run.explicit or track.nested or (track.open and not (layout.anonymous or layout.lost)):
                run.forget()
                track.failed = True
            else:
                run.restart()
                layout.lost = False

    def common(self) -> Common | None:
        """Of the run of this context, or else of the run that was served last."""
        scope = get_scope()
        run = scope.now.run()
        runs = [run] if run is not None else list(scope.counted.runs.values()) if scope.counted else []
        found = [common for common in map(self._common_of, runs) if common is not None]
        return found[0] if found and self.latest not in found else self.latest

    # ------------------------------------------------------------------------------------------------ tracks

    def _common_of(self, run: Run) -> Common | None:
        mine = [cursor.common for cursor in run.cursors() if cursor.key == self._key]
        return mine[0] if mine else None

    def _track(self, scope: Scope) -> Track:
        track = self.tracks.get(scope.now)
        if track is not None and not track.released:
            return track
        run = scope.run_of(self)
        if scope.now.run() is None and scope.tell is not None:
            run.tell(*scope.tell)
        elif scope.now.run() is not None and scope.counted is not None and (mine := scope.counted.runs.get(self)):
            mine.restart()  # what was counted before this run was opened is over
        level = scope.now if scope.now.run() is not None else run.level(scope.branch)
        track = self.tracks.get(level)
        if track is None or track.released:
            track = self._new_track(run, level, track)
        if scope.now is not level:
            if track.alias is not level:
                self.tracks.pop(track.alias, None)
            self._alias(track, scope.now)
        return track

    def _alias(self, track: Track, level: Level) -> None:
        self.tracks[level], track.alias = track, level

    def _new_track(self, run: Run, level: Level, old: Track | None) -> Track:
        """A track for this generation, which knows the order of calls from the one before."""
        common = self._common_of(run) or Common(self._warn, self._review)
        track = self._engine.new_track(level.branch, common)
        layout = Layout(self._engine.calls_count) if old is None else old.layout
        if old is not None and old.cut >= 0:
            self._review_cut(old)
        if run.explicit or level.nested:  # of a counted run of its own it is not known where it begins
            layout.lost = False
        track.seat(self._key, level, layout)
        mine = ref(self)

        def gone(_: Any) -> None:
            if (positions := mine()) is not None and (found := positions.tracks.pop(level, None)) is not None:
                positions.tracks.pop(found.alias, None)

        track.watch = ref(run, gone)
        self.tracks[level] = track
        if old is not None and old.alias is not level:
            self._alias(track, old.alias)
        self.latest = common
        run.join(track)
        return track

    # ------------------------------------------------------------------------------------------------ passes

    def _begin(self, scope: Scope, track: Track) -> Track:
        """Start a pass: settle its step; a new track if it belongs to a new run."""
        run = track.level.run()
        assert run is not None, "the scope of this call holds its run"
        if track.cut >= 0 and (track.layout.anonymous or track.layout.repeats):
            self._lose(track, "ended before the pass was complete")
        elif track.cut >= 0:
            self._review_cut(track)
        counted = None if run.explicit or track.nested else scope.counted
        step = run.next_step(track, scope.told)
        if track.layout.lost and counted:
            step = max(run.step, run.first_step)  # it cannot be known where the run ends
        elif counted and not scope.told and counted.broken_off(run, track):
            counted.restart(run)
            track, step = self._new_track(run, track.level, track), run.first_step
        elif step >= track.steps_count:
            if run.explicit or scope.told:
                self.notices.long()
            run.restart()
            track, step = self._new_track(run, track.level, track), run.first_step
        is_turn = step in (run.first_step, track.steps_count - 1)
        if counted and step != run.step and counted.outlived(run, is_turn):
            run.forget()
        self._open(run, track, step)
        return track

    def _open(self, run: Run, track: Track, step: int) -> None:
        run.begin(track, step)
        if step != track.step:
            track.step = step
            track.new_step()
        track.new_pass()
        track.blind = not track.layout.trusted(track.nested)
        track.index = track.missed = track.reused = 0
        track.cut, track.failed = -1, False

    def _review_layout(self, track: Track) -> None:
        """After the first whole pass."""
        run = track.level.run()
        if track.nested and not track.layout.trusted(True):
            self.notices.blind("cannot be told apart, and an agent around them may skip some")
        elif run is not None and not run.explicit and track.layout.anonymous and track.layout.count > 1:
            self.notices.order_only()

    def _review_cut(self, track: Track) -> None:
        """The last pass ended early: interrupted, or skipped by an outer cache, or blocks_count is too large."""
        layout = track.layout
        if not track.nested and not layout.knows(track.cut):
            if layout.cut == track.cut and not any([other.layout.passes for other in track.common.tracks]):
                self.notices.count(track.cut, "Passes end")
            layout.cut = track.cut

    # ------------------------------------------------------------------------------------------------ surprises

    def _again(self, scope: Scope, track: Track, place: int) -> Track:
        """A pass began again, at `place`, before its end."""
        run = track.level.run()
        assert run is not None
        if not track.nested and not run.explicit:
            step = run.step if scope.told else run.first_step
            self._interrupted(run)
            track = self._new_track(run, track.level, track)
            self._open(run, track, step)
        elif track.nested or track.failed:
            self._open(run, track, track.step)  # a second attempt
        else:
            track.stop()
            track = self._begin(scope, track)
        track.index = track.missed = place
        return track

    def _surprised(self, scope: Scope, track: Track, what: Surprise, function: Callable[..., Any]) -> Track:
        index, layout, run = track.index, track.layout, track.level.run()
        assert run is not None
        counted = not run.explicit and not track.nested
        realigned = layout.realigned(index, function) if what is Surprise.MISLEARNED else None
        if realigned is None and what is not Surprise.NEW and layout.begins_with(function) and counted:
            return self._again(scope, track, 0)
        if what in (Surprise.AGAIN, Surprise.DISORDER):
            self._lose(track, "come in another order than before")
            return track
        if layout.returned(function) and layout.modules_count != layout.count:
            self.notices.count(layout.modules_count, "Different modules are passed to apply in a step,")
        if realigned is not None:
            layout, place = realigned
            if counted and place != index:
                track = self._again(scope, track, 0)
            index = place
        else:
            if counted and track.failed:
                track, index = self._again(scope, track, 0), 0
            layout = layout.renewed(index, function)
        track.forget()
        track.follow(layout)
        track.index, track.missed, track.blind = index, 0, True
        return track

    def _lose(self, track: Track, how: str) -> None:
        """Compute until it is known again which call is which."""
        track.layout.lost = track.blind = True
        track.forget()
        self.notices.blind(how)
