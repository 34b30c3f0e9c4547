"""Wan2.1 text to video with a cache.

    python examples/wan.py --compare --config quality
    python examples/wan.py --model Wan-AI/Wan2.1-T2V-14B-Diffusers --height 720 --width 1280 --offload

Two forwards a step, with and without the prompt; the cache keeps their features apart. The package has magnitude tables
for the models with 1.3 and 14 billion parameters, which the levels use.
"""

import common
import torch

from mindie_cache import enable_cache


def main() -> None:
    example = common.Example(
        __doc__,
        model="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        tiny="wan",
        prompt="a red fox runs through fresh snow in the morning sun",
        steps=50,
        fps=16,
    )
    pipe = example.load("WanPipeline")
    pipe.vae.to(torch.float32)  # the VAE of Wan is meant for it
    call = example.arguments(height=480, width=832, num_frames=81, guidance_scale=5.0, negative_prompt="blurry, static")
    uncached = example.uncached(pipe, call)  # with --compare

    with enable_cache(pipe, example.config) as cache:
        cached = example.generate(pipe, call)
        report = cache.report()
    print(report)

    example.save(cached, uncached, report)


if __name__ == "__main__":
    common.run(main)
