"""The families of settings that `quality.py` compares: one caching method each, with one knob from gentle to strong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mindie_cache import CacheConfig
from mindie_cache.calibration.planning import make_plan, record_testbed
from mindie_cache.calibration.testbed import DEFAULT_PROMPTS
from mindie_cache.testbed import TestbedConfig, load_testbed
from mindie_cache.testbed.sampler import DEFAULT_SHIFT

RECORDED_SEED = 9000


@dataclass(frozen=True)
class Family:
    """`build(knob)` gives the caches of one setting. `choices` are tried one by one; `span` is searched by bisection on a
    logarithmic scale, where a larger knob computes less."""

    name: str
    build: Callable[[Any], tuple[CacheConfig, ...]]
    choices: tuple[Any, ...] = ()
    span: tuple[float, float] | None = None


def families(steps: int, blocks: int, calibration: str) -> list[Family]:
    """Every method of the library on a model of `blocks` blocks at `steps` steps.

    Args:
        calibration: file written by `mindie-cache calibrate`, for the methods that need numbers of the model.
    """
    last = steps - 1

    def on_blocks(method: str, **options: Any) -> tuple[CacheConfig, ...]:
        return (CacheConfig(method, blocks, steps, options=options or None),)

    def on_forward(method: str, **options: Any) -> tuple[CacheConfig, ...]:
        return (CacheConfig(method, 1, steps, options=options or None),)

    def windowed(method: str, order: int) -> Callable[[Any], tuple[CacheConfig, ...]]:
        options = {"order": order} if order else None
        return lambda knob: (CacheConfig(method, blocks, steps, knob[0], knob[1], last, options=options),)

    def seer(**options: Any) -> Callable[[Any], tuple[CacheConfig, ...]]:
        return lambda knob: on_blocks("taylorseer", warmup_steps=knob[0], interval=knob[1], **options)

    windows = [(start, every) for every in range(2, 9) for start in (3, 6, 9, 12)]
    code_book = ((0.03, 6), (0.05, 5), (0.07, 4), (0.09, 3), (0.11, 2))
    fast = {"max_skip_steps": 8}

    def adacache(scale: float) -> tuple[CacheConfig, ...]:
        return on_blocks("adacache", codebook=[[below * scale, gap] for below, gap in code_book], otherwise=1)

    def sea(signal: str, order: int = 0) -> Callable[[float], tuple[CacheConfig, ...]]:
        options: dict[str, Any] = {"signal": signal, "order": order, "sigma_shift": DEFAULT_SHIFT}
        options["max_skip_steps"] = 4 if order else fast["max_skip_steps"]  # a line overshoots over long gaps
        if signal == "latents":
            return lambda x: on_forward("seacache", threshold=x, **options)
        return lambda x: on_blocks("seacache", threshold=x, grid=TestbedConfig().grid, **options)

    def faster(knob: tuple[int, int]) -> tuple[CacheConfig, ...]:
        return on_blocks("fastercache", reuse_from=knob[0], interval=knob[1], reuse_on="others")

    def guidance(knob: tuple[int, int]) -> tuple[CacheConfig, ...]:
        return on_forward("cfg_cache", skip_from=knob[0], refresh_from=knob[0] - 2, interval=knob[1])

    def pab(knob: tuple[int, int]) -> tuple[CacheConfig, ...]:
        return on_blocks("pab", broadcast=knob[1], window=[50, 1000 - 33 * knob[0]])

    def two_block(threshold: float) -> tuple[CacheConfig, ...]:
        return (
            CacheConfig(
                "dual_block", blocks, steps, block_start=2, block_end=blocks - 2, options={"threshold": threshold, **fast}
            ),
        )

    def planned() -> Callable[[Any], tuple[CacheConfig, ...]]:
        """Schedules from a recording of prompts that are not evaluated."""
        model = load_testbed("cpu")
        seeds = range(RECORDED_SEED, RECORDED_SEED + len(DEFAULT_PROMPTS))
        plan = make_plan(record_testbed(model, DEFAULT_PROMPTS, seeds=seeds, steps=steps))

        def build(knob: tuple[int]) -> tuple[CacheConfig, ...]:
            entry = plan.at(knob[0])
            return on_forward("plan", compute_steps=entry.steps, sigmas=plan.sigmas, gain=entry.gain)

        return build

    return [
        Family("plan", planned(), tuple((budget,) for budget in range(4, steps))),
        Family("dit_block_cache", windowed("dit_block_cache", 0), tuple(windows)),
        Family("dit_block_cache, line", windowed("dit_block_cache", 1), tuple(windows)),
        Family("attention_cache", windowed("attention_cache", 0), tuple(windows)),
        Family("attention_cache, line", windowed("attention_cache", 1), tuple(windows)),
        Family("adastep", lambda x: on_forward("adastep", skip_thr=x, max_skip_steps=4), span=(1e-4, 3.0)),
        Family("teacache", lambda x: on_blocks("teacache", threshold=x, preset=calibration, **fast), span=(0.02, 2.0)),
        Family("teacache, no calibration", lambda x: on_blocks("teacache", threshold=x, **fast), span=(0.02, 2.0)),
        Family(
            "teacache, modulated",
            lambda x: on_blocks("teacache", threshold=x, signal="modulated", **fast),
            span=(0.02, 2.0),
        ),
        Family("custom", lambda x: on_blocks("custom", threshold=x, preset=calibration, **fast), span=(0.02, 2.0)),
        Family("seacache", sea("modulated"), span=(0.02, 4.0)),
        Family("seacache, line", sea("modulated", 1), span=(0.02, 4.0)),
        Family("seacache, latents", sea("latents"), span=(0.02, 4.0)),
        Family("seacache, latents, line", sea("latents", 1), span=(0.02, 4.0)),
        Family(
            "magcache",
            lambda x: on_blocks("magcache", threshold=x, preset=calibration, retention_ratio=0.1, **fast),
            span=(0.01, 4.0),
        ),
        Family(
            "ada_taylor",
            lambda x: on_blocks("ada_taylor", threshold=x, preset=calibration, retention_ratio=0.1, **fast),
            span=(0.01, 4.0),
        ),
        Family("taylorseer, lite", seer(lite=True), tuple(windows)),
        Family("taylorseer, lite, order 2", seer(lite=True, order=2), tuple(windows)),
        Family("taylorseer, per module", seer(), tuple(windows)),
        Family("adacache", adacache, span=(0.1, 50.0)),
        Family("first_block", lambda x: on_blocks("first_block", threshold=x, **fast), span=(0.002, 2.0)),
        Family(
            "first_block, published",
            lambda x: on_blocks("first_block", threshold=x, compare="previous", **fast),
            span=(0.002, 2.0),
        ),
        Family("dual_block", two_block, span=(0.002, 2.0)),
        Family("dynamic_block", lambda x: on_blocks("dynamic_block", threshold=x, **fast), span=(0.002, 2.0)),
        Family(
            "dynamic_block, published",
            lambda x: on_blocks("dynamic_block", threshold=x, parity=True, **fast),
            span=(0.002, 2.0),
        ),
        Family("easycache", lambda x: on_forward("easycache", threshold=x, warmup_steps=3, **fast), span=(0.002, 2.0)),
        Family("fastercache", faster, tuple((start, every) for start in (5, 8, 12) for every in range(2, 9))),
        Family("cfg_cache", guidance, tuple((start, every) for start in (3, 6, 10) for every in range(2, 9))),
        Family("pab", pab, tuple((start, every) for start in (2, 5, 8) for every in range(2, 9))),
    ]


def table_variants(steps: int, blocks: int, calibration: str) -> list[Family]:
    """ada_taylor with a table of another number of steps: how it is resampled, and how order 2 is estimated."""

    def variant(**options: Any) -> Callable[[float], tuple[CacheConfig, ...]]:
        fixed = {"preset": calibration, "retention_ratio": 0.1, "max_skip_steps": 8, **options}
        return lambda x: (CacheConfig("ada_taylor", blocks, steps, options={"threshold": x, **fixed}),)

    span = (0.01, 4.0)
    return [
        Family("product", variant(resampling="product"), span=span),
        Family("nearest", variant(resampling="nearest"), span=span),
        Family("order 2, newton", variant(order=2, ladder="newton"), span=span),
        Family("order 2, published", variant(order=2, ladder="published"), span=span),
    ]


def steps_for(steps: int, budgets: Sequence[float]) -> list[int]:
    """Fewer denoising steps without a cache: what every method has to beat."""
    return [max(1, round(steps / budget)) for budget in budgets]


def stored_variants(steps: int, blocks: int, calibration: str) -> list[Family]:
    """Methods as they are, with decisions that lag by a step (those that decide by what they see), with int8 features."""
    lagging = ("adastep", "teacache", "custom", "seacache", "seacache, latents, line", "first_block", "easycache")
    coded = ("dit_block_cache", "dit_block_cache, line", "attention_cache", "taylorseer, lite", "custom", "first_block")
    found = {family.name: family for family in families(steps, blocks, calibration)}
    variants = []
    for name in dict.fromkeys((*lagging, *coded)):
        variants.append(found[name])
        if name in lagging:
            variants.append(altered(found[name], "lagged", _lagged))
        if name in coded:
            variants.append(altered(found[name], "int8", lambda config: replace(config, placement="int8")))
    return variants


def altered(family: Family, word: str, change: Callable[[CacheConfig], CacheConfig]) -> Family:
    """The same settings with every cache changed."""
    return replace(
        family, name=f"{family.name}, {word}", build=lambda knob: tuple([change(config) for config in family.build(knob)])
    )


def _lagged(config: CacheConfig) -> CacheConfig:
    return replace(config, options={**config.options, "sync": "lagged"})
