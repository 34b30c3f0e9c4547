"""How often the testbed's videos show what their prompts say, as read from the pixels.

python examples/evaluate_testbed.py                     # 200 videos, 30 steps, no cache
python examples/evaluate_testbed.py --config cache.yaml # the same with a block or attention cache
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from mindie_cache import CacheAgent, CacheConfig
from mindie_cache.testbed import accuracy, all_prompts, generate, load_testbed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=200, help="how many; the prompts repeat with new seeds (200)")
    parser.add_argument("--steps", type=int, default=30, help="denoising steps (30)")
    parser.add_argument("--batch-size", type=int, default=20, help="videos at a time (20)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, npu, ... (cpu)")
    parser.add_argument("--config", type=Path, help="YAML file of a dit_block_cache or attention_cache")
    options = parser.parse_args()
    model = load_testbed(options.device)
    if options.config:
        agent = CacheAgent(CacheConfig.from_yaml(options.config))
        for holder in [model] if agent.config.method == "dit_block_cache" else model.transformer_blocks:
            holder.cache = agent
    prompts = [all_prompts()[i % len(all_prompts())] for i in range(options.videos)]
    videos = []
    for start in tqdm(range(0, len(prompts), options.batch_size), unit="batch"):
        batch = prompts[start : start + options.batch_size]
        seeds = range(start, start + len(batch))
        videos.append(generate(model, batch, seeds=seeds, steps=options.steps).videos.cpu())
    print(accuracy(torch.cat(videos), prompts))


if __name__ == "__main__":
    main()
