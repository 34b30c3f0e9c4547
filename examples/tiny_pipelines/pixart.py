"""PixArt-Sigma, a pipeline that names no context for its transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import parts
from .entries import entry

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CHANNELS = 4


def build() -> DiffusionPipeline:
    import diffusers

    return diffusers.PixArtSigmaPipeline(
        tokenizer=parts.t5_tokenizer(),
        text_encoder=parts.t5_encoder(),
        vae=parts.image_vae(CHANNELS, scaling_factor=0.13),
        transformer=parts.seeded(
            lambda: diffusers.PixArtTransformer2DModel(
                num_attention_heads=4,
                attention_head_dim=16,
                in_channels=CHANNELS,
                out_channels=2 * CHANNELS,  # the second half would be a variance, which the pipeline drops
                num_layers=4,
                cross_attention_dim=64,
                sample_size=16,
                caption_channels=parts.TEXT_DIM,
                use_additional_conditions=False,
            )
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
    )


def arguments() -> dict[str, Any]:
    """One forward a step, of a batch in which the negative prompt comes first."""
    shape = dict(height=64, width=64, use_resolution_binning=False, max_sequence_length=parts.TEXT_LENGTH)
    return dict(negative_prompt="blurry", guidance_scale=4.5, clean_caption=False, **shape)


ENTRIES = (entry("pixart-sigma", build, arguments),)
