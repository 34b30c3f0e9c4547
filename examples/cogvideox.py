"""CogVideoX with a cache.

    python examples/cogvideox.py --compare --config fast

One forward a step, of a batch that holds both the prompt and the negative prompt: one branch, called "both" in the report.
"""

import common

from mindie_cache import enable_cache


def main() -> None:
    example = common.Example(
        __doc__,
        model="zai-org/CogVideoX-5b",
        tiny="cogvideox",
        prompt="a red fox runs through fresh snow in the morning sun",
        steps=50,
        fps=8,
    )
    pipe = example.load("CogVideoXPipeline")
    pipe.vae.enable_tiling()  # decode in tiles: less memory
    call = example.arguments(num_frames=49, guidance_scale=6.0)
    uncached = example.uncached(pipe, call)  # with --compare

    with enable_cache(pipe, example.config) as cache:
        cached = example.generate(pipe, call)
        report = cache.report()
    print(report)

    example.save(cached, uncached, report)


if __name__ == "__main__":
    common.run(main)
