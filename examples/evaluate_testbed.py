"""How often the testbed's videos show what their prompts say, as read from the pixels.

python examples/evaluate_testbed.py                     # 200 videos, 30 steps, no cache
python examples/evaluate_testbed.py --config cache.yaml # the same with a cache of any method
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from mindie_cache import CacheError
from mindie_cache.demo.attach import attached
from mindie_cache.demo.plan import read_settings
from mindie_cache.device import resolve
from mindie_cache.testbed import accuracy, all_prompts, generate, load_testbed


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=count, default=200, help="how many; the prompts repeat with new seeds (200)")
    parser.add_argument("--steps", type=count, default=30, help="denoising steps (30)")
    parser.add_argument("--batch-size", type=count, default=20, help="videos at a time (20)")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, cuda:1, npu, ... (cpu)")
    parser.add_argument("--config", type=Path, help="YAML or JSON file of a CacheConfig")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    model = load_testbed(resolve(options.device))
    settings = read_settings([options.config] if options.config else [], options.steps, len(model.transformer_blocks))
    prompts = [all_prompts()[i % len(all_prompts())] for i in range(options.videos)]
    videos = []
    with attached(model, [config for setting in settings for config in setting.configs]) as caches:
        for start in tqdm(range(0, len(prompts), options.batch_size), unit="batch"):
            batch = prompts[start : start + options.batch_size]
            seeds = range(start, start + len(batch))
            made = generate(model, batch, seeds=seeds, steps=options.steps, forward_cache=caches.forward_cache)
            videos.append(made.videos.cpu())
        for agent in caches.agents:
            print(agent.report())
    print(accuracy(torch.cat(videos), prompts))


if __name__ == "__main__":
    try:
        main()
    except (CacheError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
