"""FLUX.1-dev with a cache.

    python examples/flux.py --compare --prompt "a lighthouse in a storm, oil on canvas"

One forward a step (guidance is an input of this model). The levels follow a fixed schedule here; a table that others
measured for this model is used with --config magcache:FLUX.1-dev.
"""

import common

from mindie_cache import enable_cache


def main() -> None:
    example = common.Example(
        __doc__,
        model="black-forest-labs/FLUX.1-dev",
        tiny="flux",
        prompt="a red fox in fresh snow, morning light, 85 mm photograph",
        steps=28,
    )
    pipe = example.load("FluxPipeline")
    call = example.arguments(height=1024, width=1024, guidance_scale=3.5)
    uncached = example.uncached(pipe, call)  # with --compare

    with enable_cache(pipe, example.config) as cache:  # or without `with`, and cache.disable() at the end
        cached = example.generate(pipe, call)  # pipe(prompt=..., num_inference_steps=..., ...)
        report = cache.report()
    print(report)

    example.save(cached, uncached, report)


if __name__ == "__main__":
    common.run(main)
