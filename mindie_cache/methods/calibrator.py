"""The method `calibrator`: computes everything, and measures what magcache, ada_taylor and teacache need to know."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindie_cache.calibration.meter import ResidualMeter
from mindie_cache.calibration.polynomial import LEAST_STEPS
from mindie_cache.calibration.result import FORMATS, Provenance
from mindie_cache.checks import choice, real, whole
from mindie_cache.errors import ConfigError
from mindie_cache.methods.base import NO_END, Recipe, block_range
from mindie_cache.methods.signals import signal_tap
from mindie_cache.placement import OnDevice
from mindie_cache.policies import ComputeAll
from mindie_cache.predictors import Hold
from mindie_cache.streams import BlockStreams

if TYPE_CHECKING:
    from mindie_cache.config import CacheConfig


@dataclass(frozen=True, kw_only=True)
class CalibratorOptions:
    """Options of `calibrator`. What describes the run goes into the file, so that a preset is not used for another one.

    Args:
        model_name: of the model that is measured.
        sigma_shift: of the scheduler, if it has one.
        scheduler: its name.
        resolution: e.g. "832x480x81".
        guidance_scale: of the run.
        output_path: file that is written after the last step of every branch; without it, use `agent.calibration()`.
        format: "telefuser", which this package reads too, or "lightx2v".
        signal: also fit TeaCache's polynomial, for this keyword of the block's call (e.g. "temb") or for "modulated".
    """

    model_name: str = ""
    sigma_shift: float | None = None
    scheduler: str | None = None
    resolution: str | None = None
    guidance_scale: float | None = None
    output_path: str | os.PathLike[str] | None = None
    format: str = "telefuser"
    signal: str | None = None

    def check(self, config: CacheConfig) -> None:
        if not isinstance(self.model_name, str) or not self.model_name:
            raise ConfigError(f"model_name={self.model_name!r}: name the model that is measured, e.g. 'Wan2.1-T2V-1.3B'.")
        whole("steps_count of a calibration", config.steps_count, LEAST_STEPS if self.signal is not None else 2)
        if self.sigma_shift is not None:
            real("sigma_shift", self.sigma_shift, 0.0, None)
        if self.guidance_scale is not None:
            real("guidance_scale", self.guidance_scale, 0.0, None)
        for name in ("scheduler", "resolution", "signal"):
            value: Any = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ConfigError(f"{name}={value!r} must be a name.")
        if self.output_path is not None and not isinstance(self.output_path, str | os.PathLike):
            raise ConfigError(f"output_path={self.output_path!r} must be the path of a file.")
        choice("format", self.format, tuple(FORMATS))


def calibrator(config: CacheConfig) -> Recipe:
    options, blocks = config.options, block_range(config)
    assert isinstance(options, CalibratorOptions)
    provenance = Provenance(
        model=options.model_name,
        steps=config.steps_count,
        sigma_shift=options.sigma_shift,
        scheduler=options.scheduler,
        resolution=options.resolution,
        guidance_scale=options.guidance_scale,
        blocks=None if (config.block_start, config.block_end) == (0, NO_END) else (blocks.start, blocks.stop),
    )
    output = None if options.output_path is None else Path(options.output_path).absolute()
    return Recipe(
        site=blocks,
        policy=ComputeAll(),
        predictor=Hold(),
        placement=OnDevice(),
        streams=BlockStreams(config.streams),
        unit="block",
        signal=signal_tap(options.signal) if options.signal else None,
        meter=ResidualMeter(provenance=provenance, signal=options.signal, output_path=output, format=options.format),
    )
