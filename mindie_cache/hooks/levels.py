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
        from mindie_cache.calibration.planning.usual import usual_schedule

        return {"compute_steps": usual_schedule(steps, math.ceil(steps / self.speedup))}


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
