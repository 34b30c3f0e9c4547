"""Quality of every caching method at equal work, on the trained testbed: a table and a plot.

    python benchmarks/quality.py                          # all methods at 1.5x, 2x, 3x and 4x less work, 32 prompts
    python benchmarks/quality.py --only custom teacache --budgets 2 3
    python benchmarks/quality.py --peers                  # also the caches of diffusers and cache-dit, in a side venv
    python benchmarks/quality.py --variants --budgets 2 3 --out out/bench/variants    # lagged decisions, int8 features
    python benchmarks/quality.py --tables --steps 20 --budgets 2 3 --out out/bench/tables

For each method and each budget the method's knob (an interval, a threshold) is set on two of the prompts that the shipped
calibration was measured on, so that about 1/budget of the uncached work is done; then all settings run on other prompts,
each batch beside two uncached runs. Work is counted in matrix-product operations, so a cached attention and a skipped
forward are comparable. Results go to out/bench/quality: results.json (everything), table.md, quality.png. A run that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from quality_families import Family, families, steps_for, stored_variants, table_variants
from quality_plot import write_plot, write_table
from tqdm import tqdm

from mindie_cache import CacheWarning
from mindie_cache.calibration.testbed import DEFAULT_PROMPTS
from mindie_cache.demo import Batch, Setting
from mindie_cache.demo.plan import uncached
from mindie_cache.demo.runner import Outcome, compare, run_sample, steps_total
from mindie_cache.demo.work import operations, share_computed
from mindie_cache.testbed import TestbedTransformer, all_prompts, load_testbed
from mindie_cache.testbed.weights import CALIBRATION_PATH

OUT = Path("out/bench/quality")
BATCH, TUNING_PROMPTS, TUNING_SEED, SEED = 8, 2, 9000, 100
BISECTIONS, CLOSE = 8, 0.01  # share of the work


class Tuner:
    """Finds the knob of a family at which a share of the work is done. Every knob is run once."""

    def __init__(self, model: TestbedTransformer, steps: int, prompts: Sequence[str]):
        self.model, self.steps = model, steps
        self.cost = operations(model.config)
        self.batch = Batch(tuple(prompts), tuple(range(TUNING_SEED, TUNING_SEED + len(prompts))))
        self.known: dict[tuple[str, Any], float] = {}

    def share(self, family: Family, knob: Any) -> float:
        key = family.name, knob
        if key not in self.known:
            sample = run_sample(self.model, Setting(family.name, "", self.steps, family.build(knob)), self.batch)
            self.known[key] = share_computed(self.cost, sample.reports, self.steps, self.steps)
        return self.known[key]

    def tune(self, family: Family, wanted: float) -> Any:
        """The knob whose share is nearest to `wanted`."""
        if family.span is None:
            return min(family.choices, key=lambda knob: (round(abs(self.share(family, knob) - wanted), 2), knob))
        low, high = family.span
        for _ in range(BISECTIONS):
            middle = (low * high) ** 0.5
            share = self.share(family, middle)
            if abs(share - wanted) < CLOSE:
                break
            low, high = (middle, high) if share > wanted else (low, middle)
        tried = [knob for name, knob in self.known if name == family.name]
        return min(tried, key=lambda knob: abs(self.share(family, knob) - wanted))


def choose_settings(tuner: Tuner, chosen: Sequence[Family], budgets: Sequence[float], path: Path) -> list[Setting]:
    """One setting for each family and budget; those that cannot come near another budget are not repeated."""
    known = json.loads(path.read_text()) if path.exists() else {}
    settings = [uncached(tuner.steps)]
    settings += [Setting("fewer steps", f"{few} steps", few) for few in steps_for(tuner.steps, budgets)]
    for family in tqdm(chosen, desc="setting the knobs", unit="method"):
        knobs = known.get(family.name)
        if knobs is None:
            knobs = known[family.name] = [tuner.tune(family, 1 / budget) for budget in budgets]
            path.write_text(json.dumps(known))
        for knob in dict.fromkeys([tuple(k) if isinstance(k, list) else k for k in knobs]):
            words = f"{knob:.3g}" if isinstance(knob, float) else ", ".join(map(str, knob))
            settings.append(Setting(family.name, words, tuner.steps, family.build(knob)))
    return settings


def plain(outcome: Outcome) -> dict[str, Any]:
    """What is written down of an outcome."""
    report = [str(part) for part in outcome.reports]
    return {
        "name": outcome.setting.name,
        "knob": outcome.setting.caption,
        "steps": outcome.setting.steps,
        "seconds": outcome.seconds,
        "ratios": outcome.ratios,
        "shares": outcome.shares,
        "psnr": outcome.psnr,
        "ssim": outcome.ssim,
        "right": outcome.right,
        "bytes_peak": outcome.bytes_peak,
        "notes": outcome.notes,
        "reports": report,
    }


def merged(parts: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One entry a setting from those of all batches."""
    rows = [dict(row) for row in parts[0]]
    for part in parts[1:]:
        for row, more in zip(rows, part, strict=True):
            for key in ("seconds", "ratios", "shares", "psnr", "ssim", "right"):
                row[key] = row[key] + more[key]
            row["bytes_peak"] = max(row["bytes_peak"], more["bytes_peak"])
    for row in rows:
        row["share"] = statistics.fmean(row["shares"])
        row["speedup"] = statistics.median(row["ratios"])
    return rows


