"""Taps: take the tensor that a policy looks at from the arguments of a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mindie_cache.errors import ParametersInvalid


def model_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """The latents that a transformer is called with: `hidden_states`, or else the first positional argument."""
    latents = kwargs.get("hidden_states", args[0] if args else None)
    if not isinstance(latents, torch.Tensor):
        raise ParametersInvalid(
            f"This method watches the latents, but hidden_states is {type(latents).__name__}. Call "
            "agent.apply(transformer, hidden_states=latents, ...) or pass the latents as the first argument."
        )
    return latents
