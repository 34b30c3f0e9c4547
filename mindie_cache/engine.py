"""The engine: lanes of kept features, and decide, record, predict on them. It never counts steps (clock.py does)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mindie_cache.clock import Scope
from mindie_cache.distributed import all_agree
from mindie_cache.errors import CacheWarning, ModelExecError
from mindie_cache.history import Features, History, own
from mindie_cache.recipes import Recipe
from mindie_cache.report import Log, StepRecord

Signature = tuple[tuple[torch.Size, torch.dtype, torch.device], ...]


class Lane:
    """One span in one branch of one run: its history, and what is in flight while the span is passed."""

    __slots__ = ("casts", "estimate", "history", "last", "rebuild", "reference", "reuse", "start", "versions")

    def __init__(self, start: int, last: int, history: History):
        self.start = start
        self.last = last
        self.history = history
        self.rebuild: Callable[[Features], Any] = tuple  # from streams to the form of the block's output
        self.casts: tuple[torch.dtype | None, ...] = ()  # output dtypes, if they are not those of the reference
        self.drop()

    def drop(self) -> None:
        """Forget everything kept and in flight."""
        self.history.clear()
        self.reuse = False  # in this pass
        self.reference: Features = ()  # compute: own copy of the span's input; reuse: the input itself
        self.estimate: Features = ()  # X, returned by the first and the last call of a reused span
        self.versions: tuple[int | None, ...] = ()


class Track:
    """What one agent keeps for one branch of one run: its place (a clock.Cursor), its decision, its lanes."""

    __slots__ = (
        "blind", "decided", "functions", "give_away", "index", "keep", "lanes", "log", "open", "owners", "places", "reason", "reuse",
        "reused", "seen", "shared", "signature", "since", "state", "step", "steps_count", "weights", "weights_for",
    )  # fmt: skip

    def __init__(self, lanes: list[Lane | None], steps_count: int, log: Log):
        self.step = -1
        self.index = 0
        self.open = False
        self.steps_count = steps_count
        self.log = log
        self.lanes = lanes
        self.functions: list[Any] = [None] * len(lanes)
        self.owners: list[Any] = [None] * len(lanes)
        self.places: dict[Any, int] = {}
        self.shared = False  # one module serves several calls: modules do not tell calls apart
        self.blind = False  # calls cannot be told apart and some were skipped: compute for the rest of the run
        self.seen = self.reused = 0
        self.forget()

    def forget(self) -> None:
        """Drop every kept feature and the policy's state: what follows is like a first step."""
        for lane in dict.fromkeys(lane for lane in self.lanes if lane is not None):
            self.log.change_bytes(-lane.history.nbytes)
            lane.drop()
        self.signature: Signature | None = None
        self.state: Any = None
        self.since = -1  # last step whose computed features count
        self.decided = self.reuse = self.keep = self.give_away = False
        self.weights: Sequence[float] = ()
        self.weights_for: tuple[int, ...] | None = None  # snapshot steps that `weights` belong to
        self.reason = "no data"

    def close_pass(self, branch: str) -> None:
        """Write the pass under way into the log."""
        if self.open and self.seen:
            self.log.add(StepRecord(branch, self.step, self.seen, self.reused, self.reason))
        self.seen = self.reused = self.index = 0
        self.open = False

    def release(self, *, finished: bool) -> None:
        self.forget()


