"""Video models with blocks of their own: LTX, LTX-2, Mochi, Motif, MiniMax H3, and the refiner of Sana's world model."""

from __future__ import annotations

from typing import Any

import torch

from .core import clock, entry, level, moving, normal, padded, rope_table

GRIDS = ((2, 3, 4), (2, 4, 4))  # frames, rows and columns of tokens
TEXT = 6


def _ltx(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    frames, rows, columns = GRIDS[size]
    return {
        "hidden_states": moving(seed, step, batch, frames * rows * columns, 8),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "encoder_attention_mask": padded(batch, TEXT),
        "timestep": level(batch, step, 1000.0),
        "num_frames": frames,
        "height": rows,
        "width": columns,
    }


def _ltx_condition(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """A timestep of its own for each token: the first frame is given."""
    _, rows, columns = GRIDS[size]
    call = _ltx(batch, size, seed, step)
    timestep = call["timestep"][:, None].repeat(1, call["hidden_states"].shape[1])
    timestep[:, : rows * columns] = 0
    return {**call, "timestep": timestep, "rope_interpolation_scale": (0.32, 32, 32)}


def _ltx2(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Video and sound, which attend to each other in every block."""
    return {
        **_ltx(batch, size, seed, step),
        "audio_hidden_states": moving(seed, step, batch, 5, 6, name="sound"),
        "audio_encoder_hidden_states": normal(seed, "sound text", batch, TEXT, 24),
        "audio_encoder_attention_mask": padded(batch, TEXT),
        "sigma": level(batch, step),
        "audio_num_frames": 5,
        "fps": 24.0,
    }


def _refiner(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """The blocks of LTX-2 without the sound, with rotary embeddings from outside."""
    call = _ltx(batch, size, seed, step)
    tokens = call["hidden_states"].shape[1]
    names = ("hidden_states", "encoder_hidden_states", "encoder_attention_mask", "timestep")
    rotary = tuple(table.expand(batch, -1, -1) for table in rope_table(tokens, 32))
    return {**{name: call[name] for name in names}, "video_rotary_emb": rotary}


def _mochi(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    frames, rows, columns = GRIDS[size]
    return {
        "hidden_states": moving(seed, step, batch, 4, frames, 2 * rows, 2 * columns),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "encoder_attention_mask": padded(batch, TEXT).bool(),
        "timestep": clock(batch, step),
    }


def _motif(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Latents, condition and mask along the channels, and image tokens in front of the text."""
    frames, rows, columns = GRIDS[size]
    latents = moving(seed, step, batch, 4, frames, 2 * rows, 2 * columns)
    condition = normal(seed, "condition", batch, 5, frames, 2 * rows, 2 * columns)
    return {
        "hidden_states": torch.cat([latents, condition], dim=1),
        "timestep": clock(batch, step),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "encoder_attention_mask": padded(batch, TEXT),
        "image_embeds": normal(seed, "image", batch, 3, 20),
    }


def _minimax(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """One packed sequence of text, video and sound; every place has a time (clean or noisy) and a modality."""
    frames, rows, columns = GRIDS[size]
    video, sound = frames * rows * columns, 5
    places = torch.zeros(TEXT + video + sound, 3)
    places[:TEXT] = torch.arange(TEXT)[:, None]
    grid = torch.cartesian_prod(*(torch.arange(extent) for extent in GRIDS[size]))
    places[TEXT : TEXT + video] = TEXT + grid
    places[TEXT + video :] = TEXT + torch.arange(sound)[:, None]
    tags = torch.tensor([0] * TEXT + [1] * video + [2] * sound)
    order = torch.arange(TEXT + video + sound)
    return {
        "hidden_states": moving(seed, step, batch, video, 16),
        "audio_hidden_states": moving(seed, step, batch, sound, 6, name="sound"),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "timestep": torch.cat([torch.zeros(1), level(1, step, 1000.0)]),
        "timestep_indices": (tags > 0).long(),
        "token_tags": tags,
        "position_ids": places,
        "text_indices": order[:TEXT],
        "video_indices": order[TEXT : TEXT + video],
        "audio_indices": order[TEXT + video :],
    }


LTX2 = dict(
    in_channels=8,
    out_channels=8,
    num_attention_heads=2,
    attention_head_dim=16,
    cross_attention_dim=32,
    audio_in_channels=6,
    audio_out_channels=6,
    audio_num_attention_heads=2,
    audio_attention_head_dim=8,
    audio_cross_attention_dim=16,
    num_layers=5,
    caption_channels=24,
)

ENTRIES = (
    *(
        entry(
            name,
            inputs,
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            num_layers=5,
            caption_channels=24,
        )
        for name, inputs in (
            ("LTXVideoTransformer3DModel", _ltx),
            ("LTXVideoTransformer3DModel/condition", _ltx_condition),
        )
    ),
    entry("LTX2VideoTransformer3DModel", _ltx2, **LTX2),
    entry(
        "LTX2VideoTransformer3DModel/modulated",
        _ltx2,
        **LTX2,
        gated_attn=True,
        cross_attn_mod=True,
        audio_gated_attn=True,
        audio_cross_attn_mod=True,
    ),
    entry("SanaWMLTX2RefinerTransformer3DModel", _refiner, **LTX2),
    entry(
        "MochiTransformer3DModel",
        _mochi,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=5,
        pooled_projection_dim=20,
        in_channels=4,
        text_embed_dim=24,
        time_embed_dim=32,
        max_sequence_length=TEXT,
    ),
    entry(
        "MotifVideoTransformer3DModel",
        _motif,
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        num_single_layers=6,
        num_decoder_layers=2,
        mlp_ratio=2.0,
        text_embed_dim=24,
        image_embed_dim=20,
        rope_axes_dim=(4, 6, 6),
        enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    ),
    entry(
        "MiniMaxH3Transformer3DModel",
        _minimax,
        num_attention_heads=2,
        attention_head_dim=16,
        hidden_size=32,
        num_layers=5,
        num_refiner_layers=1,
        ffn_dim=64,
        in_channels=4,
        audio_in_channels=6,
        text_dim=24,
        freq_dim=32,
        time_embed_hidden_dim=32,
        time_embed_dim=16,
        rope_freq_dim=2,
    ),
)
