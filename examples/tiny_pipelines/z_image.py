"""Z-Image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import parts
from .entries import entry

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CHANNELS = 16
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build() -> DiffusionPipeline:
    import diffusers
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = parts.byte_tokenizer(("<|im_start|>", "<|im_end|>"), chat_template=CHAT)
    text = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=parts.TEXT_DIM,
        intermediate_size=64,
        num_hidden_layers=3,  # the pipeline takes the output of the last but one
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
    )
    return diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=parts.image_vae(
            CHANNELS, scaling_factor=0.36, shift_factor=0.12, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=parts.seeded(lambda: Qwen3Model(text), seed=1),
        tokenizer=tokenizer,
        transformer=parts.seeded(
            lambda: diffusers.ZImageTransformer2DModel(
                in_channels=CHANNELS,
                dim=64,
                n_layers=4,
                n_refiner_layers=1,
                n_heads=4,
                n_kv_heads=4,
                cap_feat_dim=parts.TEXT_DIM,
                axes_dims=[4, 6, 6],
                axes_lens=[256, 64, 64],
            )
        ),
    )


def arguments() -> dict[str, Any]:
    """One forward a step, of lists in which the prompt comes first."""
    return dict(height=64, width=64, negative_prompt="blurry", guidance_scale=3.0, max_sequence_length=96)


ENTRIES = (entry("z-image", build, arguments),)
