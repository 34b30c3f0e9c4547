"""Wan in its text, image, control and animation uses, and the video models built on the same block."""

from __future__ import annotations

import sys
from typing import Any
from unittest import mock

import torch
from torch import nn

from .core import Entry, clock, entry, level, moving, normal, tiny

SHAPES = ((3, 8, 8), (3, 8, 12))  # frames, rows and columns of latents; a patch is 1 x 2 x 2
TEXT = 6
WAN = dict(
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=4,
    out_channels=4,
    text_dim=24,
    freq_dim=32,
    ffn_dim=64,
    num_layers=5,
    rope_max_seq_len=64,
)


def _wan(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    return {
        "hidden_states": moving(seed, step, batch, 4, *SHAPES[size]),
        "timestep": clock(batch, step),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
    }


def _wan_i2v(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """The condition frames behind the channels of the latents; image tokens are what exceeds 512 tokens of text."""
    call = _wan(batch, size, seed, step)
    condition = normal(seed, "condition", batch, 5, *SHAPES[size])
    call["hidden_states"] = torch.cat([call["hidden_states"], condition], dim=1)
    call["encoder_hidden_states"] = normal(seed, "text", batch, 512, 24)
    return {**call, "encoder_hidden_states_image": normal(seed, "image", batch, 4, 20)}


def _wan_ti2v(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """A timestep of its own for each token: the tokens of the first frame are clean."""
    frames, rows, columns = SHAPES[size]
    timestep = level(batch, step, 1000.0)[:, None].repeat(1, frames * rows * columns // 4)
    timestep[:, : rows * columns // 4] = 0
    return {**_wan(batch, size, seed, step), "timestep": timestep}


def _wan_vace(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    return {
        **_wan(batch, size, seed, step),
        "control_hidden_states": normal(seed, "control", batch, 6, *SHAPES[size]),
        "control_hidden_states_scale": torch.tensor([1.0, 0.7]),
    }


def _wan_animate(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """The reference frame comes first; poses are for the other frames, faces for four pixel frames of each."""
    frames, rows, columns = SHAPES[size]
    latents = moving(seed, step, batch, 4, frames, rows, columns)
    condition = normal(seed, "condition", batch, 8, frames, rows, columns)
    return {
        **_wan_i2v(batch, size, seed, step),
        "hidden_states": torch.cat([latents, condition], dim=1),
        "pose_hidden_states": normal(seed, "pose", batch, 4, frames - 1, rows, columns),
        "face_pixel_values": normal(seed, "face", batch, 3, 8, 16, 16),
    }


def _wan_animate2(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """The generation pass: lists of samples, and keys and values of the reference frames that another pass has left."""
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    frames, rows, columns = SHAPES[size]
    area = rows * columns // 4
    kv_cache = WanAnimate2KVCache(4)
    for index, layer in enumerate(kv_cache.layer_caches):
        shape = (batch, (frames - 1) * area, 2, 16)
        layer.store(normal(seed, f"key {index}", *shape), normal(seed, f"value {index}", *shape))
    return {
        "hidden_states": list(moving(seed, step, batch, 4, frames, rows, columns)),
        "timestep": clock(batch, step),
        "encoder_hidden_states": list(normal(seed, "text", batch, TEXT, 24)),
        "condition_latents": list(normal(seed, "condition", batch, 5, frames, rows, columns)),
        "kv_cache": kv_cache,
        "kv_cache_mode": "cached",
        "seq_len": frames * area,
        "encoder_hidden_states_image": normal(seed, "image", batch, 3, 1280),
        "reference_grid_sizes": torch.tensor([[frames - 1, rows // 2, columns // 2]] * batch),
        "origin_len": 4 * (frames - 2),
        "origin_area": [8 * rows, 8 * columns],
    }


def _build_wan_animate2() -> nn.Module:
    """The model with block masks made eagerly: it compiles their making, which takes a minute without a GPU."""
    model = tiny(
        "WanAnimate2Transformer3DModel",
        text_len=8,
        in_dim=9,
        dim=32,
        ffn_dim=64,
        freq_dim=32,
        text_dim=24,
        out_dim=4,
        num_heads=2,
        num_layers=4,
    )()
    module = sys.modules[type(model).__module__]
    make = module.create_block_mask

    def eagerly(*args: Any, **kwargs: Any) -> Any:
        return make(*args, **{**kwargs, "_compile": False})

    def create_mask(frames: int, area: int, device: torch.device) -> Any:
        with mock.patch.object(module, "create_block_mask", eagerly):
            return type(model).create_mask(model, frames, area, device)

    model.create_mask = create_mask
    return model


def _skyreels_forcing(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Diffusion forcing: earlier frames are further along than later ones."""
    late = torch.tensor([0.0, 60.0, 120.0])
    timestep = (level(batch, step, 1000.0)[:, None] - 120 + late).clamp(min=0).long()
    return {
        **_wan(batch, size, seed, step),
        "timestep": timestep,
        "enable_diffusion_forcing": True,
    }


def _anyflow(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Frames before channels; each frame has the time it is at and the time it is to go to."""
    frames, rows, columns = SHAPES[size]
    now = level(batch, step, 1000.0)[:, None].repeat(1, frames)
    return {
        "hidden_states": moving(seed, step, batch, frames, 4, rows, columns),
        "timestep": now,
        "r_timestep": now - 50,
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
    }


def _anyflow_far(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """The second chunk of a video, two frames, with the keys and values of the first in the cache."""
    _, rows, columns = SHAPES[size]
    area = rows * columns // 4
    now = level(batch, step, 1000.0)[:, None].repeat(1, 2)
    caches = {
        index: {
            "full_cache": normal(seed, f"full {index}", 2, batch, 2, 3 * area, 16),
            "compressed_cache": torch.zeros(2, batch, 2, area, 16),
        }
        for index in range(4)
    }
    return {
        "hidden_states": moving(seed, step, batch, 2, 4, rows, columns),
        "timestep": now,
        "r_timestep": now - 50,
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "chunk_partition": [1, 2],
        "kv_cache": caches,
        "kv_cache_flag": {"num_cached_chunks": 1, "is_cache_step": False},
    }


def _helios(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Two frames to make after eight frames of history, which are patched the coarser the older they are."""
    _, rows, columns = SHAPES[size]
    frames = torch.arange(10).unsqueeze(0).expand(batch, -1)
    history = normal(seed, "history", batch, 4, 8, rows, columns)
    return {
        "hidden_states": moving(seed, step, batch, 4, 2, rows, columns),
        "timestep": clock(batch, step),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "latents_history_long": history[:, :, :4],
        "latents_history_mid": history[:, :, 4:6],
        "latents_history_short": history[:, :, 6:],
        "indices_latents_history_long": frames[:, :4],
        "indices_latents_history_mid": frames[:, 4:6],
        "indices_latents_history_short": frames[:, 6:8],
        "indices_hidden_states": frames[:, 8:],
    }


IMAGE = dict(in_channels=9, image_dim=20, added_kv_proj_dim=32)
ANYFLOW = dict(WAN, gate_value=0.25)
HELIOS = {key: value for key, value in WAN.items() if key != "rope_max_seq_len"}

ENTRIES = (
    entry("WanTransformer3DModel", _wan, **WAN),
    entry("WanTransformer3DModel/i2v", _wan_i2v, **(WAN | IMAGE)),
    entry("WanTransformer3DModel/ti2v", _wan_ti2v, **WAN),
    entry("WanVACETransformer3DModel", _wan_vace, **WAN, vace_layers=[0, 2], vace_in_channels=6),
    entry(
        "WanAnimateTransformer3DModel",
        _wan_animate,
        **(WAN | IMAGE | dict(in_channels=12, latent_channels=4, num_layers=4)),
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=12,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    ),
    Entry("WanAnimate2Transformer3DModel", _build_wan_animate2, _wan_animate2),
    entry("ChronoEditTransformer3DModel", _wan_i2v, **(WAN | IMAGE), rope_temporal_skip_len=4),
    entry("SkyReelsV2Transformer3DModel", _wan, **WAN),
    entry("SkyReelsV2Transformer3DModel/forcing", _skyreels_forcing, **WAN),
    entry("AnyFlowTransformer3DModel", _anyflow, **ANYFLOW),
    entry(
        "AnyFlowFARTransformer3DModel",
        _anyflow_far,
        **(ANYFLOW | dict(num_layers=4)),
        compressed_patch_size=(1, 4, 4),
        full_chunk_limit=3,
        chunk_partition=(1, 2),
    ),
    entry("HeliosTransformer3DModel", _helios, **HELIOS, rope_dim=(4, 6, 6)),
)
