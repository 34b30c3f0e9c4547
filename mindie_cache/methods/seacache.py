"""SeaCache: seacache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mindie_cache.checks import numbers, real, whole
from mindie_cache.errors import ConfigError
from mindie_cache.methods.base import NO_END, LimitOptions, Recipe, block_range, estimate
from mindie_cache.methods.signals import MODULATED, signal_tap
from mindie_cache.policies import SeaCache
from mindie_cache.sites import EachCall
from mindie_cache.streams import BlockStreams, WholeOutput
from mindie_cache.taps import ModelInput

if TYPE_CHECKING:
    from mindie_cache.config import CacheConfig

LATENTS = "latents"


@dataclass(frozen=True, kw_only=True)
class SeaCacheOptions(LimitOptions):
    """Options of `seacache`.

    Args:
        threshold: of the accumulated change, 0.2 by default.
        signal: "modulated": the first block's input after its norm and modulation; or the keyword of the block's call whose
            tokens are watched; or "latents": around the whole forward, whose input has its grid in its shape.
        grid: (frames, height, width) of the tokens, or (height, width): the latents' sizes divided by the patch size.
        sigmas: noise level of each step, from 1 down; by default evenly spaced, then shifted.
        sigma_shift: of your scheduler: sigma = shift e / (1 + (shift - 1) e) of the even e. 1 by default: not shifted.
        spectral_exponent: the power of the content falls with this power of frequency (published: 3 for videos).
    """

    threshold: float = 0.2
    signal: str = MODULATED
    grid: tuple[int, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    sigma_shift: float | None = None
    spectral_exponent: float = 3.0

    def check(self, config: CacheConfig) -> None:
        super().check(config)
        real("threshold", self.threshold, 0.0, None)
        real("spectral_exponent", self.spectral_exponent, 0.0, None)
        if not isinstance(self.signal, str) or not self.signal:
            raise ConfigError(
                f"signal={self.signal!r} must name a keyword of the block's call, or be {MODULATED!r} or {LATENTS!r}."
            )
        if self.signal == LATENTS:
            self._check_whole_forward(config)
        else:
            self._check_grid()
        self._check_sigmas(config.steps_count)

    def _check_grid(self) -> None:
        if self.grid is None:
            raise ConfigError(
                f"signal={self.signal!r} are tokens, and they are filtered on their grid: set grid to the latents' (frames, "
                f"height, width) divided by the patch size, e.g. [21, 30, 52]. Or use signal={LATENTS!r} around the whole "
                "forward."
            )
        if not isinstance(self.grid, tuple | list) or not self.grid:
            raise ConfigError(f"grid={self.grid!r} must be (frames, height, width) or (height, width), e.g. [21, 30, 52].")
        for size in self.grid:
            whole("grid", size, 1)

    def _check_whole_forward(self, config: CacheConfig) -> None:
        if config.blocks_count != 1 or (config.block_start, config.block_end) != (0, NO_END):
            raise ConfigError(
                f"signal={LATENTS!r} skips whole forwards: set blocks_count=1, leave block_start and block_end at their "
                "defaults, and call agent.apply(transformer, hidden_states=latents, ...). Or watch tokens: signal="
                f"{MODULATED!r} with a grid."
            )
        for name, value in (("grid", self.grid), ("streams", config.streams)):
            if value is not None:
                raise ConfigError(f"{name} has no effect on signal={LATENTS!r}: the latents' shape tells. Leave it out.")

    def _check_sigmas(self, steps_count: int) -> None:
        if self.sigma_shift is not None:
            real("sigma_shift", self.sigma_shift, 0.0, None)
            if self.sigma_shift == 0:
                raise ConfigError("sigma_shift=0 leaves no noise in any step. Use a number above 0; 1 does not shift.")
        if self.sigmas is None:
            return
        if self.sigma_shift is not None:
            raise ConfigError("sigmas and sigma_shift are both set, but sigmas are final. Leave one of them out.")
        numbers("sigmas", self.sigmas)
        if len(self.sigmas) != steps_count:
            raise ConfigError(f"sigmas has {len(self.sigmas)} entries, but steps_count={steps_count}. Give one a step.")
        for step, sigma in enumerate(self.sigmas):
            real(f"sigmas[{step}]", sigma, 0.0, 1.0)

    def levels(self, steps_count: int) -> tuple[float, ...]:
        """The noise level of each step."""
        shift = self.sigma_shift or 1.0
        even = [1 - step / steps_count for step in range(steps_count)]
        return self.sigmas or tuple([shift * e / (1 + (shift - 1) * e) for e in even])


def seacache(config: CacheConfig) -> Recipe:
    options = config.options
    assert isinstance(options, SeaCacheOptions)
    forward = options.signal == LATENTS
    policy = SeaCache(
        limits=options.limits(config),
        threshold=options.threshold,
        sigmas=options.levels(config.steps_count),
        exponent=options.spectral_exponent,
        grid=None if options.grid is None else tuple(options.grid),
        shared=options.together,
        sync=options.sync,
    )
    return Recipe(
        site=EachCall(0, 1) if forward else block_range(config),
        policy=policy,
        streams=WholeOutput() if forward else BlockStreams(config.streams),
        signal=ModelInput() if forward else signal_tap(options.signal),
        unit="forward" if forward else "block",
        **estimate(config),
    )
