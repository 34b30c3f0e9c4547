"""residual_delta: what a region of blocks adds to its input; the feature that most methods keep."""

from __future__ import annotations

import torch

from mindie_cache.ops.quantize_rows import quantized


def residual_delta(output: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return ``output - reference`` as a new tensor. One operator of PyTorch on every device: it is one pass already.

    Args:
        output, reference: tensors of one shape and device. If their types differ the result has the wider one.
    """
    if output.shape != reference.shape:  # a broadcast here would be a silent error
        raise _shapes_differ(output, reference)
    return output - reference


def quantized_delta(output: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes and scales of ``output - reference``, as `quantize_rows` does, in one pass and rounded once."""
    if output.shape != reference.shape:
        raise _shapes_differ(output, reference)
    return quantized(output, reference)


def _shapes_differ(output: torch.Tensor, reference: torch.Tensor) -> ValueError:
    return ValueError(f"residual_delta: shapes differ, {tuple(output.shape)} and {tuple(reference.shape)}.")
