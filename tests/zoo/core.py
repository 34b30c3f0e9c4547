"""What every family of the zoo uses: the entry itself, seeded tensors, and latents that move smoothly with the step."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .weights import randomize

Inputs = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """One tiny model of the zoo and the calls that its pipeline would make.

    `name` is the class name, plus "/variant" for a further entry of the same class. `build()` gives the model in
    float32 and evaluation mode, with random weights under a fixed seed. `inputs(batch, size, seed, step)` gives the
    keyword arguments of `forward`; `denoised` names the argument that holds the latents.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    denoised: str = "hidden_states"


def tiny(class_name: str, **config: Any) -> Callable[[], nn.Module]:
    """A builder of the diffusers class `class_name` with this configuration and random weights."""

    def build() -> nn.Module:
        import diffusers

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = getattr(diffusers, class_name)(**config)
        return randomize(model)

    return build


def entry(name: str, inputs: Inputs, denoised: str = "hidden_states", **config: Any) -> Entry:
    """An entry whose class is the part of `name` before the slash."""
    return Entry(name, tiny(name.split("/")[0], **config), inputs, denoised)


def normal(seed: int, name: str, *shape: int) -> Tensor:
    """Standard normal values that depend on the seed, the name and the shape only."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    return torch.randn(shape, generator=generator)


def whole(seed: int, name: str, high: int, *shape: int) -> Tensor:
    """Whole numbers in [0, high) that depend on the seed, the name and the shape only."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    return torch.randint(0, high, shape, generator=generator)


def moving(seed: int, step: float, *shape: int, name: str = "latents") -> Tensor:
    """Latents of unit variance that turn smoothly from one seeded point to another as `step` goes from 0 to 1."""
    start, end = normal(seed, f"{name} start", *shape), normal(seed, f"{name} end", *shape)
    return math.cos(step) * start + math.sin(step) * end


def fraction(step: float) -> float:
    """Noise level of a step: from 0.96 down to 0.06."""
    return 0.96 - 0.9 * step


def level(batch: int, step: float, scale: float = 1.0) -> Tensor:
    """The noise level of a step for each sample, as a floating point tensor between 0 and `scale`."""
    return torch.full((batch,), scale * fraction(step))


def clock(batch: int, step: float) -> Tensor:
    """The training timestep of a step for each sample, as whole numbers between 0 and 1000."""
    return torch.full((batch,), round(1000 * fraction(step)), dtype=torch.long)


def padded(batch: int, length: int, missing: int = 2) -> Tensor:
    """A text mask whose last `missing` tokens are padding in every second sample."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1::2, length - missing :] = 0
    return mask


def grid_ids(height: int, width: int, axes: int = 3, index: int = 0) -> Tensor:
    """Position ids of an image: (height * width, axes), the image index first, then row and column."""
    ids = torch.zeros(height, width, axes)
    ids[..., 0] = index
    ids[..., 1] += torch.arange(height)[:, None]
    ids[..., 2] += torch.arange(width)[None, :]
    return ids.reshape(height * width, axes)


def rope_table(tokens: int, dim: int, theta: float = 100.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines (tokens, dim) of a one-dimensional rotary embedding whose neighbours share a frequency."""
    rates = theta ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angles = torch.outer(torch.arange(tokens, dtype=torch.float32), rates).repeat_interleave(2, dim=1)
    return angles.cos(), angles.sin()
