"""Qwen-Image: from text, and editing a picture (both pipelines for that)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from . import parts
from .entries import entry

if TYPE_CHECKING:
    from diffusers import AutoencoderKLQwenImage, DiffusionPipeline
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration, Qwen2VLProcessor

CHANNELS = 16
SPECIALS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
PATCH = 4  # of the picture that the text encoder sees
SEEN = 32  # its width and height


def text_encoder(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=parts.TEXT_DIM,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            rope_parameters=dict(rope_type="default", rope_theta=10000.0, mrope_section=[1, 1, 2]),
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        ),
        vision_config=dict(
            depth=2,
            hidden_size=32,
            intermediate_size=64,
            num_heads=4,
            patch_size=PATCH,
            window_size=4 * PATCH,
            out_hidden_size=parts.TEXT_DIM,
            fullatt_block_indexes=[1],
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    return parts.seeded(lambda: Qwen2_5_VLForConditionalGeneration(config), seed=1)


def vae(levels: int) -> AutoencoderKLQwenImage:
    """A VAE that makes its latents 2 ** (levels - 1) times smaller in each direction."""
    from diffusers import AutoencoderKLQwenImage

    return parts.seeded(
        lambda: AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=CHANNELS,
            dim_mult=[1] * levels,
            num_res_blocks=0,  # the decoder has one more
            temperal_downsample=[False] * (levels - 1),
        ),
        seed=3,
        gain=1.0,
    )


def build(pipeline: str, vae_levels: int = 4, edits: bool = False) -> DiffusionPipeline:
    import diffusers

    tokenizer = parts.byte_tokenizer(SPECIALS)
    more = dict(processor=processor(tokenizer)) if edits else {}
    pipe = getattr(diffusers, pipeline)(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
        vae=vae(vae_levels),
        text_encoder=text_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=parts.seeded(
            lambda: diffusers.QwenImageTransformer2DModel(
                in_channels=4 * CHANNELS,
                out_channels=CHANNELS,
                num_layers=4,
                attention_head_dim=16,
                num_attention_heads=4,
                joint_attention_dim=parts.TEXT_DIM,
                axes_dims_rope=(4, 6, 6),
            )
        ),
        **more,
    )
    # how many tokens of the template stand before the user's turn; the pipeline's own number is for the real tokenizer
    before, turn, _ = pipe.prompt_template_encode.partition("<|im_start|>user\n")
    pipe.prompt_template_encode_start_idx = len(tokenizer(before + turn).input_ids)
    return pipe


def build_edit(pipeline: str) -> DiffusionPipeline:
    """With a VAE of more levels: these pipelines enlarge every picture to a million pixels before they encode it."""
    return build(pipeline, vae_levels=6, edits=True)


def processor(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLProcessor:
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor

    class StillProcessor(Qwen2VLProcessor):
        """Without the part for videos, whose class would need torchvision."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

    area = SEEN * SEEN
    images = Qwen2VLImageProcessor(patch_size=PATCH, size={"shortest_edge": area, "longest_edge": area})
    return StillProcessor(image_processor=images, tokenizer=tokenizer)


def arguments() -> dict[str, Any]:
    """Two forwards a step, the second with the negative prompt."""
    return dict(height=64, width=64, negative_prompt="blurry", true_cfg_scale=4.0)


def edit_arguments() -> dict[str, Any]:
    """As `arguments`; the tokens of the picture follow those of the latents, 256 after 36."""
    return dict(height=384, width=384, negative_prompt="blurry", true_cfg_scale=4.0, image=parts.picture())


ENTRIES = (
    entry("qwen-image", partial(build, "QwenImagePipeline"), arguments),
    entry("qwen-image-edit", partial(build_edit, "QwenImageEditPipeline"), edit_arguments),
    entry("qwen-image-edit-plus", partial(build_edit, "QwenImageEditPlusPipeline"), edit_arguments),
)
