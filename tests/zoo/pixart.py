"""PixArt and its relatives with cross attention to the text: DiT, Latte, Allegro, Sana, Lumina, Z-Image."""

from __future__ import annotations

from typing import Any

import torch

from .core import clock, entry, level, moving, normal, padded, whole

SHAPES = ((8, 8), (8, 12))  # rows and columns of latents; a patch is 2 x 2
FRAMES = 3
TEXT = 6


def _pixart(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    return {
        "hidden_states": moving(seed, step, batch, 4, *SHAPES[size]),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "encoder_attention_mask": padded(batch, TEXT),
        "timestep": clock(batch, step),
    }


def _pixart_alpha(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    rows, columns = SHAPES[size]
    conditions = {
        "resolution": torch.tensor([[8.0 * rows, 8.0 * columns]] * batch),
        "aspect_ratio": torch.full((batch, 1), rows / columns),
    }
    return {**_pixart(batch, size, seed, step), "added_cond_kwargs": conditions}


def _dit(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Square images only."""
    side = (8, 12)[size]
    return {
        "hidden_states": moving(seed, step, batch, 4, side, side),
        "timestep": clock(batch, step),
        "class_labels": whole(seed, "class", 10, batch),
    }


def _video(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    return {**_pixart(batch, size, seed, step), "hidden_states": moving(seed, step, batch, 4, FRAMES, *SHAPES[size])}


def _latte(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    return {**_video(batch, size, seed, step), "encoder_attention_mask": None}


def _allegro(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Rotary embeddings as two triples: tables along time, rows and columns, and the places of the tokens in them."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    rows, columns = SHAPES[size][0] // 2, SHAPES[size][1] // 2
    *tables, along, down, across = get_3d_rotary_pos_embed_allegro(18, ((0, 0), (rows, columns)), (rows, columns), FRAMES)
    places = torch.cartesian_prod(along, down, across).long()
    triple = tuple(places[:, axis].reshape(1, -1).contiguous() for axis in range(3))
    return {**_video(batch, size, seed, step), "image_rotary_emb": (tuple(tables), triple)}


def _sana(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    rows, columns = SHAPES[size]
    latents = moving(seed, step, batch, 4, rows // 2, columns // 2)
    return {**_pixart(batch, size, seed, step), "hidden_states": latents, "timestep": level(batch, step, 1000.0)}


def _sana_sprint(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    guidance = torch.full((batch,), 0.45)
    return {**_sana(batch, size, seed, step), "timestep": level(batch, step, 1.57), "guidance": guidance}


def _sana_world(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """A time for each frame (the first is given), the path of a camera, and its rays for the latents."""
    rows, columns = SHAPES[size][0] // 2, SHAPES[size][1] // 2
    timestep = level(batch, step, 1000.0)[:, None, None].repeat(1, 1, FRAMES)
    timestep[:, :, 0] = 0
    camera = torch.zeros(batch, FRAMES, 20)
    camera[..., :16] = torch.eye(4).flatten()
    camera[..., 11] = 0.1 * torch.arange(FRAMES)
    camera[..., 16:] = torch.tensor([float(columns), float(columns), columns / 2, rows / 2])
    return {
        "hidden_states": moving(seed, step, batch, 4, FRAMES, rows, columns),
        "timestep": timestep,
        "encoder_hidden_states": normal(seed, "text", batch, 1, TEXT, 24),
        "encoder_attention_mask": padded(batch, TEXT),
        "camera_conditions": camera,
        "chunk_plucker": normal(seed, "rays", batch, 6, FRAMES, rows, columns),
    }


def _lumina(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

    return {
        "hidden_states": moving(seed, step, batch, 4, *SHAPES[size]),
        "timestep": 1 - level(batch, step),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "encoder_mask": padded(batch, TEXT),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(16, 16, 16),
        "cross_attention_kwargs": {},
    }


def _lumina2(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    return {
        "hidden_states": moving(seed, step, batch, 4, *SHAPES[size]),
        "timestep": 1 - level(batch, step),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "encoder_attention_mask": padded(batch, TEXT).bool(),
    }


def _zimage(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Lists of samples, with texts of different lengths; each stream is padded to a multiple of 32 tokens."""
    rows, columns = ((8, 8), (12, 16))[size]
    return {
        "x": list(moving(seed, step, batch, 4, 1, rows, columns)),
        "t": 1 - level(batch, step),
        "cap_feats": [normal(seed, f"text {i}", 5 + 2 * i, 24) for i in range(batch)],
    }


def _zimage_omni(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """A reference image and the image to make, with a text for each and vision features for the first."""
    call = _zimage(batch, size, seed, step)
    return {
        "x": [[normal(seed, f"reference {i}", 4, 1, 4, 8), x] for i, x in enumerate(call["x"])],
        "t": call["t"],
        "cap_feats": [[normal(seed, f"text {i} {part}", 4, 24) for part in range(3)] for i in range(batch)],
        "siglip_feats": [[normal(seed, f"vision {i}", 2, 3, 12), None] for i in range(batch)],
        "image_noise_mask": [[0, 1] for _ in range(batch)],
    }


PIXART = dict(
    attention_head_dim=16,
    in_channels=4,
    num_layers=5,
    sample_size=8,
    patch_size=2,
    num_embeds_ada_norm=1000,
    attention_bias=True,
    activation_fn="gelu-approximate",
)
TWO = dict(num_attention_heads=2, cross_attention_dim=32)
SINGLE = dict(norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=24)
SANA = dict(
    in_channels=4,
    out_channels=4,
    num_attention_heads=2,
    attention_head_dim=16,
    num_layers=5,
    num_cross_attention_heads=2,
    cross_attention_head_dim=16,
    cross_attention_dim=32,
    caption_channels=24,
    sample_size=4,
)
ZIMAGE = dict(
    in_channels=4,
    dim=32,
    n_layers=5,
    n_refiner_layers=1,
    n_heads=2,
    n_kv_heads=2,
    cap_feat_dim=24,
    axes_dims=[4, 6, 6],
    axes_lens=[256, 64, 64],
)

ENTRIES = (
    entry("PixArtTransformer2DModel", _pixart, **PIXART, **TWO, out_channels=8, caption_channels=24),
    entry(
        "PixArtTransformer2DModel/alpha",
        _pixart_alpha,
        **(PIXART | dict(num_attention_heads=3, cross_attention_dim=48)),
        out_channels=8,
        caption_channels=24,
        use_additional_conditions=True,
    ),
    entry("Transformer2DModel", _pixart, **PIXART, **TWO, **SINGLE, out_channels=8),
    entry("DiTTransformer2DModel", _dit, **(PIXART | dict(num_attention_heads=2, num_embeds_ada_norm=10))),
    entry("LatteTransformer3DModel", _latte, **(PIXART | dict(num_layers=4)), **TWO, **SINGLE, video_length=FRAMES),
    entry(
        "AllegroTransformer3DModel",
        _allegro,
        num_attention_heads=2,
        attention_head_dim=18,
        in_channels=4,
        out_channels=4,
        num_layers=5,
        cross_attention_dim=36,
        sample_height=8,
        sample_width=8,
        sample_frames=FRAMES,
        caption_channels=24,
    ),
    entry("SanaTransformer2DModel", _sana, **SANA),
    entry("SanaTransformer2DModel/sprint", _sana_sprint, **SANA, guidance_embeds=True, qk_norm="rms_norm_across_heads"),
    entry("SanaVideoTransformer3DModel", _video, **SANA, patch_size=(1, 2, 2), rope_max_seq_len=64),
    entry(
        "SanaWMTransformer3DModel",
        _sana_world,
        in_channels=4,
        num_layers=5,
        hidden_size=32,
        num_attention_heads=2,
        softmax_every_n=3,
        linear_head_dim=16,
        chunk_plucker_channels=6,
        chunk_plucker_post_attn_blocks=4,
        caption_channels=24,
        mlp_ratio=2.0,
    ),
    entry(
        "LuminaNextDiT2DModel",
        _lumina,
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=5,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=24,
    ),
    entry(
        "Lumina2Transformer2DModel",
        _lumina2,
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=5,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(64, 16, 16),
        cap_feat_dim=24,
    ),
    entry("ZImageTransformer2DModel", _zimage, denoised="x", **ZIMAGE),
    entry("ZImageTransformer2DModel/omni", _zimage_omni, denoised="x", **ZIMAGE, siglip_feat_dim=12),
)
