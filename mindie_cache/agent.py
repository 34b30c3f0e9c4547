"""Face 1: CacheAgent, the drop-in for MindIE-SD's. Turns `apply` calls into questions to the engine."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary, ref

from mindie_cache import clock
from mindie_cache.calibration import Calibration
from mindie_cache.clock import Scope, current_scope, get_scope
from mindie_cache.config import CacheConfig
from mindie_cache.distributed import Ranks
from mindie_cache.engine import Engine
from mindie_cache.errors import ConfigError, ParametersInvalid, WarnOnce
from mindie_cache.lanes import Common, Track, find_common
from mindie_cache.layout import Layout, Surprise
from mindie_cache.recipes import METHODS, advice, bypass_reason
from mindie_cache.report import Log, Report


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
        self._key = clock.new_key()
        self._tracks: WeakKeyDictionary[Scope, Track] = WeakKeyDictionary()
        self._latest: Common | None = None
        self._warn = WarnOnce()
        if self._note:
            self._warn("off", f"{self.config.method} is off and every call is forwarded. {self._note}.")
            return
        recipe = METHODS[self.config.method].build(self.config)
        for note in recipe.notes:
            self._warn(note, note)
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
            found = scope.cursors.get(self._key)
            track: Track | None = None if found is None else found()
            if track is None or not track.index or track.step != scope.run.step:
                track = self._begin(scope)
            index = track.index
            if function is not track.layout.functions[index]:
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
        track = scope.cursor(key)
        if track is not None and track.index:
            self._cut_short(scope, track)
        step = run.next_step(key, track)
        if step is None or step >= self.config.steps_count:
            self._start_afresh(run)
            track, step = None, 0
        if track is None:
            common = find_common(scope, key) or Common(self._warn)
            track = self._tracks[scope] = self._engine.new_track(scope.branch, common)
            scope.cursors[key] = ref(track)
            self._latest = common
        run.step = step
        if step != track.step:
            track.step = step
            track.new_step()
        track.new_pass()
        run.passes += 1
        track.began = 0 if run.busy else run.passes
        return track

    def _finish(self, scope: Scope, track: Track) -> None:
        track.index = len(track.lanes)
        track.close_pass()
        if track.step == self.config.steps_count - 1:
            track.forget()
            if track.policy.reuses:
                self._review(track.branch, track.common.log)

    def _cut_short(self, scope: Scope, track: Track) -> None:
        """The last pass ended early: an outer cache skipped its remaining calls, or it was interrupted."""
        track.close_pass()
        if track.layout.is_blind:
            self._go_blind(track, "ended before the pass was complete")

    def _start_afresh(self, run: clock.Run) -> None:
        if run.explicit or run.told:
            self._warn(
                "long run",
                f"The run goes on after steps_count={self.config.steps_count} steps: starting afresh. "
                "Set steps_count to the number of denoising steps, or open run() once per generation.",
            )
        run.restart()

    def _place(self, scope: Scope, track: Track, function: Callable[..., Any]) -> tuple[Track, int]:
        """Find the call index of a function that is not the one last seen at this place, and act on surprises."""
        index = track.index
        place = track.layout.find(index, _checked(function))
        if place is Surprise.NEW:
            track.forget()
            track.layout = Layout(len(track.lanes))
            track.layout.learn(index, function)
        elif place is Surprise.SHIFTED:
            first = track.layout.functions[0]
            track = self._restart(scope)
            track.layout.learn(0, first)
            track.layout.learn(1, function)
            track.index = track.missed = index = 1
        elif place is Surprise.DISORDER:
            self._go_blind(track, "come in another order than before")
        elif place > index:  # an outer cache skipped the calls between
            track.missed += place - index
            track.index = index = place
        elif place < index:
            return self._interrupted(scope, track, function, index - place), 0
        return track, index

    def _interrupted(self, scope: Scope, track: Track, function: Callable[..., Any], calls: int) -> Track:
        """A pass began again before its end, so the generation that it belonged to is over."""
        if not track.layout.knows(track.index):
            self._warn(
                "calls count",
                f"A call of this pass came again after {calls} calls, but blocks_count={self.config.blocks_count}. "
                f"Set blocks_count={calls}, unless a generation was interrupted there.",
            )
        return self._place(scope, self._restart(scope), function)[0]

    def _restart(self, scope: Scope) -> Track:
        """Drop what the interrupted generation left; a step that the caller told stays."""
        step = scope.run.step if scope.run.told else None
        scope.run.restart()
        scope.run.tell(step, None)
        return self._begin(scope)

    def _go_blind(self, track: Track, how: str) -> None:
        """Compute for the rest of the run: which call is which cannot be known."""
        track.blind = True
        track.forget()
        self._warn(
            "blind",
            f"The calls of {self.config.method} {how} and cannot be told apart, so this run is computed. "
            f"Pass modules to apply (not lambdas), and check blocks_count={self.config.blocks_count}.",
        )

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
        for scope in [key() for key in self._tracks.keyrefs()]:
            if scope is not None and (track := self._tracks.pop(scope, None)) is not None:
                scope.cursors.pop(self._key, None)
                track.release(None)

    def report(self) -> Report:
        """The run of this context, or else the run that this agent served last."""
        if self._note:
            return Report(self.config.method, "call", note=f"off: {self._note}")
        unit, common = self._engine.recipe.unit, self._current()
        if common is None:
            return Report(self.config.method, unit, note="not called yet")
        return common.log.report(self.config.method, unit, common.nbytes)

    def calibration(self) -> Calibration:
        """What method "calibrator" has measured in the run of this context, or else in the run that it served last.

        With a process group every rank has to ask, because the ranks add up what they have measured.

        Raises:
            ParametersInvalid: the method measures nothing, or the run is not over.
            ModelExecError: what was measured is NaN or infinite.
        """
        meter = None if self._note else self._engine.recipe.meter
        if meter is None:
            raise ParametersInvalid(
                f"{self.config.method} measures nothing. Use CacheConfig('calibrator', ...) and ask after the last step."
            )
        common = self._current()
        return meter.result({} if common is None else common.measured, Ranks(self._group))

    def _current(self) -> Common | None:
        scope = get_scope()
        return (find_common(scope, self._key) if scope else None) or self._latest

    def _review(self, branch: str, log: Log) -> None:
        """After the last step: never stay silent about a branch in which nothing, or everything, was reused."""
        later = [record for record in log.steps if record.branch == branch and record.step > 0]
        if not later:
            return
        more, less = advice(self.config)
        reasons = ", ".join(dict.fromkeys(record.reason for record in later))
        if not any(record.reused for record in later):
            self._warn(
                "nothing reused",
                f"{self.config.method} reused nothing in branch {branch!r} ({reasons}). {more}",
            )
        elif all(record.reused for record in later):
            self._warn(
                "all reused",
                f"{self.config.method} reused every step after the first in branch {branch!r}. "
                f"The result depends on one computed step only. {less}",
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
