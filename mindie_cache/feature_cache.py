"""Face 2: feature caches with three verbs, the interface of TeleFuser. The caller owns the control flow.

    if cache.should_compute(is_cond=True):
        out = blocks(x)
        cache.update(out, x, is_cond=True)
    else:
        out = cache.approximate(x, is_cond=True)

x is what enters the cached part of the model, out what leaves it. Decisions, predictions and memory are the engine's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch

from mindie_cache.calibration import Calibration
from mindie_cache.checks import whole
from mindie_cache.clock import current_scope
from mindie_cache.config import CacheConfig
from mindie_cache.contract import BaseFeatureCache, NoOpCache
from mindie_cache.engine import Engine
from mindie_cache.errors import ConfigError, ParametersInvalid, WarnOnce
from mindie_cache.lanes import Lane, Track
from mindie_cache.policies import Signal
from mindie_cache.recipes import METHODS, bypass_reason
from mindie_cache.report import Report
from mindie_cache.sessions import Session
from mindie_cache.sites import BlockRange, EachCall
from mindie_cache.steps import Run

__all__ = ["BaseFeatureCache", "FeatureCache", "NoOpCache"]


class FeatureCache(BaseFeatureCache):
    """Any method behind the three verbs.

    One object serves both branches, several threads, and requests that are interleaved by `mindie_cache.run(request)`:
    each has its own state. A generation ends after its last step; the next call begins another one.

    Args:
        config: its `blocks_count` does not matter, because the cached part is one call.
        init_step: the first step of this object: where the second of two experts takes over. Before the last step.
        process_group: of the ranks that share the tensors, see `CacheAgent`.
    """

    def __init__(self, config: CacheConfig, *, init_step: int = 0, process_group: Any = None):
        self.config = config.validated()
        whole("init_step", init_step, 0, self.config.steps_count - 1)  # from there on nothing would ever be a step
        method = METHODS[config.method]
        recipe = method.build(self.config)
        if not isinstance(recipe.site, BlockRange | EachCall) and not recipe.policy.per_call:
            raise ConfigError(f"{config.method} needs the calls of both branches: use CacheAgent.apply.")
        site = BlockRange(0, 1) if recipe.site.anchored else EachCall(0, 1)
        self._engine = Engine(replace(recipe, site=site), 1, config.steps_count, process_group)
        self._relative = recipe.site.anchored or recipe.residual is not False  # the feature is output - input
        self._first_step = init_step
        self._note = bypass_reason(self.config)
        self._warn = WarnOnce()
        for note in recipe.notes:
            self._warn(note, note)
        if recipe.corrector is not None:
            self._warn(
                "corrector",
                "At a computed step the caller goes on with its own output, so nothing is corrected here. Plan with gain=0, "
                "or use CacheAgent.apply or enable_cache.",
            )
        self._sessions: WeakKeyDictionary[Run, Session] = WeakKeyDictionary()

    # ------------------------------------------------------------------------------------------------ the verbs

    def should_compute(self, is_cond: bool, signal: torch.Tensor | None = None) -> bool:
        if self._note:
            return True
        track = self._begin(is_cond)
        lane, engine = track.distinct_lanes[0], self._engine
        if engine.recipe.policy.per_call:
            engine.settle_call(track, lane, self._signal(signal))
        else:
            engine.settle(track, lambda: self._signal(signal))
            lane.reuse = track.reuse and bool(lane.history.steps) and lane.history.steps[-1] >= track.since
        if lane.reuse:
            track.reused = 1
            track.close_pass()
        return not lane.reuse

    def update(
        self, output: torch.Tensor, ori_input: torch.Tensor, is_cond: bool, observed: torch.Tensor | None = None
    ) -> None:
        if self._note:
            return
        track, lane = self._current(is_cond)
        _check_tensors("update", output=output, ori_input=ori_input)
        if output.shape != lane.shape:
            lane.history.clear()  # what is kept does not fit any more; the steps go on
            lane.shape = output.shape
        engine = self._engine
        if engine.recipe.probe is not None and (not track.policy.shared or track.common.decider == track.branch):
            engine.observe(track, self._observed(output, observed))
        if track.keep and self._relative:
            lane.reference = (ori_input,)
            engine.record(track, lane, (output,))
        elif track.keep:
            lane.history.push(track.step, (output,), shared=True)
        track.close_pass()
        if track.step == self.config.steps_count - 1:
            track.forget()
            self._run().leave(self._sessions.get(self._run()))

    def approximate(self, input: torch.Tensor, is_cond: bool) -> torch.Tensor:  # noqa: A002 - the published name
        if self._note:
            return input
        track, lane = self._current(is_cond)
        _check_tensors("approximate", input=input)
        if not lane.history.steps:
            self._warn("no data", "approximate was called before any update of this branch: the input is returned.")
            return input
        if input.shape != lane.shape:
            raise ParametersInvalid(
                f"approximate: the input has shape {tuple(input.shape)}, but what is kept has {tuple(lane.shape or ())}. A "
                "new shape has to be computed: call reset() before the first step of the new shape."
            )
        return self._engine.predict(track, lane, (input,) if self._relative else None)[0]

    def reset(self) -> None:
        self._sessions.pop(self._run(), None)

    def calibration(self) -> Calibration:
        """What the method "calibrator" has measured in the generation of this context, after its last step.

        Raises:
            ParametersInvalid: the method measures nothing, or the generation is not over.
        """
        meter = self._engine.recipe.meter
        if meter is None:
            raise ParametersInvalid(f"{self.config.method} measures nothing. Use create_feature_cache('calibrator', ...).")
        session = self._sessions.get(self._run())
        return meter.result(session.common.measured if session else {}, self._engine.ranks)

    def report(self) -> Report:
        """What the generation of this context has done so far, or what the last one did."""
        unit = "cached part"
        if self._note:
            return Report(self.config.method, unit, note=f"off: {self._note}")
        session = self._sessions.get(self._run())
        if session is None:
            return Report(self.config.method, unit, note="not called yet")
        return session.common.log.report(self.config.method, unit, session.common.nbytes)

    # ------------------------------------------------------------------------------------------------ the state

    def _run(self) -> Run:
        return current_scope().run_of(self)

    def _begin(self, is_cond: bool) -> Track:
        """The track of this branch at its next step; a new generation after the last one."""
        run, branch = self._run(), _branch(is_cond)
        session = self._sessions.get(run)
        step = session.steps.begin(branch) if session else self.config.steps_count
        if session is None or step >= self.config.steps_count:
            session = self._sessions[run] = Session(self._first_step, self.config.steps_count, self._warn)
            step = session.steps.begin(branch)
        run.join(session)
        track = session.tracks.get(branch)
        if track is None:
            track = session.tracks[branch] = self._engine.new_track(branch, session.common)
        if step != track.step:
            track.step = step
            track.new_step()
        track.new_pass()
        track.index, track.reused = 1, 0
        return track

    def _current(self, is_cond: bool) -> tuple[Track, Lane]:
        session, branch = self._sessions.get(self._run()), _branch(is_cond)
        track = session.tracks.get(branch) if session else None
        if track is None:
            raise ParametersInvalid(
                f"update or approximate was called before should_compute(is_cond={is_cond}). Ask once per branch and step, "
                "first."
            )
        return track, track.distinct_lanes[0]

    def _signal(self, signal: torch.Tensor | None) -> Signal | None:
        if self._engine.recipe.signal is None:
            return None
        if not isinstance(signal, torch.Tensor):
            raise ParametersInvalid(
                f"{self.config.method} decides from data: pass should_compute(is_cond, signal=tensor), see its page for "
                f"what to pass; got {type(signal).__name__}."
            )
        return Signal(signal, self._engine.ranks)

    def _observed(self, output: torch.Tensor, observed: torch.Tensor | None) -> torch.Tensor:
        if observed is None and self._engine.recipe.probe is not None and self._engine.recipe.probe.path:
            raise ParametersInvalid(
                f"{self.config.method} looks into computed steps: pass update(output, ori_input, is_cond, observed=x), "
                "the gated attention residual of the middle block."
            )
        return output if observed is None else observed


def _branch(is_cond: Any) -> str:
    """The branch's name. A name in the place of the flag would be true, whichever it is."""
    if isinstance(is_cond, str) or is_cond not in (True, False):
        raise ParametersInvalid(f"is_cond={is_cond!r} must be True, for the conditional branch, or False.")
    return "cond" if is_cond else "uncond"


def _check_tensors(verb: str, **tensors: Any) -> None:
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            raise ParametersInvalid(
                f"{verb}: {name} must be one tensor, but it is {type(value).__name__}. A second stream needs a cache of its "
                "own, or CacheAgent.apply."
            )
