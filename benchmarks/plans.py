"""Plans beside uniform schedules at the same number of computed forwards, prompt by prompt, on the trained testbed.

    python benchmarks/plans.py                                  # 32 unseen prompts, budgets from 20 to 6 of 30 steps
    python benchmarks/plans.py --save mindie_cache/testbed/plan.json
    python benchmarks/plans.py --steps 50 --budgets 25 16 12 10 --prompts 16
    python benchmarks/plans.py --fresh --levels --prompts 16      # the schedule without a recording, beside others

Recorded are four generations of prompts that are not evaluated. Compared are, for each number of computed steps: the plan
with its usual gain; the same not corrected; the best schedule, by prediction, for no correction; and two uniform schedules
with a line through two snapshots: of the blocks' residuals (TaylorSeer of order 1, lite) and of the model's output. PSNR of
the final latents beside the uncached ones;
"paired" is the difference to the uniform TaylorSeer, prompt by prompt. With --levels it is the schedule of the levels of
enable_cache, at their three speeds, beside a computed beginning and then regular steps, and beside the plan. --fresh takes
other prompts and seeds. Results also go to out/bench/plans.json, with the PSNR of each prompt.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mindie_cache import CacheConfig
from mindie_cache.calibration.planning import Plan, Program, Recording, make_plan, record_testbed
from mindie_cache.calibration.testbed import DEFAULT_PROMPTS
from mindie_cache.demo.attach import attached
from mindie_cache.hooks.levels import LEVELS
from mindie_cache.hooks.levels import regular as level_schedule
from mindie_cache.testbed import TestbedTransformer, all_prompts, generate, load_testbed

OUT = Path("out/bench/plans.json")
BATCH, RECORDED, RECORDED_SEED, SEED, FRESH_SEED = 8, 4, 9000, 100, 7000
PEAK = 2.0  # latents are in [-1, 1]


def recorded_plan(model: TestbedTransformer, steps: int, **call: float) -> tuple[Plan, Recording]:
    """A plan from generations of prompts that nothing is evaluated on, and their recording."""
    prompts = DEFAULT_PROMPTS[:RECORDED]
    seeds = range(RECORDED_SEED, RECORDED_SEED + len(prompts))
    recording = record_testbed(model, prompts, seeds=seeds, steps=steps, **call)
    provenance = {"model": "testbed", "prompts": prompts, "seeds": list(seeds), "sampler": "Euler, flow matching, shift 3"}
    return make_plan(recording, provenance=provenance), recording


class Bench:
    """Uncached latents of the evaluated prompts, and how far others are from them."""

    def __init__(self, model: TestbedTransformer, steps: int, prompts: list[str], seed: int = SEED, **call: float):
        self.model, self.steps, self.prompts, self.seed, self.call = model, steps, prompts, seed, call
        self.exact = self.latents(None)

    def latents(self, config: CacheConfig | None) -> torch.Tensor:
        parts = []
        for first in range(0, len(self.prompts), BATCH):
            some = self.prompts[first : first + BATCH]
            seeds = range(self.seed + first, self.seed + first + len(some))
            with attached(self.model, [] if config is None else [config]) as places:
                made = generate(
                    self.model, some, seeds=seeds, steps=self.steps, forward_cache=places.forward_cache, **self.call
                )
            parts.append(made.latents)
        return torch.cat(parts)

    def psnr(self, config: CacheConfig) -> np.ndarray:
        """dB, one number a prompt."""
        error = (self.latents(config) - self.exact).square().flatten(1).mean(1)
        return (10 * torch.log10(PEAK**2 / error)).numpy()


def uniform(steps: int, budget: int) -> tuple[int, ...]:
    return tuple(sorted({round(place) for place in np.linspace(0, steps - 1, budget)}))


def settings(steps: int, blocks: int, budget: int, plan: Plan, recording: Recording) -> dict[str, CacheConfig]:
    entry, levels = plan.at(budget), plan.sigmas
    bare = Program(recording.gram, recording.sigmas, 0.0).solve([budget])[budget].steps
    even = uniform(steps, budget)

    def planned(schedule: tuple[int, ...], gain: float) -> CacheConfig:
        return CacheConfig("plan", 1, steps, options={"compute_steps": schedule, "sigmas": levels, "gain": gain})

    return {
        "uniform, TaylorSeer": CacheConfig("dit_block_cache", blocks, steps, options={"order": 1, "compute_steps": even}),
        "uniform, line": planned(even, 0.0),
        "planned for no correction": planned(bare, 0.0),
        "plan, not corrected": planned(entry.steps, 0.0),
        f"plan, gain {entry.gain:g}": planned(entry.steps, entry.gain),
    }


def levels(steps: int, blocks: int, budget: int, plan: Plan) -> dict[str, CacheConfig]:
    """Schedules of as many computed steps that need no recording, and the plan."""

    def regular(schedule: tuple[int, ...]) -> CacheConfig:
        return CacheConfig("plan_blocks", blocks, steps, options={"compute_steps": schedule})

    entry, level = plan.at(budget), level_schedule(steps, budget)

    def whole(schedule: tuple[int, ...], gain: float) -> CacheConfig:
        return CacheConfig("plan", 1, steps, options={"compute_steps": schedule, "sigmas": plan.sigmas, "gain": gain})

    return {
        "uniform": regular(uniform(steps, budget)),
        "beginning, then regular": regular(begun(steps, budget)),
        "level": regular(level),
        "level, whole forwards": whole(level, 0.0),
        "level, whole forwards, corrected": whole(level, 1.0),
        "plan, recorded": whole(entry.steps, entry.gain),
    }


def begun(steps: int, budget: int) -> tuple[int, ...]:
    """The first share of the steps, larger the more are computed, and then regular ones: 0.3, 0.2, 0.1 of them at 2/3, 1/2,
    1/3."""
    first = max(2, round(steps * (0.3 if 2 * budget > steps else 0.2 if 5 * budget > 2 * steps else 0.1)))
    return tuple(range(first)) + tuple(round(place) for place in np.linspace(first - 1, steps - 1, budget - first + 1)[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, metavar="N")
    parser.add_argument("--budgets", type=int, nargs="+", default=[20, 15, 12, 10, 8, 7, 6], metavar="B")
    parser.add_argument("--prompts", type=int, default=32, metavar="N")
    parser.add_argument("--shift", type=float, default=3.0)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--fresh", action="store_true", help="prompts and seeds that nothing was chosen by")
    parser.add_argument("--levels", action="store_true", help="schedules without a recording, at the speeds of the levels")
    parser.add_argument("--save", type=Path, metavar="FILE", help="only record, and write the plan")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE")
    options = parser.parse_args()
    model = load_testbed("cpu")
    call = {"shift": options.shift, "guidance_scale": options.guidance}
    plan, recording = recorded_plan(model, options.steps, **call)
    if options.save is not None:
        plan.save(options.save)
        return
    unseen = [prompt for prompt in all_prompts() if prompt not in DEFAULT_PROMPTS]
    chosen = unseen[:: max(1, len(unseen) // options.prompts)][: options.prompts]
    if options.fresh:
        chosen = (unseen[1::2] + unseen[::2])[: options.prompts]
    bench = Bench(model, options.steps, chosen, FRESH_SEED if options.fresh else SEED, **call)
    budgets = options.budgets
    if options.levels:
        budgets = [math.ceil(options.steps / level.speedup) for level in LEVELS.values()]
    elements = bench.exact[0].numel()
    rows = []
    for budget in tqdm(budgets, desc="budgets"):
        baseline = None
        blocks = model.config.blocks
        compared = settings(options.steps, blocks, budget, plan, recording)
        if options.levels:
            compared = levels(options.steps, blocks, budget, plan)
        for name, config in compared.items():
            found = bench.psnr(config)
            baseline = found if baseline is None else baseline
            paired = found - baseline
            rows.append(
                {
                    "computed": budget,
                    "setting": name,
                    "psnr": round(float(found.mean()), 1),
                    "deviation": round(float(found.std()), 1),
                    "worst": round(float(found.min()), 1),
                    "paired": round(float(paired.mean()), 1),
                    "paired, worst": round(float(paired.min()), 1),
                    "wins": f"{int((paired > 0).sum())}/{len(found)}",
                    "each": found.round(2).tolist(),
                }
            )
        relative = plan.at(budget).predicted * recording.energy / recording.samples
        rows[-1]["predicted"] = round(10 * math.log10(PEAK**2 * elements / relative), 1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"steps": options.steps, "rows": rows}, indent=1))
    names = [name for name in rows[-1] if name != "each"]
    print(f"| {' | '.join(names)} |\n|{' --- |' * len(names)}")
    for row in rows:
        print(f"| {' | '.join(str(row.get(name, '')) for name in names)} |")


if __name__ == "__main__":
    main()
