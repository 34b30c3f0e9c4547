"""CogVideoX, CogView and the models with the same joint blocks: ConsisID, EasyAnimate, GLM-Image."""

from __future__ import annotations

from typing import Any

import torch

from .core import clock, entry, moving, normal, rope_table, whole

SHAPES = ((3, 8, 8), (3, 8, 12))
TEXT = 6


def _video(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Frames come before channels."""
    frames, rows, columns = SHAPES[size]
    return {
        "hidden_states": moving(seed, step, batch, frames, 4, rows, columns),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "timestep": clock(batch, step),
    }


def _video_rope(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Version 1.5: patches of two frames, rotary embeddings from outside, and the offset of the image to animate."""
    _, rows, columns = SHAPES[size]
    latents = moving(seed, step, batch, 4, 4, rows, columns)
    image = normal(seed, "image", batch, 4, 4, rows, columns)
    return {
        **_video(batch, size, seed, step),
        "hidden_states": torch.cat([latents, image], dim=2),
        "image_rotary_emb": rope_table(2 * rows * columns // 4, 16),
        "ofs": torch.full((1,), 2.0),
    }


def _consisid(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """A face: its identity vector and the features of two layers of a vision model."""
    frames, rows, columns = SHAPES[size]
    return {
        **_video(batch, size, seed, step),
        "image_rotary_emb": rope_table(frames * rows * columns // 4, 16),
        "id_cond": normal(seed, "identity", batch, 20),
        "id_vit_hidden": [normal(seed, f"face {i}", batch, 5, 16) for i in range(2)],
    }


def _image(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    _, rows, columns = SHAPES[size]
    return {
        "hidden_states": moving(seed, step, batch, 4, rows, columns),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "timestep": clock(batch, step),
        "original_size": torch.tensor([[8.0 * rows, 8.0 * columns]] * batch),
        "target_size": torch.tensor([[8.0 * rows, 8.0 * columns]] * batch),
        "crop_coords": torch.zeros(batch, 2),
    }


def _glm(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Prior tokens, one for each patch, are added to the latents."""
    call = _image(batch, size, seed, step)
    _, rows, columns = SHAPES[size]
    del call["original_size"]
    return {
        **call,
        "prior_token_id": whole(seed, "prior", 64, batch, rows * columns // 4),
        "prior_token_drop": torch.zeros(batch, rows * columns // 4, dtype=torch.bool),
    }


def _easy(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    frames, rows, columns = SHAPES[size]
    return {
        "hidden_states": moving(seed, step, batch, 4, frames, rows, columns),
        "timestep": clock(batch, step),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
    }


def _easy_inpaint(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Mask and masked video along the channels."""
    return {**_easy(batch, size, seed, step), "inpaint_latents": normal(seed, "masked", batch, 5, *SHAPES[size])}


COG = dict(num_attention_heads=2, attention_head_dim=16, time_embed_dim=32, text_embed_dim=24, num_layers=5)
VIDEO = dict(in_channels=4, out_channels=4, sample_width=8, sample_height=8, sample_frames=9, max_text_seq_length=TEXT)
EASY = dict(COG, in_channels=4, out_channels=4, patch_size=2, sample_width=8, sample_height=8)

ENTRIES = (
    entry("CogVideoXTransformer3DModel", _video, **COG, **VIDEO),
    entry(
        "CogVideoXTransformer3DModel/1.5-i2v",
        _video_rope,
        **COG,
        **(VIDEO | dict(in_channels=8)),
        patch_size_t=2,
        ofs_embed_dim=32,
        use_rotary_positional_embeddings=True,
        patch_bias=False,
    ),
    entry(
        "ConsisIDTransformer3DModel",
        _consisid,
        **(COG | dict(num_attention_heads=3, num_layers=4)),
        **VIDEO,
        use_rotary_positional_embeddings=True,
        is_train_face=True,
        cross_attn_interval=2,
        cross_attn_dim_head=8,
        cross_attn_num_heads=2,
        LFE_id_dim=20,
        LFE_vit_dim=16,
        LFE_depth=2,
        LFE_dim_head=8,
        LFE_num_heads=2,
        LFE_num_id_token=2,
        LFE_num_querie=4,
        LFE_output_dim=32,
        LFE_ff_mult=2,
        LFE_num_scale=2,
    ),
    entry(
        "CogView3PlusTransformer2DModel",
        _image,
        **COG,
        in_channels=4,
        out_channels=4,
        condition_dim=8,
        pos_embed_max_size=16,
        sample_size=8,
    ),
    entry(
        "CogView4Transformer2DModel",
        _image,
        **COG,
        in_channels=4,
        out_channels=4,
        condition_dim=8,
        rope_axes_dim=(16, 16),
        sample_size=8,
    ),
    entry(
        "GlmImageTransformer2DModel",
        _glm,
        **COG,
        in_channels=4,
        out_channels=4,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=64,
    ),
    entry("EasyAnimateTransformer3DModel", _easy, **EASY, mmdit_layers=5),
    entry(
        "EasyAnimateTransformer3DModel/inpaint",
        _easy_inpaint,
        **(EASY | dict(in_channels=9)),
        mmdit_layers=3,
        add_norm_text_encoder=True,
        after_norm=True,
    ),
)
