"""LTX-Video."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import parts
from .entries import entry

if TYPE_CHECKING:
    from diffusers import AutoencoderKLLTXVideo, DiffusionPipeline

CHANNELS = 16


def vae() -> AutoencoderKLLTXVideo:
    """Eight times smaller in each direction and four times in time."""
    from diffusers import AutoencoderKLLTXVideo

    widths, scaling = (8, 8, 8), (True, True, False)
    return parts.seeded(
        lambda: AutoencoderKLLTXVideo(
            latent_channels=CHANNELS,
            block_out_channels=widths,
            decoder_block_out_channels=widths,
            down_block_types=("LTXVideoDownBlock3D",) * 3,
            layers_per_block=(1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1),
            spatio_temporal_scaling=scaling,
            decoder_spatio_temporal_scaling=scaling,
            decoder_inject_noise=(False,) * 4,
            downsample_type=("conv",) * 3,
            upsample_residual=(False,) * 3,
            upsample_factor=(1,) * 3,
            patch_size=2,
        ),
        seed=3,
        gain=1.0,
    )


def build() -> DiffusionPipeline:
    import diffusers

    return diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, shift_terminal=0.1
        ),
        vae=vae(),
        text_encoder=parts.t5_encoder(),
        tokenizer=parts.t5_tokenizer(),
        transformer=parts.seeded(
            lambda: diffusers.LTXVideoTransformer3DModel(
                in_channels=CHANNELS,
                out_channels=CHANNELS,
                num_attention_heads=4,
                attention_head_dim=16,
                cross_attention_dim=64,
                num_layers=4,
                caption_channels=parts.TEXT_DIM,
            )
        ),
    )


def arguments() -> dict[str, Any]:
    """One forward a step, of a batch in which the negative prompt comes first."""
    shape = dict(height=64, width=64, num_frames=9, max_sequence_length=parts.TEXT_LENGTH)
    return dict(negative_prompt="blurry", guidance_scale=3.0, **shape)


ENTRIES = (entry("ltx", build, arguments),)
