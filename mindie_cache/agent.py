"""Face 1: CacheAgent, the drop-in for MindIE-SD's. Turns `apply` calls into questions to the engine."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakSet, finalize

import torch

from mindie_cache import clock
from mindie_cache.clock import Scope, current_scope, get_scope
from mindie_cache.config import CacheConfig
from mindie_cache.engine import Engine
from mindie_cache.errors import ConfigError, ParametersInvalid, WarnOnce
from mindie_cache.lanes import Common, Track, find_common
from mindie_cache.recipes import METHODS, bypass_reason
from mindie_cache.report import Log, Report

_keys = itertools.count()


class CacheAgent:
    """Caches the calls that go through `apply`, as its configuration says.

    One agent serves one stack of blocks (or all attentions) of a model: `apply` is called `config.blocks_count` times per
    denoising step and branch. Agents may be combined, nested, deep-copied and pickled (without what they keep), and used
    from several threads: each thread, and each `run()`, has its own features.

    Args:
        config: validated here; ConfigError says what is wrong.
        process_group: a `torch.distributed` group of the ranks that share the tensors (sequence or tensor parallel).
            Methods that decide from data then skip only where all of them agree. Not the CFG-parallel group.
    """

    def __init__(self, config: CacheConfig, process_group: Any = None):
        if not isinstance(config, CacheConfig):
            raise ConfigError(
                f"CacheAgent needs a CacheConfig, but got {type(config).__name__}. "
                "Build CacheConfig(...), or read one with CacheConfig.from_yaml(path)."
            )
        self.config = config.validated()
        self._group = process_group
        self._note = bypass_reason(self.config)
        self._key = next(_keys)
        self._scopes: WeakSet[Scope] = WeakSet()
        self._latest: Common | None = None
        self._warn = WarnOnce()
        finalize(self, _forget, self._scopes, self._key)
        if self._note:
            self._warn("off", f"{self.config.method} is off and every call is forwarded. {self._note}.")
            return
        recipe = METHODS[self.config.method].build(self.config)
        self._engine = Engine(recipe, self.config.blocks_count, self.config.steps_count, process_group)
        self._call = self._engine.call

    # ------------------------------------------------------------------------------------------------ the call

    def apply(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `function(*args, **kwargs)`, or return an estimate of what it would return.

        dit_block_cache: `function` is one block; `hidden_states` (and `encoder_hidden_states`) are keywords and reach the
        block as its first positional arguments, unless `config.streams` declares the streams.
        attention_cache, adastep: the call is forwarded unchanged; outputs of any form are kept.

        Raises:
            ParametersInvalid: `function` is not callable, a stream is missing.
            ModelExecError: the block returned None or a wrong number of outputs.
        """
        if self._note:
            return _checked(function)(*args, **kwargs)
        scope = get_scope() or current_scope()
        try:
            track = scope.cursors.get(self._key)
            if track is None or not track.index or track.step != scope.run.step:
                track = self._begin(scope)
            index = track.index
            if function is not track.functions[index]:
                track, index = self._place(scope, track, function)
            result = self._call(track, index, function, args, kwargs)
        except BaseException:
            scope.run.restart()
            raise
        index += 1
        if index < len(track.lanes):
            track.index = index
        else:
            self._finish(scope, track)
        return result

    # ------------------------------------------------------------------------------------------------ the pass

    def _begin(self, scope: Scope) -> Track:
        """Start a pass: settle its step, and make a new track if this is a new run or branch."""
        run, key = scope.run, self._key
        track = scope.cursors.get(key)
        if track is not None and track.index:
            self._cut_short(scope, track)
        step = run.next_step(key, track)
        if step is None or step >= self.config.steps_count:
            self._start_afresh(run)
            track, step = None, 0
        if track is None:
            common = find_common(scope, key) or Common(self._warn)
            track = scope.cursors[key] = self._engine.new_track(common)
            self._latest = common
            self._scopes.add(scope)
        run.step = step
        if step != track.step:
            track.step = step
            track.new_step()
        track.new_pass()
        return track

    def _finish(self, scope: Scope, track: Track) -> None:
        track.index = len(track.lanes)
        track.close_pass(scope.branch)
        if track.step == self.config.steps_count - 1:
            track.forget()
            self._review(scope.branch, track.common.log)

    def _cut_short(self, scope: Scope, track: Track) -> None:
        """The last pass ended early: an outer cache skipped its remaining calls, or it was interrupted."""
        track.close_pass(scope.branch)
        if track.owners[0] is None or track.repeats:
            track.blind = True
            self._warn(
                "blind",
                f"A pass of {self.config.method} ended before its {self.config.blocks_count} calls, and its calls cannot be "
                "told apart, so this run is computed. Pass modules to apply (not lambdas), and check blocks_count.",
            )

    def _start_afresh(self, run: clock.Run) -> None:
        if run.explicit:
            self._warn(
                "long run",
                f"The run goes on after steps_count={self.config.steps_count} steps: starting afresh. "
                "Set steps_count to the number of denoising steps, or open run() once per generation.",
            )
        run.restart()

    def _place(self, scope: Scope, track: Track, function: Callable[..., Any]) -> tuple[Track, int]:
        """Find the call index of a function that is not the one seen at this place before.

        Modules tell calls apart: those that an outer cache skipped, a pass that was interrupted and begins again, another
        expert. Other callables are taken in the order in which they come.
        """
        index, owner = track.index, _owner(_checked(function))
        known = track.owners[index]
        place = track.places.get(owner)
        if owner is None or owner is known or track.repeats:
            track.functions[index] = function
        elif place is None:
            if known is not None:  # another expert took over
                track.forget_modules()
                track.forget()
            track.functions[index] = function
            track.owners[index], track.places[owner] = owner, index
        elif place == index - 1 and known is None:
            track.repeats = True
        elif place > index:  # an outer cache skipped the calls between
            track.missed += place - index
            track.index = index = place
        else:
            return self._interrupted(scope, track, function, index - place), 0
        return track, index

    def _interrupted(self, scope: Scope, track: Track, function: Callable[..., Any], calls: int) -> Track:
        """A pass began again before its end, so the generation that it belonged to is over."""
        if track.owners[track.index] is None:
            self._warn(
                "calls count",
                f"A call of this pass came again after {calls} calls, but blocks_count={self.config.blocks_count}. "
                f"Set blocks_count={calls}, unless a generation was interrupted there.",
            )
        scope.run.restart()
        track = self._begin(scope)
        return self._place(scope, track, function)[0]

    # ------------------------------------------------------------------------------------------------ the run

    def run(self, request: Hashable = None) -> AbstractContextManager[clock.Run]:
        """`with agent.run():` around one generation, for every agent called inside; see `mindie_cache.run`."""
        return clock.run(request)

    def branch(
        self, name: str = clock.DEFAULT_BRANCH, *, step: int | None = None, timestep: float | None = None
    ) -> AbstractContextManager[Scope]:
        """`with agent.branch("uncond"):` around a conditioning branch's call; see `mindie_cache.branch`."""
        return clock.branch(name, step=step, timestep=timestep)

    def reset(self) -> None:
        """Drop everything that this agent keeps, in every run and thread: its next call is a first step."""
        _forget(self._scopes, self._key)
        self._scopes.clear()

    def report(self) -> Report:
        """The run of this context, or else the run that this agent served last."""
        if self._note:
            return Report(self.config.method, "call", note=f"off: {self._note}")
        scope, unit = get_scope(), self._engine.recipe.unit
        common = (find_common(scope, self._key) if scope else None) or self._latest
        if common is None:
            return Report(self.config.method, unit, note="not called yet")
        return common.log.report(self.config.method, unit, common.nbytes)

    def _review(self, branch: str, log: Log) -> None:
        """After the last step: never stay silent about a branch in which nothing, or everything, was reused."""
        later = [record for record in log.steps if record.branch == branch and record.step > 0]
        if not later:
            return
        reasons = ", ".join(dict.fromkeys(record.reason for record in later))
        if not any(record.reused for record in later):
            self._warn(
                "nothing reused",
                f"{self.config.method} reused nothing in branch {branch!r} ({reasons}). Check step_start, step_interval, "
                "step_end and thresholds against the number of steps, and blocks_count against the model.",
            )
        elif all(record.reused for record in later):
            self._warn(
                "all reused",
                f"{self.config.method} reused every step after the first in branch {branch!r}. "
                "The result depends on one computed step only: use a smaller step_interval or a later step_start.",
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles carry the configuration; kept features and the process group stay behind."""
        return type(self), (self.config,)

    def __repr__(self) -> str:
        return f"CacheAgent({self.config!r})"


def _checked(function: Any) -> Callable[..., Any]:
    if not callable(function):
        raise ParametersInvalid(
            f"apply needs a callable as its first argument, but got {type(function).__name__}. "
            "Call agent.apply(block, hidden_states=..., ...)."
        )
    return function


def _owner(function: Callable[..., Any]) -> torch.nn.Module | None:
    """The module behind a callable: itself, or the one whose bound method it is."""
    candidate = getattr(function, "__self__", function)
    return candidate if isinstance(candidate, torch.nn.Module) else None


def _forget(scopes: WeakSet[Scope], key: int) -> None:
    for scope in list(scopes):
        track = scope.cursors.pop(key, None)
        if track is not None:
            track.release(None)
