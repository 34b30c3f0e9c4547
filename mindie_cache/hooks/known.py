"""Which published model a transformer is, by its class and the numbers in its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mindie_cache.hooks.families import known_as

# Class of the transformer, numbers of its configuration, and under which names presets for it are filed.
_KNOWN: tuple[tuple[str, Mapping[str, Any], tuple[str, ...]], ...] = (
    ("FluxTransformer2DModel", {"num_layers": 19, "num_single_layers": 38, "guidance_embeds": True}, ("FLUX.1-dev",)),
    ("WanTransformer3DModel", {"num_layers": 30, "num_attention_heads": 12, "in_channels": 16}, ("Wan2.1-T2V-1.3B",)),
    ("WanTransformer3DModel", {"num_layers": 30, "in_channels": 48}, ("Wan2.2-TI2V-5B",)),
    ("WanTransformer3DModel", {"num_layers": 40, "in_channels": 16, "expert": True}, ("Wan2.2-T2V-A14B",)),
    ("WanTransformer3DModel", {"num_layers": 40, "in_channels": 36, "expert": True}, ("Wan2.2-I2V-A14B",)),
    ("WanTransformer3DModel", {"num_layers": 40, "in_channels": 16}, ("Wan2.1-T2V-14B",)),
    ("WanTransformer3DModel", {"num_layers": 40, "in_channels": 36}, ("Wan2.1-I2V-14B-720P", "Wan2.1-I2V-14B-480P")),
    ("HunyuanVideoTransformer3DModel", {"num_layers": 20, "in_channels": 16}, ("HunyuanVideo-T2V",)),
    ("HunyuanVideoTransformer3DModel", {"num_layers": 20, "in_channels": 33}, ("HunyuanVideo-I2V",)),
    ("QwenImageTransformer2DModel", {"num_layers": 60, "edit": "plus"}, ("Qwen-Image-Edit-Plus",)),
    ("QwenImageTransformer2DModel", {"num_layers": 60, "edit": None}, ("Qwen-Image",)),
)


def model_names(model: nn.Module, pipe: Any = None) -> tuple[str, ...]:
    """The names of the published model that this transformer is, if it is one; the likeliest first."""
    config = getattr(model, "config", None)
    if not isinstance(config, Mapping):
        return ()
    kind = type(pipe).__name__ if pipe is not None else ""
    seen = {
        **config,
        "expert": getattr(pipe, "transformer_2", None) is not None,
        "edit": "plus" if "EditPlus" in kind else "plain" if "Edit" in kind else None,
    }
    for name, numbers, names in _KNOWN:
        if known_as(type(model), (name,)) and all(seen.get(key) == value for key, value in numbers.items()):
            return names
    return ()
