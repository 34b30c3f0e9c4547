"""Face 1: CacheAgent, the drop-in for MindIE-SD's. Turns `apply` calls into questions to the engine."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from mindie_cache import clock
from mindie_cache.calibration import Calibration
from mindie_cache.clock import Scope, get_scope
from mindie_cache.config import CacheConfig
from mindie_cache.distributed import Ranks
from mindie_cache.engine import Engine
from mindie_cache.errors import ConfigError, ParametersInvalid, WarnOnce
from mindie_cache.lanes import Track
from mindie_cache.notices import review
from mindie_cache.positions import Positions
from mindie_cache.recipes import METHODS, bypass_reason
from mindie_cache.report import Report
from mindie_cache.steps import DEFAULT_BRANCH, Level, Run


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
        self._tracks: dict[Level, Track] = {}  # of `_positions`: here for speed
        self._warn = WarnOnce()
        if self._note:
            self._warn("off", f"{self.config.method} is off and every call is forwarded. {self._note}.")
            return
        recipe = METHODS[self.config.method].build(self.config)
        for note in recipe.notes:
            self._warn(note, note)
        self._engine = Engine(recipe, self.config.blocks_count, self.config.steps_count, process_group)
        reviewer = partial(review, self.config, self._warn)
        self._positions = Positions(self._engine, self.config.method, self._warn, reviewer)
        self._tracks = self._positions.tracks
        self._call = self._engine.call
        self._last = self.config.blocks_count - 1

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
        scope = get_scope()
        level = scope.now
        track = self._tracks.get(level)
        if track is None or function is not track.functions[index := track.index]:
            if self._note:
                return _checked(function)(*args, **kwargs)
            track = self._positions.find(_checked(function))
            index, scope = track.index, get_scope()
            level = scope.now
        track.index = index + 1
        scope.now = track.inside  # where the calls of other agents in this one belong
        try:
            result = self._call(track, index, function, args, kwargs)
        except BaseException:
            scope.now = level
            self._positions.failed(track, index)
            raise
        scope.now = level
        if index == self._last:
            self._positions.finish(track)
        return result

    # ------------------------------------------------------------------------------------------------ the run

    def run(self, request: Hashable = None) -> AbstractContextManager[Run]:
        """`with agent.run():` around one generation, for every agent called inside; see `mindie_cache.run`."""
        return clock.run(request)

    def branch(
        self, name: str = DEFAULT_BRANCH, *, step: int | None = None, timestep: float | None = None
    ) -> AbstractContextManager[Scope]:
        """`with agent.branch("uncond"):` around a conditioning branch's call; see `mindie_cache.branch`."""
        return clock.branch(name, step=step, timestep=timestep)

    def reset(self) -> None:
        """Drop everything that this agent keeps, in every run and thread.

        Inside `run()` the steps go on, and the next one is computed. Otherwise the next pass is a first step.
        """
        if not self._note:
            self._positions.reset()

    def report(self) -> Report:
        """The run of this context, or else the run that this agent served last."""
        if self._note:
            return Report(self.config.method, "call", note=f"off: {self._note}")
        unit, common = self._engine.recipe.unit, self._positions.common()
        if common is None:
            return Report(self.config.method, unit, note="not called yet")
        under_way = [track.record() for track in common.tracks if track.open and track.index]
        found = common.log.report(self.config.method, unit, common.nbytes)
        return replace(found, steps=(*found.steps, *under_way), note=self._positions.notices.note)

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
        common = self._positions.common()
        return meter.result({} if common is None else common.measured, Ranks(self._group))

    def __copy__(self) -> CacheAgent:
        return self.__deepcopy__({})

    def __deepcopy__(self, memo: dict[int, Any]) -> CacheAgent:
        """Copies have the configuration and the process group; kept features stay behind."""
        return type(self)(self.config, self._group)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles carry the configuration; kept features stay behind."""
        if self._group is not None:
            _refuse_pickle()
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


def _refuse_pickle() -> NoReturn:
    raise TypeError(
        "This CacheAgent has a process_group, which cannot be pickled, and without it ranks would decide apart. Pickle "
        "agent.config, and build CacheAgent(config, process_group) where it is loaded."
    )
