"""The generations of one hooked model, in every context: which one a forward belongs to. generation.py knows one of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, ref

from mindie_cache.clock import current_scope
from mindie_cache.errors import ParametersInvalid, WarnOnce
from mindie_cache.hooks.engines import Engines
from mindie_cache.hooks.generation import Generation
from mindie_cache.hooks.pairs import Pairs
from mindie_cache.hooks.sight import Sight, look
from mindie_cache.hooks.wish import Wish
from mindie_cache.lanes import Track
from mindie_cache.notices import review
from mindie_cache.steps import Run

UNCLEAR = (
    "The calls of the model cannot be told apart: its conditioning comes in new tensors, or in a buffer that is filled "
    "anew, in every step, and no cache_context names the branch. They are computed. Put each call into a branch of its own, "
    '`with mindie_cache.branch("cond"):` and `branch("uncond")`, or into the model\'s own cache_context.'
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
    "contexts of their own, e.g. each in asyncio.to_thread or in a task. Put the generation into "
    "`with mindie_cache.run():`, or run all of it in one thread and task."
)

_MOST_TORN = 12  # generations of one step in a row; several that begin at the same time look like that too


class Generations:
    """Finds the generation and the track of a forward, or begins another generation.

    Args:
        wish: what the user asked for.
        steps_count: if it was told.
        rises: the timestep of the model is 1 - t.
    """

    def __init__(self, wish: Wish, steps_count: int | None, engines: Engines, warn: WarnOnce, rises: bool):
        self.steps_count = steps_count
        self.pipe: ref[Any] | None = None
        self.siblings: list[Generations] = []  # of the other experts of the pipeline
        self.latest: Any = None
        self._wish = wish
        self._engines = engines
        self._warn = warn
        self._by_run: WeakKeyDictionary[Run, Generation] = WeakKeyDictionary()
        self._at_scheduler = False  # the timesteps of some forwards are those of the pipeline's scheduler
        self._rises = rises
        self._spent: Any = None  # timesteps of a generation that came to its end: not those of the next one
        self._torn = 0  # generations in a row that had one step only
        self._lone_steps = 0  # generations in a row that ended after one step, because the timestep rose

    def shown(self) -> Generation | None:
        """The one under way in this context, or else the last one."""
        return self._by_run.get(current_scope().run_of(self)) or self.latest

    def reset(self) -> None:
        """Drop everything kept, in every thread and request."""
        for generation in list(self._by_run.values()):
            generation.release(None)
        self._by_run.clear()

    def enter(self, values: Mapping[str, Any]) -> tuple[Any, Track | None]:
        """The generation and the track of a forward; no track if it has to be computed without one."""
        scope = current_scope()
        run = scope.run_of(self)
        sight = look(values, scope, self.pipe, self._rises)
        self._at_scheduler = self._at_scheduler or bool(sight.driven)
        is_spent = self._spent is not None and self._spent is sight.timesteps and not sight.told
        if is_spent or (sight.driven is False and self._at_scheduler):  # in other units it is never True
            sight = sight.without_scheduler()
        generation = self._by_run.get(run)
        branch = None
        if generation is not None:
            sight = sight if sight.begun else sight.at(generation.origin)
            branch = generation.branch_of(sight)
        if generation is None or generation.ended(sight, branch):
            generation = self._begin(run, sight)
            sight = sight.at(generation.origin)
            branch = generation.branch_of(sight)
        if branch is None:
            self._warn("unclear", UNCLEAR)
        if branch is None or generation.is_off:
            return generation, None
        return generation, generation.enter(sight, branch)

    def _begin(self, run: Run, sight: Sight) -> Generation:
        sight = sight.placed(getattr(self.pipe(), "num_timesteps", None) if self.pipe is not None else None)
        old = self._by_run.get(run)
        if self.latest is not None and self.latest.is_over(sight):
            self._spent = sight.timesteps
        is_set = sight.timesteps is not None and sight.timesteps is not self._spent  # by the pipeline, for this generation
        is_set = is_set or sight.told
        steps = self._steps_of(sight, is_set)
        if old is not None:
            if old.is_too_short(sight):
                self._warn("long run", LONG.format(old.steps_count))
            sight = self._learn(old, sight)
            old.release(None)
            run.leave(old)
        self._torn = self._torn + 1 if self.latest is not None and self.latest.is_torn else 0
        if self._torn >= _MOST_TORN:
            self._warn("torn", TORN)
        engine = self._engines.engine(steps)
        is_first = self.pipe is not None and is_set and sight.timesteps is not None and sight.position == sight.begin
        self._engines.tell(steps, self.pipe() if is_first and self.pipe is not None else None)
        notice = partial(review, self._engines.config(steps), self._warn)
        generation = Generation(engine, sight, self._warn, notice, bool(self._engines.off(steps)))
        generation.is_open = not run.explicit
        generation.common.is_pair = Pairs(self.pipe, is_set)
        for other in self.siblings:
            other.share(generation, sight)
        self._by_run[run] = self.latest = generation
        run.join(generation)
        return generation

    def _steps_of(self, sight: Sight, is_set: bool) -> int:
        """The number of steps of a generation; `is_set`: the pipeline's scheduler is that of this generation."""
        told, seen = self.steps_count, None if self.pipe is None else sight.steps
        steps = seen or told if is_set else told or seen
        if steps is None:
            raise ParametersInvalid(
                f"{self._wish.title!r} needs the number of steps, and no pipeline tells it: "
                "enable_cache(model, config, num_inference_steps=50), or handle.refresh(num_inference_steps=50). "
                "If several pipelines share the model, enable the cache through the one that generates."
            )
        if self.pipe is not None and not is_set and told is None:
            self._warn("foreign", FOREIGN.format(steps))
        if self._wish.steps_count not in (None, steps):
            self._warn(
                "steps",
                f"The configuration says {self._wish.steps_count} steps, but this generation has {steps}: its step numbers "
                f"and distances mean other places of the run. Set steps_count={steps} and adapt them.",
            )
        return steps

    def share(self, generation: Generation, sight: Sight) -> None:
        """Another expert goes on in the same generation of the pipeline: also in the table of what was measured."""
        mine = self.latest
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
