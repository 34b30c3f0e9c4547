"""Which settings the demo compares: built from the number of steps and blocks, or read from the user's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindie_cache import CacheConfig, ConfigError
from mindie_cache.calibration.planning import Plan
from mindie_cache.demo.attach import FORWARD, place
from mindie_cache.errors import did_you_mean
from mindie_cache.testbed.data import COLOURS, DIRECTIONS, SHAPES, make_prompt
from mindie_cache.testbed.sampler import DEFAULT_SHIFT
from mindie_cache.testbed.weights import CALIBRATION_PATH, PLAN_PATH

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
    """The settings of the full demo: every method, at about half of the work or at what it can save.

    The last step is worth most: windows begin so that it is one of their refreshes.

    Args:
        steps: denoising steps, at least LEAST_STEPS.
        blocks: blocks of the model.
    """
    last, early, third = steps - 1, max(1, round(0.1 * steps)), max(1, steps // 3)
    numbers = str(CALIBRATION_PATH)

    def start(least: int, interval: int) -> int:
        return min(least + (last - least) % interval, last - 2)

    def blocks_every(least: int, interval: int, margin: int = 0, **options: Any) -> CacheConfig:
        window = (start(least, interval), interval, last, margin, blocks - margin)
        return CacheConfig("dit_block_cache", blocks, steps, *window, options=options or None)

    def attention_every(interval: int, **options: Any) -> CacheConfig:
        window = (start(early, interval), interval, last - 1)  # this method reuses step_end, too
        return CacheConfig("attention_cache", blocks, steps, *window, options=options or None)

    def on_blocks(method: str, **options: Any) -> CacheConfig:
        return CacheConfig(method, blocks, steps, options=options)

    def on_forward(method: str, **options: Any) -> CacheConfig:
        return CacheConfig(method, 1, steps, options=options)

    def setting(name: str, caption: str, *configs: CacheConfig) -> Setting:
        return Setting(name, caption, steps, configs)

    def planned() -> CacheConfig:
        plan = Plan.load(PLAN_PATH).for_steps(steps)
        entry = min(plan.front, key=lambda entry: abs(2 * entry.budget - steps))
        return on_forward("plan", compute_steps=entry.steps, sigmas=plan.sigmas, gain=entry.gain)

    latents = {"signal": "latents", "order": 1, "max_skip_steps": 4, "sigma_shift": DEFAULT_SHIFT}
    rates = [[1.2, 3], [2.4, 2]]
    gentle = blocks_every(third, 2, margin=min(1, (blocks - 1) // 2))
    faster = on_blocks("fastercache", reuse_from=early + 3)
    guided = on_forward("cfg_cache", refresh_from=early, skip_from=early + 2)
    return [
        *(Setting(f"{few} steps", "no cache, fewer steps", few) for few in (round(steps * 2 / 3), round(steps / 2))),
        setting("dit_block_cache", "all blocks, every 2nd step", blocks_every(early, 2)),
        setting("dit_block_cache, line", "every 2nd step, extrapolated", blocks_every(early, 2, order=1)),
        setting("attention_cache", "attention, every 2nd step", attention_every(2)),
        setting("both", "inner blocks late, attention", gentle, attention_every(2, order=1)),
        setting("plan", "planned from a recording", planned()),
        setting("adastep", "even steps, two in a row", on_forward("adastep", skip_thr=0.015, max_skip_steps=2)),
        setting("teacache", "time embedding", on_blocks("teacache", threshold=0.06, preset=numbers)),
        setting("custom", "teacache, and a line", on_blocks("custom", threshold=0.06, preset=numbers)),
        setting("seacache", "latents without their noise", on_forward("seacache", threshold=0.25, **latents)),
        setting("magcache", "magnitude table", on_blocks("magcache", threshold=0.06, max_skip_steps=4, preset=numbers)),
        setting("ada_taylor", "magcache, and a line", on_blocks("ada_taylor", threshold=0.06, preset=numbers)),
        setting("taylorseer", "every 2nd step, a line", on_blocks("taylorseer", interval=2, warmup_steps=early, lite=True)),
        setting("adacache", "change of attention", on_blocks("adacache", codebook=rates, otherwise=1)),
        setting("first_block", "change of one block", on_blocks("first_block", threshold=0.1)),
        setting("dynamic_block", "each block by itself", on_blocks("dynamic_block", threshold=0.05)),
        setting("easycache", "change of the output", on_forward("easycache", threshold=0.03, warmup_steps=early)),
        setting("fastercache", "attention, moved on", faster),
        setting("cfg_cache", "uncond from cond", guided),
        setting("fastercache + cfg", "both of FasterCache", faster, guided),
        setting("pab", "attention, broadcast", on_blocks("pab", broadcast=2, window=[100, 900])),
    ]


def quick_settings(steps: int, blocks: int) -> list[Setting]:
    """One setting of each kind, for a smoke run."""
    names = (f"{round(steps / 2)} steps", "dit_block_cache, line", "attention_cache", "adastep", "custom")
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
        calls = 1 if place(config) == FORWARD else blocks
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
