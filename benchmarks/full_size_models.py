"""What `full_size.py` runs: FLUX.1-dev and Wan2.1-T2V-1.3B with random weights, and the denoising loop. Times nothing.

Only shapes and dtypes decide how long a forward takes, so the weights are random. They are made on the device, in the dtype
that diffusers would load: bf16, and fp32 for the parts that the class keeps in it. Of `scale="small"` the blocks have their
real width; there are fewer of them, and fewer tokens.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from overhead_variants import Subject
from torch import Tensor, nn

BF16 = torch.bfloat16
GUIDANCE_SCALE = 5.0
Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class RealSubject(Subject):
    """A model of real width. `lists`, `shape`, `inputs` and `unit` are those of `Subject`.

    Args:
        hollow: builds the same model without blocks.
        part: the name of a module that each block calls once.
        preset: the name of its magnitude table.
        prompt: inputs of one branch.
        branches: "cond", and "uncond" where there is classifier-free guidance.
        shift: of the sigmas, as in the model's scheduler.
    """

    hollow: Callable[[], nn.Module]
    part: str
    preset: str
    prompt: Callable[[], dict[str, Tensor]]
    branches: tuple[str, ...] = ("cond",)
    shift: float = 3.0


def _flux(double: int, single: int) -> nn.Module:
    """diffusers' defaults are FLUX.1-dev's sizes."""
    model = importlib.import_module("diffusers").FluxTransformer2DModel
    return model(num_layers=double, num_single_layers=single, guidance_embeds=True)


def _flux_inputs(side: int, text: int) -> dict[str, Tensor]:
    rows, columns = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    ids = torch.stack([torch.zeros(side * side), rows.flatten(), columns.flatten()], dim=1)
    return {"img_ids": ids, "txt_ids": torch.zeros(text, 3), "guidance": torch.tensor([3.5])}


def _flux_prompt(text: int) -> dict[str, Tensor]:
    return {"encoder_hidden_states": torch.randn(1, text, 4096), "pooled_projections": torch.randn(1, 768)}


def flux(double: int, single: int, side: int, text: int) -> RealSubject:
    """`side` x `side` image tokens: a picture of 16 times as many pixels a side."""
    return RealSubject(
        f"FLUX.1-dev, {double}+{single} blocks, {side * side}+{text} tokens",
        lambda: _flux(double, single),
        ("transformer_blocks", "single_transformer_blocks"),
        (1, side * side, 64),
        lambda: _flux_inputs(side, text),
        1.0,
        hollow=lambda: _flux(0, 0),
        part="attn",
        preset="FLUX.1-dev",
        prompt=lambda: _flux_prompt(text),
    )


def _wan(layers: int) -> nn.Module:
    model = importlib.import_module("diffusers").WanTransformer3DModel
    return model(num_attention_heads=12, ffn_dim=8960, num_layers=layers)


def wan(layers: int, frames: int, height: int, width: int, text: int) -> RealSubject:
    """Sizes of the latents: 8 times as many pixels, 4 times as many frames less 3."""
    tokens = frames * (height // 2) * (width // 2)
    return RealSubject(
        f"Wan2.1-T2V-1.3B, {layers} blocks, {tokens} tokens, 2 branches",
        lambda: _wan(layers),
        ("blocks",),
        (1, 16, frames, height, width),
        dict,
        1000.0,
        hollow=lambda: _wan(0),
        part="attn1",
        preset="Wan2.1-T2V-1.3B",
        prompt=lambda: {"encoder_hidden_states": torch.randn(1, text, 4096)},
        branches=("cond", "uncond"),
    )


SCALES = {
    "full": {"flux": flux(19, 38, 64, 512), "wan": wan(30, 21, 60, 104, 512)},
    "small": {"flux": flux(2, 4, 8, 32), "wan": wan(6, 3, 8, 16, 64)},
}


# ---------------------------------------------------------------------------------------------- models


def random_weights(subject: RealSubject, device: torch.device) -> Weights:
    """Every parameter of the model, small and normal around 0, or around 1 where it scales what is normalised."""
    model = _meta(subject)
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    generator = torch.Generator(device).manual_seed(0)
    found: Weights = {}
    for name, parameter in model.named_parameters():
        dtype = torch.float32 if kept & set(name.split(".")) else BF16
        weight = torch.empty(parameter.shape, device=device, dtype=dtype).normal_(std=0.02, generator=generator)
        scales = parameter.ndim == 1 and name.endswith("weight")
        found[name] = weight.add_(1.0) if scales else weight
    return found


def assemble(subject: RealSubject, weights: Weights) -> nn.Module:
    """A model of these weights, in the same memory. Its buffers, such as rotary angles, are computed as usual."""
    model = _meta(subject)
    model.load_state_dict(weights, strict=True, assign=True)
    device = next(iter(weights.values())).device
    for name, buffer in subject.hollow().named_buffers():
        owner, _, short = name.rpartition(".")
        model.get_submodule(owner).register_buffer(short, buffer.to(device), persistent=False)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    assert not left, left
    return model.eval()


def _meta(subject: RealSubject) -> nn.Module:
    with torch.device("meta"):
        return subject.build()


# ---------------------------------------------------------------------------------------------- the loop


class Denoising:
    """Euler steps of flow matching: the latents move by the model's velocity, the timestep falls, the prompt stays."""

    def __init__(self, subject: RealSubject, steps: int, device: torch.device):
        torch.manual_seed(1)
        self.noise = torch.randn(subject.shape).to(device)
        self.same = _placed(subject.inputs(), device)
        self.prompts = {branch: _placed(subject.prompt(), device) for branch in subject.branches}
        plain = [1 - step / steps for step in range(steps + 1)]
        self.sigmas = [subject.shift * sigma / (1 + (subject.shift - 1) * sigma) for sigma in plain]
        self.timesteps = [torch.tensor([subject.unit * sigma], device=device) for sigma in self.sigmas[:-1]]

    @property
    def forwards(self) -> int:
        return len(self.timesteps) * len(self.prompts)

    def run(self, model: Any, after_forward: Callable[[], None]) -> Iterator[Tensor]:
        """The latents after each step."""
        latents = self.noise
        for timestep, (sigma, following) in zip(self.timesteps, pairwise(self.sigmas), strict=True):
            found = {}
            for branch in self.prompts:
                found[branch] = self._velocity(model, branch, latents, timestep)
                after_forward()
            velocity = found["cond"]
            if "uncond" in found:
                velocity = found["uncond"] + GUIDANCE_SCALE * (velocity - found["uncond"])
            latents = latents + (following - sigma) * velocity
            yield latents

    def first_inputs(self) -> dict[str, Any]:
        return self._inputs("cond", self.noise, self.timesteps[0])

    def _velocity(self, model: Any, branch: str, latents: Tensor, timestep: Tensor) -> Tensor:
        with model.cache_context(branch):
            return model(**self._inputs(branch, latents, timestep))[0].float()

    def _inputs(self, branch: str, latents: Tensor, timestep: Tensor) -> dict[str, Any]:
        values = {"hidden_states": latents.to(BF16), "timestep": timestep, "return_dict": False}
        return {**values, **self.same, **self.prompts[branch]}


def _placed(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device, BF16) for name, tensor in tensors.items()}
