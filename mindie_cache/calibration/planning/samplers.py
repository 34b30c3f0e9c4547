"""What a scheduler of diffusers does with the model's output: which coordinate makes its steps a sum. Imports no diffusers.

A plan needs coordinates u_t in which a step adds (u_(t+1) - u_t) times the model's output to the (scaled) latents:

* flow matching by Euler: u = sigma;
* noise prediction by Euler (k-diffusion) or by DDIM without noise: u = sqrt(1 - a) / sqrt(a), of the latents divided by
  sqrt(a), where a is the cumulative product of alphas.

There a correction that is folded into the output repairs the latents exactly. Multistep schedulers mix earlier outputs in,
so that a folded correction would stay in their history: they get plans without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

FLOW_EULER = ("FlowMatchEulerDiscreteScheduler",)
NOISE_EULER = ("EulerDiscreteScheduler",)
DDIM = ("DDIMScheduler",)


@dataclass(frozen=True)
class Sampler:
    """`levels`: u at every step and at the end, falling. `exact`: a folded correction does what it says; else `why` not."""

    levels: tuple[float, ...]
    exact: bool
    why: str = ""


def sampler_of(scheduler: Any) -> Sampler:
    """Of a scheduler whose timesteps are set."""
    why, steps = reason_against(scheduler), len(scheduler.timesteps)
    levels = _ddim(scheduler) if type(scheduler).__name__ in DDIM and _predicts_noise(scheduler) else _sigmas(scheduler)
    if why and (len(levels) != steps + 1 or not all(a > b for a, b in pairwise(levels))):
        levels = tuple(float(left) for left in range(steps, -1, -1))
    return Sampler(levels, not why, why)


def reason_against(scheduler: Any) -> str:
    """Why a correction cannot be folded into outputs for this scheduler; empty if it can. Timesteps need not be set."""
    name, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    if name in FLOW_EULER:
        return f"{name} adds noise in every step" if config.get("stochastic_sampling") else ""
    if not _predicts_noise(scheduler) or name not in NOISE_EULER + DDIM:
        return f"{name} does more with an output than to add it to the latents"
    clips = [key for key in ("clip_sample", "thresholding") if name in DDIM and config.get(key)]
    return f"{clips[0]} of {name} changes its estimates" if clips else ""


def _predicts_noise(scheduler: Any) -> bool:
    return getattr(scheduler, "config", {}).get("prediction_type", "epsilon") == "epsilon"


def _sigmas(scheduler: Any) -> tuple[float, ...]:
    sigmas = getattr(scheduler, "sigmas", None)
    return () if sigmas is None else tuple(torch.as_tensor(sigmas).double().tolist())


def _ddim(scheduler: Any) -> tuple[float, ...]:
    """DDIM steps from each timestep to the one that lies a fixed stride before it."""
    products = torch.as_tensor(scheduler.alphas_cumprod).double()
    stride = scheduler.config["num_train_timesteps"] // scheduler.num_inference_steps
    last = int(scheduler.timesteps[-1]) - stride
    final = products[last] if last >= 0 else torch.as_tensor(scheduler.final_alpha_cumprod).double()
    kept = torch.cat((products[scheduler.timesteps.cpu().long()], final.reshape(1)))
    return tuple(((1 - kept) / kept).sqrt().tolist())
