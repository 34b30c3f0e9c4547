"""The engines of one hooked model, one for each number of steps that a generation has had."""

from __future__ import annotations

from typing import Any

from mindie_cache.config import CacheConfig
from mindie_cache.engine import Engine
from mindie_cache.errors import WarnOnce
from mindie_cache.hooks.plan_fit import PlanFit
from mindie_cache.hooks.regions import Scope, built
from mindie_cache.hooks.wish import Wish
from mindie_cache.recipes import bypass_reason


class Engines:
    """Makes them when they are asked for.

    Args:
        wish: what the user asked for.
        scope: what of the model it works on.
        group: process group of the ranks that share the tensors.
    """

    def __init__(self, wish: Wish, scope: Scope, group: Any, warn: WarnOnce):
        self._wish = wish
        self._scope = scope
        self._group = group
        self._warn = warn
        self._fit: PlanFit | None = None
        self._made: dict[int, tuple[CacheConfig, Engine, str]] = {}

    def _get(self, steps: int) -> tuple[CacheConfig, Engine, str]:
        found = self._made.get(steps)
        if found is None:
            config = self._wish.config(self._scope.calls_count, steps)
            engine = Engine(built(config, self._scope), self._scope.calls_count, steps, self._group)
            found = self._made[steps] = config, engine, bypass_reason(config)
        return found

    def config(self, steps: int) -> CacheConfig:
        return self._get(steps)[0]

    def engine(self, steps: int) -> Engine:
        return self._get(steps)[1]

    def off(self, steps: int) -> str:
        """Why nothing is cached with so many steps; empty if something is."""
        return self._get(steps)[2]

    def tell(self, steps: int, pipe: Any = None) -> None:
        """Say what should be known about the configuration with so many steps, once; `pipe` is at its first step."""
        config, engine, off = self._get(steps)
        for note in engine.recipe.notes:
            self._warn(note, note)
        if pipe is not None:
            self._fit = self._fit or PlanFit(config, self._wish.scheduler)
            if words := self._fit.swapped(pipe.scheduler):
                self._warn("scheduler", words)
            if words := self._fit.at(pipe):
                self._warn("plan", words)
        if off:
            self._warn("off", f"{config.method} is off and every call is computed. {off}.")
