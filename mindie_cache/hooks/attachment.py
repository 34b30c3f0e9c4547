"""One model with its patches: what a forward does. regions.py finds the blocks, generations.py tells branch and step."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import repeat
from typing import Any
from weakref import ref

import torch
from torch import nn

from mindie_cache.calibration import Calibration
from mindie_cache.engine import Engine
from mindie_cache.errors import ParametersInvalid, WarnOnce
from mindie_cache.hooks.calls import BlockPatch, EdgePatch, Forward, PartPatch, under_way
from mindie_cache.hooks.compiling import stay_eager
from mindie_cache.hooks.engines import Engines
from mindie_cache.hooks.families import OWN_CACHE, RISING, fills_own_cache, known_as
from mindie_cache.hooks.generation import FIRST, Generation
from mindie_cache.hooks.generations import UNCLEAR, Generations
from mindie_cache.hooks.latents import latents_first
from mindie_cache.hooks.lists import ListPatch, list_patches
from mindie_cache.hooks.patches import CALL, FORWARD, CallPatch, ContextPatch, ModelPatch, Patch
from mindie_cache.hooks.proof import NO_CHAIN, allowed, copies, difference, spare
from mindie_cache.hooks.regions import BLOCKS, PARTS, ROOT, Scope
from mindie_cache.hooks.sight import BOTH
from mindie_cache.hooks.wish import Wish
from mindie_cache.lanes import Track
from mindie_cache.methods.base import Recipe
from mindie_cache.report import Report, StepRecord
from mindie_cache.sites import Site

TRAINING = (
    "The model is in training mode and gradients are on, so it is computed without its cache. Call model.eval(), or run it "
    "under torch.no_grad()."
)

REPEATS = (
    "The model runs its blocks several times in a forward, so that one estimate cannot stand for all of them. Everything is "
    "computed. Use a method for whole forwards, e.g. easycache."
)


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
        self.config = wish.config(scope.calls_count, wish.steps_count or wish.probable_steps)
        self.steps_count = wish.steps_count
        self._group = group
        self._parameters = _parameters(model)
        self._has_own_cache = any(name in OWN_CACHE for name in self._parameters)
        self._start()
        self.generations.pipe = None if pipe is None else ref(pipe)
        site = self._recipe.site  # what is wrong with the configuration is said now
        self.patches = self._patches(site)
        self._inner: list[Any] = [patch for patch in self.patches if isinstance(patch, CallPatch)]
        self._lists = [patch for patch in self.patches if isinstance(patch, ListPatch)]
        self._place = CALL  # of these patches
        if wish.steps_count is not None:
            self._engines.tell(wish.steps_count)

    def _start(self) -> None:
        self._warn = WarnOnce()
        self._engines = Engines(self.wish, self.scope, self._group, self._warn)
        rises = bool(known_as(type(self.model), RISING))
        self.generations = Generations(self.wish, self.steps_count, self._engines, self._warn, rises)
        self._unfit = ""  # why nothing can be reused in this model
        self._proved = self.scope.kind != BLOCKS  # elsewhere a region is one call

    @cached_property
    def _everywhere(self) -> Watch:
        return watch(self._inner)

    @cached_property
    def _at_edges(self) -> Watch:
        """Inner blocks may wait: one that is computed for nothing changes no output."""
        return watch([patch for patch in self._inner if isinstance(patch, EdgePatch)])

    @property
    def _recipe(self) -> Recipe:
        return self._engines.engine(self.config.steps_count).recipe

    def _patches(self, site: Site) -> list[Patch]:
        found: list[Patch] = [ModelPatch(self.model, self)]
        if callable(getattr(self.model, "cache_context", None)):
            found.append(ContextPatch(self.model, self, "cache_context"))
        scope = self.scope
        if scope.kind == PARTS:
            found += [PartPatch(part.module, self, i) for i, part in enumerate(scope.parts) if site.span(i) is not None]
        if scope.kind == BLOCKS:
            recipe = self._recipe
            seen = {recipe.signal.anchor if recipe.signal else -1, recipe.probe.index if recipe.probe else -1}
            for index, block in enumerate(scope.blocks):
                span = site.span(index)
                is_edge = index in seen or (span is not None and index in (span.start, span.stop - 1))
                if is_edge or span is not None:
                    found.append((EdgePatch if is_edge else BlockPatch)(block, self, index, scope.forms[index]))
            found += list_patches(self.model, self, [patch for patch in found if type(patch) is BlockPatch])
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
        self.generations.reset()

    def refresh(self, steps_count: int) -> None:
        """Another number of steps from the next generation on."""
        self.config = self._engines.config(steps_count)
        self.steps_count = self.generations.steps_count = steps_count
        self.reset()

    # ------------------------------------------------------------------------------------------------ a forward

    def forward(self, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One forward of the model."""
        if torch.is_grad_enabled() and self.model.training:
            self._warn("training", TRAINING)
            return original(*args, **kwargs)
        values = {**dict(zip(self._parameters, args, strict=False)), **kwargs} if args else kwargs
        is_compiled = stay_eager()  # first: nothing below is to be compiled
        place = FORWARD if is_compiled or (self.scope.kind == PARTS and self._is_inside_compiled()) else CALL
        is_no_step = bool(self._unfit) or (self._has_own_cache and fills_own_cache(values))
        generation, track = (None, None) if is_no_step else self.generations.enter(values)
        self._settle(place, self._at_edges if track is not None and track.step else self._everywhere)
        if generation is None or track is None:
            return original(*args, **kwargs)
        if self.scope.kind == PARTS:
            generation.review_form(track, values)
        again = None if self._proved or not generation.engine.rehearses else spare((args, kwargs))
        try:
            result = self._passed(track, generation.engine, original, args, kwargs)
            if again is not None and generation.engine.can_rehearse(track):
                result = copies(result)
                self._prove(track, generation, partial(original, *again[0], **again[1]), result)
        except BaseException:
            generation.forget()
            raise
        if self.scope.kind == BLOCKS:
            track.reused = sum([lane.last - lane.start + 1 for lane in track.distinct_lanes if lane.reuse])
        generation.close(track)
        return result

    def _passed(self, track: Track, engine: Engine, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        now = Forward(self, track, engine)
        token = under_way.set(now)
        try:
            if self.scope.kind == ROOT:
                return now.call(track, 0, *latents_first(original, self._parameters, args, kwargs))
            return original(*args, **kwargs)
        finally:
            under_way.reset(token)

    def _prove(self, track: Track, generation: Generation, forward: Any, wanted: Any) -> None:
        """Once, as soon as something was kept: see proof.py."""
        engine = generation.engine
        with torch.no_grad(), engine.rehearsal(track):
            found = self._passed(track, engine, forward, (), {})
        off = difference(found, wanted, engine.ranks)
        self._proved = not math.isnan(off)
        if off > allowed(track, self.config.placement) and not self._unfit:
            self._refuse("no chain", NO_CHAIN.format(off))
            generation.forget()

    def _refuse(self, key: str, why: str) -> None:
        self._unfit = why
        self._warn(key, why)

    def _settle(self, place: str, watched: Watch) -> None:
        """Put the patches where they are seen; any module may have been compiled, or copied, since the last forward."""
        attributes, entries = watched
        if place != self._place or (place == CALL and [*map(dict.get, attributes, repeat(CALL))] != entries):
            for patch in (*self._inner, *self._lists):
                patch.move(place)
            self._place = place

    def _is_inside_compiled(self) -> bool:
        """Whether the parts of blocks are called by compiled code, because the blocks are compiled."""
        return vars(self.scope.blocks[0]).get(CALL) is not None

    def repeated(self, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A region comes a second time in one forward, with other inputs: from now on everything is computed."""
        self._refuse("repeats", REPEATS)
        return original(*args, **kwargs)

    # ------------------------------------------------------------------------------------------------ what was done

    def report(self) -> Report:
        unit, generation = self._recipe.unit, self.generations.shown()
        if generation is None:
            unused = TRAINING if self._warn.given("training") else "not called yet"
            return Report(self.config.method, unit, note=self._engines.off(self.config.steps_count) or unused)
        note = UNCLEAR if generation.unclear else self._unfit or self._engines.off(generation.steps_count) or generation.note
        report = generation.common.log.report(self.config.method, unit, generation.common.nbytes)
        return replace(report, steps=self._named(report.steps), note=note)

    def _named(self, steps: tuple[StepRecord, ...]) -> tuple[StepRecord, ...]:
        """Where a pipeline with guidance names no branch and calls its model once a step, the call is of both branches."""
        pipe = self.generations.pipe and self.generations.pipe()
        is_guided = bool(getattr(pipe, "do_classifier_free_guidance", False))
        if not is_guided or any(record.branch != FIRST for record in steps):
            return steps
        return tuple([replace(record, branch=BOTH) for record in steps])

    def calibration(self) -> Calibration:
        """What method "calibrator" has measured in the last generation."""
        generation = self.generations.shown()
        meter = generation.engine.recipe.meter if generation is not None else None
        if generation is None or meter is None:
            raise ParametersInvalid(
                f"{self.config.method} has measured nothing. Enable method 'calibrator' and generate once before asking."
            )
        return meter.result(generation.common.measured, generation.engine.ranks)

    # ------------------------------------------------------------------------------------------------ copies

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _OF_THIS_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._place = ""  # PyTorch leaves calls that are compiled, or patched, out of copies
        self._start()

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachment:
        """For a copy of the model: the same settings, nothing kept, the copy's own pipeline if that is copied too."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        shared = {"_group": self._group, "wish": self.wish, "config": self.config}
        state = {n: v if n in shared else copy.deepcopy(v, memo) for n, v in self.__getstate__().items()}
        twin.__setstate__(state)
        mine = self.generations.pipe
        pipe = memo.get(id(mine())) if mine is not None else None
        twin.generations.pipe = None if pipe is None else ref(pipe)
        return twin


Watch = tuple[list[dict[str, Any]], list[Any]]


def watch(patches: Sequence[CallPatch]) -> Watch:
    """The attributes of their modules, and what should be there."""
    return [patch.attributes for patch in patches], [patch.entry for patch in patches]


_OF_THIS_PROCESS = {"_at_edges", "_everywhere", "_engines", "_proved", "_unfit", "_warn", "generations"}


def _parameters(model: nn.Module) -> tuple[str, ...]:
    return tuple(inspect.signature(type(model).forward).parameters)[1:]  # without self