def measure(
    model: TestbedTransformer, settings: Sequence[Setting], batches: Sequence[Batch], folder: Path
) -> list[dict[str, Any]]:
    """Run every batch that is not on file yet."""
    asked = repr([(s.name, s.steps, s.configs) for s in settings]) + repr(batches)
    mark = hashlib.sha256(asked.encode()).hexdigest()[:12]
    parts = []
    with tqdm(total=steps_total(settings, batches), unit="step", dynamic_ncols=True) as bar:
        for index, batch in enumerate(batches):
            path = folder / f"batch-{mark}-{index}.json"
            if path.exists():
                bar.update(steps_total(settings, [batch]))
            else:
                bar.set_description(f"batch {index + 1} of {len(batches)}")
                outcomes = compare(model, settings, [batch], lambda name: bar.update() and None)
                path.write_text(json.dumps([plain(outcome) for outcome in outcomes]))
            parts.append(json.loads(path.read_text()))
    return merged(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="names or beginnings of names of methods")
    parser.add_argument("--budgets", nargs="+", type=float, default=[1.5, 2, 3, 4], metavar="X", help="times less work")
    parser.add_argument("--prompts", type=int, default=32, metavar="N", help="evaluation prompts (default: 32)")
    parser.add_argument("--steps", type=int, default=30, metavar="N", help="denoising steps (default: 30)")
    parser.add_argument("--calibration", default=str(CALIBRATION_PATH), metavar="FILE", help="default: the shipped one")
    parser.add_argument("--tables", action="store_true", help="instead: resampling and ladders of ada_taylor; give --steps")
    parser.add_argument("--variants", action="store_true", help="instead: what lagged decisions and int8 features cost")
    parser.add_argument("--peers", action="store_true", help="also diffusers and cache-dit")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FOLDER")
    options = parser.parse_args()
    warnings.simplefilter("ignore", CacheWarning)  # they are in results.json
    torch.manual_seed(0)
    options.out.mkdir(parents=True, exist_ok=True)
    model = load_testbed("cpu")
    tuning = DEFAULT_PROMPTS[:TUNING_PROMPTS]
    unseen = [prompt for prompt in all_prompts() if prompt not in DEFAULT_PROMPTS]  # nor calibrated nor tuned on
    stride = max(1, len(unseen) // options.prompts)
    evaluated = unseen[::stride][: options.prompts]
    source = table_variants if options.tables else stored_variants if options.variants else families
    chosen = [
        family
        for family in source(options.steps, model.config.blocks, options.calibration)
        if options.only is None or any(family.name.startswith(name) for name in options.only)
    ]
    tuner = Tuner(model, options.steps, tuning)
    settings = choose_settings(tuner, chosen, options.budgets, options.out / f"knobs-{options.steps}.json")
    batches = [
        Batch(tuple(evaluated[i : i + BATCH]), tuple(range(SEED + i, SEED + i + len(evaluated[i : i + BATCH]))))
        for i in range(0, len(evaluated), BATCH)
    ]
    rows = measure(model, settings, batches, options.out)
    if options.peers:
        from peers import peer_rows

        rows += peer_rows(batches, options.steps, options.out)
    (options.out / "results.json").write_text(json.dumps(rows, indent=1))
    print(write_table(rows, options.out / "table.md"))
    write_plot(rows, options.out / "quality.png")
    print(f"\nresults.json, table.md and quality.png are in {options.out}")


if __name__ == "__main__":
    main()
