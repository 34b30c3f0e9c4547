"""Cosmos 1, 2, 2.5 and 3, and Kandinsky 5 and 6."""

from __future__ import annotations

from typing import Any

import torch

from .core import entry, level, moving, normal, padded, whole

SHAPES = ((2, 8, 8), (2, 8, 12))  # frames, rows and columns of latents; a patch is 1 x 2 x 2
TEXT = 6


def _cosmos(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    return {
        "hidden_states": moving(seed, step, batch, 4, *SHAPES[size]),
        "timestep": level(batch, step),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "fps": 16,
    }


def _cosmos_frames(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """A condition mask along the channels, and a timestep for each frame, of which the first is given."""
    frames, rows, columns = SHAPES[size]
    mask = torch.zeros(batch, 1, frames, rows, columns)
    mask[:, :, 0] = 1
    timestep = level(batch, step)[:, None, None, None, None].repeat(1, 1, frames, 1, 1)
    timestep[:, :, 0] = 0.0001
    return {**_cosmos(batch, size, seed, step), "condition_mask": mask, "timestep": timestep}


def _cosmos_projected(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    return {**_cosmos_frames(batch, size, seed, step), "encoder_hidden_states": normal(seed, "text", batch, TEXT, 40)}


def _cosmos_transfer(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Text and image context as a pair."""
    pair = (normal(seed, "text", batch, TEXT, 40), normal(seed, "image", batch, 4, 20))
    return {**_cosmos_frames(batch, size, seed, step), "encoder_hidden_states": pair}


def _cosmos3(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """One packed sequence without a batch axis: the text, then the tokens of each video."""
    frames, rows, columns = SHAPES[size]
    grid = (frames, rows // 2, columns // 2)
    video = frames * rows * columns // 4
    total = TEXT + batch * video
    places = torch.cartesian_prod(*(torch.arange(extent) for extent in grid)).T + TEXT
    return {
        "input_ids": whole(seed, "words", 40, TEXT),
        "text_indexes": torch.arange(TEXT),
        "position_ids": torch.cat([torch.arange(TEXT).expand(3, -1), places.repeat(1, batch)], dim=1),
        "und_len": TEXT,
        "sequence_length": total,
        "vision_tokens": list(moving(seed, step, batch, 1, 4, frames, rows, columns)),
        "vision_token_shapes": [grid] * batch,
        "vision_sequence_indexes": torch.arange(TEXT, total),
        "vision_mse_loss_indexes": torch.arange(TEXT, total),
        "vision_timesteps": level(batch * video, step, 1000.0),
        "vision_noisy_frame_indexes": [torch.arange(frames)] * batch,
    }


def _cosmos3_sound(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """With four tokens of sound for each video behind them."""
    call = _cosmos3(batch, size, seed, step)
    start, sound = call["sequence_length"], 4
    places = (TEXT + torch.arange(sound)).repeat(batch).expand(3, -1)
    return {
        **call,
        "position_ids": torch.cat([call["position_ids"], places], dim=1),
        "sequence_length": start + batch * sound,
        "sound_tokens": list(moving(seed, step, batch, 6, sound, name="sound")),
        "sound_token_shapes": [(sound, 1, 1)] * batch,
        "sound_sequence_indexes": torch.arange(start, start + batch * sound),
        "sound_mse_loss_indexes": torch.arange(start, start + batch * sound),
        "sound_timesteps": level(batch * sound, step, 1000.0),
        "sound_noisy_frame_indexes": [torch.arange(sound)] * batch,
    }


def _kandinsky5(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Channels come last; the blocks see frames, rows and columns as one axis."""
    frames, rows, columns = SHAPES[size]
    return {
        "hidden_states": moving(seed, step, batch, frames, rows, columns, 4),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "timestep": level(batch, step, 1000.0),
        "pooled_projections": normal(seed, "pooled", batch, 20),
        "visual_rope_pos": [torch.arange(frames), torch.arange(rows // 2), torch.arange(columns // 2)],
        "text_rope_pos": torch.arange(TEXT),
    }


def _kandinsky5_image(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """The given frames and their mask behind the channels of the latents."""
    call = _kandinsky5(batch, size, seed, step)
    condition = normal(seed, "condition", batch, *SHAPES[size], 5)
    return {**call, "hidden_states": torch.cat([call["hidden_states"], condition], dim=-1)}


def _kandinsky6(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    call = _kandinsky5_image(batch, size, seed, step)
    names = ("hidden_states", "encoder_hidden_states", "timestep", "pooled_projections")
    return {
        **{name: call[name] for name in names},
        "encoder_attention_mask": padded(batch, TEXT).bool()[:, None, None, :],
    }


def _kandinsky6_sound(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    return {
        **_kandinsky6(batch, size, seed, step),
        "audio_hidden_states": moving(seed, step, batch, 5, 6, name="sound"),
    }


def _kandinsky6_sr(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """A grid of 8 x 8 tokens is one block of the sparse attention."""
    shape = ((1, 8, 8), (1, 8, 16))[size]
    latents = moving(seed, step, batch, *shape, 4)
    return {
        "hidden_states": torch.cat([latents, normal(seed, "low resolution", batch, *shape, 5)], dim=-1),
        "timestep": level(batch, step, 1000.0),
    }


COSMOS = dict(
    in_channels=4,
    out_channels=4,
    num_attention_heads=2,
    attention_head_dim=16,
    num_layers=5,
    mlp_ratio=2.0,
    text_embed_dim=24,
    adaln_lora_dim=8,
    max_size=(8, 16, 16),
    concat_padding_mask=False,
)
PROJECTED = dict(
    in_channels=5,
    extra_pos_embed_type=None,
    use_crossattn_projection=True,
    crossattn_proj_in_channels=40,
    encoder_hidden_states_channels=24,
)
COSMOS3 = dict(
    head_dim=16,
    hidden_size=32,
    intermediate_size=64,
    latent_channel=4,
    num_attention_heads=2,
    num_hidden_layers=5,
    num_key_value_heads=1,
    patch_latent_dim=16,
    rope_theta=10000.0,
    vocab_size=40,
    rope_axes_dim=(4, 2, 2),
)
KANDINSKY = dict(
    in_visual_dim=4,
    in_text_dim=24,
    in_text_dim2=20,
    time_dim=24,
    out_visual_dim=4,
    model_dim=32,
    ff_dim=64,
    num_text_blocks=1,
    num_visual_blocks=5,
    axes_dims=(4, 6, 6),
)
KANDINSKY6 = dict(KANDINSKY, in_audio_dim=6, out_audio_dim=6, model_dim_a=24, axes_dims_a=(4, 4, 4), ff_dim_a=48)

ENTRIES = (
    entry("CosmosTransformer3DModel", _cosmos, **COSMOS),
    entry("CosmosTransformer3DModel/2", _cosmos_frames, **(COSMOS | dict(in_channels=5)), extra_pos_embed_type=None),
    entry("CosmosTransformer3DModel/2.5", _cosmos_projected, **(COSMOS | PROJECTED)),
    entry(
        "CosmosTransformer3DModel/2.5-transfer",
        _cosmos_transfer,
        **(COSMOS | PROJECTED),
        img_context_dim_in=20,
        img_context_num_tokens=4,
        img_context_dim_out=32,
    ),
    entry("Cosmos3OmniTransformer", _cosmos3, denoised="vision_tokens", **COSMOS3),
    entry("Cosmos3OmniTransformer/sound", _cosmos3_sound, denoised="vision_tokens", **COSMOS3, sound_gen=True, sound_dim=6),
    entry("Kandinsky5Transformer3DModel", _kandinsky5, **KANDINSKY),
    entry("Kandinsky5Transformer3DModel/i2v", _kandinsky5_image, **KANDINSKY, visual_cond=True),
    entry("Kandinsky6Transformer3DModel", _kandinsky6, **KANDINSKY6),
    entry("Kandinsky6Transformer3DModel/sound", _kandinsky6_sound, **KANDINSKY6),
    entry(
        "Kandinsky6SRTransformer3DModel",
        _kandinsky6_sr,
        in_visual_dim=4,
        out_visual_dim=4,
        time_dim=24,
        model_dim=32,
        ff_dim=64,
        num_visual_blocks=4,
        axes_dims=(4, 6, 6),
        nabla_threshold=0.8,
        nabla_window=(1, 1, 1),
    ),
)
