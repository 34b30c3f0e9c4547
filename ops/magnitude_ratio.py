"""magnitude_ratio: how a feature's size and direction changed, token by token: the calibrator's three numbers."""

from __future__ import annotations

import torch

from mindie_cache.ops.dispatch import guarded, implementation
from mindie_cache.ops.memory import portion

EPS = 1e-8  # least norm in the cosine


def magnitude_ratio(current: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    """Return ``[mean of f, standard deviation of f, mean of 1 - cosine]``: float32 of shape (3,), without synchronising.

    Args:
        current, previous: tensors ``(..., channels)`` of one shape and device. Every token, an entry of all dimensions but
            the last, has ``f = |current| / |previous|`` and the cosine between the two, with norms over channels in fp32.

    The deviation is the unbiased one; of one token it is 0. A previous norm of 0 makes f infinite or NaN, and the mean and
    the deviation with it. The means of no tokens are NaN.

    Source: MagCache (Ma et al., 2025) and TeleFuser's calibrator.
    """
    if current.shape != previous.shape:  # a broadcast here would be a silent error
        raise ValueError(f"magnitude_ratio: shapes differ, {tuple(current.shape)} and {tuple(previous.shape)}.")
    if implementation("magnitude_ratio", current) == "reference":
        return _three(*magnitude_ratio_reference(current, previous))
    return torch.ops.mindie_cache.magnitude_ratio(current, previous)


def magnitude_ratio_reference(current: torch.Tensor, previous: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ratio and cosine of every token by PyTorch's operators, some tokens at a time."""
    rows = max(1, portion(current) // max(1, current.shape[-1]))
    tokens = [tensor.reshape(-1, tensor.shape[-1]).split(rows) for tensor in (current, previous)]
    parts = [_compare(now, before) for now, before in zip(*tokens, strict=True)]
    return torch.cat([ratio for ratio, _ in parts]), torch.cat([cosine for _, cosine in parts])


def _compare(now: torch.Tensor, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    now_norm, before_norm = (torch.linalg.vector_norm(part, dim=-1, dtype=torch.float32) for part in (now, before))
    product = (now.float() * before.float()).sum(-1)
    return now_norm / before_norm, product / (now_norm.clamp_min(EPS) * before_norm.clamp_min(EPS))


def _three(ratios: torch.Tensor, cosines: torch.Tensor) -> torch.Tensor:
    mean = ratios.mean()
    deviation = ((ratios - mean).square().sum() / max(1, ratios.numel() - 1)).sqrt()
    return torch.stack((mean, deviation, (1 - cosines).mean()))


torch.library.define("mindie_cache::magnitude_ratio", "(Tensor current, Tensor previous) -> Tensor")


@torch.library.impl("mindie_cache::magnitude_ratio", "CompositeExplicitAutograd")
def _run(current: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    def by_reference() -> torch.Tensor:
        return _three(*magnitude_ratio_reference(current, previous))

    def by_kernel() -> torch.Tensor:
        from mindie_cache.ops.triton import magnitude_ratio as kernels

        tokens = current.shape[:-1].numel()
        ratios, cosines = torch.empty((2, tokens), dtype=torch.float32, device=current.device)
        kernels.magnitude_ratio(current.contiguous(), previous.contiguous(), ratios, cosines, EPS)
        return _three(ratios, cosines)

    if implementation("magnitude_ratio", current) == "reference":
        return by_reference()
    return guarded("magnitude_ratio", current, by_kernel, by_reference)


@torch.library.register_fake("mindie_cache::magnitude_ratio")
def _fake(current: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    return torch.empty(3, dtype=torch.float32, device=current.device)
