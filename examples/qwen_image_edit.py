"""Qwen-Image-Edit with a cache.

    python examples/qwen_image_edit.py --image cat.png --prompt "put a red hat on the cat" --compare

Two forwards a step, with and without the prompt. The tokens of the picture follow those of the noise in one stream; both
are reused together. examples/cache/ integrates the same model by hand, block by block.
"""

import common

from mindie_cache import enable_cache


def main() -> None:
    example = common.Example(
        __doc__,
        model="Qwen/Qwen-Image-Edit-2509",
        tiny="qwen-image-edit-plus",
        prompt="make it look like a watercolour painting",
        steps=50,
        takes_image=True,
    )
    pipe = example.load("QwenImageEditPlusPipeline")
    call = example.arguments(true_cfg_scale=4.0, negative_prompt=" ")  # without a negative prompt there is no guidance
    uncached = example.uncached(pipe, call)  # with --compare

    with enable_cache(pipe, example.config) as cache:
        cached = example.generate(pipe, call)
        report = cache.report()
    print(report)

    example.save(cached, uncached, report)


if __name__ == "__main__":
    common.run(main)
