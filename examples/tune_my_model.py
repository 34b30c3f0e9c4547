"""Your own model and sampling loop, to be tuned: the two functions that this needs, one for plans, and one for pictures.

    mindie-cache tune --model examples/tune_my_model.py --target-speedup 2
    python search_scripts/search_dit_block_cache.py --model-file examples/tune_my_model.py --ratio 1.5 --steps 30
    python search_scripts/search_thresholds.py --method first_block --model-file examples/tune_my_model.py --score psnr

The model here is the small one of this package; put yours in its place. `--steps` is the number of steps of your loop.
"""

from itertools import pairwise

import torch

from mindie_cache import branch, run, testbed
from mindie_cache.testbed.data import null_tokens, tokenize

STEPS, GUIDANCE = 30, 2.0


def build():
    """Return a pipeline, or the model: a torch.nn.Module with a list of blocks. It is moved to the device."""
    return testbed.load_testbed()


def generate(model, prompt, seed, on_step=None):
    """Return the final latents, one tensor. The same prompt and seed have to give the same result.

    `on_step` is for plans: call it after each step with the output after guidance, and the new latents.
    """
    device, config = next(model.parameters()).device, model.config
    shape = (1, config.channels, config.frames, config.height, config.width)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    text, nothing = tokenize([prompt]).to(device), null_tokens(1).to(device)
    levels = sigmas()
    with run():  # one generation
        for now, following in pairwise(levels):
            timestep = torch.full((1,), 1000 * now, device=device)
            with branch("cond"):
                cond = model(latents, timestep, text)
            with branch("uncond"):
                uncond = model(latents, timestep, nothing)
            guided = uncond + GUIDANCE * (cond - uncond)
            latents = latents + (following - now) * guided
            if on_step is not None:
                on_step(guided, latents)
    return latents


def sigmas():
    """Return the noise level of every step and of the end: a step adds their difference times the guided output. Only plans
    need this, and only where the model is no pipeline with a scheduler."""
    return testbed.sigmas(STEPS).tolist()


def decode(model, latents):
    """Return frames (batch, frames, height, width, 3) in [0, 1]. Only scores on frames need this: psnr, ssim, lpips."""
    return testbed.to_video(latents)


def prompts():
    """Return what `mindie-cache tune` generates, if no --prompts are given. The first two are recorded."""
    return testbed.all_prompts()[::16]
