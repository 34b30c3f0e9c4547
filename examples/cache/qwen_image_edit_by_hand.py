"""Qwen-Image-Edit with a CacheAgent for each branch, set by hand. See cached_transformer.py beside this file.

    python examples/cache/qwen_image_edit_by_hand.py --image cat.png --prompt "put a red hat on the cat" --compare
    COND_CACHE=1 UNCOND_CACHE=0 python examples/cache/qwen_image_edit_by_hand.py --tiny

COND_CACHE and UNCOND_CACHE (0 or 1, by default 1) say which of the two forwards of a step is cached; INTERVAL, from how many
steps one is computed (by default 2; 1 computes every step). They take the place of --config.
"""

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import common  # noqa: E402

from mindie_cache import CacheAgent, CacheReport, ConfigError, run  # noqa: E402


def switch(name: str) -> bool:
    value = os.environ.get(name, "1")
    if value not in ("0", "1"):
        raise ConfigError(f"{name}={value!r}: set it to 1, to cache this branch, or to 0.")
    return value == "1"


def whole(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(f"{name}={value!r}: set it to a whole number from 1.")
    return int(value)


def main() -> None:
    example = common.Example(
        __doc__,
        model="Qwen/Qwen-Image-Edit-2509",
        tiny="qwen-image-edit-plus",
        prompt="make it look like a watercolour painting",
        steps=50,
        takes_image=True,
        configured="an agent for each branch",
    )
    branches = [name for name in ("cond", "uncond") if switch(f"{name.upper()}_CACHE")]
    interval = whole("INTERVAL", 2)
    common.diffusers()  # says what to install, if it is missing
    from cached_transformer import QwenImageTransformerWithCache, config

    pipe = example.load("QwenImageEditPlusPipeline", transformer=QwenImageTransformerWithCache)
    transformer = pipe.transformer
    call = example.arguments(true_cfg_scale=4.0, negative_prompt=" ")
    uncached = example.uncached(pipe, call)

    settings = config(len(transformer.transformer_blocks), call["num_inference_steps"], interval)
    agents = {name: CacheAgent(settings) for name in branches}
    transformer.set_cache(**agents)
    with run():  # one generation: what is kept is released at its end, also after an exception
        cached = example.generate(pipe, call)
    reports = {name: agent.report() for name, agent in agents.items()}
    for name, report in reports.items():
        print(f"{name}: {report}")

    example.save(cached, uncached, CacheReport(example.config, reports))


if __name__ == "__main__":
    common.run(main)
