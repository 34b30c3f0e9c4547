"""The engine: decide, record and predict for every call, on the state in lanes.py. It never counts (clock.py does)."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from mindie_cache.distributed import Ranks
from mindie_cache.errors import ModelExecError
from mindie_cache.history import Features, History, own
from mindie_cache.lanes import Common, Lane, Track, first_shape, signature
from mindie_cache.methods.base import Recipe
from mindie_cache.ops import combine, residual_delta
from mindie_cache.policies import Signal
from mindie_cache.policies.decision import NOT_FINITE
from mindie_cache.predictors import Hold, Retroactive
from mindie_cache.taps import model_input

UNSOUND = (
    "The signal that decides about reuse is NaN or infinite: computing. Look for overflow in the model (fp16?) or for "
    "latents that were not initialised."
)


class Engine:
    """Runs one recipe. Frozen: all state is in tracks and lanes."""

    def __init__(self, recipe: Recipe, calls_count: int, steps_count: int, group: Any = None):
        self.recipe = recipe
        self._streams = recipe.streams
        self._warmup = recipe.predictor.warmup
        self._per_call = recipe.policy.per_call
        self.rehearses = recipe.policy.reuses and not self._per_call  # regions of several calls are reused
        self._holds = isinstance(recipe.predictor, Hold)
        self._anchor = recipe.signal.anchor if recipe.signal else -1
        self._probed = recipe.probe.index if recipe.probe else -1
        plain = recipe.bands is not None or recipe.meter is not None  # what looks at residuals before they are kept
        self._subtract = residual_delta if plain else recipe.placement.residual
        self.ranks = Ranks(group)
        if recipe.meter is not None:
            recipe.meter.prepare(self.ranks)
        self.call = recipe.site.passage(self)
        self.calls_count = calls_count
        self.steps_count = steps_count

    def new_track(self, branch: str, common: Common, turn: int = 1) -> Track:
        """`turn`: of this call among those of the branch in a step, where they are told apart."""
        spans: dict[Any, Lane] = {}
        lanes: list[Lane | None] = []
        for index in range(self.calls_count):
            span = self.recipe.site.span(index)
            if span is not None and span not in spans:
                last = span.stop - 1
                spans[span] = Lane(span.start, last, self.recipe.new_history(), self._streams.of(last))
            lanes.append(None if span is None else spans[span])
        policy, is_anchored = self.recipe.policy.of(branch), self.recipe.site.anchored
        return Track(branch, policy, lanes, self.steps_count, common, is_anchored, turn)

    # ------------------------------------------------------------------------------------------------ rehearsal

    def can_rehearse(self, track: Track) -> bool:
        """Whether the pass that has just been computed has kept enough to be repeated from it."""
        if track.reuse:
            return False
        kept = [lane.history.steps for lane in track.ranges]
        return any([len(steps) >= self._warmup and steps[-1] == track.step for steps in kept])

    @contextmanager
    def rehearsal(self, track: Track) -> Iterator[None]:
        """The same pass again, with the regions reused; it counts as nothing."""
        reused, track.reuse = track.reused, True
        try:
            yield
        finally:
            track.reuse, track.reused = False, reused
            track.new_pass()
            for lane in track.ranges:
                lane.gap = 0

    # ------------------------------------------------------------------------------------------------ decisions

    def decide(
        self, track: Track, lane: Lane, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Take the decision of this step, once, from the arguments of the first call of the site in this step."""
        self._check_signature(track, lane, args, kwargs)
        self.settle(track, partial(self._signal, track, function, args, kwargs))

    def settle(self, track: Track, signal: Callable[[], Signal | None]) -> None:
        """Take the decision of this step; `signal` is called if the policy has to look at one."""
        policy, common = track.policy, track.common
        can_reuse = track.since >= 0 and not track.blind
        if not policy.shared:
            seen = signal()
            if self.recipe.meter is not None and seen is not None:
                self.recipe.meter.see(common.measured, track.branch, track.step, seen.value)
            reuse, track.state, reason = policy.decide(track.state, track.step, seen, can_reuse)
            reuse = reuse and can_reuse
        else:
            if common.step != track.step:
                self._decide_for_all(track, can_reuse, signal())
            fresh = can_reuse and track.since >= common.since  # this branch was there at the last computed step
            reuse, reason = common.reuse and fresh, common.reason
            if common.reuse and not fresh:
                reason = "late refresh" if can_reuse else "no data"
        depth = self.recipe.predictor.depth
        track.decided, track.reuse, track.reason = True, reuse, reason
        if reason == NOT_FINITE:
            common.warn(reason, UNSOUND)
        track.keep = policy.worth_keeping(track.step, depth)
        track.give_away = reuse and depth == 1 and policy.last_use(track.step)
        if track.keep and not reuse:
            track.since = track.step

    def _decide_for_all(self, track: Track, can_reuse: bool, signal: Signal | None) -> None:
        """The first branch of a step decides for the others too, so that guidance never mixes old with new."""
        common = track.common
        reuse, common.state, common.reason = track.policy.decide(common.state, track.step, signal, can_reuse)
        common.reuse, common.step, common.decider = reuse and can_reuse, track.step, track.branch
        if not common.reuse:
            common.since = track.step

    def _decide_call(
        self, track: Track, lane: Lane, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """The decision of one call, for policies that decide per call."""
        self._check_signature(track, lane, args, kwargs)
        self.settle_call(track, lane, self._signal(track, function, args, kwargs))

    def settle_call(self, track: Track, lane: Lane, signal: Signal | None) -> None:
        """Take the decision of one lane, for policies that decide per call."""
        policy = track.policy
        if not track.decided:
            if track.common.settled != track.step:
                self._settle_states(track)
            track.decided, track.keep = True, policy.worth_keeping(track.step, self.recipe.predictor.depth)
        can_reuse = len(lane.history.steps) >= self._warmup and not track.blind
        reuse, lane.state, reason = policy.decide(lane.state, track.step, signal, can_reuse)
        lane.reuse = reuse and can_reuse
        if lane.reuse or not track.reused:
            track.reason = reason
        if reason == NOT_FINITE:
            track.common.warn(reason, UNSOUND)

    def _settle_states(self, track: Track) -> None:
        """The states of all calls in all branches, together: the first branch of a step reads for the others too."""
        tracks = sorted(track.common.tracks, key=lambda other: other.branch)
        lanes = [lane for other in tracks for lane in other.distinct_lanes]
        track.common.settled = track.step
        states = track.policy.settle([lane.state for lane in lanes], self.ranks)
        for lane, state in zip(lanes, states, strict=True):
            lane.state = state

    def _signal(
        self, track: Track, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Signal | None:
        tap = self.recipe.signal
        return Signal(tap.take(function, args, kwargs, track.anchor), self.ranks) if tap else None

    def _check_signature(self, track: Track, lane: Lane, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forget what does not fit the tensors of this call any more."""
        now = signature(args, kwargs)
        if lane.signature is not None and lane.signature != now:
            anchor = track.anchor
            track.forget()
            track.anchor = anchor  # of this pass
        lane.signature = now

    def _fits(self, lane: Lane, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether this call has the signature that the lane knows; a second region learns its own."""
        now = signature(args, kwargs)
        if lane.signature is None and not lane.history.steps:
            lane.signature = now
        return lane.signature == now

    # ------------------------------------------------------------------------------------------------ calls

    def execute(
        self, track: Track, index: int, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call the function; the policy may look inside."""
        if index != self._probed or track.reuse:
            return function(*args, **kwargs)
        return self._observe(track, function, args, kwargs)

    def _observe(self, track: Track, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        probe = self.recipe.probe
        assert probe is not None
        if track.policy.shared and track.common.decider != track.branch:  # the branch that decides is the one looked at
            return function(*args, **kwargs)
        result, seen = probe.run(function, args, kwargs)
        self.observe(track, seen)
        return result

    def observe(self, track: Track, seen: torch.Tensor) -> None:
        """Show the policy what the recipe's probe has seen in a computed step of the branch that decides."""
        holder: Common | Track = track.common if track.policy.shared else track
        holder.state = track.policy.observe(holder.state, track.step, Signal(seen, self.ranks))

    def each_call(
        self, track: Track, index: int, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A call that is a region of its own: an attention, a whole forward."""
        lane = track.lanes[index]
        if lane is None:
            return self.execute(track, index, function, args, kwargs)
        if not track.decided:
            self.decide(track, lane, function, args, kwargs)
        history, residual = lane.history, self.recipe.residual
        shape = first_shape(args, kwargs)
        if shape != lane.shape:  # this call alone has changed
            history.clear()
            lane.shape = shape
        steps = history.steps
        if track.reuse and len(steps) >= self._warmup and steps[-1] >= track.since:
            track.reused += 1
            lane.gap += 1
            if lane.added:
                return lane.rebuild(self.predict(track, lane, (model_input(args, kwargs), *[None] * (lane.width - 1))))
            # Before a step that is computed for certain nobody needs the snapshot again, so no copy is needed either.
            if track.give_away:
                return lane.rebuild(history.take())
            if self._holds and isinstance(history, History):
                return lane.rebuild(history.newest())
            return lane.rebuild(self.predict(track, lane, None))
        entered = own(model_input(args, kwargs)) if residual is not False and track.keep else None
        computed = self.execute(track, index, function, args, kwargs) if index == self._probed else function(*args, **kwargs)
        corrector, corrected = self.recipe.corrector, None
        if not track.keep and corrector is None:
            return computed
        outputs, rebuild = self._streams.split(computed, ())
        if corrector is not None and history.steps:
            corrected = self._corrected(corrector, track, lane, outputs, outputs)
        if track.keep:
            lane.rebuild, lane.width, lane.gap = rebuild, len(outputs), 0
            lane.added = entered is not None and (bool(residual) or _shape(outputs[0]) == entered.shape)
            if entered is None or not lane.added:
                history.push(track.step, outputs, shared=True)
            else:
                history.push(track.step, (self._residual(outputs[0], entered), *[own(out) for out in outputs[1:]]))
        return computed if corrected is None else rebuild(corrected)

    def _corrected(
        self, corrector: Retroactive, track: Track, lane: Lane, outputs: Features, features: Features
    ) -> Features | None:
        """The outputs of a computed step with what makes up for the reused steps before it; None if there is nothing to.

        Each tensor gets factor (feature - estimate) more; its feature is itself, or what a region has added to it.
        """
        history = lane.history
        assert isinstance(history, History)
        factor = corrector.factor(history.steps, track.step)
        if not factor or track.step - history.steps[-1] != lane.gap + 1:  # a step of the gap did not use the estimate
            return None
        weights = [-factor * weight for weight in self.recipe.predictor.weights(history.steps, track.step)]
        corrected = list(outputs)
        for stream, (out, feature) in enumerate(zip(outputs, features, strict=True)):
            if isinstance(out, torch.Tensor) and out.is_floating_point():
                wide = out.to(torch.promote_types(out.dtype, torch.float32))
                total = combine(history.fetch(stream), weights, torch.add(wide, feature, alpha=factor))
                corrected[stream] = total.to(out.dtype)
        return tuple(corrected)

    def block_range(
        self, track: Track, index: int, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A block: inside the range it is computed or skipped together with the others; outside it is computed."""
        lane = track.lanes[index]
        if index == self._anchor:
            track.anchor = own(model_input(args, kwargs))
        if lane is not None and index == lane.start:
            if self._per_call:
                self._decide_call(track, lane, function, args, kwargs)
            else:
                if not track.decided:
                    self.decide(track, lane, function, args, kwargs)
                elif not self._fits(lane, args, kwargs):  # another pass of this step, e.g. the next tile
                    track.forget()
                    self.decide(track, lane, function, args, kwargs)
                steps = lane.history.steps
                lane.reuse = track.reuse and len(steps) >= self._warmup and steps[-1] >= track.since
        streams = self._streams if lane is None else lane.streams
        inputs, args = streams.take(args, kwargs)
        if lane is not None and lane.reuse:
            track.reused += 1
            return self._skip(track, lane, index, inputs)
        corrector = self.recipe.corrector
        if lane is not None and index == lane.start and (track.keep or (corrector is not None and lane.gap)):
            lane.reference = tuple([own(item) for item in inputs])
        result = self.execute(track, index, function, args, kwargs)
        outputs, rebuild = streams.split(result, inputs)
        if lane is not None and index == lane.last and lane.reference:
            lane.rebuild, lane.width = rebuild, len(outputs)
            corrected = None
            if corrector is not None and lane.gap:
                pairs = zip(outputs, lane.reference[: len(outputs)], strict=True)
                corrected = self._corrected(corrector, track, lane, outputs, tuple([_added(*pair) for pair in pairs]))
            if track.keep:
                self.record(track, lane, outputs)
            lane.reference = ()
            return result if corrected is None else rebuild(corrected)
        return result

    def _skip(self, track: Track, lane: Lane, index: int, inputs: Features) -> Any:
        """The first call of a reused span returns X, the inner calls what they were given, the last one X again."""
        if lane.start < index < lane.last:
            return lane.rebuild(inputs[: lane.width])
        if index == lane.start:
            lane.reference = inputs[: lane.width]
            lane.estimate = self.predict(track, lane, lane.reference)
            lane.gap += 1
            lane.versions = _versions(lane.estimate) if lane.start != lane.last else None
        elif lane.history.steps and _changed(lane):
            lane.estimate = self.predict(track, lane, lane.reference)  # X was changed in place on the way
        result = lane.rebuild(lane.estimate)
        if index == lane.last:
            lane.estimate = lane.reference = ()
        return result

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
        pairs = list(zip(outputs, references, strict=True))
        features = tuple([self._residual(out, ref) for out, ref in pairs])
        casts = [out.dtype if isinstance(out, torch.Tensor) and out.dtype != ref.dtype else None for out, ref in pairs]
        lane.casts = tuple(casts) if any(casts) else ()
        if self.recipe.meter is not None and lane is max(track.distinct_lanes, key=lambda one: one.last - one.start):
            main = features[min(lane.streams.main, len(features) - 1)]
            self.recipe.meter.add(track.common.measured, track.branch, track.step, main, self.ranks)
        lane.history.push(track.step, features)
        lane.gap = 0

    def _residual(self, output: Any, reference: Any) -> Any:
        if output is None:  # a stream that ends in this region: nobody needs it afterwards
            return None
        is_tensor = isinstance(output, torch.Tensor)
        if is_tensor != isinstance(reference, torch.Tensor):
            raise ModelExecError(
                f"A stream enters the cached region as {type(reference).__name__} and leaves as {type(output).__name__}. "
                "A cached block returns its streams as they came, e.g. (hidden_states, encoder_hidden_states)."
            )
        if not is_tensor:
            if not isinstance(output, numbers.Number) or not isinstance(reference, numbers.Number):
                raise ModelExecError(
                    f"A stream of the cached region is a {type(output).__name__}: streams are tensors or numbers. Use a "
                    "method for whole forwards, e.g. easycache, or blocks that return their tensors one by one."
                )
            return output - reference  # type: ignore[operator]
        if output.shape != reference.shape:
            raise ModelExecError(
                f"A stream changes its shape inside the cached region, from {tuple(reference.shape)} to "
                f"{tuple(output.shape)}. Choose block_start and block_end so that shapes stay the same between them; in a "
                "U-Net cache attentions or whole forwards, e.g. pab or easycache. Of a whole forward keep the output: "
                "options={'residual': False}."
            )
        if output.dtype == torch.bool:
            raise ModelExecError("A stream is boolean, so it has no residual. Pass masks as other keywords, not as streams.")
        return self._subtract(output.detach() if output.requires_grad else output, reference)


def _added(output: Any, reference: Any) -> Any:
    """What a region has added to a tensor."""
    return output - reference if isinstance(output, torch.Tensor) and isinstance(reference, torch.Tensor) else output


def _shape(value: Any) -> torch.Size | None:
    return value.shape if isinstance(value, torch.Tensor) else None


def _changed(lane: Lane) -> bool:
    """Whether the estimate may have been changed in place since it was handed out."""
    return lane.versions is None or lane.versions != _versions(lane.estimate)


def _versions(estimate: Features) -> list[int] | None:
    """PyTorch's counters of in-place changes, 0 of other objects; None where they are not kept, in inference mode."""
    return None if torch.is_inference_mode_enabled() else [getattr(item, "_version", 0) for item in estimate]
