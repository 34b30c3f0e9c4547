"""Calibrate the testbed: one generation of a few prompts and seeds as one batch. Owns no measurement."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from mindie_cache.agent import CacheAgent
from mindie_cache.calibration import Calibration
from mindie_cache.checks import whole
from mindie_cache.config import CacheConfig
from mindie_cache.methods.calibrator import CalibratorOptions
from mindie_cache.testbed import TestbedTransformer, all_prompts, generate
from mindie_cache.testbed.sampler import DEFAULT_GUIDANCE, DEFAULT_SHIFT, DEFAULT_STEPS

MODEL, SCHEDULER = "mindie-cache-testbed", "flow Euler"
DEFAULT_PROMPTS = tuple(all_prompts()[::17])  # six, of every colour, shape and direction


@dataclass(frozen=True, kw_only=True)
class TestbedCalibration:
    """What to measure, and where to write it. Every prompt is generated with every seed."""

    __test__ = False  # not a test case, whatever the name suggests to pytest

    out: Path | None = None
    prompts: tuple[str, ...] = DEFAULT_PROMPTS
    seeds: tuple[int, ...] = (0,)
    steps: int = DEFAULT_STEPS
    shift: float = DEFAULT_SHIFT
    guidance: float = DEFAULT_GUIDANCE
    format: str = "telefuser"
    signal: str | None = "temb"

    def config(self, model: TestbedTransformer) -> CacheConfig:
        sizes = model.config
        options = CalibratorOptions(
            model_name=MODEL,
            sigma_shift=self.shift,
            scheduler=SCHEDULER,
            resolution=f"{sizes.width}x{sizes.height}x{sizes.frames}",
            guidance_scale=self.guidance,
            output_path=self.out,
            format=self.format,
            signal=self.signal,
        )
        return CacheConfig("calibrator", sizes.blocks, self.steps, options=options)

    def run(self, model: TestbedTransformer, *, progress: bool = False) -> Calibration:
        """Generate once, measure, and write the file.

        Raises:
            ConfigError, ParametersInvalid: an argument is out of range, a prompt is not valid, `out` cannot be written.
        """
        for seed in self.seeds:
            whole("seed", seed, 0)
        pairs = list(itertools.product(self.prompts, self.seeds))
        agent, before = CacheAgent(self.config(model)), model.cache
        model.cache = agent
        try:
            with tqdm(total=self.steps, desc="calibrating", unit="step", dynamic_ncols=True, disable=not progress) as bar:

                def on_step(step: int, latents: Tensor) -> None:
                    bar.update()

                generate(
                    model,
                    [prompt for prompt, _ in pairs],
                    seeds=[seed for _, seed in pairs],
                    steps=self.steps,
                    guidance_scale=self.guidance,
                    shift=self.shift,
                    callback=on_step,
                )
        finally:
            model.cache = before
        return agent.calibration()
