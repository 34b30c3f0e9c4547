"""Pyramid Attention Broadcast: pab."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mindie_cache.checks import choice, numbers, whole
from mindie_cache.errors import ConfigError
from mindie_cache.methods.base import PresetOptions, Recipe, block_range, estimate
from mindie_cache.policies import Schedule
from mindie_cache.sites import EachCall
from mindie_cache.streams import WholeOutput

if TYPE_CHECKING:
    from mindie_cache.config import CacheConfig

KINDS = ("attention", "mlp")


@dataclass(frozen=True, kw_only=True)
class PabOptions(PresetOptions):
    """Options of `pab`, for one kind of attention: spatial, temporal and cross attention have an agent each.

    Args:
        broadcast: one attention output serves this many steps, 2 by default.
        window: only at timesteps between these two, (100, 850) by default.
        timesteps: of your run, one a step, from 1000 down; by default evenly spaced.
        kind: "attention", or "mlp" for feed-forward networks, whose outputs are reused after listed timesteps only.
        mlp_timesteps: computed there (at the nearest step), and reused in the `mlp_skip_count` steps that follow.
        mlp_skip_count: 2 by default.
        mlp_blocks: calls that are cached, all by default.
        final_steps: the last steps, always computed.
    """

    broadcast: int | None = None
    window: tuple[float, float] | None = None
    timesteps: tuple[float, ...] | None = None
    kind: str | None = None
    mlp_timesteps: tuple[float, ...] | None = None
    mlp_skip_count: int | None = None
    mlp_blocks: tuple[int, ...] | None = None
    final_steps: int = 1
    defaults: ClassVar[dict[str, Any]] = {
        "broadcast": 2,
        "window": (100, 850),
        "kind": "attention",
        "mlp_timesteps": None,
        "mlp_skip_count": 2,
        "mlp_blocks": None,
    }
    preset_method: ClassVar[str] = "pab"

    def check(self, config: CacheConfig) -> None:
        self.check_preset()
        full, _ = self.resolved(config)
        super(PabOptions, full).check(config)
        whole("broadcast", full.broadcast, 2)
        whole("final_steps", full.final_steps, 0)
        _check_range("window", full.window)
        if full.timesteps is not None:
            numbers("timesteps", full.timesteps)
            _check_timesteps(full.timesteps, config.steps_count)
        choice("kind", full.kind, KINDS)
        unused = ("broadcast",) if full.kind == "mlp" else ("mlp_timesteps", "mlp_skip_count", "mlp_blocks")
        for name in unused:
            if getattr(self, name) is not None:
                raise ConfigError(f"{name} has no effect on kind={full.kind!r}. Leave it out, or use another agent for it.")
        if full.kind == "mlp":
            _check_mlp(full, config)

    def times(self, steps_count: int) -> tuple[float, ...]:
        return self.timesteps or tuple([1000 * (steps_count - step) / steps_count for step in range(steps_count)])

    def reused_steps(self, steps_count: int) -> set[int]:
        """Only for `resolved` options."""
        assert self.window is not None
        times, (low, high) = self.times(steps_count), self.window
        inside = [step for step in range(steps_count) if low < times[step] < high]
        if self.kind == "mlp":
            return self._after_listed(times) & set(inside)
        return {step for step in inside[1:] if step % (self.broadcast or 1)}  # nothing from outside the window is reused

    def _after_listed(self, times: tuple[float, ...]) -> set[int]:
        assert self.mlp_timesteps is not None
        starts = {min(range(len(times)), key=lambda step: abs(times[step] - listed)) for listed in self.mlp_timesteps}
        return {start + after for start in starts for after in range(1, 1 + (self.mlp_skip_count or 0))} - starts


def pab(config: CacheConfig) -> Recipe:
    options, notes = config.options.resolved(config)
    steps, calls = config.steps_count, block_range(config)
    reused = options.reused_steps(steps)
    policy = Schedule(
        frozenset(range(steps)) - reused,
        steps,
        final_steps=options.final_steps,
        keep_from=min(reused, default=1) - 1,
        reason="broadcast",
    )
    mlp = options.kind == "mlp"
    only = frozenset(options.mlp_blocks) if mlp and options.mlp_blocks is not None else None
    return Recipe(
        site=EachCall(calls.start, calls.stop, only),
        policy=policy,
        streams=WholeOutput(),
        unit="feed-forward call" if mlp else "attention call",
        notes=notes,
        **estimate(config),
    )


def _check_range(name: str, value: Any) -> None:
    numbers(name, value, 2)
    if len(value) != 2 or value[0] >= value[1]:
        raise ConfigError(f"{name}={tuple(value)} must be (low, high) with low < high, e.g. [100, 850].")


def _check_timesteps(timesteps: tuple[float, ...], steps_count: int) -> None:
    if len(timesteps) != steps_count:
        raise ConfigError(f"timesteps has {len(timesteps)} entries, but steps_count={steps_count}. Give one a step.")
    for step in range(1, steps_count):
        if timesteps[step] > timesteps[step - 1]:
            raise ConfigError(
                f"timesteps[{step}]={timesteps[step]} is above timesteps[{step - 1}]={timesteps[step - 1]}. Give them in "
                "sampling order, from 1000 down."
            )


def _check_mlp(options: PabOptions, config: CacheConfig) -> None:
    if options.mlp_timesteps is None:
        raise ConfigError("kind='mlp' needs mlp_timesteps, after which outputs are reused. Set it, or a preset '...@mlp'.")
    numbers("mlp_timesteps", options.mlp_timesteps)
    whole("mlp_skip_count", options.mlp_skip_count, 1)
    times = options.times(config.steps_count)
    assert options.window is not None
    low, high = max(options.window[0], min(times)), min(options.window[1], max(times))
    for listed in options.mlp_timesteps:
        if not low <= listed <= high:
            raise ConfigError(
                f"mlp_timesteps holds {listed}, where nothing can be reused: the window is {tuple(options.window)}, and "
                f"your timesteps run from {max(times):g} to {min(times):g}. Use timesteps from {low:g} to {high:g}."
            )
    for block in options.mlp_blocks or ():
        whole("mlp_blocks", block, 0, config.blocks_count - 1)
