"""What the user wants: so many times faster, or no worse than so. Plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mindie_cache.calibration.search.scores import LATENTS
from mindie_cache.checks import choice, real
from mindie_cache.errors import ConfigError

SPEEDUP, MAX_ERROR, MIN_PSNR = "speedup", "max_error", "min_psnr"


@dataclass(frozen=True)
class Aim:
    """A goal.

    Args:
        kind: "speedup" (times, end to end), "max_error" (relative squared error of the final latents) or "min_psnr" (dB, of
            decoded frames).
        value: the number.
    """

    kind: str = SPEEDUP
    value: float = 2.0

    def __post_init__(self) -> None:
        choice("the target", self.kind, (SPEEDUP, MAX_ERROR, MIN_PSNR))
        real(self.kind, self.value, 0.0, None)
        if self.kind == SPEEDUP and self.value <= 1:
            raise ConfigError(f"a speed-up of {self.value:g} is no speed-up. Ask for more than 1, e.g. 2.")

    @property
    def scores(self) -> tuple[str, ...]:
        """What has to be measured to decide, the first one ranks. Every score is an error: "psnr" is negative."""
        return ("psnr", LATENTS) if self.kind == MIN_PSNR else (LATENTS,)

    def error(self, scores: Mapping[str, float]) -> float:
        return scores[self.scores[0]]

    def reached(self, speedup: float, scores: Mapping[str, float]) -> bool:
        """Whether it is met, by results that are numbers."""
        if not math.isfinite(self.error(scores)):
            return False
        if self.kind == SPEEDUP:
            return speedup >= self.value
        limit = self.value if self.kind == MAX_ERROR else -self.value
        return self.error(scores) <= limit

    def rank(self, speedup: float, scores: Mapping[str, float]) -> tuple[bool, float]:
        """The smallest is the best: what reaches the goal, then by least error, or by greatest speed-up."""
        if not math.isfinite(self.error(scores)):
            return True, math.inf
        reached = self.reached(speedup, scores)
        by_error = reached == (self.kind == SPEEDUP)
        return not reached, self.error(scores) if by_error else -speedup

    def __str__(self) -> str:
        words = {SPEEDUP: "{:g}x", MAX_ERROR: "an error of {:g}", MIN_PSNR: "{:g} dB"}
        return words[self.kind].format(self.value)
