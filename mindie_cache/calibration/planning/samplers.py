"""What a scheduler makes of the model's outputs, found by trying it: how much each one counts in the final latents.

Schedulers without noise and clipping are linear: the final latents are a x_0 + sum of h_t m_t, with m_t the output of the
model at step t, whatever the prediction type, the noise schedule, and the number of earlier outputs that a step uses. All
h_t are the answers to unit impulses, one generation of a few scalars. Their sums from the end are coordinates u_t in which
step t adds (u_(t+1) - u_t) m_t to the final latents. In them an error of an estimate, and a correction that is folded into a
later output, weigh what they will be worth at the end:

* flow matching by Euler: u is sigma; noise prediction by Euler or DDIM: sigma = sqrt(1 - a) / sqrt(a), where a is the
  cumulative product of alphas; v prediction: close to the angle whose tangent is this sigma;
* multistep schedulers (DPM-Solver++, UniPC, DEIS): close to the same, but steps near both ends count more or less.

A scheduler that fails the trial, because it adds noise or bounds its estimates, gets no correction. Imports no diffusers.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

TRIAL_STEPS = 10
NOISE = "eta", "s_churn"  # how much of it, as arguments of `step`: of DDIM, of EDM's Euler
_ROUNDING = 1e-3  # of schedulers that work in float32, through all steps


@dataclass(frozen=True)
class Sampler:
    """`levels`: u at every step and at the end, falling. `exact`: a folded correction does what it says; else `why` not."""

    levels: tuple[float, ...]
    exact: bool
    why: str = ""


def sampler_of(scheduler: Any, given: Mapping[str, Any] | None = None) -> Sampler:
    """Of a scheduler whose timesteps are set, and that has not made a step since. It stays as it is.

    Args:
        given: what the pipeline passes to `step` by name. The trial does not: it is about steps without noise.
    """
    noise = [f"{name}={given[name]}" for name in NOISE if given and given.get(name)]
    responses, why = _tried(lambda: _twin(scheduler))
    if noise:
        why = f"it is given {' and '.join(noise)}, and adds noise in its steps"
    least = 1e-6 * np.abs(responses).mean() if len(responses) else 0.0
    if not (why or (responses > least).all() or (responses < -least).all()):
        why = "in the final latents some outputs count for nothing, or with another sign than the others"
    if why:
        return Sampler(_without_trial(scheduler), False, f"{type(scheduler).__name__}: {why}")
    left = np.cumsum(np.abs(responses)[::-1])[::-1]
    if abs(left[0] - 1) < _ROUNDING:  # flow matching goes from pure noise, 1
        left = left / left[0]
    return Sampler((*left.tolist(), 0.0), True)


def reason_against(scheduler: Any) -> str:
    """Why corrections cannot be folded into outputs for this scheduler, however many steps it makes; empty if they can."""
    _, why = _tried(lambda: _started(scheduler))
    return f"{type(scheduler).__name__}: {why}" if why else ""


def _tried(make: Callable[[], Any]) -> tuple[np.ndarray, str]:
    try:
        return _responses(make())
    except Exception as error:  # of a scheduler that may be anybody's
        return np.zeros(0), f"it cannot be tried ({type(error).__name__}: {error})"


def _started(scheduler: Any) -> Any:
    """Another one with the same settings, and a few steps."""
    fresh = type(scheduler).from_config(scheduler.config)
    takes_mu = scheduler.config.get("use_dynamic_shifting") and "mu" in inspect.signature(fresh.set_timesteps).parameters
    fresh.set_timesteps(TRIAL_STEPS, **({"mu": 1.0} if takes_mu else {}))
    return fresh


def _twin(scheduler: Any) -> Any:
    """A copy on the CPU, without what `recording` puts over its `step`."""
    twin = copy.deepcopy(scheduler)
    vars(twin).pop("step", None)
    for name, value in vars(twin).items():
        if isinstance(value, Tensor):
            setattr(twin, name, value.cpu())
    return twin


def _responses(scheduler: Any) -> tuple[np.ndarray, str]:
    """h_t for every step, and why they do not say all; uses the scheduler up.

    A generation of scalars: an impulse at each step, one in the noise, zeros, and random numbers, which the impulses have to
    explain.
    """
    timesteps = scheduler.timesteps[_begin(scheduler) :]
    count = len(timesteps)
    impulses = torch.eye(count + 1, count + 3, dtype=torch.float64)
    impulses[:, -1] = 3 * torch.randn(count + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    *outputs, x = impulses.reshape(count + 1, 1, 1, 1, count + 3)
    with torch.random.fork_rng(devices=[]):
        for t, output in zip(timesteps, outputs, strict=True):
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x, t)
            x = scheduler.step(output, t, x, return_dict=False)[0]
    final = x.double().flatten().numpy()
    responses, zero, random = final[: count + 1], final[-2], final[-1]
    explained = responses * impulses[:, -1].numpy()
    if not np.isfinite(final).all():
        return responses, "it gives NaN or infinite numbers"
    if zero:
        return responses, "it adds noise in its steps"
    if abs(explained.sum() - random) > _ROUNDING * np.abs(explained).max():
        return responses, "it bounds its estimates, or is not linear for another reason"
    return responses[:count], ""


def _begin(scheduler: Any) -> int:
    """The first step of a run that starts from a given picture."""
    return getattr(scheduler, "begin_index", None) or 0


def _without_trial(scheduler: Any) -> tuple[float, ...]:
    """The scheduler's noise levels, or else the number of steps that are left."""
    begin, sigmas = _begin(scheduler), getattr(scheduler, "sigmas", None)
    steps = len(getattr(scheduler, "timesteps", ())) - begin
    levels = () if sigmas is None else tuple(torch.as_tensor(sigmas).double().tolist())[begin:]
    falls = len(levels) == steps + 1 and all(a > b for a, b in pairwise(levels))
    return levels if falls else tuple(float(left) for left in range(steps, -1, -1))
