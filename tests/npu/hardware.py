"""`make test-npu-hardware`: the same cases and generations on a real device, and timings, in one file to send back.

    PYTHONPATH=tests python tests/npu/hardware.py                              # npu, report in out/npu/report.json
    PYTHONPATH=tests python tests/npu/hardware.py --device cuda --only ops     # it runs on other devices too

Three parts, each by itself: `ops` (every case by the kernels, and as "auto" chooses), `methods` (the testbed's generations
by every method, beside the CPU), `speed` (benchmarks/ops.py, and a generation with and without a cache). Nothing stops at a
failure: it goes into the report with the words of whoever refused, and the script ends with 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from method_cases import CASES, STEPS, Case
from tqdm import tqdm

from mindie_cache.demo.attach import attached
from mindie_cache.device import memory, resolve, synchronize
from mindie_cache.doctor import diagnose
from mindie_cache.ops.cases import cases
from mindie_cache.ops.dispatch import use
from mindie_cache.testbed import generate, load_testbed

ROOT = Path(__file__).parents[2]
ASKED: dict[str, Any] = dict(prompts=["a red square moving left"], seeds=[3], steps=STEPS)
TOLERANCE = 5e-3  # of the largest value: rounding of another device through all steps
PARTS = ("ops", "methods", "speed")


def outcome(run: Callable[[], str]) -> str:
    """What went wrong, empty if nothing did."""
    try:
        return run()
    except Exception as error:  # whatever the device's software raises is the finding
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"


def check_ops(device: torch.device) -> dict[str, Any]:
    """Every case by its kernel, and by what is chosen without being asked."""
    found: dict[str, Any] = {}
    for mode in ("triton", "auto"):
        with use(mode):
            results = {str(case): outcome(lambda case=case: case.error(device)) for case in tqdm(list(cases()), desc=mode)}
        found[mode] = {"cases": len(results), "failures": {name: words for name, words in results.items() if words}}
    return found


def check_methods(device: torch.device) -> dict[str, Any]:
    """The testbed's latents by every method, and which calls were reused, beside the CPU's."""
    models = [load_testbed(place) for place in ("cpu", str(device))]
    found: dict[str, Any] = {"cases": len(CASES), "failures": {}, "difference": {}}
    for case in tqdm(CASES, desc="methods"):
        words = outcome(lambda case=case: _beside_cpu(models, case, found["difference"]))
        if words:
            found["failures"][case.name] = words
    return found


def _beside_cpu(models: list[Any], case: Case, differences: dict[str, float]) -> str:
    latents, marks = [], []
    for model in models:
        with attached(model, [case.config]) as places:
            latents.append(generate(model, **ASKED, forward_cache=places.forward_cache).latents.cpu())
            marks.append({(record.branch, record.step, record.reused) for record in places.agents[0].report().steps})
    on_host, on_device = latents
    differences[case.name] = worst = float((on_device - on_host).abs().max() / on_host.abs().max())
    if marks[0] != marks[1]:
        return f"other calls were reused: {sorted(marks[0] ^ marks[1])[:6]}"
    allowed = TOLERANCE if case.is_exact else 5 * TOLERANCE
    return "" if worst < allowed else f"the largest difference is {worst:.2e} of the largest value, more than {allowed:.0e}"


def measure(device: torch.device, out: Path) -> dict[str, Any]:
    """Milliseconds of a generation by every method, and the ops at the sizes of real models."""
    model, found = load_testbed(str(device)), {}
    for name, config in [("no cache", None), *[(case.name, case.config) for case in CASES]]:
        times = []
        for _ in range(4):
            with attached(model, [] if config is None else [config]) as places:
                synchronize(device)
                start = time.perf_counter()
                generate(model, **ASKED, forward_cache=places.forward_cache)
                synchronize(device)
                times.append(1e3 * (time.perf_counter() - start))
        found[name] = sorted(times[1:])[1]  # the first one compiles
    table = out.with_name("ops.json")
    command = [sys.executable, ROOT / "benchmarks/ops.py", "--device", str(device), "--out", table]
    failed = subprocess.run(command, check=False).returncode
    held = memory(device)
    return {
        "milliseconds_of_a_generation": found,
        "ops": None if failed else json.loads(table.read_text()),
        "memory": None if held is None else held._asdict(),
        "failures": {"benchmarks/ops.py": f"ended with {failed}"} if failed else {},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="npu", help="npu, npu:1, cuda, ... (default: npu)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help="ops, methods, speed")
    parser.add_argument("--out", type=Path, default=Path("out/npu/report.json"), metavar="FILE")
    options = parser.parse_args()
    device = resolve(options.device)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore", UserWarning)
    report: dict[str, Any] = {"device": str(device), "diagnosis": asdict(diagnose())}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "ops": lambda: check_ops(device),
        "methods": lambda: check_methods(device),
        "speed": lambda: measure(device, options.out),
    }
    for name in options.only:
        report[name] = parts[name]()
        options.out.write_text(json.dumps(report, indent=1))  # what is known is on disk
    failures = {name: _failures(report[name]) for name in options.only}
    for name, count in failures.items():
        print(f"{name}: {count} failures" if count else f"{name}: passed")
    print(f"The report is {options.out}. docs/npu.md says where to send it.")
    return int(any(failures.values()))


def _failures(part: dict[str, Any]) -> int:
    nested = [value for value in part.values() if isinstance(value, dict) and "failures" in value]
    return len(part.get("failures", {})) + sum(len(value["failures"]) for value in nested)


if __name__ == "__main__":
    sys.exit(main())
