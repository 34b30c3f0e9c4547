"""Methods that watch a signal and need no schedule: teacache, custom, adacache, easycache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mindie_cache.checks import flag, numbers, real, whole
from mindie_cache.errors import ConfigError
from mindie_cache.methods.base import LimitOptions, PresetOptions, Recipe, block_range, estimate
from mindie_cache.policies import AdaCache, EasyCache, Motion, TeaCache
from mindie_cache.sites import EachCall
from mindie_cache.streams import BlockStreams, WholeOutput
from mindie_cache.taps import Argument, ModelInput, ModulatedInput, Probe, Tap

if TYPE_CHECKING:
    from mindie_cache.config import CacheConfig

MODULATED = "modulated"


@dataclass(frozen=True, kw_only=True)
class TeaCacheOptions(PresetOptions, LimitOptions):
    """Options of `teacache`.

    Args:
        threshold: of the accumulated change, 0.15 by default.
        coefficients: of the polynomial from the change of the signal to that of the output, the highest power first. By
            default the change itself: (1, 0).
        signal: keyword of the block's call that is watched ("temb" by default), or "modulated": the first block's input
            after its norm and modulation.
    """

    threshold: float | None = None
    coefficients: tuple[float, ...] | None = None
    signal: str | None = None
    warmup_steps: int | None = None  # type: ignore[assignment]
    final_steps: int | None = None  # type: ignore[assignment]
    defaults: ClassVar[dict[str, Any]] = {
        "threshold": 0.15,
        "coefficients": (1.0, 0.0),
        "signal": "temb",
        "warmup_steps": 1,
        "final_steps": 1,
    }
    preset_method: ClassVar[str] = "teacache"

    def check(self, config: CacheConfig) -> None:
        self.check_preset()
        full, _ = self.resolved(config)
        super(TeaCacheOptions, full).check(config)
        real("threshold", full.threshold, 0.0, None)
        numbers("coefficients", full.coefficients)
        if not isinstance(full.signal, str) or not full.signal:
            raise ConfigError(f"signal={full.signal!r} must name a keyword of the block's call, or be {MODULATED!r}.")


@dataclass(frozen=True, kw_only=True)
class CustomOptions(TeaCacheOptions):
    """Options of `custom`, LightX2V's CustomCache: TeaCache's decision, and a line through two residuals."""

    order: int = 1


def signal_tap(signal: str) -> Tap:
    """Where `signal` is found: a keyword of the block's call, or "modulated"."""
    return ModulatedInput() if signal == MODULATED else Argument(signal)


def teacache(config: CacheConfig) -> Recipe:
    options, notes = config.options.resolved(config)
    policy = TeaCache(
        limits=options.limits(config),
        threshold=options.threshold,
        coefficients=options.coefficients,
        shared=options.together,
        sync=options.sync,
    )
    return Recipe(
        site=block_range(config),
        policy=policy,
        streams=BlockStreams(config.streams),
        signal=signal_tap(options.signal),
        unit="block",
        notes=notes,
        **estimate(config),
    )


@dataclass(frozen=True, kw_only=True)
class AdaCacheOptions(PresetOptions, LimitOptions):
    """Options of `adacache`.

    Args:
        codebook: pairs (change below, steps to the next computed step), ascending; LightX2V's by default.
        otherwise: steps to the next computed step for a larger change.
        probe: where to look, in the form of `mindie_cache.taps.Probe`: by default what arrives at the block's `norm2`,
            minus its input, which is the gated residual of its attention.
        probe_block: index of the block that is looked into, the middle one by default.
        motion: with motion regularisation (videos), for which `frame_tokens` is needed.
        frame_tokens: tokens of one latent frame: height times width of the latent grid after patches.
        motion_window, motion_scale, motion_power, motion_gradient: see `mindie_cache.policies.Motion`.

    `sync` changes nothing here: what decides was measured at the last computed step, so the host never waits for it.
    """

    codebook: tuple[tuple[float, int], ...] | None = None
    otherwise: int | None = None
    probe: str = "norm2"
    probe_block: int | None = None
    motion: bool = False
    frame_tokens: int | None = None
    motion_window: tuple[float, float] = (0.1, 0.9)
    motion_scale: float = 0.385
    motion_power: float = 8.0
    motion_gradient: float = 10.0
    max_skip_steps: int = 0  # the codebook is a limit
    defaults: ClassVar[dict[str, Any]] = {
        "codebook": ((0.03, 12), (0.05, 10), (0.07, 8), (0.09, 6), (0.11, 4)),
        "otherwise": 3,
    }
    preset_method: ClassVar[str] = "adacache"

    def check(self, config: CacheConfig) -> None:
        self.check_preset()
        full, _ = self.resolved(config)
        super(AdaCacheOptions, full).check(config)
        _check_codebook(full.codebook)
        whole("otherwise", full.otherwise, 1)
        flag("motion", self.motion)
        if not isinstance(self.probe, str):
            raise ConfigError(f"probe={self.probe!r} must name a submodule of the block, e.g. 'norm2' or 'attn.output'.")
        if self.probe_block is not None:
            whole("probe_block", self.probe_block, 0, config.blocks_count - 1)
        if self.motion and self.frame_tokens is None:
            raise ConfigError(
                "motion=True compares tokens one latent frame apart: set frame_tokens to the tokens of one latent frame, "
                "(latent height / patch) * (latent width / patch)."
            )
        if self.frame_tokens is not None:
            whole("frame_tokens", self.frame_tokens, 1)
        _check_window(self.motion_window)
        for name in ("motion_scale", "motion_power", "motion_gradient"):
            real(name, getattr(self, name), 0.0, None)


