"""Ways to choose which steps are computed, at the same number of computed steps, prompt by prompt, on the trained testbed.

    python benchmarks/planners.py --quick                  # a look: 4 prompts, two budgets, short searches
    python benchmarks/planners.py                          # 32 unseen prompts, 20 to 6 of 30 steps, every method
    python benchmarks/planners.py --only plan uniform annealing --budgets 15 10
    python benchmarks/planners.py --again plan             # what begins with "plan" is generated anew: its code has changed

Compared are plans (from 4, 2 and 1 recorded generations), uniform schedules, and what others find by generating:

    annealing                BudCache's way: simulated annealing and hill climbing on the true final error of one prompt,
                             200 generations a budget; executed by TaylorSeer of order 1, or as plans are
    smallest largest gap     LeMiCa's way: every gap is generated once, alone; the path whose largest gap error is smallest
    search of blocks and steps   MindIE-SD's way: windows of blocks and steps, see docs/searching.md
    all others               the caching methods of the library: the best window or threshold for the budget

The last two are run at 20, 15, 10 and 7 steps only, unless --only names them.

Nothing is searched on the prompts that are evaluated. "computed" counts calls of blocks (or of the model, where it is
skipped whole) that were made, in steps; methods that look at data run each prompt alone, so there it is a mean. "paired" is
the difference to uniform TaylorSeer-1, prompt by prompt; "own" is PSNR on the prompt of the search; "generations" is what
the search generated, in whole generations ("in all": once for all budgets). Results go to out/bench/planners.json, the
picture to --picture. Every generation is kept in out/bench/planners: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from planners_methods import BASELINE, SLOW, Methods, Setting
from planners_plot import plot
from planners_runs import Found, Runs, Store, unseen
from planners_search import EVALUATIONS
from tqdm import tqdm

from mindie_cache.testbed import load_testbed

OUT, STEPS = Path("out/bench/planners.json"), 30
BUDGETS, COARSE = (20, 15, 12, 10, 8, 7, 6), (20, 15, 10, 7)


def row(budget: int, name: str, setting: Setting, found: Found, baseline: Found) -> dict[str, Any]:
    """One method at one budget."""
    psnr = np.array(found.psnr)
    paired = psnr - np.array(baseline.psnr)
    return {
        "budget": budget,
        "method": name,
        "computed": round(found.computed, 2),
        "psnr": round(float(psnr.mean()), 2),
        "deviation": round(float(psnr.std()), 2),
        "worst": round(float(psnr.min()), 2),
        "paired": round(float(paired.mean()), 2),
        "paired, worst": round(float(paired.min()), 2),
        "wins": f"{int((paired > 0).sum())}/{len(psnr)}",
        "generations": f"{setting.generations:.0f}" + (" in all" if setting.once and setting.generations else ""),
        "search, s": round(setting.seconds, 1),
        "own": round(setting.own, 2) if setting.own else "",
        "each": [round(value, 2) for value in found.psnr],
        "configs": [config.to_dict() for config in setting.configs],
    }


def detailed(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line a method and budget."""
    names = [name for name in rows[0] if name not in ("each", "configs")]
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    return "\n".join(lines + [f"| {' | '.join(str(one[name]) for name in names)} |" for one in rows])


def overview(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line a method, mean PSNR at each budget."""
    budgets = list(dict.fromkeys(one["budget"] for one in rows))
    lines = [f"| method | {' | '.join(map(str, budgets))} |", f"| --- |{' ---: |' * len(budgets)}"]
    for name in dict.fromkeys(one["method"] for one in rows):
        found = {one["budget"]: f"{one['psnr']:.1f}" for one in rows if one["method"] == name}
        lines.append(f"| {name} | {' | '.join(found.get(budget, '') for budget in budgets)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--budgets", type=int, nargs="+", default=BUDGETS, metavar="B", help="computed steps of 30 (default: 20 to 6)")
    add("--prompts", type=int, default=32, metavar="N", help="unseen prompts (default: 32)")
    add("--tuning", type=int, default=2, metavar="N", help="prompts that thresholds are set on (default: 2)")
    add("--evaluations", type=int, default=EVALUATIONS, metavar="N", help="of annealing, a budget (default: 200)")
    add("--only", nargs="+", metavar="METHOD", help="names or beginnings of names")
    add("--again", nargs="+", default=[], metavar="METHOD", help="names or beginnings of names: not from the file")
    add("--quick", action="store_true", help="4 prompts, budgets 15 and 8, 12 evaluations, few methods")
    add("--out", type=Path, default=OUT, metavar="FILE", help="results (default: out/bench/planners.json)")
    add("--picture", type=Path, metavar="FILE", help="PSNR against speed-up (default: beside --out)")
    options = parser.parse_args()
    if options.quick:
        options.budgets, options.prompts, options.evaluations, options.tuning = (15, 8), 4, 12, 1
        options.only = options.only or ["uniform", "plan", "annealing, T", "custom", "dit_block_cache, line"]
    rows, costs = compare(options)
    document = {"steps": STEPS, "prompts": options.prompts, "costs": costs, "rows": rows}
    options.out.write_text(json.dumps(document, indent=1))
    plot(rows, STEPS, options.picture or options.out.with_suffix(".png"))
    print(f"{detailed(rows)}\n\nMean PSNR in dB, by computed steps:\n\n{overview(rows)}\n\nCPU: {costs}")


def compare(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Search and evaluate, method by method: rows by budget, and what planning costs."""
    folder = options.out.with_suffix("")
    results = Store(folder / "results.jsonl")
    model = load_testbed("cpu")
    source = Methods(model, STEPS, results, folder, options.tuning, options.evaluations)
    methods = source.all()
    chosen = [name for name in methods if name == BASELINE or not options.only or name.startswith(tuple(options.only))]
    runs, baseline = Runs(model, unseen(options.prompts, steps=STEPS), results), {}
    rows = []
    with tqdm(total=len(chosen) * len(options.budgets), unit="setting", dynamic_ncols=True) as bar:
        for name in chosen:
            bar.set_description(name)
            again = name.startswith(tuple(options.again)) if options.again else False
            for budget in options.budgets:
                bar.update()
                if name in SLOW and not options.only and budget not in COARSE:
                    continue
                setting = methods[name](budget)
                if setting is None:
                    continue
                found = runs.measure(setting.configs, setting.batch, setting.mark, again=again)
                baseline.setdefault(budget, found)
                rows.append(row(budget, name, setting, found, baseline[budget]))
    return sorted(rows, key=lambda one: -one["budget"]), source.costs


if __name__ == "__main__":
    main()
