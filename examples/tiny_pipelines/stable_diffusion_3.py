"""Stable Diffusion 3.5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import parts
from .entries import entry

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CHANNELS = 16


def build() -> DiffusionPipeline:
    import diffusers

    return diffusers.StableDiffusion3Pipeline(
        transformer=parts.seeded(
            lambda: diffusers.SD3Transformer2DModel(
                sample_size=16,
                in_channels=CHANNELS,
                out_channels=CHANNELS,
                num_layers=4,
                attention_head_dim=16,
                num_attention_heads=4,
                joint_attention_dim=2 * parts.TEXT_DIM,
                caption_projection_dim=64,
                pooled_projection_dim=2 * parts.TEXT_DIM,  # of both CLIP encoders
                pos_embed_max_size=16,
                dual_attention_layers=(0, 1),
                qk_norm="rms_norm",
            )
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=parts.image_vae(
            CHANNELS, scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=parts.clip_encoder(seed=2, projection=parts.TEXT_DIM),
        tokenizer=parts.clip_tokenizer(),
        text_encoder_2=parts.clip_encoder(seed=4, projection=parts.TEXT_DIM),
        tokenizer_2=parts.clip_tokenizer(),
        text_encoder_3=parts.t5_encoder(width=2 * parts.TEXT_DIM),
        tokenizer_3=parts.t5_tokenizer(),
    )


def arguments() -> dict[str, Any]:
    """One forward a step, of a batch in which the negative prompt comes first."""
    shape = dict(height=64, width=64, max_sequence_length=parts.TEXT_LENGTH)
    return dict(negative_prompt="blurry", guidance_scale=5.0, **shape)


ENTRIES = (entry("sd3", build, arguments),)
