"""What trying a plan before it is used is worth: as planned, without correction, or regular steps; on the trained testbed.

    OMP_NUM_THREADS=1 python benchmarks/plan_safest.py                 # 16 unseen prompts, about 20 minutes

`calibration.planning.safest` does this on pipelines. Here the same ways are generated for guidance scales that the model was
not made for too, where errors grow and a correction can hurt. A plan is recorded from four prompts; "chosen by n" takes the
way with the least squared error on n prompts that were neither recorded nor are evaluated. PSNR of the final latents in dB;
in brackets the worst difference to the regular steps, prompt by prompt. Results of generations are kept in out/bench/safest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from planners_runs import Runs, Store, calibration, unseen
from tqdm import tqdm

from mindie_cache import CacheConfig
from mindie_cache.calibration.planning import make_plan, record_testbed
from mindie_cache.calibration.planning.trial import REGULAR, ways
from mindie_cache.testbed import load_testbed

OUT, STEPS, RECORDED, JUDGES = Path("out/bench/safest/results.jsonl"), 30, 4, (1, 2, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1, 2, 3, 4, 5, 7], metavar="G")
    parser.add_argument("--budgets", type=int, nargs="+", default=[15, 10, 6], metavar="B")
    parser.add_argument("--prompts", type=int, default=16, metavar="N")
    options = parser.parse_args()
    model, store = load_testbed("cpu"), Store(OUT)
    lines = []
    for guidance in tqdm(options.guidance, desc="guidance"):
        recorded = calibration(RECORDED, guidance=guidance)
        judges = Runs(model, calibration(max(JUDGES), RECORDED, guidance=guidance), store)
        judged = Runs(model, unseen(options.prompts, guidance=guidance), store)
        recording = record_testbed(
            model, recorded.prompts, seeds=recorded.seeds, steps=STEPS, guidance_scale=guidance, shift=recorded.shift
        )
        plan = make_plan(recording)
        for budget in options.budgets:
            on_judges, found = {}, {}
            for name, entry in ways(plan.choose(budget=budget)).items():
                values = {"compute_steps": entry.steps, "sigmas": plan.sigmas, "gain": entry.gain}
                config = [CacheConfig("plan", 1, STEPS, options=values)]
                on_judges[name] = np.asarray(judges.measure(config).psnr)
                found[name] = np.asarray(judged.measure(config).psnr)
            chosen = [_least(on_judges, count) for count in JUDGES]
            cells = [_cell(found[name], found[REGULAR]) for name in [*found, *chosen]]
            lines.append(f"| {guidance:g} | {budget} | {' | '.join(cells)} |")
    titles = ["guidance", "computed", *found, *[f"chosen by {count}" for count in JUDGES]]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    print("\n".join(lines))


def _least(psnr: dict[str, np.ndarray], count: int) -> str:
    """The name with the least sum of squared errors on the first `count` prompts."""
    return min(psnr, key=lambda name: float(np.sum(10 ** (-psnr[name][:count] / 10))))


def _cell(found: np.ndarray, regular: np.ndarray) -> str:
    return f"{found.mean():.1f} ({(found - regular).min():+.1f})"


if __name__ == "__main__":
    main()
