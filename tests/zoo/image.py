"""Image models with blocks of their own: Stable Diffusion 3, AuraFlow, HiDream, OmniGen, PRX, ERNIE, Ideogram and others."""

from __future__ import annotations

from typing import Any

import torch

from .core import entry, level, moving, normal, padded, whole

SHAPES = ((8, 8), (8, 12))  # rows and columns of latents; a patch is 2 x 2
TEXT = 6


def _sd3(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    return {
        "hidden_states": moving(seed, step, batch, 4, *SHAPES[size]),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "pooled_projections": normal(seed, "pooled", batch, 20),
        "timestep": level(batch, step, 1000.0),
    }


def _aura(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    return {
        "hidden_states": moving(seed, step, batch, 4, *SHAPES[size]),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "timestep": level(batch, step),
    }


def _hidream(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Text of one encoder layer for each block; an image that is not square is padded to the largest sequence."""
    return {
        "hidden_states": moving(seed, step, batch, 4, *SHAPES[size]),
        "timesteps": level(batch, step, 1000.0),
        "encoder_hidden_states_t5": normal(seed, "text t5", batch, 5, 18),
        "encoder_hidden_states_llama3": normal(seed, "text llama", 7, batch, TEXT, 24),
        "pooled_embeds": normal(seed, "pooled", batch, 20),
    }


def _omnigen(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Ten condition tokens, four of them an input image, then the time token and the image to make, in one sequence."""
    rows, columns = SHAPES[size]
    tokens = 10 + 1 + rows * columns // 4
    mask = torch.ones(tokens, tokens).tril()
    mask[10:, 10:] = 1
    mask[3:7, 3:7] = 1
    return {
        "hidden_states": moving(seed, step, batch, 4, rows, columns),
        "timestep": 1 - level(batch, step),
        "input_ids": whole(seed, "words", 40, batch, 10),
        "input_img_latents": [normal(seed, f"image {i}", 1, 4, 4, 4) for i in range(batch)],
        "input_image_sizes": {i: [[3, 7]] for i in range(batch)},
        "attention_mask": mask.expand(batch, -1, -1),
        "position_ids": torch.arange(tokens).expand(batch, -1),
    }


def _prx(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    return {**_aura(batch, size, seed, step), "attention_mask": padded(batch, TEXT).bool()}


def _ernie(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Inside the model the sequence comes before the batch."""
    rows, columns = SHAPES[size]
    return {
        "hidden_states": moving(seed, step, batch, 8, rows // 2, columns // 2),
        "timestep": level(batch, step, 1000.0),
        "text_bth": normal(seed, "text", batch, TEXT, 24),
        "text_lens": padded(batch, TEXT).sum(dim=1),
    }


def _ideogram(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """One sequence of text places (indicator 3) and image places (2): latents and text are zero where the other is."""
    rows, columns = SHAPES[size][0] // 2, SHAPES[size][1] // 2
    places = rows * columns
    positions = torch.zeros(batch, TEXT + places, 3, dtype=torch.long)
    positions[:, :TEXT] = torch.arange(TEXT)[:, None]
    positions[:, TEXT:, 0] = 100
    positions[:, TEXT:, 1] = 100 + torch.arange(places) // columns
    positions[:, TEXT:, 2] = 100 + torch.arange(places) % columns
    latents = moving(seed, step, batch, places, 8)
    text = normal(seed, "text", batch, TEXT, 24)
    return {
        "hidden_states": torch.cat([torch.zeros(batch, TEXT, 8), latents], dim=1),
        "timestep": 1 - level(batch, step),
        "encoder_hidden_states": torch.cat([text, torch.zeros(batch, places, 24)], dim=1),
        "position_ids": positions,
        "segment_ids": torch.ones(batch, TEXT + places, dtype=torch.long),
        "indicator": torch.tensor([3] * TEXT + [2] * places).expand(batch, -1),
    }


SD3 = dict(
    sample_size=8,
    in_channels=4,
    out_channels=4,
    num_layers=5,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=24,
    caption_projection_dim=32,
    pooled_projection_dim=20,
    pos_embed_max_size=12,
)

ENTRIES = (
    entry("SD3Transformer2DModel", _sd3, **SD3),
    entry("SD3Transformer2DModel/3.5", _sd3, **SD3, dual_attention_layers=(0, 1, 2), qk_norm="rms_norm"),
    entry(
        "AuraFlowTransformer2DModel",
        _aura,
        sample_size=8,
        in_channels=4,
        num_mmdit_layers=3,
        num_single_dit_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pos_embed_max_size=144,
    ),
    entry(
        "HiDreamImageTransformer2DModel",
        _hidream,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        num_single_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[18, 24],
        text_emb_dim=20,
        num_routed_experts=3,
        num_activated_experts=2,
        axes_dims_rope=(4, 6, 6),
        max_resolution=(12, 12),
        llama_layers=[0, 1, 2, 3, 4, 5, 6],
    ),
    entry(
        "OmniGenTransformer2DModel",
        _omnigen,
        in_channels=4,
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=64,
        num_layers=5,
        pad_token_id=0,
        vocab_size=40,
        max_position_embeddings=128,
        original_max_position_embeddings=128,
        rope_scaling={"short_factor": [1.0] * 8, "long_factor": [1.0] * 8},
        pos_embed_max_size=12,
        time_step_dim=32,
    ),
    entry(
        "PRXTransformer2DModel",
        _prx,
        in_channels=4,
        context_in_dim=24,
        hidden_size=32,
        mlp_ratio=2.0,
        num_heads=2,
        depth=5,
        axes_dim=[8, 8],
        resolution_embeds=True,
    ),
    entry(
        "ErnieImageTransformer2DModel",
        _ernie,
        hidden_size=32,
        num_attention_heads=2,
        num_layers=5,
        ffn_hidden_size=64,
        in_channels=8,
        out_channels=8,
        text_in_dim=24,
        rope_axes_dim=(4, 6, 6),
    ),
    entry(
        "Ideogram4Transformer2DModel",
        _ideogram,
        in_channels=8,
        num_layers=5,
        attention_head_dim=16,
        num_attention_heads=2,
        intermediate_size=64,
        adaln_dim=16,
        llm_features_dim=24,
        rope_theta=10000,
        mrope_section=(4, 2, 2),
    ),
)
