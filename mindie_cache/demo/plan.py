"""Which settings the demo compares: built from the number of steps and blocks, or read from the user's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindie_cache import CacheConfig, ConfigError
from mindie_cache.demo.attach import FORWARD, unit
from mindie_cache.errors import did_you_mean
from mindie_cache.testbed.data import COLOURS, DIRECTIONS, SHAPES, make_prompt

LEAST_STEPS = 4  # with fewer, no method has a step left to reuse
READERS = {".yaml": CacheConfig.from_yaml, ".yml": CacheConfig.from_yaml, ".json": CacheConfig.from_json}


@dataclass(frozen=True)
class Setting:
    """One row of the demo: a name, a few words that explain it, its number of steps, its caches."""

    name: str
    caption: str
    steps: int
    configs: tuple[CacheConfig, ...] = ()


def uncached(steps: int) -> Setting:
    """What everything is compared with."""
    return Setting("uncached", "every step computed", steps)


def default_settings(steps: int, blocks: int) -> list[Setting]:
    """The settings of the full demo, gentle to strong for each method.

    The last step is worth most: windows begin so that it is one of their refreshes.

    Args:
        steps: denoising steps, at least LEAST_STEPS.
        blocks: blocks of the model.
    """
    last, early, third = steps - 1, max(1, round(0.1 * steps)), max(1, steps // 3)

    def start(least: int, interval: int) -> int:
        return min(least + (last - least) % interval, last - 2)

    def block_cache(least: int, interval: int, margin: int = 0, **options: Any) -> CacheConfig:
        window = (start(least, interval), interval, last, margin, blocks - margin)
        return CacheConfig("dit_block_cache", blocks, steps, *window, options=options or None)

    def attention_cache(interval: int, **options: Any) -> CacheConfig:
        window = (start(early, interval), interval, last - 1)  # this method reuses step_end, too
        return CacheConfig("attention_cache", blocks, steps, *window, options=options or None)

    def adastep(threshold: float, limit: int) -> CacheConfig:
        return CacheConfig("adastep", 1, steps, options={"skip_thr": threshold, "max_skip_steps": limit})

    gentle = block_cache(third, 2, margin=min(1, (blocks - 1) // 2))
    both = (gentle, attention_cache(2, order=1))
    return [
        *(Setting(f"{few} steps", "no cache, fewer steps", few) for few in (round(steps * 2 / 3), round(steps / 2))),
        Setting("blocks gentle", "inner blocks, late, every 2nd step", steps, (gentle,)),
        Setting("blocks medium", "all blocks, every 2nd step", steps, (block_cache(early, 2),)),
        Setting("blocks medium, line", "every 2nd step, extrapolated", steps, (block_cache(early, 2, order=1),)),
        Setting("blocks strong", "all blocks, every 3rd step", steps, (block_cache(early, 3),)),
        Setting("blocks strong, line", "every 3rd step, extrapolated", steps, (block_cache(early, 3, order=1),)),
        Setting("attention medium", "attention, every 2nd step", steps, (attention_cache(2),)),
        Setting("attention strong", "attention, every 3rd step", steps, (attention_cache(3),)),
        Setting("adastep gentle", "even steps, one in a row", steps, (adastep(0.006, 1),)),
        Setting("adastep strong", "even steps, two in a row", steps, (adastep(0.015, 2),)),
        Setting("blocks + attention", "blocks gentle, attention line", steps, both),
    ]


def quick_settings(steps: int, blocks: int) -> list[Setting]:
    """One setting of each kind, for a smoke run."""
    names = (f"{round(steps / 2)} steps", "blocks strong, line", "attention medium", "adastep strong", "blocks + attention")
    return [setting for setting in default_settings(steps, blocks) if setting.name in names]


def read_settings(paths: Sequence[Path], steps: int, blocks: int) -> list[Setting]:
    """One setting for each file that holds a CacheConfig.

    Raises:
        ConfigError: a file cannot be read, is not valid, or does not fit the demo's steps or the model's blocks.
    """
    settings: list[Setting] = []
    for path in paths:
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise ConfigError(f"{path}: {path.suffix!r} is not a known format. {did_you_mean(path.suffix, READERS)}")
        try:
            config = reader(path)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}. Give the path of a CacheConfig file.") from None
        calls = 1 if unit(config) == FORWARD else blocks
        for field, got, needed in (("blocks_count", config.blocks_count, calls), ("steps_count", config.steps_count, steps)):
            if got != needed:
                option = " (or pass --steps)" if field == "steps_count" else ""
                raise ConfigError(f"{path}: {field}={got} does not fit this demo. Set {field}: {needed}{option}.")
        taken = sum(setting.name.split(" #")[0] == path.stem for setting in settings)
        name = f"{path.stem} #{taken + 1}" if taken else path.stem
        settings.append(Setting(name, f"{config.method} of {path.name}", steps, (config,)))
    return settings


def default_prompts(batch: int, count: int) -> list[str]:
    """`count` prompts for batch number `batch`: all colours, and over the batches every shape in each of them."""
    colours, shapes, directions = list(COLOURS), list(SHAPES), list(DIRECTIONS)
    return [
        make_prompt(
            colours[i % len(colours)],
            shapes[(i + batch) % len(shapes)],
            directions[(i + i // len(directions) + batch // len(shapes)) % len(directions)],
        )
        for i in range(count)
    ]
