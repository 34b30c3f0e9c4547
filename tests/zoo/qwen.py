"""Qwen-Image and its editing and layered uses, Qwen-Image 2.1, Nucleus, JoyImage and Krea 2."""

from __future__ import annotations

from typing import Any

import torch

from .core import entry, grid_ids, level, moving, normal, padded

GRIDS = ((4, 4), (4, 6))
TEXT = 8
AXES = (4, 6, 6)
QWEN = dict(
    in_channels=16,
    out_channels=4,
    num_layers=5,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=24,
    axes_dims_rope=AXES,
)


def _qwen(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    rows, columns = GRIDS[size]
    return {
        "hidden_states": moving(seed, step, batch, rows * columns, 16),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "encoder_hidden_states_mask": padded(batch, TEXT),
        "timestep": level(batch, step),
        "img_shapes": [[(1, rows, columns)] for _ in range(batch)],
    }


def _qwen_edit(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Two reference images behind the latents, each with its own entry in img_shapes."""
    call = _qwen(batch, size, seed, step)
    references = normal(seed, "references", batch, 12 + 6, 16)
    call["hidden_states"] = torch.cat([call["hidden_states"], references], dim=1)
    call["img_shapes"] = [[*shapes, (1, 3, 4), (1, 2, 3)] for shapes in call["img_shapes"]]
    return call


def _qwen_layered(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Two layers to denoise, then the image they are taken from."""
    rows, columns = GRIDS[size]
    call = _qwen(batch, size, seed, step)
    image = normal(seed, "image", batch, rows * columns, 16)
    second = moving(seed, step, batch, rows * columns, 16, name="second layer")
    call["hidden_states"] = torch.cat([call["hidden_states"], second, image], dim=1)
    call["img_shapes"] = [[(1, rows, columns)] * 3 for _ in range(batch)]
    return {**call, "additional_t_cond": torch.zeros(batch, dtype=torch.long)}


def _qwen21(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Each slot of img_mask stands for four image tokens; the target image comes last."""
    rows, columns = GRIDS[size]
    slots = torch.zeros(batch, TEXT + rows * columns // 4, dtype=torch.bool)
    slots[:, TEXT:] = True
    return {
        "hidden_states": moving(seed, step, batch, rows * columns, 8),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "encoder_hidden_states_mask": padded(batch, TEXT),
        "timestep": level(batch, step),
        "img_shapes": [[(1, rows, columns)] for _ in range(batch)],
        "img_mask": slots,
    }


def _qwen21_edit(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """A condition image of 2 x 4 tokens in place of two slots inside the text."""
    call = _qwen21(batch, size, seed, step)
    call["img_mask"][:, 3:5] = True
    call["hidden_states"] = torch.cat([normal(seed, "condition", batch, 8, 8), call["hidden_states"]], dim=1)
    call["img_shapes"] = [[(1, 2, 4), *shapes] for shapes in call["img_shapes"]]
    return {**call, "encoder_hidden_states_mask": torch.ones(batch, TEXT, dtype=torch.long)}


def _joy(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Items of the second axis: the reference image first, the image to make last."""
    rows, columns = GRIDS[size]
    latents = moving(seed, step, batch, 1, 4, 1, 2 * rows, 2 * columns)
    reference = normal(seed, "reference", batch, 1, 4, 1, 2 * rows, 2 * columns)
    return {
        "hidden_states": torch.cat([reference, latents], dim=1),
        "timestep": level(batch, step, 1000.0),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
    }


def _joy_plus(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Patches of the image to make, then those of a smaller reference image."""
    rows, columns = GRIDS[size]
    latents = moving(seed, step, batch, rows * columns, 4, 1, 2, 2)
    return {
        "hidden_states": torch.cat([latents, normal(seed, "reference", batch, 6, 4, 1, 2, 2)], dim=1),
        "timestep": level(batch, step, 1000.0),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "encoder_hidden_states_mask": padded(batch, TEXT).float(),
        "shape_list": [[(1, rows, columns), (1, 2, 3)] for _ in range(batch)],
    }


def _krea2(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Text with an axis of three encoder layers, which the model fuses."""
    rows, columns = GRIDS[size]
    return {
        "hidden_states": moving(seed, step, batch, rows * columns, 8),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 3, 24),
        "encoder_attention_mask": padded(batch, TEXT).bool(),
        "timestep": level(batch, step),
        "position_ids": torch.cat([torch.zeros(TEXT, 3), grid_ids(rows, columns)]),
    }


def _nucleus(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    rows, columns = GRIDS[size]
    return {
        "hidden_states": moving(seed, step, batch, rows * columns, 16),
        "img_shapes": [(1, rows, columns)] * batch,
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "encoder_hidden_states_mask": padded(batch, TEXT),
        "timestep": level(batch, step),
    }


JOY = dict(
    in_channels=4,
    hidden_size=32,
    num_attention_heads=2,
    text_dim=24,
    mlp_width_ratio=2.0,
    num_layers=5,
    rope_dim_list=list(AXES),
)

ENTRIES = (
    entry("QwenImageTransformer2DModel", _qwen, **QWEN),
    entry("QwenImageTransformer2DModel/edit", _qwen_edit, **QWEN),
    entry("QwenImageTransformer2DModel/edit-zero-cond-t", _qwen_edit, **QWEN, zero_cond_t=True),
    entry("QwenImageTransformer2DModel/layered", _qwen_layered, **QWEN, use_additional_t_cond=True, use_layer3d_rope=True),
    *(
        entry(
            name,
            inputs,
            in_channels=8,
            out_channels=8,
            num_layers=5,
            attention_head_dim=16,
            num_attention_heads=2,
            context_in_dim=24,
            mlp_ratio=2,
            axes_dims_rope=AXES,
        )
        for name, inputs in (
            ("QwenImage21Transformer2DModel", _qwen21),
            ("QwenImage21Transformer2DModel/edit", _qwen21_edit),
        )
    ),
    entry("JoyImageEditTransformer3DModel", _joy, **JOY),
    entry("JoyImageEditPlusTransformer3DModel", _joy_plus, **JOY),
    entry(
        "NucleusMoEImageTransformer2DModel",
        _nucleus,
        in_channels=16,
        out_channels=4,
        num_layers=6,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
        mlp_ratio=6.0,
        num_experts=4,
        moe_intermediate_dim=24,
        capacity_factors=2.0,
    ),
    entry(
        "Krea2Transformer2DModel",
        _krea2,
        in_channels=8,
        num_layers=5,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        timestep_embed_dim=32,
        text_hidden_dim=24,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=AXES,
    ),
)
