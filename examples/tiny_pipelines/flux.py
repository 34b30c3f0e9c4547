"""FLUX.1: FluxPipeline, with a ControlNet, from a picture, and inside a mask."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from . import parts
from .entries import entry

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, FluxTransformer2DModel

SHAPE = dict(
    in_channels=64,  # 16 channels of the latents in patches of 2 x 2
    attention_head_dim=16,
    num_attention_heads=4,
    joint_attention_dim=parts.TEXT_DIM,
    pooled_projection_dim=parts.TEXT_DIM,
    axes_dims_rope=(4, 6, 6),
    guidance_embeds=True,
)


def transformer() -> FluxTransformer2DModel:
    from diffusers import FluxTransformer2DModel

    return parts.seeded(lambda: FluxTransformer2DModel(num_layers=3, num_single_layers=4, **SHAPE))


def components() -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return dict(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=parts.image_vae(scaling_factor=0.36, shift_factor=0.12, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=parts.clip_encoder(),
        tokenizer=parts.clip_tokenizer(),
        text_encoder_2=parts.t5_encoder(),
        tokenizer_2=parts.t5_tokenizer(),
        transformer=transformer(),
    )


def build(pipeline: str, **more: Any) -> DiffusionPipeline:
    import diffusers

    return getattr(diffusers, pipeline)(**components(), **more)


def build_controlnet() -> DiffusionPipeline:
    from diffusers import FluxControlNetModel

    controlnet = parts.seeded(lambda: FluxControlNetModel(num_layers=2, num_single_layers=2, **SHAPE), seed=4)
    return build("FluxControlNetPipeline", controlnet=controlnet)


def arguments(**more: Any) -> dict[str, Any]:
    """Guidance is an input of the distilled model: one forward a step."""
    return dict(height=64, width=64, guidance_scale=3.5, max_sequence_length=parts.TEXT_LENGTH, **more)


def true_cfg_arguments() -> dict[str, Any]:
    """Two forwards a step, the second with the negative prompt."""
    return arguments(negative_prompt="blurry", true_cfg_scale=4.0)


def controlnet_arguments() -> dict[str, Any]:
    return arguments(control_image=parts.picture(), controlnet_conditioning_scale=0.7)


def image_arguments() -> dict[str, Any]:
    """Starts from a picture with noise: of 6 steps, the last 5 run."""
    return arguments(image=parts.picture(), strength=0.75)


def inpaint_arguments() -> dict[str, Any]:
    """As `image_arguments`, and only the lower half of the picture changes."""
    from PIL import Image

    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 32, 64, 64))
    return image_arguments() | dict(mask_image=mask)


ENTRIES = (
    entry("flux", partial(build, "FluxPipeline"), arguments),
    entry("flux-true-cfg", partial(build, "FluxPipeline"), true_cfg_arguments),
    entry("flux-controlnet", build_controlnet, controlnet_arguments),
    entry("flux-img2img", partial(build, "FluxImg2ImgPipeline"), image_arguments),
    entry("flux-inpaint", partial(build, "FluxInpaintPipeline"), inpaint_arguments),
)
