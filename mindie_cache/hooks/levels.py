"""The three names that need no settings: "quality", "balanced" and "fast"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mindie_cache.presets import all_presets
from mindie_cache.presets.catalogue import normal


@dataclass(frozen=True)
class Level:
    """What a name means.

    Args:
        warmup_share, interval: without a preset of the model: the first share of the steps is computed, and then one of
            every `interval`; the others are on a line through the last two.
        threshold, max_skip_steps: with a magnitude table of the model.
    """

    warmup_share: float
    interval: int
    threshold: float
    max_skip_steps: int

    def schedule(self, steps: int) -> dict[str, Any]:
        """Options of taylorseer for so many steps."""
        warmup = max(2, round(self.warmup_share * steps))
        return {"lite": True, "order": 1, "interval": self.interval, "warmup_steps": warmup}


LEVELS = {
    "quality": Level(0.3, 2, 0.06, 2),
    "balanced": Level(0.2, 3, 0.12, 3),
    "fast": Level(0.1, 4, 0.24, 5),
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
