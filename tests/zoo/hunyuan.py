"""The Hunyuan image and video models."""

from __future__ import annotations

from typing import Any

import torch

from .core import clock, entry, level, moving, normal, padded, rope_table

SHAPES = ((3, 8, 8), (3, 8, 12))
TEXT = 6
HUNYUAN = dict(
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=4,
    out_channels=4,
    num_layers=3,
    num_single_layers=4,
    num_refiner_layers=1,
    mlp_ratio=2.0,
    text_embed_dim=24,
    rope_axes_dim=(4, 6, 6),
)
POOLED = dict(pooled_projection_dim=20, guidance_embeds=True)


def _video(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    return {
        "hidden_states": moving(seed, step, batch, 4, *SHAPES[size]),
        "timestep": clock(batch, step),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "encoder_attention_mask": padded(batch, TEXT),
        "pooled_projections": normal(seed, "pooled", batch, 20),
        "guidance": torch.full((batch,), 6000.0),
    }


def _framepack(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Three frames to make, one clean frame before them, and older history in coarser patches."""
    _, rows, columns = SHAPES[size]
    return {
        **_video(batch, size, seed, step),
        "image_embeds": normal(seed, "image", batch, 3, 20),
        "indices_latents": torch.arange(7, 10),
        "latents_clean": normal(seed, "clean", batch, 4, 1, rows, columns),
        "indices_latents_clean": torch.tensor([6]),
        "latents_history_2x": normal(seed, "history 2x", batch, 4, 2, rows, columns),
        "indices_latents_history_2x": torch.arange(4, 6),
        "latents_history_4x": normal(seed, "history 4x", batch, 4, 4, rows, columns),
        "indices_latents_history_4x": torch.arange(4),
    }


def _video15(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Latents, condition and mask along the channels; two texts and image tokens as one context."""
    latents = moving(seed, step, batch, 4, *SHAPES[size])
    condition = normal(seed, "condition", batch, 5, *SHAPES[size])
    return {
        "hidden_states": torch.cat([latents, condition], dim=1),
        "timestep": level(batch, step, 1000.0),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "encoder_attention_mask": padded(batch, TEXT),
        "encoder_hidden_states_2": normal(seed, "glyphs", batch, 5, 18),
        "encoder_attention_mask_2": padded(batch, 5, missing=3),
        "image_embeds": normal(seed, "image", batch, 4, 20),
    }


def _video15_text(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Without an image: its tokens are zeros and masked."""
    return {**_video15(batch, size, seed, step), "image_embeds": torch.zeros(batch, 4, 20)}


def _image(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    _, rows, columns = SHAPES[size]
    return {
        "hidden_states": moving(seed, step, batch, 4, rows // 2, columns // 2),
        "timestep": level(batch, step, 1000.0),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "encoder_attention_mask": padded(batch, TEXT),
        "encoder_hidden_states_2": normal(seed, "glyphs", batch, 5, 18),
        "encoder_attention_mask_2": padded(batch, 5, missing=3),
    }


def _image_distilled(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Mean flow: the time to go to and the guidance are inputs."""
    call = _image(batch, size, seed, step)
    return {**call, "timestep_r": (call["timestep"] - 50).clamp(min=0), "guidance": torch.full((batch,), 3250.0)}


def _dit(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    _, rows, columns = SHAPES[size]
    return {
        "hidden_states": moving(seed, step, batch, 4, rows, columns),
        "timestep": level(batch, step, 1000.0),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "text_embedding_mask": padded(batch, TEXT),
        "encoder_hidden_states_t5": normal(seed, "text t5", batch, 8, 32),
        "text_embedding_mask_t5": padded(batch, 8, missing=3),
        "image_meta_size": torch.tensor([[64.0, 64.0, 64.0, 64.0, 0.0, 0.0]] * batch),
        "style": torch.zeros(batch, dtype=torch.long),
        "image_rotary_emb": rope_table(rows * columns // 4, 16),
    }


ENTRIES = (
    entry("HunyuanVideoTransformer3DModel", _video, **HUNYUAN, **POOLED),
    entry(
        "HunyuanVideoTransformer3DModel/token-replace",
        _video,
        **HUNYUAN,
        **POOLED,
        image_condition_type="token_replace",
    ),
    entry(
        "HunyuanVideoFramepackTransformer3DModel",
        _framepack,
        **HUNYUAN,
        **POOLED,
        has_image_proj=True,
        image_proj_dim=20,
        has_clean_x_embedder=True,
    ),
    *(
        entry(
            name,
            inputs,
            **{key: value for key, value in HUNYUAN.items() if key != "num_single_layers"}
            | dict(num_layers=5, in_channels=9),
            patch_size=2,
            text_embed_2_dim=18,
            image_embed_dim=20,
        )
        for name, inputs in (
            ("HunyuanVideo15Transformer3DModel", _video15),
            ("HunyuanVideo15Transformer3DModel/t2v", _video15_text),
        )
    ),
    entry("HunyuanImageTransformer2DModel", _image, **(HUNYUAN | dict(rope_axes_dim=(8, 8))), text_embed_2_dim=18),
    entry(
        "HunyuanImageTransformer2DModel/distilled",
        _image_distilled,
        **(HUNYUAN | dict(rope_axes_dim=(8, 8))),
        text_embed_2_dim=18,
        guidance_embeds=True,
        use_meanflow=True,
    ),
    entry(
        "HunyuanDiT2DModel",
        _dit,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=32,
        num_layers=6,
        mlp_ratio=2.0,
        cross_attention_dim=24,
        cross_attention_dim_t5=32,
        pooled_projection_dim=20,
        text_len=TEXT,
        text_len_t5=8,
    ),
)
