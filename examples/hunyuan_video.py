"""HunyuanVideo text to video with a cache.

    python examples/hunyuan_video.py --compare --height 720 --width 1280 --frames 129 --offload

One forward a step (guidance is an input of this model), through two lists of blocks: pairs of streams, then joint ones.
The cache takes both lists as one region. The package has a magnitude table for the model, which the levels use.
"""

import common

from mindie_cache import enable_cache


def main() -> None:
    example = common.Example(
        __doc__,
        model="hunyuanvideo-community/HunyuanVideo",
        tiny="hunyuan-video",
        prompt="a red fox runs through fresh snow in the morning sun",
        steps=50,
        fps=15,
    )
    pipe = example.load("HunyuanVideoPipeline")
    pipe.vae.enable_tiling()  # decode in tiles: less memory
    call = example.arguments(height=320, width=512, num_frames=61, guidance_scale=6.0)
    uncached = example.uncached(pipe, call)  # with --compare

    with enable_cache(pipe, example.config) as cache:
        cached = example.generate(pipe, call)
        report = cache.report()
    print(report)

    example.save(cached, uncached, report)


if __name__ == "__main__":
    common.run(main)
