"""FLUX, FLUX.2, FLUX.3 and the image models built on the same double and single blocks."""

from __future__ import annotations

from typing import Any

import torch

from .core import entry, grid_ids, level, moving, normal, padded

GRIDS = ((4, 4), (4, 6))  # rows and columns of image tokens
TEXT = 6  # text tokens
WIDTHS = dict(attention_head_dim=16, num_attention_heads=2, joint_attention_dim=24, in_channels=8)
LAYERS = dict(num_layers=3, num_single_layers=4)
AXES = (4, 6, 6)


def _tokens(batch: int, size: int, seed: int, step: float, axes: int = 3) -> dict[str, Any]:
    """Latents, text and position ids of one image, as packed tokens."""
    rows, columns = GRIDS[size]
    return {
        "hidden_states": moving(seed, step, batch, rows * columns, 8),
        "encoder_hidden_states": normal(seed, "text", batch, TEXT, 24),
        "timestep": level(batch, step),
        "img_ids": grid_ids(rows, columns, axes),
        "txt_ids": torch.zeros(TEXT, axes),
    }


def _flux(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    pooled = normal(seed, "pooled", batch, 20)
    return {**_tokens(batch, size, seed, step), "pooled_projections": pooled, "guidance": torch.full((batch,), 3.5)}


def _flux_schnell(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    return {**_flux(batch, size, seed, step), "guidance": None}


def _flux_kontext(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """A reference image of 3 x 4 tokens behind the latents, marked by the first position id."""
    call = _flux(batch, size, seed, step)
    reference = normal(seed, "reference", batch, 12, 8)
    call["hidden_states"] = torch.cat([call["hidden_states"], reference], dim=1)
    call["img_ids"] = torch.cat([call["img_ids"], grid_ids(3, 4, index=1)])
    return call


def _flux2(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    call = _tokens(batch, size, seed, step, axes=4)
    call["txt_ids"][:, 3] = torch.arange(TEXT)
    return {**call, "guidance": torch.full((batch,), 4.0)}


def _flux2_klein(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    return {**_flux2(batch, size, seed, step), "guidance": None}


def _flux3(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    call = _tokens(batch, size, seed, step, axes=4)
    call["txt_ids"][:, 3] = torch.arange(TEXT)
    return call


def _flux3_edit(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """A condition image in its own stream, joined to the latents before the single blocks."""
    call = _flux3(batch, size, seed, step)
    call["image_cond_hidden_states"] = normal(seed, "condition", batch, 9, 8)
    call["image_cond_ids"] = grid_ids(3, 3, axes=4, index=1)
    return call


def _chroma(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    call = _tokens(batch, size, seed, step)
    mask = torch.cat([padded(batch, TEXT), torch.ones(batch, call["hidden_states"].shape[1], dtype=torch.long)], dim=1)
    return {**call, "attention_mask": mask.bool()}


def _bria(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    return {**_tokens(batch, size, seed, step), "timestep": level(batch, step, 1000.0)}


def _bria_fibo(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Every block gets text of its own: one text encoder layer for each."""
    blocks = LAYERS["num_layers"] + LAYERS["num_single_layers"]
    layers = [normal(seed, f"text layer {i}", batch, TEXT, 12) for i in range(blocks)]
    return {**_bria(batch, size, seed, step), "text_encoder_layers": layers}


def _bria_fibo2(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    """Text of three encoder layers: the first makes the gist tokens, the others are injected into blocks 1 and 3."""
    rows, columns = GRIDS[size]
    return {
        "hidden_states": moving(seed, step, batch, 4, 2 * rows, 2 * columns),
        "timestep": level(batch, step),
        "encoder_hidden_states": normal(seed, "text", batch, 3, 8, 24),
    }


def _plain(batch: int = 1, size: int = 0, seed: int = 0, step: float = 0.0) -> dict[str, Any]:
    return _tokens(batch, size, seed, step)


ENTRIES = (
    entry(
        "FluxTransformer2DModel",
        _flux,
        **(WIDTHS | LAYERS),
        pooled_projection_dim=20,
        guidance_embeds=True,
        axes_dims_rope=AXES,
    ),
    entry(
        "FluxTransformer2DModel/schnell",
        _flux_schnell,
        **(WIDTHS | LAYERS),
        pooled_projection_dim=20,
        guidance_embeds=False,
        axes_dims_rope=AXES,
    ),
    entry(
        "FluxTransformer2DModel/kontext",
        _flux_kontext,
        **(WIDTHS | LAYERS),
        pooled_projection_dim=20,
        guidance_embeds=True,
        axes_dims_rope=AXES,
    ),
    entry(
        "Flux2Transformer2DModel",
        _flux2,
        **(WIDTHS | LAYERS),
        timestep_guidance_channels=32,
        mlp_ratio=2.0,
        axes_dims_rope=(4, 4, 4, 4),
    ),
    entry(
        "Flux2Transformer2DModel/klein",
        _flux2_klein,
        **(WIDTHS | LAYERS),
        timestep_guidance_channels=32,
        mlp_ratio=2.0,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    ),
    *(
        entry(
            name,
            inputs,
            **(WIDTHS | dict(num_layers=2, num_single_layers=5)),
            cond_in_channels=8,
            timestep_channels=32,
            mlp_ratio=2.0,
            axes_dims_rope=(4, 4, 4, 4),
        )
        for name, inputs in (("Flux3Transformer2DModel", _flux3), ("Flux3Transformer2DModel/edit", _flux3_edit))
    ),
    entry(
        "ChromaTransformer2DModel",
        _chroma,
        **(WIDTHS | LAYERS),
        axes_dims_rope=AXES,
        approximator_num_channels=32,
        approximator_hidden_dim=48,
        approximator_layers=2,
    ),
    entry("BriaTransformer2DModel", _bria, **(WIDTHS | LAYERS), pooled_projection_dim=None, axes_dims_rope=list(AXES)),
    entry("BriaFiboTransformer2DModel", _bria_fibo, **(WIDTHS | LAYERS), axes_dims_rope=list(AXES), text_encoder_dim=12),
    entry(
        "BriaFibo2Transformer2DModel",
        _bria_fibo2,
        in_channels=4,
        dim=32,
        n_layers=5,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=24,
        injection_layer_ids=(1, 3),
        perceiver_num_layers=1,
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=2,
        gist_min_text_len=4,
        gist_max_text_len=16,
        axes_dims=AXES,
        axes_lens=(64, 16, 16),
    ),
    entry(
        "LongCatImageTransformer2DModel",
        _plain,
        **(WIDTHS | LAYERS),
        pooled_projection_dim=20,
        axes_dims_rope=list(AXES),
    ),
    entry("OvisImageTransformer2DModel", _plain, **(WIDTHS | LAYERS), out_channels=8, axes_dims_rope=AXES),
)
