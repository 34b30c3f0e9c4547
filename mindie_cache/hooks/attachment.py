"""One model with its patches: forwards become tracks of the engine. regions.py finds the blocks, sight.py tells the step."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn

from mindie_cache.calibration import Calibration
from mindie_cache.clock import current_scope
from mindie_cache.engine import Engine
from mindie_cache.errors import ParametersInvalid, WarnOnce
from mindie_cache.hooks.calls import BlockPatch, Forward, PartPatch, under_way
from mindie_cache.hooks.compiling import stay_eager
from mindie_cache.hooks.families import OWN_CACHE, RISING, fills_own_cache
from mindie_cache.hooks.generation import Generation
from mindie_cache.hooks.patches import CALL, FORWARD, CallPatch, ContextPatch, ModelPatch, Patch
from mindie_cache.hooks.regions import BLOCKS, PARTS, ROOT, Scope, built
from mindie_cache.hooks.sight import Sight, look
from mindie_cache.hooks.wish import Wish
from mindie_cache.lanes import Track
from mindie_cache.notices import review
from mindie_cache.recipes import bypass_reason
from mindie_cache.report import Report
from mindie_cache.sites import Site
from mindie_cache.steps import Run

UNCLEAR = (
    "The calls of the model cannot be told apart: its conditioning comes as new tensors in every step, and no cache_context "
    'names the branch. They are computed. Put each call into `with mindie_cache.branch("cond"):` and `branch("uncond")`, or '
    "into the model's own cache_context."
)

TRAINING = (
    "The model is in training mode and gradients are on, so it is computed without its cache. Call model.eval(), or run it "
    "under torch.no_grad()."
)

REPEATS = (
    "The model runs its blocks several times in a forward, so that one estimate cannot stand for all of them: everything is "
    "computed. Use a method for whole forwards, e.g. easycache."
)

LONG = (
    "The generation goes on after its {} steps: starting afresh. Tell the number of steps by "
    "handle.refresh(num_inference_steps=50); or, if several pipelines share the model, enable the cache through the one "
    "that generates."
)

FOREIGN = (
    "The model is used by another pipeline than the one that the cache was enabled through. Its steps are taken to be {}, "
    "as in the last generation of that one; if they are not, tell them: handle.refresh(num_inference_steps=50)."
)

TORN = (
    "Every forward looks like the beginning of a generation, so that nothing is reused: the steps of one generation run in "
    "contexts of their own, e.g. each in asyncio.to_thread. Put the generation into `with mindie_cache.run():`, or run all "
    "of it in one thread."
)
_MOST_TORN = 12  # generations of one step in a row; several that begin at the same time look like that too


class Attachment:
    """A model that is cached.

    Args:
        model: whose `forward` is one forward of one branch.
        wish: what the user asked for; gives a configuration once the number of steps is known.
        scope: what of the model it works on.
        pipe: the pipeline around it, if there is one.
        group: process group of the ranks that share the tensors.
    """

    def __init__(self, model: nn.Module, wish: Wish, scope: Scope, pipe: Any = None, group: Any = None):
        self.model = model
        self.wish = wish
        self.scope = scope
        self.steps_count = wish.steps_count
        self.config = wish.config(scope.calls_count, wish.steps_count or wish.probable_steps)
        self._group = group
        self._pipe = None if pipe is None else ref(pipe)
        self._parameters = _parameters(model)
        self._has_own_cache = any(name in OWN_CACHE for name in self._parameters)
        self.siblings: list[Attachment] = []  # the other experts of the pipeline
        self._start()
        site = self._engine(self.config.steps_count).recipe.site  # what is wrong with the configuration is said now
        self.patches = self._patches(site)
        self._inner = [patch for patch in self.patches if isinstance(patch, CallPatch)]
        if self.steps_count is not None:
            self._tell(self.steps_count)

    def _start(self) -> None:
        self._engines: dict[int, Engine] = {}
        self._generations: WeakKeyDictionary[Run, Generation] = WeakKeyDictionary()
        self._latest: Any = None
        self._warn = WarnOnce()
        self._off: dict[int, str] = {}  # why nothing is cached, by the number of steps; empty if something is
        self._at_scheduler = False  # the timesteps of some forwards are those of the pipeline's scheduler
        self._rises = type(self.model).__name__ in RISING
        self._repeats = False
        self._spent: Any = None  # timesteps of a generation that came to its end: not those of the next one
        self._torn = 0  # generations in a row that had one step only
        self._lone_steps = 0  # generations in a row that ended after one step, because the timestep rose

    def _patches(self, site: Site) -> list[Patch]:
        found: list[Patch] = [ModelPatch(self.model, self)]
        if callable(getattr(self.model, "cache_context", None)):
            found.append(ContextPatch(self.model, self, "cache_context"))
        scope = self.scope
        if scope.kind == PARTS:
            found += [PartPatch(part.module, self, i) for i, part in enumerate(scope.parts) if site.span(i) is not None]
        if scope.kind == BLOCKS:
            recipe = self._engine(self.config.steps_count).recipe
            seen = {recipe.signal.anchor if recipe.signal else -1, recipe.probe.index if recipe.probe else -1}
            for index, block in enumerate(scope.blocks):
                span = site.span(index)
                edge = index in seen or (span is not None and index in (span.start, span.stop - 1))
                if edge or span is not None:
                    found.append(BlockPatch(block, self, index, scope.forms[index], edge))
        return found

    def install(self) -> None:
        """Patch every module, or none."""
        stay_eager()
        done: list[Patch] = []
        try:
            for patch in self.patches:
                patch.install()
                done.append(patch)
        except BaseException:
            for patch in reversed(done):
                patch.remove()
            raise

    def remove(self) -> None:
        for patch in reversed(self.patches):
            patch.remove()
        self.reset()

    def reset(self) -> None:
        """Drop everything kept, in every thread and request."""
        for generation in list(self._generations.values()):
            generation.release(None)
        self._generations.clear()

    def refresh(self, steps_count: int) -> None:
        """Another number of steps from the next generation on."""
        self.config = self.wish.config(self.scope.calls_count, steps_count)
        self.steps_count = steps_count
        self._engine(steps_count)
        self.reset()

    # ------------------------------------------------------------------------------------------------ a forward

    def forward(self, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One forward of the model."""
        if torch.is_grad_enabled() and self.model.training:
            self._warn("training", TRAINING)
            return original(*args, **kwargs)
        values = {**dict(zip(self._parameters, args, strict=False)), **kwargs} if args else kwargs
        place = FORWARD if stay_eager() or self._is_inside_compiled() else CALL
        if self._inner and not self._inner[0].stands_at(place):
            for patch in self._inner:
                patch.move(place)
        generation, track = (None, None) if self._has_own_cache and fills_own_cache(values) else self._enter(values)
        if generation is None or track is None:
            return original(*args, **kwargs)
        call = generation.engine.call
        token = under_way.set(Forward(self, track, track.lanes, call, bytearray(self.scope.calls_count)))
        try:
            whole = self.scope.kind == ROOT
            result = call(track, 0, original, args, kwargs) if whole else original(*args, **kwargs)
        except BaseException:
            generation.forget()
            raise
        finally:
            under_way.reset(token)
        if self.scope.kind == BLOCKS:
            track.reused = sum([lane.last - lane.start + 1 for lane in track.distinct_lanes if lane.reuse])
        generation.close(track)
        return result

    def _is_inside_compiled(self) -> bool:
        """Whether the parts of blocks are called by compiled code, because the blocks are compiled."""
        return self.scope.kind == PARTS and vars(self.scope.blocks[0]).get(CALL) is not None

    def repeated(self, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A region comes a second time in one forward, with other inputs: from now on everything is computed."""
        self._repeats = True
        self._warn("repeats", REPEATS)
        return original(*args, **kwargs)

    def _enter(self, values: Mapping[str, Any]) -> tuple[Any, Track | None]:
        """The generation and the track of a forward; no track if it has to be computed without one."""
        scope = current_scope()
        run = scope.run_of(self)
        sight = look(values, scope, self._pipe, self._rises)
        self._at_scheduler = self._at_scheduler or bool(sight.driven)
        is_spent = self._spent is not None and self._spent is sight.timesteps and not sight.told
        if is_spent or (sight.driven is False and self._at_scheduler):  # in other units it is never True
            sight = sight.without_scheduler()
        generation = self._generations.get(run)
        if generation is not None:
            sight = sight.at(generation.origin)
        branch = generation.branch_of(sight) if generation is not None else None
        if generation is None or generation.ended(sight, branch):
            generation = self._begin(run, sight)
            sight = sight.at(generation.origin)
            branch = generation.branch_of(sight)
        if branch is None:
            self._warn("unclear", UNCLEAR)
        if branch is None or self._repeats or self._off[generation.steps_count]:
            return generation, None
        return generation, generation.enter(sight, branch)

    def _begin(self, run: Run, sight: Sight) -> Generation:
        sight = sight.placed(getattr(self._pipe(), "num_timesteps", None) if self._pipe is not None else None)
        old = self._generations.get(run)
        if self._latest is not None and self._latest.is_over(sight):
            self._spent = sight.timesteps
        is_set = sight.timesteps is not None and sight.timesteps is not self._spent  # by the pipeline, for this generation
        is_set = is_set or sight.told
        is_foreign = self._pipe is not None and not is_set
        told, seen = self.steps_count, None if self._pipe is None else sight.steps
        steps = seen or told if is_set else told or seen
        if steps is None:
            raise ParametersInvalid(
                f"{self.wish.title!r} needs the number of steps, and no pipeline tells it: "
                "enable_cache(model, config, num_inference_steps=50), or handle.refresh(num_inference_steps=50). "
                "If several pipelines share the model, enable the cache through the one that generates."
            )
        if is_foreign and told is None:
            self._warn("foreign", FOREIGN.format(steps))
        if self.wish.steps_count not in (None, steps):
            self._warn(
                "steps",
                f"The configuration says {self.wish.steps_count} steps, but this generation has {steps}: its step numbers "
                f"and distances mean other places of the run. Set steps_count={steps} and adapt them.",
            )
        if old is not None:
            if old.is_too_short(sight):
                self._warn("long run", LONG.format(old.steps_count))
            sight = self._learn(old, sight)
            old.release(None)
            run.leave(old)
        self._torn = self._torn + 1 if self._latest is not None and self._latest.is_torn else 0
        if self._torn >= _MOST_TORN:
            self._warn("torn", TORN)
        engine = self._engine(steps)
        self._tell(steps)
        generation = Generation(engine, sight, self._warn, partial(review, self._configs(steps), self._warn))
        for other in self.siblings:
            other.share(generation, sight)
        self._generations[run] = self._latest = generation
        run.join(generation)
        return generation

    def share(self, generation: Generation, sight: Sight) -> None:
        """Another expert goes on in the same generation of the pipeline: also in the table of what was measured."""
        mine = self._latest
        if mine is not None and sight.timesteps is not None and mine.timesteps is sight.timesteps:
            generation.common.measured = mine.common.measured
            mine.hand_over()

    def _learn(self, old: Generation, sight: Sight) -> Sight:
        """Of a model whose timestep rises every step looks like a new generation: learned after three of them."""
        self._lone_steps = self._lone_steps + 1 if old.is_outdone(sight) else 0
        if self._lone_steps < 3 or sight.timestep is None:
            return sight
        self._rises, self._lone_steps = not self._rises, 0
        return sight._replace(timestep=-sight.timestep)

    def _configs(self, steps: int) -> Any:
        return self.config if steps == self.config.steps_count else self.wish.config(self.scope.calls_count, steps)

    def _engine(self, steps: int) -> Engine:
        """The engine for a number of steps; made once."""
        engine = self._engines.get(steps)
        if engine is None:
            config = self._configs(steps)
            self._off[steps] = bypass_reason(config)
            recipe = built(config, self.scope)
            engine = self._engines[steps] = Engine(recipe, self.scope.calls_count, steps, self._group)
        return engine

    def _tell(self, steps: int) -> None:
        """Say what should be known about the configuration with so many steps, once."""
        for note in self._engine(steps).recipe.notes:
            self._warn(note, note)
        if self._off[steps]:
            self._warn("off", f"{self.config.method} is off and every call is computed. {self._off[steps]}.")

    # ------------------------------------------------------------------------------------------------ what was done

    def _shown(self) -> Generation | None:
        run = current_scope().run_of(self)
        return self._generations.get(run) or self._latest

    def report(self) -> Report:
        unit = self._engine(self.config.steps_count).recipe.unit
        generation = self._shown()
        if generation is None:
            unused = TRAINING if self._warn.given("training") else "not called yet"
            return Report(self.config.method, unit, note=self._off[self.config.steps_count] or unused)
        note = UNCLEAR if generation.unclear else self._off[generation.steps_count]
        report = generation.common.log.report(self.config.method, unit, generation.common.nbytes)
        return Report(report.method, unit, report.steps, report.bytes_now, report.bytes_peak, report.seconds, note)

    def calibration(self) -> Calibration:
        """What method "calibrator" has measured in the last generation."""
        generation = self._shown()
        meter = generation.engine.recipe.meter if generation is not None else None
        if generation is None or meter is None:
            raise ParametersInvalid(
                f"{self.config.method} has measured nothing. Enable method 'calibrator' and generate once before asking."
            )
        return meter.result(generation.common.measured, generation.engine.ranks)

    # ------------------------------------------------------------------------------------------------ copies

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name not in _OF_THIS_PROCESS}
        return {**state, "_pipe": None, "siblings": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachment:
        """For a copy of the model: the same settings, nothing kept, the copy's own pipeline if that is copied too."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        shared = {"_group": self._group, "wish": self.wish, "config": self.config}
        state = {n: v if n in shared else copy.deepcopy(v, memo) for n, v in self.__getstate__().items()}
        twin.__setstate__(state)
        pipe = memo.get(id(self._pipe())) if self._pipe is not None else None
        twin._pipe = None if pipe is None else ref(pipe)
        return twin


_OF_THIS_PROCESS = {
    *("_engines", "_generations", "_latest", "_warn", "_off"),
    *("_at_scheduler", "_rises", "_lone_steps", "_repeats"),
}


def _parameters(model: nn.Module) -> tuple[str, ...]:
    return tuple(inspect.signature(type(model).forward).parameters)[1:]  # without self
