"""The state that the engine carries: what one agent keeps for a run, for a branch of it, and for a span. No decisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakSet

import torch

from mindie_cache.bands import BandedHistory
from mindie_cache.errors import WarnOnce
from mindie_cache.history import Features, History
from mindie_cache.layout import Layout
from mindie_cache.policies import Policy
from mindie_cache.report import Log, StepRecord
from mindie_cache.steps import DEFAULT_BRANCH, Level
from mindie_cache.streams import BlockStreams, WholeOutput

Signature = tuple[list[Any], dict[str, Any]]


def signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Signature:
    """Shape, dtype and device of every tensor argument: when it changes, nothing kept fits any more."""
    return [_form(value) for value in args], {
        name: (value.shape, value.dtype, value.device) if isinstance(value, torch.Tensor) else _form(value)
        for name, value in kwargs.items()
        if value is not None
    }


def _form(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype, value.device
    if isinstance(value, tuple | list):
        return [_form(item) for item in value]
    return {name: _form(item) for name, item in value.items()} if isinstance(value, dict) else None


def first_shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Size | None:
    """The shape of the first tensor argument: the cheap part of a signature."""
    for value in args or kwargs.values():
        if isinstance(value, torch.Tensor):
            return value.shape
    return None


def shown(branch: str, turn: int) -> str:
    """How a branch is called in the report, in its first call of a step, its second one, and so on."""
    return branch if turn == 1 else f"{branch} #{turn}"


class Offer(NamedTuple):
    """What the calls of one branch have returned in `step`, by turn, for the branches that are predicted from them: empty
    if none can use it, None if two calls cannot be told apart. `calls`: of each branch in this step; `is_even`: all branches
    of the step before were called equally often."""

    step: int
    features: dict[int, Features | None]
    calls: Counter[str]
    is_even: bool


class Common:
    """What the branches of one run share for one agent: the log, and the decision of a policy that is `shared`."""

    __slots__ = (
        *("_kept", "decider", "is_pair", "log", "measured", "offer", "review", "tracks", "warn"),
        *("reason", "reuse", "settled", "since", "state", "step"),
    )

    def __init__(self, warn: WarnOnce, review: Callable[[str, Log], None] = lambda branch, log: None):
        self.log = Log()
        self.warn = warn
        self.review = review  # says so if nothing, or everything, was reused in a branch
        self.measured: dict[str, Any] = {}  # of a recipe with a meter, see methods/base.py; survives `forget`
        self.offer: Offer | None = None  # of the branch that others are predicted from
        self.is_pair: Callable[[Track, int], bool] = lambda track, size: True  # whether a batch holds both branches
        self.tracks: WeakSet[Track] = WeakSet()  # a track owns this, so that what it keeps dies with its scope
        self._kept: dict[str, int] = {}  # bytes, by branch, at the end of its last computed pass
        self.state: Any = None
        self.step = -1  # that `reuse` and `reason` belong to
        self.settled = -1  # step for which policies that decide per call have read what they wait for
        self.decider = ""  # the branch that took this decision
        self.since = -1  # last step that was computed by this decision
        self.reuse = False
        self.reason = ""

    def kept_by(self, track: Track) -> int:
        """Bytes kept over all branches, of which `track` has just ended a pass."""
        self._kept[track.branch] = track.nbytes
        return sum(self._kept.values())

    @property
    def nbytes(self) -> int:
        """Bytes kept now, over all branches."""
        return sum([track.nbytes for track in self.tracks])


class Lane:
    """One span in one branch of one run: its history, and what is in flight while the span is passed."""

    __slots__ = (
        "added",
        "casts",
        "estimate",
        "gap",
        "history",
        "last",
        "rebuild",
        "reference",
        "reuse",
        "shape",
        "signature",
        "start",
        "state",
        "streams",
        "versions",
        "width",
    )

    def __init__(self, start: int, last: int, history: History | BandedHistory, streams: BlockStreams | WholeOutput):
        self.start = start
        self.last = last
        self.history = history
        self.streams = streams
        self.added = False  # a kept output is a difference from the call's input
        self.width = 0  # streams of the block's output
        self.rebuild: Callable[[Features], Any] = tuple  # from streams to the form of the block's output
        self.casts: tuple[torch.dtype | None, ...] = ()  # output dtypes, if they are not those of the reference
        self.new_pass()
        self.drop()

    def drop(self) -> None:
        """Forget everything kept and in flight."""
        self.history.clear()
        self.gap = 0  # estimates handed out since the newest snapshot
        self.state: Any = None  # of a policy that decides per call
        self.signature: Signature | None = None  # of the call that the last decision was taken at
        self.shape: tuple[int, ...] | None = None  # of the first tensor argument that the history belongs to
        if not self.estimate:  # a span that is being reused is reused to its end: its first call has returned X already
            self.new_pass()

    def new_pass(self) -> None:
        self.reuse = False  # settled by the span's first call
        self.reference: Features = ()  # compute: own copy of the span's input; reuse: the input itself
        self.estimate: Features = ()  # X, returned by the first and the last call of a reused span
        self.versions: list[int] | None = None  # of the estimate as it was returned first


_OUTSIDE = Level(None, DEFAULT_BRANCH)


class Track:
    """What one agent keeps for one branch of one run: its place (a steps.Cursor), its decision, its lanes."""

    __slots__ = (
        *("__weakref__", "began", "blind", "common", "cut", "failed", "functions", "index", "key", "level", "opened"),
        *("alias", "layout", "missed", "released", "step", "steps_count", "watch"),
        *("branch", "distinct_lanes", "inside", "lanes", "loops", "named", "policy", "ranges", "reused", "turn"),
        *("anchor", "decided", "give_away", "keep", "reason", "reuse", "since", "state", "weights", "weights_for"),
    )

    def __init__(
        self,
        branch: str,
        policy: Policy,
        lanes: list[Lane | None],
        steps_count: int,
        common: Common,
        is_anchored: bool = True,
        turn: int = 1,
    ):
        self.branch = shown(branch, turn)
        self.named, self.turn = branch, turn
        self.policy = policy
        self.common = common
        common.tracks.add(self)
        self.lanes = lanes
        self.distinct_lanes = tuple(dict.fromkeys([lane for lane in lanes if lane is not None]))
        self.ranges = self.distinct_lanes if is_anchored else ()  # with something in flight while they are passed
        self.loops: dict[Any, Any] = {}  # what the model's loops over its blocks are given, by their patches
        self.steps_count = steps_count
        self.step = -1
        self.index = len(lanes)  # of the next call; past the last one between passes
        self.missed = self.reused = 0  # of this pass: calls that an outer cache skipped, calls not executed
        self.began = 0  # when this pass did, and whether it was the first one of its step: see steps.Cursor
        self.opened = False
        self.cut = -1  # where the last pass ended before its end
        self.failed = False  # an exception has left a call of this pass
        self.released = False  # its generation is over
        self.blind = False  # it is not known for certain which call is which: compute
        self.watch: Any = None  # what removes it when its run is gone
        self.seat(-1, _OUTSIDE, Layout(len(lanes)))
        self._clear()

    def seat(self, key: int, level: Level, layout: Layout) -> None:
        """Belong to agent `key` at `level`, with what is known about the order of its calls."""
        self.key = key
        self.level = self.alias = level  # `alias`: where else its agent finds it, in a context whose runs are counted
        self.inside = level.inside  # where calls of other agents in its calls belong
        self.follow(layout)

    def follow(self, layout: Layout) -> None:
        self.layout = layout
        self.functions = layout.functions  # by call index

    @property
    def nested(self) -> bool:
        return self.level.nested

    @property
    def open(self) -> bool:
        return self.index < len(self.lanes)

    def stop(self) -> None:
        """The pass under way, if any, will not go on."""
        if self.open:
            self.cut = self.index
            self.close_pass()

    def forget(self) -> None:
        """Drop every kept feature and the policy's state: what follows is like a first step."""
        self._clear()
        if self.common.step != self.step or self.common.decider == self.branch:  # else another branch has decided already
            self.common.state = None

    def _clear(self) -> None:
        """The same without what the branches share."""
        for lane in self.distinct_lanes:
            lane.drop()
        self.state: Any = None
        self.since = -1  # last step whose computed features count
        self.reason = "no data"
        self.new_step()

    def new_step(self) -> None:
        self.decided = self.reuse = self.keep = self.give_away = False
        self.anchor: Any = None  # copy of the stream that the recipe's tap compares a later one with
        self.weights: Sequence[Any] = ()
        self.weights_for: tuple[int, ...] | None = None  # snapshot steps that `weights` belong to

    def new_pass(self) -> None:
        for lane in self.ranges:
            lane.new_pass()

    @property
    def nbytes(self) -> int:
        return sum([lane.history.nbytes for lane in self.distinct_lanes])

    def close_pass(self) -> None:
        """Write the pass under way into the log."""
        self.common.log.add(self.row(), 0 if self.reuse else self.common.kept_by(self))  # a reused step keeps nothing new
        self.missed = self.reused = 0
        self.index = len(self.lanes)

    def row(self) -> tuple[str, int, int, int, str]:
        """The pass under way, so far: the fields of a StepRecord."""
        return self.branch, self.step, self.index - self.missed, self.reused, self.reason

    def record(self) -> StepRecord:
        return StepRecord(*self.row())

    def review(self) -> None:
        if self.policy.reuses:
            self.common.review(self.branch, self.common.log)

    def release(self, last_step: int | None, rise: str = "") -> None:
        self.forget()
        self.released = True
        self.common.offer = None
        self.common.measured.pop("latest", None)  # a meter's tensors; its sums stay
        if last_step is None or self.common.warn.given("long run", "calls count", "rising timestep"):
            return
        if last_step >= self.steps_count - 1:
            others = [other for other in self.common.tracks if other.layout.passes]
            if self.cut >= 0 and (self.layout.passes or not others):  # else its passes are shorter, as others are not
                self.review()
        elif rise:
            self.common.warn(
                "rising timestep",
                f"The timestep rose {rise}, which was taken for a new run, after {last_step + 1} of steps_count="
                f"{self.steps_count} steps. Timesteps fall during sampling; if yours rise, pass branch(step=...) instead.",
            )
        else:
            self.common.warn(
                "short run",
                f"A run ended after {last_step + 1} steps, but steps_count={self.steps_count}: its settings are meant for "
                f"another number of steps. Set steps_count={last_step + 1} and choose the step window for it.",
            )
