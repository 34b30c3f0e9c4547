"""What an entry of the collection is, and how its pipeline is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class TinyPipeline:
    """A pipeline of diffusers with small random components, and the arguments it is called with.

    `build()` gives the pipeline, the same weights every time. `call(steps=6, seed=0, prompt="a red ball", **changes)`
    gives the keyword arguments of one generation; `changes` replace or add arguments of the pipeline, for example
    `guidance_scale=1.0`.
    """

    name: str
    build: Callable[[], DiffusionPipeline]
    call: Callable[..., dict[str, Any]]


def entry(name: str, build: Callable[[], DiffusionPipeline], own: Callable[[], dict[str, Any]]) -> TinyPipeline:
    """The entry whose call has the arguments that all pipelines share, and the family's `own()`."""

    def quiet_build() -> DiffusionPipeline:
        pipe = build()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def call(steps: int = 6, seed: int = 0, prompt: str = "a red ball", **changes: Any) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        shared = dict(prompt=prompt, num_inference_steps=steps, generator=generator, output_type="pt")
        return {**shared, **own(), **changes}

    return TinyPipeline(name, quiet_build, call)
