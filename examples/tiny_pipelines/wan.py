"""Wan: 2.1 from text, 2.1 from an image, and 2.2 with an expert for each half of the noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import parts
from .entries import entry

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, WanTransformer3DModel

CHANNELS = 16
PICTURE_DIM = 32
PICTURE_SIZE = 32  # what the image encoder sees


def transformer(seed: int = 0, **config: Any) -> WanTransformer3DModel:
    from diffusers import WanTransformer3DModel

    shape = dict(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=parts.TEXT_DIM,
        freq_dim=32,
        ffn_dim=128,
        num_layers=4,
        rope_max_seq_len=64,
    )
    return parts.seeded(lambda: WanTransformer3DModel(**(shape | config)), seed)


def components(flow_shift: float = 3.0) -> dict[str, Any]:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    text = UMT5Config(vocab_size=len(parts.LETTERS) + 4, d_model=parts.TEXT_DIM, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return dict(
        tokenizer=parts.t5_tokenizer(),
        text_encoder=parts.seeded(lambda: UMT5EncoderModel(text), seed=1),
        vae=parts.seeded(
            lambda: AutoencoderKLWan(base_dim=4, z_dim=CHANNELS, dim_mult=[1, 1, 2, 2], num_res_blocks=1), seed=3, gain=1.0
        ),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift),
    )


def build() -> DiffusionPipeline:
    from diffusers import WanPipeline

    return WanPipeline(**components(), transformer=transformer())


def build_two_experts() -> DiffusionPipeline:
    """`transformer` denoises above half of the noise, `transformer_2` below; with this shift, each half of the steps."""
    from diffusers import WanPipeline

    experts = dict(transformer=transformer(), transformer_2=transformer(seed=5))
    return WanPipeline(**components(flow_shift=0.9), **experts, boundary_ratio=0.5)


def build_image() -> DiffusionPipeline:
    from diffusers import WanImageToVideoPipeline
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    vision = CLIPVisionConfig(
        hidden_size=PICTURE_DIM,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=PICTURE_SIZE,
        patch_size=8,
    )
    size = {"height": PICTURE_SIZE, "width": PICTURE_SIZE}
    return WanImageToVideoPipeline(
        **components(),
        image_encoder=parts.seeded(lambda: CLIPVisionModel(vision), seed=4),
        image_processor=CLIPImageProcessor(size={"shortest_edge": PICTURE_SIZE}, crop_size=size),
        transformer=transformer(
            in_channels=2 * CHANNELS + 4,  # the latents, the latents of the picture, and which frames it fills
            image_dim=PICTURE_DIM,
            added_kv_proj_dim=64,
        ),
    )


def arguments(**more: Any) -> dict[str, Any]:
    """Two forwards a step, the second with the negative prompt."""
    shape = dict(height=64, width=64, num_frames=9, max_sequence_length=parts.TEXT_LENGTH)
    return dict(negative_prompt="blurry", guidance_scale=5.0, **shape, **more)


def two_experts_arguments() -> dict[str, Any]:
    return arguments(guidance_scale_2=3.0)


def image_arguments() -> dict[str, Any]:
    return arguments(image=parts.picture())


ENTRIES = (
    entry("wan", build, arguments),
    entry("wan22", build_two_experts, two_experts_arguments),
    entry("wan-i2v", build_image, image_arguments),
)