class Engine:
    """Runs one recipe. Frozen: all state is in tracks and lanes."""

    def __init__(self, recipe: Recipe, calls_count: int, steps_count: int, group: Any = None):
        self.recipe = recipe
        self._streams = recipe.streams
        self._warmup = recipe.predictor.warmup
        self.call = self.block_range if recipe.site.anchored else self.each_call
        self.calls_count = calls_count
        self.steps_count = steps_count
        self.group = group

    def new_track(self, log: Log) -> Track:
        spans: dict[Any, Lane] = {}
        lanes: list[Lane | None] = []
        for index in range(self.calls_count):
            span = self.recipe.site.span(index)
            if span is not None and span not in spans:
                history = History(self.recipe.predictor.depth, self.recipe.placement)
                spans[span] = Lane(span.start, span.stop - 1, history)
            lanes.append(None if span is None else spans[span])
        return Track(lanes, self.steps_count, log)

    def decide(self, track: Track, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take the decision of this step, once, from the arguments of the first call of the site in this step."""
        policy = self.recipe.policy
        signal = self.recipe.signal(args, kwargs) if self.recipe.signal else None
        can_reuse = track.since >= 0 and not track.blind
        decision = policy.decide(track.state, track.step, signal, can_reuse)
        reuse, reason = decision.reuse and can_reuse, decision.reason
        if self.group is not None and policy.needs_signal:
            agreed = all_agree(reuse, self.group, signal.device)
            reuse, reason = agreed, "ranks disagree" if reuse and not agreed else reason
        if reason == "not finite":
            warnings.warn(
                "The signal that decides about reuse is NaN or infinite: computing. Look for overflow in the model "
                "(fp16?) or for latents that were not initialised.",
                CacheWarning,
                stacklevel=4,
            )
        track.state = decision.state
        track.decided, track.reuse, track.reason = True, reuse, reason
        depth = self.recipe.predictor.depth
        track.keep = policy.worth_keeping(track.step, depth)
        track.give_away = reuse and depth == 1 and policy.last_use(track.step)
        if track.keep and not reuse:
            track.since = track.step

    def each_call(
        self, track: Track, index: int, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A call that is a region of its own: an attention, a whole forward."""
        lane = track.lanes[index]
        if lane is None:
            return function(*args, **kwargs)
        if not track.decided:
            self.decide(track, args, kwargs)
        if track.reuse and self._has_data(track, lane):
            track.reused += 1
            if track.give_away:  # nobody will need the snapshot again, so no copy is needed either
                track.log.change_bytes(-lane.history.nbytes)
                return lane.rebuild(lane.history.take())
            return lane.rebuild(self.predict(track, lane, None))
        result = function(*args, **kwargs)
        if track.keep:
            outputs, lane.rebuild = self._streams.split(result, ())
            self._push(track, lane, tuple([own(out) for out in outputs]))
        return result

    def block_range(
        self, track: Track, index: int, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A block: inside the range it is computed or skipped together with the others; outside it is computed."""
        lane = track.lanes[index]
        if lane is not None and index == lane.start:
            if not track.decided:
                self.decide(track, args, kwargs)
            lane.reuse = track.reuse and self._has_data(track, lane)
        inputs, args = self._streams.take(args, kwargs)
        if lane is None:
            result = function(*args, **kwargs)
            self._streams.split(result, inputs)
            return result
        if lane.reuse:
            track.reused += 1
            return self._skip(track, lane, index, inputs)
        if track.keep and index == lane.start:
            lane.reference = tuple([own(item) for item in inputs])
        result = function(*args, **kwargs)
        outputs, rebuild = self._streams.split(result, inputs)
        if index == lane.last and lane.reference:
            lane.rebuild = rebuild
            self.record(track, lane, outputs)
        return result

    def _skip(self, track: Track, lane: Lane, index: int, inputs: Features) -> Any:
        """The first call of a reused span returns X, the inner calls what they were given, the last one X again."""
        streams = len(lane.history)
        if index == lane.start:
            lane.reference = inputs[:streams]
            lane.estimate = self.predict(track, lane, lane.reference)
            lane.versions = tuple([_version(item) for item in lane.estimate]) if lane.start != lane.last else ()
        elif index != lane.last:
            return lane.rebuild(inputs[:streams])
        elif lane.versions != tuple([_version(item) for item in lane.estimate]) or None in lane.versions:
            lane.estimate = self.predict(track, lane, lane.reference)  # X was changed in place on the way
        result = lane.rebuild(lane.estimate)
        if index == lane.last:
            lane.estimate = lane.reference = ()
        return result

    def _has_data(self, track: Track, lane: Lane) -> bool:
        steps = lane.history.steps
        return len(steps) >= self._warmup and steps[-1] >= track.since

    def predict(self, track: Track, lane: Lane, references: Features | None) -> Features:
        """The estimate of the span's output at this step: reference + weighted snapshots, as new objects."""
        history = lane.history
        if history.steps != track.weights_for:
            track.weights_for = history.steps
            track.weights = self.recipe.predictor.weights(history.steps, track.step)
        estimate = history.combine(track.weights, references)
        if lane.casts:
            return tuple([f if d is None else f.to(d) for f, d in zip(estimate, lane.casts, strict=True)])
        return estimate

    def record(self, track: Track, lane: Lane, outputs: Features) -> None:
        """End of a computed span: keep output - reference, stream by stream."""
        references, lane.reference = lane.reference[: len(outputs)], ()
        features = tuple([_residual(out, ref) for out, ref in zip(outputs, references, strict=True)])
        differs = [
            isinstance(out, torch.Tensor) and out.dtype != ref.dtype for out, ref in zip(outputs, references, strict=True)
        ]
        lane.casts = (
            tuple([out.dtype if d else None for out, d in zip(outputs, differs, strict=True)]) if any(differs) else ()
        )
        self._push(track, lane, features)

    def _push(self, track: Track, lane: Lane, features: Features) -> None:
        before = lane.history.nbytes
        lane.history.push(track.step, features)
        if lane.history.nbytes != before:
            track.log.change_bytes(lane.history.nbytes - before)


def _residual(output: Any, reference: Any) -> Any:
    if not isinstance(output, torch.Tensor):
        return output - reference
    if output.shape != reference.shape:
        raise ModelExecError(
            f"A stream changes its shape inside the cached block range, from {tuple(reference.shape)} to "
            f"{tuple(output.shape)}. Choose block_start and block_end so that shapes stay the same between them."
        )
    return (output.detach() if output.requires_grad else output) - reference


def _version(value: Any) -> int | None:
    """PyTorch's counter of in-place changes; None where it is not kept (inference mode), 0 for other objects."""
    if not isinstance(value, torch.Tensor):
        return 0
    return None if value.is_inference() else value._version


def signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Signature:
    """Shape, dtype and device of every tensor argument: when it changes, nothing kept fits any more."""
    values = (*args, *kwargs.values())
    return tuple([(v.shape, v.dtype, v.device) for v in values if isinstance(v, torch.Tensor)])


def find_log(scope: Scope, key: int) -> Log | None:
    """The log that another branch of this run already writes for agent `key`."""
    for other in scope.run.scopes.values():
        track = other.cursors.get(key)
        if isinstance(track, Track):
            return track.log
    return None
