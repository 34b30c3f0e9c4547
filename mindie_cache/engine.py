"""The engine: lanes of kept features, and decide, record, predict on them. It never counts steps (clock.py does)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
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

    __slots__ = ("dtypes", "handed_out", "history", "last", "rebuild", "reference", "reuse", "start", "versions")

    def __init__(self, start: int, last: int, history: History):
        self.start = start
        self.last = last
        self.history = history
        self.reuse = False  # in this pass
        self.reference: Features = ()  # compute: own copy of the span's input; reuse: the input itself
        self.handed_out: Features = ()  # the estimate X that the first call of the span returned
        self.versions: tuple[int | None, ...] = ()
        self.rebuild: Callable[[Features], Any] | None = None
        self.dtypes: tuple[torch.dtype | None, ...] = ()


class Track:
    """What one agent keeps for one branch of one run: its place (a clock.Cursor), its decision, its lanes."""

    __slots__ = (
        "blind", "decided", "functions", "index", "keep", "lanes", "log", "open", "owners", "places", "reason", "reuse",
        "reused", "seen", "shared", "signature", "since", "state", "step", "steps_count", "unit_spans",
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
            lane.history.clear()
            lane.reference = lane.handed_out = ()
            lane.reuse = False
        self.signature: Signature | None = None
        self.state: Any = None
        self.since = -1  # last step whose computed features count
        self.decided = self.reuse = self.keep = False
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
        track.keep = policy.worth_keeping(track.step, self.recipe.predictor.depth)
        if track.keep and not reuse:
            track.since = track.step

    def enter(self, track: Track, lane: Lane, inputs: Features) -> None:
        """First call of a span: settle whether this lane is reused, and estimate or note the reference."""
        steps = lane.history.steps
        lane.reuse = track.reuse and len(steps) >= self.recipe.predictor.warmup and steps[-1] >= track.since
        if lane.reuse:
            lane.reference = inputs[: len(lane.dtypes)]
            lane.handed_out = self.predict(track, lane)
            lane.versions = tuple([_version(item) for item in lane.handed_out]) if lane.start != lane.last else ()
        elif track.keep and self.recipe.site.anchored:
            lane.reference = tuple([own(item) for item in inputs])

    def leave(self, track: Track, lane: Lane) -> Features:
        """Last call of a reused span: X again, whatever arrived; anew if it was changed in place in between."""
        estimate = lane.handed_out
        if lane.start != lane.last:
            now = tuple([_version(item) for item in estimate])
            if now != lane.versions or None in now:
                estimate = self.predict(track, lane)
        lane.handed_out = lane.reference = ()
        return estimate

    def predict(self, track: Track, lane: Lane) -> Features:
        """The estimate of the span's output for this step: reference + weighted snapshots, as new tensors."""
        history = lane.history
        weights = self.recipe.predictor.weights(history.steps, track.step)
        estimate = history.combine(weights, lane.reference if self.recipe.site.anchored else None)
        if any([f.dtype is not d for f, d in zip(estimate, lane.dtypes, strict=True) if d is not None]):
            estimate = tuple([f if d is None else f.to(d) for f, d in zip(estimate, lane.dtypes, strict=True)])
        return estimate

    def record(self, track: Track, lane: Lane, outputs: Features, rebuild: Callable[[Features], Any]) -> None:
        """Last call of a computed span: keep output - reference, or the output itself."""
        if self.recipe.site.anchored:
            references = lane.reference[: len(outputs)]
            features = tuple([_residual(out, ref) for out, ref in zip(outputs, references, strict=True)])
            lane.reference = ()
        else:
            features = tuple([own(out) for out in outputs])
        lane.rebuild = rebuild
        lane.dtypes = tuple([out.dtype if isinstance(out, torch.Tensor) else None for out in outputs])
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
    return output.detach() - reference


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
