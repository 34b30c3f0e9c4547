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
    name, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    prediction = config.get("prediction_type", "epsilon")
    if name in FLOW_EULER:
        random = bool(config.get("stochastic_sampling"))
        return Sampler(_sigmas(scheduler), not random, "it adds noise in every step" if random else "")
    if name in NOISE_EULER and prediction == "epsilon":
        return Sampler(_sigmas(scheduler), True)
    if name in DDIM and prediction == "epsilon":
        clips = [key for key in ("clip_sample", "thresholding") if config.get(key)]
        return Sampler(_ddim(scheduler), not clips, f"{clips[0]} changes its estimates" if clips else "")
    levels = _sigmas(scheduler)
    steps = len(scheduler.timesteps)
    if len(levels) != steps + 1 or not all(a > b for a, b in pairwise(levels)):
        levels = tuple(float(left) for left in range(steps, -1, -1))
    why = f"{name} with {prediction} does more with an output than to add it"
    return Sampler(levels, False, why)


def is_exact(scheduler: Any) -> bool:
    """Whether a correction may be folded into outputs for this scheduler; its timesteps need not be set."""
    name, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    if name in FLOW_EULER:
        return not config.get("stochastic_sampling")
    if config.get("prediction_type", "epsilon") != "epsilon":
        return False
    return name in NOISE_EULER or (name in DDIM and not (config.get("clip_sample") or config.get("thresholding")))


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
