"""Your own model and sampling loop, for the searches: the two functions that they need, and a third one for pictures.

    python search_scripts/search_dit_block_cache.py --model-file examples/tune_my_model.py --ratio 1.5 --steps 30
    python search_scripts/search_thresholds.py --method first_block --model-file examples/tune_my_model.py --score psnr

The model here is the small one of this package; put yours in its place. `--steps` is the number of steps of your loop.
"""

from itertools import pairwise

import torch

from mindie_cache import branch, run
from mindie_cache.testbed import load_testbed, sigmas, to_video
from mindie_cache.testbed.data import null_tokens, tokenize

STEPS, GUIDANCE = 30, 2.0


def build():
    """Return a pipeline, or the model: a torch.nn.Module with a list of blocks. It is moved to the device."""
    return load_testbed()


def generate(model, prompt, seed):
    """Return the final latents, one tensor. The same prompt and seed have to give the same result."""
    device, config = next(model.parameters()).device, model.config
    shape = (1, config.channels, config.frames, config.height, config.width)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    text, nothing = tokenize([prompt]).to(device), null_tokens(1).to(device)
    levels = sigmas(STEPS).tolist()
    with run():  # one generation
        for now, following in pairwise(levels):
            timestep = torch.full((1,), 1000 * now, device=device)
            with branch("cond"):
                cond = model(latents, timestep, text)
            with branch("uncond"):
                uncond = model(latents, timestep, nothing)
            latents = latents + (following - now) * (uncond + GUIDANCE * (cond - uncond))
    return latents


def decode(model, latents):
    """Return frames (batch, frames, height, width, 3) in [0, 1]. Only scores on frames need this: psnr, ssim, lpips."""
    return to_video(latents)
