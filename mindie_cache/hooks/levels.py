"""The three names that need no settings: "quality", "balanced" and "fast"."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mindie_cache.presets import all_presets
from mindie_cache.presets.catalogue import normal


@dataclass(frozen=True)
class Level:
    """What a name means.

    Args:
        speedup: without a preset of the model: so many times fewer steps are computed than there are; the others are on a
            line through the last two.
        threshold, max_skip_steps: with a magnitude table of the model.
    """

    speedup: float
    threshold: float
    max_skip_steps: int

    def schedule(self, steps: int) -> dict[str, Any]:
        """Options of `plan_blocks` for so many steps. Nothing is corrected: that needs to know the sampler."""
        return {"compute_steps": regular(steps, math.ceil(steps / self.speedup))}


def regular(steps: int, budget: int) -> tuple[int, ...]:
    """So many computed steps, the first and the last among them (at least these).

    If more than about a half of them are computed, the beginning is, and then one of two; else they are evenly spread.
    """
    if budget >= steps or steps < 3:
        return tuple(range(steps))
    gaps, way = max(2, budget) - 1, steps - 1
    if way < 2 * gaps:
        ones = 2 * gaps - way
        return (*range(ones), *range(ones, steps, 2))
    return tuple([round(place * way / gaps) for place in range(gaps + 1)])


LEVELS = {
    "quality": Level(1.5, 0.06, 2),
    "balanced": Level(2.0, 0.12, 3),
    "fast": Level(3.0, 0.24, 5),
}


def level(name: str, model_names: tuple[str, ...]) -> dict[str, Any] | None:
    """Options of ada_taylor with the magnitude table of the model; None if none is shipped."""
    wanted = [normal(model) for model in model_names]
    tables = [preset for preset in all_presets("ada_taylor") if normal(preset.model) in wanted]
    if not tables:
        return None
    preset = min(tables, key=lambda one: wanted.index(normal(one.model)))
    chosen = LEVELS[name]
    return {"preset": preset.name, "threshold": chosen.threshold, "max_skip_steps": chosen.max_skip_steps}
