"""What a method consists of: the recipe that the engine runs, and the options that several methods share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch

from mindie_cache.bands import BandedHistory, Bands
from mindie_cache.checks import choice, flag, real, whole
from mindie_cache.distributed import Ranks
from mindie_cache.errors import ConfigError
from mindie_cache.history import History
from mindie_cache.placement import PLACEMENTS, Placement
from mindie_cache.policies import Limits, Policy
from mindie_cache.policies.decision import SYNCS
from mindie_cache.predictors import Hold, PerBand, Predictor, Retroactive, Taylor
from mindie_cache.sites import BlockRange, Site
from mindie_cache.streams import BlockStreams, WholeOutput
from mindie_cache.taps import Probe, Tap

if TYPE_CHECKING:
    from mindie_cache.config import CacheConfig

NO_END = 10000  # MindIE-SD's default of step_end and block_end: no limit
LADDERS = ("newton", "published")


class Meter(Protocol):
    """Measures the residual of a computed block range. `measured` is what it keeps for one run: empty at its start."""

    def prepare(self, ranks: Ranks) -> None:
        """Before the first run."""

    def see(self, measured: dict[str, Any], branch: str, step: int, signal: torch.Tensor) -> None:
        """The signal of a step, if the recipe has one."""

    def add(self, measured: dict[str, Any], branch: str, step: int, residual: Any, ranks: Ranks) -> None:
        """The residual of a computed step."""

    def result(self, measured: dict[str, Any], ranks: Ranks) -> Any:
        """What was measured."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One caching method, ready to run.

    Args:
        site, policy, predictor, placement, streams: the parts.
        unit: the word for one call in reports.
        signal: the tap that feeds `policy.decide`.
        probe: feeds `policy.observe` at computed steps.
        residual: of a whole call, the feature is its first output minus the model input; None: if they have one shape.
        bands: how features are split before they are kept; `predictor` is a `PerBand` then.
        meter: measures the residuals of a block range, for calibration.
        corrector: repairs at a computed step what the reused ones before it were off.
        notes: what a user should be told once, e.g. that a preset was made for another number of steps.
    """

    site: Site
    policy: Policy
    predictor: Predictor
    placement: Placement
    streams: BlockStreams | WholeOutput
    unit: str
    signal: Tap | None = None
    probe: Probe | None = None
    residual: bool | None = False
    bands: Bands | None = None
    meter: Meter | None = None
    corrector: Retroactive | None = None
    notes: tuple[str, ...] = ()

    def new_history(self) -> History | BandedHistory:
        """An empty history, for one lane."""
        if self.bands is None:
            return History(self.predictor.depth, self.placement)
        assert isinstance(self.predictor, PerBand)
        return BandedHistory(self.bands, [History(depth, self.placement) for depth in self.predictor.depths])


@dataclass(frozen=True)
class Method:
    """How a method name becomes a recipe: its typed options and its builder.

    `declares_streams`: works on blocks, whose order of streams can be declared. `windowed`: MindIE-SD's step window
    (step_start, step_interval, step_end) applies. `whole_forward`: one call per step and branch.
    """

    options: type[Any]  # a dataclass with check(config)
    build: Callable[[CacheConfig], Recipe]
    declares_streams: bool = field(default=False, kw_only=True)
    windowed: bool = field(default=False, kw_only=True)
    whole_forward: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, kw_only=True)
class ExtrapolationOptions:
    """How a reused feature is estimated, for every method.

    Args:
        order: 0 reuses the newest feature; n extrapolates with a polynomial of degree n.
        max_distance: extrapolate at most this many steps ahead, hold beyond; None sets no limit.
        ladder: "newton" or "published", see `mindie_cache.predictors.Taylor`.
    """

    order: int = 0
    max_distance: int | None = None
    ladder: str = "newton"

    def check(self, config: CacheConfig) -> None:
        whole("order", self.order, 0, 8)
        if self.max_distance is not None:
            whole("max_distance", self.max_distance, 0)
        choice("ladder", self.ladder, LADDERS)
        if not self.order and (self.max_distance is not None or self.ladder != "newton"):
            raise ConfigError("max_distance and ladder need order >= 1: with order=0 features are held. Set order=1.")

    def predictor(self) -> Predictor:
        return Taylor(self.order, self.max_distance, self.ladder) if self.order else Hold()


@dataclass(frozen=True, kw_only=True)
class LimitOptions(ExtrapolationOptions):
    """Options of every method that decides from data: what no measurement can overrule.

    Args:
        warmup_steps: the first steps, always computed.
        final_steps: the last steps, always computed.
        max_skip_steps: most reused steps in a row; 0 sets no limit.
        together: one decision a step for all branches, taken in the first one; False: each branch by itself.
        sync: "now": the host reads this step's measurement, and waits for the device once a step; "lagged": it reads the
            one before, which is there already, so that it never waits. The first step after one that could not be
            compared is computed then.
    """

    warmup_steps: int = 1
    final_steps: int = 1
    max_skip_steps: int = 10
    together: bool = True
    sync: str = "now"

    def check(self, config: CacheConfig) -> None:
        super().check(config)
        whole("warmup_steps", self.warmup_steps, 0)
        whole("final_steps", self.final_steps, 0)
        whole("max_skip_steps", self.max_skip_steps, 0)
        flag("together", self.together)
        choice("sync", self.sync, SYNCS)

    def limits(self, config: CacheConfig) -> Limits:
        return Limits(
            steps_count=config.steps_count,
            warmup_steps=self.warmup_steps,
            final_steps=self.final_steps,
            max_skip_steps=self.max_skip_steps,
        )


@dataclass(frozen=True, kw_only=True)
class PresetOptions(ExtrapolationOptions):
    """Options whose numbers can come from a preset: what is None is taken from it, and from the defaults otherwise.

    Args:
        preset: name of a model, "model@variant", or path of a calibration file (.json); see `mindie-cache presets`.
        strict: a preset made for another number of steps, shift or resolution is an error instead of a warning.
        sigma_shift: of your scheduler, to be checked against the preset's.
        resolution: of your run, e.g. "832x480", to be checked against the preset's.
    """

    preset: str | None = None
    strict: bool = False
    sigma_shift: float | None = None
    resolution: str | None = None
    defaults: ClassVar[dict[str, Any]] = {}  # of the options that a preset may fill
    preset_method: ClassVar[str] = ""  # under which presets are filed

    def resolved(self, config: CacheConfig) -> tuple[Any, tuple[str, ...]]:
        """These options with every number filled in, and sentences about what does not fit.

        Raises:
            ConfigError: no such preset, or `strict` and it does not fit.
        """
        settings: dict[str, Any] = {}
        notes: tuple[str, ...] = ()
        if self.preset is not None:
            preset = self._preset()
            settings = dict(preset.settings)
            found = preset.mismatches(steps=config.steps_count, sigma_shift=self.sigma_shift, resolution=self.resolution)
            if found and self.strict:
                raise ConfigError(f"preset={self.preset!r} does not fit, and strict is set: {' '.join(found)}")
            notes = tuple(found)
        filled = {
            name: settings.get(name, default) for name, default in self.defaults.items() if getattr(self, name) is None
        }
        tuples = {name: tupled(value) for name, value in filled.items()}
        return replace(self, **tuples), notes

    def _preset(self) -> Any:
        from mindie_cache import presets  # reads files

        assert self.preset is not None
        if self.preset.endswith(".json"):
            return presets.load_file(self.preset, method=self.preset_method)
        model, _, variant = self.preset.partition("@")
        return presets.find(self.preset_method, model, variant)

    def check_preset(self) -> None:
        flag("strict", self.strict)
        for name in ("preset", "resolution"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ConfigError(f"{name}={value!r} must be a name. `mindie-cache presets` lists what exists.")
        if self.sigma_shift is not None:
            real("sigma_shift", self.sigma_shift, 0.0, None)


def tupled(value: Any) -> Any:
    """Lists as tuples, at every depth: options are values that can be compared and hashed."""
    return tuple([tupled(item) for item in value]) if isinstance(value, list | tuple) else value


def estimate(config: CacheConfig) -> dict[str, Any]:
    """The parts of a recipe that follow from the common options."""
    return {"predictor": config.options.predictor(), "placement": PLACEMENTS[config.placement]()}


def block_range(config: CacheConfig) -> BlockRange:
    return BlockRange(config.block_start, min(config.block_end, config.blocks_count))
