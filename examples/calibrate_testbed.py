"""Measure the testbed once, and let magcache and teacache use what was measured: the whole API in one page.

    python examples/calibrate_testbed.py [FILE]

In your own pipeline it is the same: put an agent of method "calibrator" where a caching agent would be, generate once, and
name the conditioning branches with `agent.branch(...)` as for every method. For two experts use one agent for both.
"""

import sys

from mindie_cache import CacheAgent, CacheConfig, CalibratorOptions
from mindie_cache.calibration.show import summary
from mindie_cache.testbed import generate, load_testbed

STEPS, SHIFT, GUIDANCE = 30, 3.0, 2.0
PROMPTS = ["a red square moving left", "a cyan circle moving down", "a yellow cross moving up"]


def main() -> None:
    file = sys.argv[1] if len(sys.argv) > 1 else "out/testbed.json"
    transformer = load_testbed()
    blocks = len(transformer.transformer_blocks)
    options = CalibratorOptions(
        model_name="testbed",  # this and what follows is provenance: it goes into the file
        sigma_shift=SHIFT,
        scheduler="flow Euler",
        resolution="24x24x8",
        guidance_scale=GUIDANCE,
        output_path=file,  # written after the last step of the last branch
        signal="temb",  # also fit TeaCache's polynomial for this keyword of the blocks
    )
    agent = CacheAgent(CacheConfig("calibrator", blocks, STEPS, options=options))
    transformer.cache = agent
    generate(transformer, PROMPTS, seeds=[0, 1, 2], steps=STEPS, shift=SHIFT, guidance_scale=GUIDANCE)
    print(summary(agent.calibration()))

    for method in ("magcache", "teacache"):
        transformer.cache = CacheAgent(CacheConfig(method, blocks, STEPS, options={"preset": file, "sigma_shift": SHIFT}))
        generate(transformer, PROMPTS, seeds=[0, 1, 2], steps=STEPS, shift=SHIFT, guidance_scale=GUIDANCE)
        print(f"\n{transformer.cache.report()}")


if __name__ == "__main__":
    main()
