"""Euler sampling of the flow with classifier-free guidance: two model calls a step, told apart by ``branch``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mindie_cache.clock import branch, run
from mindie_cache.errors import ParametersInvalid
from mindie_cache.testbed import data
from mindie_cache.testbed.model import CallCache, TestbedTransformer

DEFAULT_STEPS = 30
DEFAULT_GUIDANCE = 2.0
DEFAULT_SHIFT = 3.0

StepCallback = Callable[[int, Tensor], None]  # (step index from 0, latents after the step)


@dataclass(frozen=True)
class Generation:
    """``videos`` ``(batch, frames, height, width, 3)`` in [0, 1]; ``latents`` ``(batch, 3, frames, height, width)``."""

    videos: Tensor
    latents: Tensor


def sigmas(steps: int, shift: float = DEFAULT_SHIFT) -> Tensor:
    """Noise levels from 1 down to 0, shape ``(steps + 1,)``; ``shift > 1`` spends more steps on noisy videos."""
    if steps < 1 or shift <= 0:
        raise ParametersInvalid(
            f"steps={steps}, shift={shift}: need steps >= 1 and shift > 0, for example steps=30, shift=3.0."
        )
    even = torch.linspace(1, 0, steps + 1)
    return shift * even / (1 + (shift - 1) * even)


def initial_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Noise ``(len(seeds), *shape)``, drawn on the CPU from each sample's own seed: no sample depends on its batch."""
    return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def generate(
    model: TestbedTransformer,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    steps: int = DEFAULT_STEPS,
    guidance_scale: float = DEFAULT_GUIDANCE,
    shift: float = DEFAULT_SHIFT,
    forward_cache: CallCache | None = None,
    callback: StepCallback | None = None,
) -> Generation:
    """Makes one video per prompt.

    Args:
        model: a ``TestbedTransformer``; its device and dtype are used.
        prompts: sentences like ``"a red square moving left"``.
        seeds: one per prompt.
        steps: Euler steps, two model calls each.
        guidance_scale: 1 follows the prompt as trained, more follows it harder.
        shift: see ``sigmas``.
        forward_cache: decides about each whole model call, as ``model.cache`` does about each block.
        callback: called after each step.

    Raises:
        ParametersInvalid: (a ``ValueError``) a prompt is not valid, or there is not one seed per prompt.
    """
    if len(prompts) != len(seeds) or not prompts:
        raise ParametersInvalid(
            f"got {len(prompts)} prompts and {len(seeds)} seeds. Pass one seed per prompt, at least one."
        )
    weight = next(model.parameters())
    config = model.config
    ids = {
        "cond": data.tokenize(prompts).to(weight.device),
        "uncond": data.null_tokens(len(prompts)).to(weight.device),
    }
    noise = initial_noise(seeds, (config.channels, config.frames, config.height, config.width))
    latents = noise.to(weight.device)  # float32 throughout: rounding between steps would add up
    levels = sigmas(steps, shift)

    def velocity(name: str, sigma: float) -> Tensor:
        inputs = {
            "hidden_states": latents.to(weight.dtype),
            "timestep": torch.full((len(prompts),), 1000 * sigma, device=weight.device),
            "encoder_hidden_states": ids[name],
        }
        with branch(name):
            return (model(**inputs) if forward_cache is None else forward_cache.apply(model, **inputs)).float()

    with run():
        for step, (sigma, following) in enumerate(zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True)):
            cond, uncond = velocity("cond", sigma), velocity("uncond", sigma)
            latents = latents + (following - sigma) * (uncond + guidance_scale * (cond - uncond))
            if callback is not None:
                callback(step, latents)
    return Generation(videos=data.to_video(latents), latents=latents)
