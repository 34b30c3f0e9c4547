"""Tiny random transformers: one entry, or several, for every denoising transformer class of diffusers.

`ZOO` holds the entries. `NOT_DENOISERS` names the classes of `diffusers.models.transformers` that have none, and says why.
"""

from __future__ import annotations

from . import audio, cog, cosmos, flux, hunyuan, image, pixart, qwen, video, wan
from .core import Entry

__all__ = ["NOT_DENOISERS", "ZOO", "Entry"]

_FAMILIES = (flux, qwen, image, pixart, hunyuan, wan, cog, cosmos, video, audio)

ZOO: tuple[Entry, ...] = tuple(entry for family in _FAMILIES for entry in family.ENTRIES)

NOT_DENOISERS: dict[str, str] = {
    "PriorTransformer": "predicts one CLIP image embedding from a text embedding; there are no image latents to denoise",
    "MiniMaxMusic3RVQDepthDecoder": "autoregressive decoder over the codebooks of one audio frame; it has no timestep",
    "TransformerTemporalModel": "a motion module inside the blocks of a U-Net, called many times in each step",
    "DreamLiteTransformer2DModel": "an attention module inside the blocks of a U-Net, called many times in each step",
    "DualTransformer2DModel": "two attention modules side by side inside the blocks of a U-Net, not exported by diffusers",
    "TransformerSpatioTemporalModel": "an attention module inside the blocks of a video U-Net, not exported by diffusers",
}
