"""CogVideoX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import parts
from .entries import entry

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CHANNELS = 16


def build() -> DiffusionPipeline:
    import diffusers

    return diffusers.CogVideoXPipeline(
        tokenizer=parts.t5_tokenizer(),
        text_encoder=parts.t5_encoder(),
        vae=parts.seeded(
            lambda: diffusers.AutoencoderKLCogVideoX(
                latent_channels=CHANNELS,
                block_out_channels=(4, 4, 8, 8),
                layers_per_block=1,
                norm_num_groups=2,
                sample_height=64,
                sample_width=64,
                scaling_factor=0.7,
            ),
            seed=3,
            gain=0.5,
        ),
        transformer=parts.seeded(
            lambda: diffusers.CogVideoXTransformer3DModel(
                num_attention_heads=4,
                attention_head_dim=16,
                in_channels=CHANNELS,
                out_channels=CHANNELS,
                time_embed_dim=32,
                text_embed_dim=parts.TEXT_DIM,
                num_layers=4,
                sample_width=8,
                sample_height=8,
                sample_frames=9,
                max_text_seq_length=parts.TEXT_LENGTH,
                use_rotary_positional_embeddings=True,
            )
        ),
        scheduler=diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=1.0, timestep_spacing="trailing"
        ),
    )


def arguments() -> dict[str, Any]:
    """One forward a step, of a batch in which the negative prompt comes first."""
    shape = dict(height=64, width=64, num_frames=9, max_sequence_length=parts.TEXT_LENGTH)
    return dict(negative_prompt="blurry", guidance_scale=6.0, **shape)


ENTRIES = (entry("cogvideox", build, arguments),)
