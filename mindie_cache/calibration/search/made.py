"""One generation as a value: latents, frames, times; and how results of pipelines and users become one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from mindie_cache.device import synchronize
from mindie_cache.errors import CacheError, ConfigError


@dataclass(frozen=True)
class Made:
    """One generation, on the CPU.

    Args:
        latents: before decoding; None if the target cannot give them beside frames.
        frames: `(batch, frames, height, width, 3)` in [0, 1], if they were asked for.
        seconds: of the generation, from its first step.
        trace: the latents before each step, of targets that can go on from them.
        step_seconds: of each step.
    """

    latents: Tensor | None
    frames: Tensor | None
    seconds: float
    trace: tuple[Tensor, ...] = ()
    step_seconds: tuple[float, ...] = ()


def timed(device: torch.device, function: Callable[[], Any], title: str) -> tuple[Any, float]:
    try:
        with torch.no_grad():
            synchronize(device)
            begin = perf_counter()
            result = function()
            synchronize(device)
            return result, perf_counter() - begin
    except CacheError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{title} refuses its arguments: {error}") from error


def fact(value: Any) -> Any:
    """What tells an argument of a call from another one: plain values themselves, pictures and tensors by their content."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [fact(one) for one in value]
    if isinstance(value, Mapping):
        return {str(name): fact(one) for name, one in value.items()}
    if isinstance(value, Tensor):
        value = value.detach().cpu().float().numpy()
    content = value.tobytes() if hasattr(value, "tobytes") else b""
    return f"{type(value).__name__} {hashlib.sha256(content).hexdigest()[:16]}" if content else type(value).__name__


def keeper(last: list[Tensor]) -> Callable[..., dict[str, Any]]:
    def keep(pipe: Any, step: int, timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
        last[:] = [kept["latents"].detach().float().cpu()]
        return {}

    return keep


def as_latents(value: Any, title: str) -> Tensor:
    if isinstance(value, list) and value and all(isinstance(one, Tensor) for one in value):
        value = torch.stack(value)
    if not isinstance(value, Tensor):
        raise ConfigError(f"{title} gave {type(value).__name__} instead of latents. Return one tensor.")
    return value.detach().float().cpu()


def as_frames(value: Any) -> Tensor:
    """`(batch, frames, height, width, 3)` from arrays of pictures `(batch, height, width, 3)` or videos."""
    found = value if isinstance(value, Tensor) else torch.as_tensor(value)
    found = found.detach().float().cpu()
    return found.unsqueeze(1) if found.dim() == 4 else found
