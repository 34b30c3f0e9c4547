"""HunyuanVideo: from text, and from an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import parts
from .entries import entry

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, HunyuanVideoTransformer3DModel
    from transformers import LlamaConfig, PreTrainedTokenizerFast

CHANNELS = 16
HEADER = "<|start_header_id|>{role}<|end_header_id|>\n\n"
SPECIALS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>", "system", "user", "assistant", "\n\n")


def transformer(**config: Any) -> HunyuanVideoTransformer3DModel:
    from diffusers import HunyuanVideoTransformer3DModel

    shape = dict(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=4,
        attention_head_dim=16,
        num_layers=3,
        num_single_layers=4,
        num_refiner_layers=1,
        text_embed_dim=parts.TEXT_DIM,
        pooled_projection_dim=parts.TEXT_DIM,
        rope_axes_dim=(4, 6, 6),
    )
    return parts.seeded(lambda: HunyuanVideoTransformer3DModel(**(shape | config)))


def llama_tokenizer() -> PreTrainedTokenizerFast:
    from transformers import LlamaTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", "<pad>", "▁", *parts.LETTERS, *SPECIALS]
    return LlamaTokenizerFast(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=[],
        pad_token="<pad>",
        padding_side="right",
        extra_special_tokens=list(SPECIALS),
    )


def llama_config(vocab_size: int) -> LlamaConfig:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=parts.TEXT_DIM,
        intermediate_size=64,
        num_hidden_layers=4,  # the pipeline takes the output of the last but two
        num_attention_heads=4,
        max_position_embeddings=512,
        pad_token_id=3,
    )


def components() -> dict[str, Any]:
    from diffusers import AutoencoderKLHunyuanVideo, FlowMatchEulerDiscreteScheduler

    return dict(
        tokenizer=llama_tokenizer(),
        text_encoder_2=parts.clip_encoder(),
        tokenizer_2=parts.clip_tokenizer(),
        vae=parts.seeded(
            lambda: AutoencoderKLHunyuanVideo(
                latent_channels=CHANNELS, block_out_channels=(4, 4, 8, 8), layers_per_block=1, norm_num_groups=2
            ),
            seed=3,
            gain=1.0,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


def build() -> DiffusionPipeline:
    from diffusers import HunyuanVideoPipeline
    from transformers import LlamaModel

    rest = components()
    config = llama_config(len(rest["tokenizer"]))
    encoder = parts.seeded(lambda: LlamaModel(config), seed=1)
    return HunyuanVideoPipeline(text_encoder=encoder, transformer=transformer(), **rest)


def build_image() -> DiffusionPipeline:
    from diffusers import HunyuanVideoImageToVideoPipeline
    from transformers import CLIPImageProcessor, CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    rest = components()
    tokenizer = rest["tokenizer"]
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    config = LlavaConfig(
        text_config=llama_config(len(tokenizer)),
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    return HunyuanVideoImageToVideoPipeline(
        text_encoder=parts.seeded(lambda: LlavaForConditionalGeneration(config), seed=1),
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        transformer=transformer(image_condition_type="token_replace", guidance_embeds=True),
        **rest,
    )


def arguments(**more: Any) -> dict[str, Any]:
    """Guidance is an input of the distilled model: one forward a step."""
    template = {"template": HEADER.format(role="user") + "{}<|eot_id|>", "crop_start": 4}
    shape = dict(height=64, width=64, num_frames=9, max_sequence_length=parts.TEXT_LENGTH, prompt_template=template)
    return dict(guidance_scale=6.0) | shape | more


def true_cfg_arguments() -> dict[str, Any]:
    """Two forwards a step, the second with the negative prompt."""
    return arguments(negative_prompt="blurry", true_cfg_scale=4.0)


def image_arguments() -> dict[str, Any]:
    """The 16 tokens of the picture stand where the template has `<image>`; half of them reach the transformer."""
    system, user, assistant = (HEADER.format(role=role) for role in ("system", "user", "assistant"))
    template = {
        "template": f"{system}<image><|eot_id|>{user}{{}}<|eot_id|>{assistant}",
        "crop_start": 10,
        "image_emb_start": 4,
        "image_emb_end": 20,
        "image_emb_len": 16,
    }
    return arguments(image=parts.picture(), prompt_template=template, image_embed_interleave=2)


ENTRIES = (
    entry("hunyuan-video", build, arguments),
    entry("hunyuan-video-true-cfg", build, true_cfg_arguments),
    entry("hunyuan-video-i2v", build_image, image_arguments),
)
