"""LightX2V's block caches: first_block, dual_block, dynamic_block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mindie_cache.checks import choice, flag, real, whole
from mindie_cache.errors import ConfigError
from mindie_cache.methods.base import NO_END, LimitOptions, Recipe, block_range, estimate
from mindie_cache.policies import DynamicBlock, ResidualChange
from mindie_cache.sites import BlockRange, EachBlock
from mindie_cache.streams import BlockStreams
from mindie_cache.taps import FrontResidual, ModelInput

if TYPE_CHECKING:
    from mindie_cache.config import CacheConfig

COMPARISONS = ("computed", "previous")


@dataclass(frozen=True, kw_only=True)
class FirstBlockOptions(LimitOptions):
    """Options of `first_block`: the first block is computed in every step, and what it adds decides about the others.

    The range of the others is [block_start, block_end); `block_start` is 1 if it is left at 0.

    Args:
        threshold: of the relative change of what the first blocks add.
        downsample: look at every so many-th channel.
        compare: with the last "computed" step, which bounds the drift, or with the "previous" one, as LightX2V does.
    """

    threshold: float = 0.02
    downsample: int = 2
    compare: str = "computed"

    def check(self, config: CacheConfig) -> None:
        super().check(config)
        real("threshold", self.threshold, 0.0, None)
        whole("downsample", self.downsample, 1)
        choice("compare", self.compare, COMPARISONS)
        front, stop = self.range(config)
        if front >= stop:
            raise ConfigError(
                f"blocks_count={config.blocks_count} leaves no block to skip between the first {front} and "
                f"block_end={stop}. {config.method} needs more blocks, or another block_start and block_end."
            )

    def range(self, config: CacheConfig) -> tuple[int, int]:
        """Half-open range of the blocks that are skipped."""
        return config.block_start or 1, min(config.block_end, config.blocks_count)


@dataclass(frozen=True, kw_only=True)
class DualBlockOptions(FirstBlockOptions):
    """Options of `dual_block`: some blocks at both ends are computed in every step, 5 if block_start and block_end are
    left at their defaults."""

    threshold: float = 0.03

    def range(self, config: CacheConfig) -> tuple[int, int]:
        stop = config.blocks_count - 5 if config.block_end == NO_END else config.block_end
        return config.block_start or 5, stop


def first_block(config: CacheConfig) -> Recipe:
    options = config.options
    assert isinstance(options, FirstBlockOptions)
    policy = ResidualChange(
        limits=options.limits(config),
        threshold=options.threshold,
        downsample=options.downsample,
        compare=options.compare,
        shared=options.together,
        sync=options.sync,
    )
    return Recipe(
        site=BlockRange(*options.range(config)),
        policy=policy,
        streams=BlockStreams(config.streams),
        signal=FrontResidual(),
        unit="block",
        **estimate(config),
    )


@dataclass(frozen=True, kw_only=True)
class DynamicBlockOptions(LimitOptions):
    """Options of `dynamic_block`: each block decides by the change of its own input.

    Args:
        threshold: of the relative change since the block's last computed step.
        downsample: look at every so many-th channel.
        parity: LightX2V's rule, which looks at this step's change only and stops the device before every block.
    """

    threshold: float = 0.003
    downsample: int = 2
    parity: bool = False

    def check(self, config: CacheConfig) -> None:
        super().check(config)
        real("threshold", self.threshold, 0.0, None)
        whole("downsample", self.downsample, 1)
        flag("parity", self.parity)
        if self.parity and self.sync == "lagged":
            raise ConfigError("parity=True looks at this step's change before every block. Unset parity, or set sync='now'.")


def dynamic_block(config: CacheConfig) -> Recipe:
    options = config.options
    assert isinstance(options, DynamicBlockOptions)
    policy = DynamicBlock(
        limits=options.limits(config),
        threshold=options.threshold,
        downsample=options.downsample,
        parity=options.parity,
        sync=options.sync,
    )
    calls = block_range(config)
    return Recipe(
        site=EachBlock(calls.start, calls.stop),
        policy=policy,
        streams=BlockStreams(config.streams),
        signal=ModelInput(),
        unit="block",
        **estimate(config),
    )
