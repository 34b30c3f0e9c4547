"""A small video diffusion transformer with two streams, written as the reference integration of a cache.

Owns the network. Sampling is in ``sampler.py``. The blocks predict the clean video; ``forward`` returns the
flow-matching velocity that follows from it, because a narrow network can carry a clean video but not noise
(Li and He, "Back to Basics: Let Denoising Generative Models Denoise", 2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mindie_cache.errors import ConfigError
from mindie_cache.testbed import data

_MODULATIONS = 6  # shift, scale and gate, for the attention and for the feed-forward
_STREAMS = 2


@dataclass(frozen=True)
class TestbedConfig:
    """Sizes of a ``TestbedTransformer``. Patches are (frames, pixels, pixels)."""

    __test__ = False  # not a test case, whatever the name suggests to pytest

    frames: int = data.FRAMES
    height: int = data.HEIGHT
    width: int = data.WIDTH
    channels: int = 3
    patch: tuple[int, int, int] = (2, 4, 4)
    dim: int = 96
    blocks: int = 12
    heads: int = 4
    mlp_ratio: int = 4
    min_sigma: float = 0.05  # floor of the divisor that turns a clean video into a velocity

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.dim % 6:
            raise ConfigError(f"dim={self.dim} must be a multiple of heads={self.heads} and of 6.")
        sizes = (self.frames, self.height, self.width)
        if any(size % step for size, step in zip(sizes, self.patch, strict=True)):
            raise ConfigError(f"patch={self.patch} must divide (frames, height, width)={sizes}.")

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches along (time, height, width)."""
        return (self.frames // self.patch[0], self.height // self.patch[1], self.width // self.patch[2])


class CallCache(Protocol):
    """Decides about a call: makes it, or returns what it can predict of the result."""

    def apply(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """The result of ``function(*args, **kwargs)``, computed or predicted."""


def _call(cache: CallCache | None, module: nn.Module, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The whole integration: without a cache call the module, with one let the cache decide."""
    return module(**inputs) if cache is None else cache.apply(module, **inputs)


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts silent."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _sinusoid(position: Tensor, dim: int, period: float) -> Tensor:
    """Sine and cosine features, ``(..., dim)``."""
    frequency = torch.exp(-math.log(period) * torch.arange(dim // 2, device=position.device) / (dim // 2))
    angle = position[..., None].float() * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def _grid_positions(grid: tuple[int, int, int], dim: int) -> Tensor:
    """Fixed 3-D positions, ``(tokens, dim)``: a third of the features for each axis."""
    axes = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
    return torch.cat([_sinusoid(axis.flatten(), dim // 3, period=100.0) for axis in axes], dim=-1)


def _modulate(normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return normed * (1 + scale) + shift


class JointAttention(nn.Module):
    """Attention over both streams at once, with normalised queries and keys (Esser et al., 2024)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.add_qkv = nn.Linear(dim, 3 * dim)
        self.norm_q = nn.RMSNorm(dim // heads, eps=1e-6)
        self.norm_k = nn.RMSNorm(dim // heads, eps=1e-6)
        self.to_out = nn.Linear(dim, dim)
        self.add_out = nn.Linear(dim, dim)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, tokens, dim)`` of each stream in, the same shapes out."""
        joint = torch.cat([self.to_qkv(hidden_states), self.add_qkv(encoder_hidden_states)], dim=1)
        query, key, value = rearrange(joint, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        mixed = F.scaled_dot_product_attention(self.norm_q(query), self.norm_k(key), value)
        mixed = rearrange(mixed, "b h n d -> b n (h d)")
        video, text = mixed.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], dim=1)
        return self.to_out(video), self.add_out(text)


class FeedForward(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, ratio * dim)
        self.down = nn.Linear(ratio * dim, dim)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(hidden_states), approximate="tanh"))


class TestbedBlock(nn.Module):
    """One dual-stream block. ``cache`` decides about the attention; None calls it always."""

    __test__ = False

    def __init__(self, config: TestbedConfig) -> None:
        super().__init__()
        self.cache: CallCache | None = None
        self.norm1 = nn.LayerNorm(config.dim, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(config.dim, elementwise_affine=False, eps=1e-6)
        self.attn = JointAttention(config.dim, config.heads)
        self.ff = FeedForward(config.dim, config.mlp_ratio)
        self.ff_context = FeedForward(config.dim, config.mlp_ratio)
        table = torch.zeros(_STREAMS, _MODULATIONS, config.dim)
        table[:, 2::3] = 0.2  # gates: a shallow start, but open
        self.modulation_bias = nn.Parameter(table)
        self.modulation_scale = nn.Parameter(torch.ones_like(table))

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:
        """Both streams ``(batch, tokens, dim)`` and ``temb`` ``(batch, 2, 6, dim)`` in, both streams out."""
        video, text = self._modulation(temb)
        attn_video, attn_text = _call(
            self.cache,
            self.attn,
            hidden_states=_modulate(self.norm1(hidden_states), *video[:2]),
            encoder_hidden_states=_modulate(self.norm1(encoder_hidden_states), *text[:2]),
        )
        hidden_states = hidden_states + video[2] * attn_video
        encoder_hidden_states = encoder_hidden_states + text[2] * attn_text
        hidden_states = hidden_states + video[5] * self.ff(_modulate(self.norm2(hidden_states), *video[3:5]))
        encoder_hidden_states = encoder_hidden_states + text[5] * self.ff_context(
            _modulate(self.norm2(encoder_hidden_states), *text[3:5])
        )
        return hidden_states, encoder_hidden_states

    def modulated_input(self, hidden_states: Tensor, temb: Tensor, **others: Tensor) -> Tensor:
        """What enters the attention of the video stream; methods that watch the modulated input ask for it."""
        video, _ = self._modulation(temb)
        return _modulate(self.norm1(hidden_states), *video[:2])

    def _modulation(self, temb: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Shift, scale and gate of the attention, then of the feed-forward: for the video, and for the text."""
        modulation = (temb * self.modulation_scale + self.modulation_bias).unsqueeze(3)
        video, text = modulation.unbind(1)
        return video.unbind(1), text.unbind(1)


class TestbedTransformer(nn.Module):
    """Text-to-video transformer. ``cache`` decides about each block; None calls it always.

    One time network modulates all blocks; each block adds its own bias and scale (after PixArt's adaLN-single,
    Chen et al., 2023).
    """

    __test__ = False

    def __init__(self, config: TestbedConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TestbedConfig()
        self.cache: CallCache | None = None
        dim, patch_size = config.dim, config.channels * math.prod(config.patch)
        self.patch_in = nn.Linear(patch_size, dim)
        self.token_embedding = nn.Embedding(len(data.VOCABULARY), dim)
        self.token_position = nn.Parameter(0.02 * torch.randn(data.TOKENS, dim))
        self.register_buffer("position", _grid_positions(config.grid, dim), persistent=False)
        self.time_in = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.text_in = nn.Linear(dim, dim)
        self.time_out = nn.Sequential(nn.SiLU(), _zero_linear(dim, _STREAMS * _MODULATIONS * dim))
        self.transformer_blocks = nn.ModuleList(TestbedBlock(config) for _ in range(config.blocks))
        self.norm_out = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.modulation_out = _zero_linear(dim, 2 * dim)
        self.patch_out = _zero_linear(dim, patch_size)

    def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """Velocity ``noise - video`` at a noisy video.

        Args:
            hidden_states: latents ``(batch, channels, frames, height, width)``.
            timestep: ``1000 * sigma`` with sigma in (0, 1], shape ``(batch,)``, float32 whatever the model's dtype.
            encoder_hidden_states: token ids ``(batch, tokens)``, or embeddings ``(batch, tokens, dim)``.

        Returns:
            The velocity, of the latents' shape.
        """
        latents = hidden_states
        if not encoder_hidden_states.is_floating_point():
            encoder_hidden_states = self.token_embedding(encoder_hidden_states)
        time = _sinusoid(timestep, self.config.dim, period=10_000.0).to(latents.dtype)
        summary = self.time_in(time) + self.text_in(encoder_hidden_states.mean(dim=1))
        temb = self.time_out(summary).unflatten(1, (_STREAMS, _MODULATIONS, -1))
        encoder_hidden_states = encoder_hidden_states + self.token_position
        hidden_states = self.patch_in(self._patchify(latents)) + self.position
        for block in self.transformer_blocks:
            hidden_states, encoder_hidden_states = _call(
                self.cache,
                block,
                hidden_states=hidden_states,
                encoder_hidden_states=encoder_hidden_states,
                temb=temb,
            )
        shift, scale = self.modulation_out(F.silu(summary))[:, None].chunk(2, dim=-1)
        clean = self._unpatchify(self.patch_out(self.norm_out(hidden_states) * (1 + scale) + shift))
        # x_sigma = (1 - sigma) * clean + sigma * noise, hence noise - clean = (x_sigma - clean) / sigma
        sigma = (timestep / 1000).clamp_min(self.config.min_sigma)
        return ((latents - clean) / sigma[:, None, None, None, None]).to(latents.dtype)

    def _patchify(self, latents: Tensor) -> Tensor:
        t, h, w = self.config.patch
        return rearrange(latents, "b c (t pt) (h ph) (w pw) -> b (t h w) (c pt ph pw)", pt=t, ph=h, pw=w)

    def _unpatchify(self, patches: Tensor) -> Tensor:
        (t, h, w), (pt, ph, pw) = self.config.grid, self.config.patch
        pattern = "b (t h w) (c pt ph pw) -> b c (t pt) (h ph) (w pw)"
        return rearrange(patches, pattern, t=t, h=h, w=w, pt=pt, ph=ph, pw=pw)
