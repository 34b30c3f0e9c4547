"""Wan2.2 text to video with a cache: two experts, one for each part of the noise.

    python examples/wan22.py --compare --offload

enable_cache finds both transformers of the pipeline. The steps count on where the second one takes over; its first step is
always computed, and the report shows each expert by itself.
"""

import common
import torch

from mindie_cache import enable_cache


def main() -> None:
    example = common.Example(
        __doc__,
        model="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        tiny="wan22",
        prompt="a red fox runs through fresh snow in the morning sun",
        steps=40,
        fps=16,
    )
    pipe = example.load("WanPipeline")
    pipe.vae.to(torch.float32)  # the VAE of Wan is meant for it
    call = example.arguments(
        height=720,
        width=1280,
        num_frames=81,
        guidance_scale=4.0,  # of the first expert
        guidance_scale_2=3.0,
        negative_prompt="blurry, static",
    )
    uncached = example.uncached(pipe, call)  # with --compare

    with enable_cache(pipe, example.config) as cache:
        cached = example.generate(pipe, call)
        report = cache.report()
    print(report)
    for name, one in report.models.items():
        print(f"{name}: {one.calls_reused} of {one.calls} calls reused")

    example.save(cached, uncached, report)


if __name__ == "__main__":
    common.run(main)