def _check_window(window: Any) -> None:
    numbers("motion_window", window, 2)
    if len(window) != 2 or not 0 <= window[0] <= window[1] <= 1:
        raise ConfigError(f"motion_window={tuple(window)} must be two shares of the run, (first, last), e.g. [0.1, 0.9].")


def _check_codebook(codebook: Any) -> None:
    if not isinstance(codebook, tuple | list) or not codebook:
        raise ConfigError(f"codebook={codebook!r} must be pairs (change below, steps), e.g. [[0.08, 6], [0.16, 5]].")
    for pair in codebook:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ConfigError(f"codebook: {pair!r} must be a pair (change below, steps), e.g. [0.08, 6].")
        real("codebook change", pair[0], 0.0, None)
        whole("codebook steps", pair[1], 1)
    if [pair[0] for pair in codebook] != sorted(pair[0] for pair in codebook):
        raise ConfigError("codebook: the changes must ascend, because the first one that is not reached counts.")


def adacache(config: CacheConfig) -> Recipe:
    options, notes = config.options.resolved(config)
    motion = None
    if options.motion:
        motion = Motion(
            frame_tokens=options.frame_tokens,
            window=(options.motion_window[0], options.motion_window[1]),
            scale=options.motion_scale,
            power=options.motion_power,
            gradient=options.motion_gradient,
        )
    policy = AdaCache(
        limits=options.limits(config),
        codebook=options.codebook,
        otherwise=options.otherwise,
        motion=motion,
        shared=options.together,
    )
    block = config.blocks_count // 2 if options.probe_block is None else options.probe_block
    return Recipe(
        site=block_range(config),
        policy=policy,
        streams=BlockStreams(config.streams),
        probe=Probe(block, options.probe),
        unit="block",
        notes=notes,
        **estimate(config),
    )


@dataclass(frozen=True, kw_only=True)
class EasyCacheOptions(LimitOptions):
    """Options of `easycache`.

    Args:
        threshold: of the accumulated predicted change (published: 0.05 for Wan, 0.025 for HunyuanVideo).
        warmup_steps: 10 by default (published: 10 for Wan, 5 for HunyuanVideo).
        residual: add the kept difference of output and input to the new input, as published; False keeps the output. By
            default the difference, or the output where its shape is another than that of the input.
    """

    threshold: float = 0.05
    warmup_steps: int = 10
    residual: bool | None = None

    def check(self, config: CacheConfig) -> None:
        super().check(config)
        real("threshold", self.threshold, 0.0, None)
        if self.residual is not None:
            flag("residual", self.residual)


def easycache(config: CacheConfig) -> Recipe:
    options = config.options
    assert isinstance(options, EasyCacheOptions)
    policy = EasyCache(
        limits=options.limits(config), threshold=options.threshold, shared=options.together, sync=options.sync
    )
    return Recipe(
        site=EachCall(0, 1),
        policy=policy,
        streams=WholeOutput(),
        signal=ModelInput(),
        probe=Probe(0),
        residual=options.residual,
        unit="forward",
        **estimate(config),
    )
