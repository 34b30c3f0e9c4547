"""One generation as a value: latents, frames, times; and how results of pipelines and users become one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from mindie_cache.device import synchronize
from mindie_cache.errors import CacheError, ConfigError, ModelExecError

_SAMPLE = 8  # numbers of each weight


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
    except torch.OutOfMemoryError as error:
        raise ModelExecError(f"{title} ran out of memory: {error}") from error


@contextmanager
def called(title: str) -> Iterator[None]:
    """What a pipeline says of arguments that it does not like, in one line."""
    try:
        yield
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
    """`(batch, frames, height, width, 3)` from arrays of pictures `(batch, height, width, 3)` or videos.

    Raises:
        ConfigError: they have another shape, or are not in [0, 1].
    """
    found = value if isinstance(value, Tensor) else torch.as_tensor(value)
    found = found.detach().float().cpu()
    found = found.unsqueeze(1) if found.dim() == 4 else found
    if found.dim() != 5 or found.shape[-1] != 3:
        raise ConfigError(
            f"frames have the shape {tuple(found.shape)}. Give (batch, frames, height, width, 3), or (batch, height, width, "
            "3)."
        )
    if not -0.01 <= float(found.nan_to_num().min()) <= float(found.nan_to_num().max()) <= 1.01:
        raise ConfigError(f"frames go from {float(found.min()):g} to {float(found.max()):g}. Give numbers from 0 to 1.")
    return found


def fingerprint(subject: Any) -> str:
    """Of the models in a pipeline, or of one: classes, shapes, dtypes and the first numbers of every weight, so that another
    checkpoint, dtype or adapter is told apart without reading all of it. And of the pipeline's scheduler."""
    models = {"": subject} if isinstance(subject, nn.Module) else vars(subject)
    found = hashlib.sha256()
    for name, model in sorted(models.items()):
        if not isinstance(model, nn.Module):
            continue
        found.update(f"{name} {type(model).__name__}".encode())
        for key, weight in model.state_dict().items():
            found.update(f"{key} {tuple(weight.shape)} {weight.dtype}".encode())
            if weight.device.type != "meta":
                found.update(weight.detach().flatten()[:_SAMPLE].float().cpu().numpy().tobytes())
    scheduler = getattr(subject, "scheduler", None)
    found.update(f"{type(scheduler).__name__} {sorted(dict(getattr(scheduler, 'config', {})).items(), key=str)}".encode())
    return found.hexdigest()[:16]
