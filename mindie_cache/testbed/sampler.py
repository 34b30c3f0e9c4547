"""Euler sampling of the flow with classifier-free guidance: two model calls a step, told apart by ``branch``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

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
    start: int = 0,
    latents: Tensor | None = None,
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
        start, latents: go on before this step, with the latents that the step before gave to ``callback``; the seeds are not
            used then. A cache begins there with nothing kept.

    Raises:
        ParametersInvalid: (a ``ValueError``) a prompt is not valid, there is not one seed per prompt, or start and latents
            do not fit.
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
    shape = (config.channels, config.frames, config.height, config.width)
    levels = sigmas(steps, shift)
    _check_start(start, latents, steps, (len(prompts), *shape))
    x = initial_noise(seeds, shape) if latents is None else latents
    x = x.to(weight.device)  # float32 throughout: rounding between steps would add up

    def velocity(name: str, step: int, sigma: float) -> Tensor:
        inputs = {
            "hidden_states": x.to(weight.dtype),
            "timestep": torch.full((len(prompts),), 1000 * sigma, device=weight.device),
            "encoder_hidden_states": ids[name],
        }
        with branch(name, step=step if start else None):  # a run from its beginning is counted
            return (model(**inputs) if forward_cache is None else forward_cache.apply(model, **inputs)).float()

    with run():
        for step, (sigma, following) in list(enumerate(pairwise(levels.tolist())))[start:]:
            cond, uncond = velocity("cond", step, sigma), velocity("uncond", step, sigma)
            x = x + (following - sigma) * (uncond + guidance_scale * (cond - uncond))
            if callback is not None:
                callback(step, x)
    return Generation(videos=data.to_video(x), latents=x)


def _check_start(start: int, latents: Tensor | None, steps: int, shape: tuple[int, ...]) -> None:
    if (start == 0) != (latents is None):
        missing = "start=0 begins with noise" if start == 0 else f"start={start} needs the latents of its beginning"
        raise ParametersInvalid(f"{missing}. Give start and latents together, or neither.")
    if not 0 <= start < steps:
        raise ParametersInvalid(f"start={start} is out of range: the steps are 0 to {steps - 1}. Use start<{steps}.")
    if latents is not None and (latents.shape != shape or latents.dtype != torch.float32):
        raise ParametersInvalid(
            f"latents are {latents.dtype} of shape {tuple(latents.shape)}, but this generation needs float32 of {shape}. "
            "Pass what callback was given, for the same prompts."
        )
