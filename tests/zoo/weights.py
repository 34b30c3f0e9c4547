"""Random weights for the whole zoo, so that no zero-initialised gate, table or projection hides an error."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GAIN = 1.0  # of linear and convolution weights: gain / sqrt(inputs) is their standard deviation
BIAS = 0.15
TABLE = 0.3  # embeddings, scale and shift tables, pad tokens
NORM = 0.1  # how far the weights of norms are from one

_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CENTRED_NORMS = ("QwenImage21ZeroCenterRMSNorm", "Krea2RMSNorm")  # these add the one themselves
_SCALED = ("MotionConv2d", "MotionLinear")  # these divide by the root of their inputs themselves


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter of `model` a seeded random value; freeze it and switch to evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                parameter.copy_(_value(module, name, parameter, generator))
    return model.float().eval().requires_grad_(False)


def _value(module: nn.Module, name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    """A random value for one parameter, by the kind of its module and by its shape."""
    draw = torch.randn(parameter.shape, generator=generator)
    kind = type(module).__name__
    if name == "A_log":
        return 0.5 * draw
    if name == "weight" and parameter.ndim == 1 and ("Norm" in kind or "norm" in kind):
        return NORM * draw + (0.0 if kind in _CENTRED_NORMS else 1.0)
    if kind in _SCALED and name == "weight":
        return draw
    if isinstance(module, _TRANSPOSED) and name == "weight":
        return draw * GAIN / parameter.shape[0] ** 0.5
    if isinstance(module, _LINEAR) and name == "weight":
        return draw * GAIN / parameter[0].numel() ** 0.5
    if parameter.ndim == 1:
        return BIAS * draw
    if parameter.ndim == 3 and "proj" in name:  # packed experts: (experts, inputs, outputs)
        return draw * GAIN / parameter.shape[1] ** 0.5
    if isinstance(module, nn.Embedding) or not ("proj" in name or name.endswith("weight")):
        return TABLE * draw
    return draw * GAIN / parameter[0].numel() ** 0.5
