"""Pipelines of diffusers with small random components, which run end to end on a CPU in about a second.

Scheduler, VAE, text encoder, transformer and pipeline are those of the family; only the sizes are small and the weights
random, so the pictures show nothing. diffusers and transformers are imported when a pipeline is built, not before.

    from tiny_pipelines import TINY, generate

    pipe = TINY["flux"].build()
    images = generate("flux", pipe, steps=6, seed=0, prompt="a red ball")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from . import cogvideox, flux, hunyuan_video, ltx, pixart, qwen_image, stable_diffusion_3, wan, z_image
from .entries import TinyPipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["TINY", "TinyPipeline", "generate"]

FAMILIES = (flux, wan, qwen_image, hunyuan_video, cogvideox, stable_diffusion_3, ltx, z_image, pixart)
TINY: dict[str, TinyPipeline] = {entry.name: entry for family in FAMILIES for entry in family.ENTRIES}


def generate(name_or_entry: str | TinyPipeline, pipe: DiffusionPipeline, **call_options: Any) -> torch.Tensor:
    """Run `pipe` once; images (B, C, H, W) or videos (B, F, C, H, W) in [0, 1]. Options: see `TinyPipeline.call`."""
    tiny = TINY[name_or_entry] if isinstance(name_or_entry, str) else name_or_entry
    return pipe(**tiny.call(**call_options))[0].float()
