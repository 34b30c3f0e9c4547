"""Cache the blocks of a transformer, with cond and uncond as two forwards: the whole integration in one page.

    python examples/quickstart.py "a red square moving left"

Writes out/quickstart.gif, uncached and cached side by side, and prints what the cache did.
"""

import sys
from pathlib import Path

import torch
from PIL import Image

from mindie_cache import CacheAgent, CacheConfig, CacheError
from mindie_cache.testbed import generate, load_testbed

STEPS = 30


def main() -> None:
    prompt = sys.argv[1] if len(sys.argv) > 1 else "a red square moving left"
    transformer = load_testbed()  # its forward calls self.cache.apply(block, hidden_states=..., ...) around each block
    uncached = generate(transformer, [prompt], seeds=[0], steps=STEPS)

    agent = CacheAgent(
        CacheConfig(
            method="dit_block_cache",
            blocks_count=len(transformer.transformer_blocks),
            steps_count=STEPS,
            step_start=6,
            step_interval=2,
            step_end=STEPS - 1,
            block_start=1,
            block_end=11,
        )
    )
    transformer.cache = agent
    cached = generate(transformer, [prompt], seeds=[0], steps=STEPS)  # opens agent.run() and agent.branch("cond"), ...
    print(agent.report())

    pair = (255 * torch.cat([uncached.videos[0], cached.videos[0]], dim=2)).byte().cpu().numpy()
    frames = [Image.fromarray(frame).resize((pair.shape[2] * 8, pair.shape[1] * 8), Image.NEAREST) for frame in pair]
    target = Path("out/quickstart.gif")
    target.parent.mkdir(exist_ok=True)
    frames[0].save(target, save_all=True, append_images=frames[1:], duration=150, loop=0)
    print(f"left uncached, right cached: {target}")


if __name__ == "__main__":
    try:
        main()
    except CacheError as error:  # e.g. a prompt with words that the model has not learned
        raise SystemExit(f"error: {error}") from None
