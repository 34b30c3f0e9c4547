"""What the user can choose about the demo, checked once, and what follows from it: prompts, seeds, settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mindie_cache import ConfigError
from mindie_cache.checks import whole
from mindie_cache.demo.plan import (
    LEAST_STEPS,
    Setting,
    default_prompts,
    default_settings,
    quick_settings,
    read_settings,
    uncached,
)
from mindie_cache.demo.runner import Batch
from mindie_cache.testbed.data import parse_prompt

STEPS, REPEATS, PROMPTS = 30, 3, 6
QUICK_STEPS, QUICK_REPEATS, QUICK_PROMPTS = 12, 1, 2


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Arguments of the demo.

    Args:
        prompts: instead of the default ones, which change from repetition to repetition.
        steps: denoising steps; None means 30, or 12 with `quick`.
        seed: of the first video; every other video takes the next one.
        repeats: batches, each run under every setting; None means 3, or 1 with `quick`.
        configs: files with a CacheConfig, each a setting of its own.
        only_config: leave the built-in settings out.
        quick: a smoke run with a few settings and prompts.
        out: folder for pictures and results.

    Raises:
        ConfigError, ParametersInvalid: an argument is out of range, a prompt is not valid.
    """

    prompts: tuple[str, ...] = ()
    steps: int | None = None
    seed: int = 0
    repeats: int | None = None
    configs: tuple[Path, ...] = ()
    only_config: bool = False
    quick: bool = False
    out: Path = Path("out/demo")

    def __post_init__(self) -> None:
        whole("steps", self.steps_count, LEAST_STEPS, 1000)
        whole("repeats", self.repeats_count, 1)
        whole("seed", self.seed, 0)
        for prompt in self.prompts:
            parse_prompt(prompt)
        if self.only_config and not self.configs:
            raise ConfigError("--only-config leaves nothing to compare with uncached. Add --config FILE.")

    @property
    def steps_count(self) -> int:
        return self.steps if self.steps is not None else QUICK_STEPS if self.quick else STEPS

    @property
    def repeats_count(self) -> int:
        return self.repeats if self.repeats is not None else QUICK_REPEATS if self.quick else REPEATS

    def batches(self) -> list[Batch]:
        """One batch a repetition; no seed comes twice."""
        batches: list[Batch] = []
        for repetition in range(self.repeats_count):
            prompts = self.prompts or default_prompts(repetition, QUICK_PROMPTS if self.quick else PROMPTS)
            first = self.seed + repetition * len(prompts)
            batches.append(Batch(tuple(prompts), tuple(range(first, first + len(prompts)))))
        return batches

    def settings(self, blocks: int) -> list[Setting]:
        """What to compare on a model of `blocks` blocks, uncached first."""
        built_in = quick_settings if self.quick else default_settings
        return [
            uncached(self.steps_count),
            *([] if self.only_config else built_in(self.steps_count, blocks)),
            *read_settings(self.configs, self.steps_count, blocks),
        ]
