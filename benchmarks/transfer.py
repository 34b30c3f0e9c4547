"""What a plan is worth in other settings than those it was recorded in, prompt by prompt, on the trained testbed.

    python benchmarks/transfer.py --quick                  # a look: 2 prompts, two cases
    python benchmarks/transfer.py                          # every case, 16 unseen prompts
    python benchmarks/transfer.py --only "shift" "40 steps"

At home a plan is recorded from four prompts: 30 steps, shift 3, guidance 2, 24 x 24 pixels, 8 frames, float32. Each case
changes one of these, and compares at a half, a third and a fifth of the steps:

    from home        the plan of home, used as a file is: enable_cache(pipe, "plan.json")
    gain 0           the same file, with the option gain=0: nothing is corrected
    own levels       its computed steps with the noise levels of the case (if the shift differs)
    recorded here    a plan from four prompts that were recorded in the case
    uniform, line    computed steps at equal distances, the same line without correction

PSNR of the final latents beside the uncached ones of the same case. "paired" is the difference to "uniform, line", prompt by
prompt. "recorded N" are plans of home from N prompts, for several choices of the prompts. Results go to
out/bench/transfer.json; every generation is kept in out/bench/transfer, so that the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from planners_runs import Found, Runs, Store, calibration, unseen
from planners_search import uniform
from tqdm import tqdm

from mindie_cache import CacheConfig
from mindie_cache.calibration.planning import Plan, make_plan, record_testbed
from mindie_cache.testbed import TestbedConfig, TestbedTransformer, accuracy, load_testbed, sigmas, to_video

OUT, RECORDED = Path("out/bench/transfer.json"), 4
PARTS = (2, 3, 5)  # a half, a third, a fifth of the steps are computed
CHOICES = {1: 4, 2: 4, 4: 4, 8: 3}  # recorded prompts: how many choices of them
FROM_HOME, BARE, OWN_LEVELS, HERE, LINE = "from home", "gain 0", "own levels", "recorded here", "uniform, line"


@dataclass(frozen=True)
class Case:
    """One setting: home, but for what is given."""

    name: str
    steps: int = 30
    guidance: float = 2.0
    shift: float = 3.0
    dtype: torch.dtype = torch.float32
    sizes: TestbedConfig = field(default_factory=TestbedConfig)

    @property
    def settings(self) -> dict[str, Any]:
        return {"steps": self.steps, "guidance": self.guidance, "shift": self.shift}


HOME = Case("home")
CASES = (
    HOME,
    *[Case(f"{steps} steps", steps=steps) for steps in (20, 40, 50)],
    *[Case(f"guidance {scale:g}", guidance=scale) for scale in (1.0, 1.5, 3.0, 4.0, 5.0)],
    *[Case(f"shift {shift:g}", shift=shift) for shift in (1.0, 5.0, 8.0)],
    Case("bfloat16", dtype=torch.bfloat16),
    Case("32 x 32 pixels", sizes=TestbedConfig(height=32, width=32)),
    Case("12 frames", sizes=TestbedConfig(frames=12)),
    Case("4 frames", sizes=TestbedConfig(frames=4)),
)


def model_of(case: Case) -> TestbedTransformer:
    """The trained weights in the sizes and the dtype of a case: positions are computed, so every size can be run."""
    trained = load_testbed("cpu")
    model = TestbedTransformer(case.sizes)
    model.load_state_dict(trained.state_dict())
    return model.to(case.dtype).eval()


def record_plan(case: Case, model: TestbedTransformer, count: int = RECORDED, first: int = 0) -> Plan:
    """From so many prompts that nothing is evaluated on."""
    task = calibration(count, first, **case.settings)
    settings = {"shift": case.shift, "guidance_scale": case.guidance}
    return make_plan(record_testbed(model, task.prompts, seeds=task.seeds, steps=case.steps, **settings))


class Transfer:
    """Cases beside home.

    Args:
        folder: of plans.
    """

    def __init__(self, prompts: int, results: Store, folder: Path):
        self.prompts, self.results, self.folder = prompts, results, folder
        self.home = record_plan(HOME, model_of(HOME))

    def rows(self, case: Case) -> Iterator[dict[str, Any]]:
        """All settings of a case, at all budgets."""
        model = model_of(case)
        runs = Runs(model, unseen(self.prompts, **case.settings), self.results)
        own = record_plan(case, model)
        right = accuracy(to_video(runs.exact), runs.task.prompts).overall
        for part in PARTS:
            budget = round(case.steps / part)
            found = self._measured(case, runs, budget, own)
            for name, one in found.items():
                yield {"case": case.name, "accuracy": right, **_row(budget, name, one, found[LINE])}

    def recorded(self) -> Iterator[dict[str, Any]]:
        """Plans of home from other prompts, and other numbers of them."""
        model = model_of(HOME)
        runs = Runs(model, unseen(self.prompts, **HOME.settings), self.results)
        for count, choices in CHOICES.items():
            plans = [record_plan(HOME, model, count, 10 + choice * count) for choice in range(choices)]
            for part in PARTS:
                budget = round(HOME.steps / part)
                line = runs.measure([_planned(HOME, uniform(HOME.steps, budget))])
                found = [self._of_file(runs, plan, budget) for plan in plans]
                psnr = tuple(value for one in found for value in one.psnr)
                joint = replace(found[0], psnr=psnr)
                row = _row(budget, FROM_HOME, joint, replace(line, psnr=line.psnr * choices))
                means = [float(np.mean(one.psnr)) for one in found]
                yield {"case": f"recorded {count}", **row, "choices": [round(mean, 1) for mean in means]}

    def _measured(self, case: Case, runs: Runs, budget: int, own: Plan) -> dict[str, Found]:
        even = uniform(case.steps, budget)
        found = {FROM_HOME: self._of_file(runs, self.home, budget), BARE: self._of_file(runs, self.home, budget, gain=0.0)}
        if case.shift != HOME.shift:
            entry = self.home.at(budget)
            found[OWN_LEVELS] = runs.measure([_planned(case, entry.steps, entry.gain)])
        found[HERE] = self._of_file(runs, own, budget)
        found[LINE] = runs.measure([_planned(case, even)])
        return found

    def _of_file(self, runs: Runs, plan: Plan, budget: int, **changed: float) -> Found:
        """A plan as users have it. Its budgets are those of its own number of steps."""
        moved = plan.for_steps(runs.task.steps)
        entry = _nearest(moved, budget)
        path = self.folder / "plan.json"
        options = {"plan": str(path), **changed}
        source = min(plan.front, key=lambda one: abs(one.budget * runs.task.steps / plan.steps_count - budget))
        plan.choose(budget=source.budget).save(path)
        config = CacheConfig("plan", 1, runs.task.steps, options=options)
        return runs.measure([config], mark=repr((entry.steps, entry.gain, moved.sigmas)))


def _nearest(plan: Plan, budget: int) -> Any:
    return min(plan.front, key=lambda one: abs(one.budget - budget))


def _planned(case: Case, schedule: tuple[int, ...], gain: float = 0.0) -> CacheConfig:
    levels = tuple(sigmas(case.steps, case.shift).tolist())
    return CacheConfig("plan", 1, case.steps, options={"compute_steps": schedule, "sigmas": levels, "gain": gain})


def _row(budget: int, name: str, found: Found, line: Found) -> dict[str, Any]:
    psnr, paired = np.array(found.psnr), np.array(found.psnr) - np.array(line.psnr)
    return {
        "computed": round(found.computed, 1),
        "of": budget,
        "setting": name,
        "psnr": round(float(psnr.mean()), 1),
        "deviation": round(float(psnr.std()), 1),
        "worst": round(float(psnr.min()), 1),
        "paired": round(float(paired.mean()), 1),
        "paired, worst": round(float(paired.min()), 1),
        "wins": f"{int((paired > 0).sum())}/{len(psnr)}",
    }


def overview(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line a case and budget, mean PSNR of each setting."""
    names = [name for name in (FROM_HOME, BARE, OWN_LEVELS, HERE, LINE) if any(row["setting"] == name for row in rows)]
    lines = [f"| case | computed | {' | '.join(names)} |", f"| --- | ---: |{' ---: |' * len(names)}"]
    for case, budget in dict.fromkeys((row["case"], row["of"]) for row in rows):
        here = {row["setting"]: f"{row['psnr']:.1f}" for row in rows if (row["case"], row["of"]) == (case, budget)}
        lines.append(f"| {case} | {budget} | {' | '.join(here.get(name, '') for name in names)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--prompts", type=int, default=16, metavar="N", help="unseen prompts (default: 16)")
    add("--only", nargs="+", metavar="CASE", help='beginnings of names of cases; "recorded" for other recordings')
    add("--quick", action="store_true", help="2 prompts, guidance 5 and 20 steps")
    add("--out", type=Path, default=OUT, metavar="FILE", help="results (default: out/bench/transfer.json)")
    options = parser.parse_args()
    if options.quick:
        options.prompts, options.only = 2, options.only or ["guidance 5", "20 steps"]
    folder = options.out.with_suffix("")
    transfer = Transfer(options.prompts, Store(folder / "results.jsonl"), folder)
    wanted = tuple(options.only or ("",))
    cases = [case for case in CASES if case.name.startswith(wanted)]
    rows = []
    for case in tqdm(cases, unit="case", dynamic_ncols=True):
        rows += transfer.rows(case)
    if "recorded".startswith(wanted):
        rows += transfer.recorded()
    options.out.write_text(json.dumps({"prompts": options.prompts, "rows": rows}, indent=1))
    shown = [name for name in rows[0] if name != "choices"]
    print(f"| {' | '.join(shown)} |\n|{' --- |' * len(shown)}")
    for row in rows:
        print(f"| {' | '.join(str(row.get(name, '')) for name in shown)} |")
    print(f"\nMean PSNR in dB:\n\n{overview(rows)}")


if __name__ == "__main__":
    main()
