"""Host time of one `CacheAgent.apply`, computed and reused, beside MindIE-SD's own cache_agent in the same run.

    python benchmarks/overhead.py                 # or: make bench
    python benchmarks/overhead.py --rounds 9 --without-mindiesd

Tiny tensors, one thread, 60 calls a step and 50 steps, so that what is measured is the library and not the model. A
computed call is charged the time above the direct call of the same module, a reused call all of its time. The libraries
take turns, each in processes of its own; the table gives medians over the rounds, and the file out/bench/overhead.json
every number. MindIE-SD is installed into out/bench/mindiesd with pip, without its dependencies and beside everything else;
only its package mindiesd.cache_agent is imported, because the rest needs an NPU.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path

CALLS, STEPS, GENERATIONS = 60, 50, 8
WINDOW = {"step_start": 9, "step_end": 47}
PEER = Path("out/bench/mindiesd")


def load(library: str):
    """Return (CacheConfig, CacheAgent) of `library`."""
    if library == "mindiesd":
        package = types.ModuleType("mindiesd")  # its __init__ needs torch_npu; cache_agent alone does not
        package.__path__ = [str(PEER / "mindiesd")]
        sys.modules["mindiesd"] = package
        module = importlib.import_module("mindiesd.cache_agent")
    else:
        module = importlib.import_module("mindie_cache")
    return module.CacheConfig, module.CacheAgent


def is_reused(method: str, step: int, interval: int) -> bool:
    """Both libraries' rule inside the window, away from its ends, where they differ."""
    start, stop = WINDOW["step_start"], WINDOW["step_end"]
    return start < step < stop and (step - start) % interval != 0


def measure(library: str, method: str, interval: int) -> dict[str, float]:
    """Microseconds per call: the best of several generations for each step, averaged over computed and reused steps."""
    import torch

    class Module(torch.nn.Module):
        def forward(self, hidden_states, encoder_hidden_states):
            return (hidden_states, encoder_hidden_states) if method == "dit_block_cache" else hidden_states

    torch.set_num_threads(1)
    config, agent_class = load(library)
    blocks = {"block_start": 0, "block_end": CALLS} if method == "dit_block_cache" else {}
    agent = agent_class(config(method, CALLS, STEPS, step_interval=interval, **WINDOW, **blocks))
    modules = [Module() for _ in range(CALLS)]
    hidden, encoder = torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    cached: list[list[float]] = [[] for _ in range(STEPS)]
    direct: list[float] = []
    gc.disable()
    with torch.no_grad():
        for generation in range(GENERATIONS):
            for step in range(STEPS):
                began = time.perf_counter()
                for module in modules:
                    agent.apply(module, hidden_states=hidden, encoder_hidden_states=encoder)
                middle = time.perf_counter()
                for module in modules:
                    module(hidden, encoder)
                ended = time.perf_counter()
                if generation:  # the first one warms up
                    cached[step].append((middle - began) / CALLS * 1e6)
                    direct.append((ended - middle) / CALLS * 1e6)
    gc.enable()
    best = [min(times) for times in cached]
    inside = range(1, WINDOW["step_end"])
    reused = [best[step] for step in inside if is_reused(method, step, interval)]
    computed = [best[step] for step in inside if not is_reused(method, step, interval)]
    return {"direct": min(direct), "computed": statistics.mean(computed) - min(direct), "reused": statistics.mean(reused)}


def worker(library: str) -> dict[str, dict[str, float]]:
    cases = [(method, interval) for method in ("dit_block_cache", "attention_cache") for interval in (2, 3)]
    return {f"{method}, every {interval}": measure(library, method, interval) for method, interval in cases}


def fetch_mindiesd() -> bool:
    """Install MindIE-SD into a folder of its own, once. False, with the reason printed, if that cannot be done."""
    if (PEER / "mindiesd/cache_agent").is_dir():
        return True
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, "--target", str(PEER), "mindiesd"], capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"MindIE-SD could not be installed, so it is not measured:\n{done.stderr.strip()}")
    return done.returncode == 0


def run_round(library: str) -> dict[str, dict[str, float]]:
    command = [sys.executable, __file__, "--worker", library]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="processes per library (default: %(default)s)")
    parser.add_argument("--without-mindiesd", action="store_true", help="measure mindie_cache alone")
    parser.add_argument("--worker", choices=["mindie_cache", "mindiesd"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(worker(arguments.worker)))
        return
    libraries = ["mindie_cache"]
    if not arguments.without_mindiesd and fetch_mindiesd():
        libraries.append("mindiesd")
    rounds: dict[str, list[dict[str, dict[str, float]]]] = {library: [] for library in libraries}
    for number in range(arguments.rounds):
        for library in libraries:
            print(f"round {number + 1} of {arguments.rounds}: {library}", file=sys.stderr)
            rounds[library].append(run_round(library))
    print(f"{'microseconds a call, median of ' + str(arguments.rounds):<42}{'computed':>10}{'reused':>10}")
    for case in rounds["mindie_cache"][0]:
        for library in libraries:
            values = [statistics.median(one[case][kind] for one in rounds[library]) for kind in ("computed", "reused")]
            print(f"{case + ' steps, ' + library:<42}{values[0]:>10.2f}{values[1]:>10.2f}")
    target = Path("out/bench/overhead.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    machine = {"python": platform.python_version(), "machine": platform.machine(), "calls": CALLS, "steps": STEPS}
    target.write_text(json.dumps({"machine": machine, "rounds": rounds}, indent=2) + "\n", encoding="utf-8")
    print(f"every number: {target}")


if __name__ == "__main__":
    main()
