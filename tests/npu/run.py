"""`make test-npu`: each group of tests in its environment and its own process, one after another; fails if one fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from setup_tools import ENVIRONMENTS, ROOT

HERE = Path(__file__).parent
NOTHING_SELECTED = 5  # pytest's exit code, for example after ARGS="-k name"
WORDS = {0: "passed", NOTHING_SELECTED: "nothing to run"}


class Group(NamedTuple):
    """Tests that share an environment and its variables; `files` are patterns."""

    heading: str
    environment: str
    files: tuple[str, ...]
    variables: dict[str, str]
    options: tuple[str, ...] = ()


TRITON = {"MINDIE_CACHE_OPS": "triton"}
GROUPS = (
    Group(
        "kernels as lowered for Ascend, run on the CPU",
        "ascend",
        ("test_setup_tools.py", "test_planted_faults.py", "test_lowering.py"),
        TRITON,
        ("--numprocesses", "auto"),
    ),
    Group("torch_npu on a simulated runtime", "ascend", ("test_torch_npu_*.py",), {}),
    Group("kernels compiled for CUDA", "cuda", ("test_cuda_compile.py",), TRITON),
    Group("kernels in Triton's interpreter", "cuda", ("test_interpreter.py",), {**TRITON, "TRITON_INTERPRET": "1"}),
)


def main(arguments: list[str]) -> int:
    """Run all groups; return 1 if one of them failed, or if there was nothing to run in any of them."""
    common = {"OMP_NUM_THREADS": "1", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    results = {}
    for group in GROUPS:
        print(f"\n=== {group.heading} (.npu/{group.environment}) ===", flush=True)
        python = ENVIRONMENTS / group.environment / "bin/python"
        files = [str(path) for pattern in group.files for path in sorted(HERE.glob(pattern))]
        assert files, f"{group.files}: no such tests"
        command = [python, "-m", "pytest", *files, *group.options, *arguments]
        environment = {**os.environ, **common, **group.variables}
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        results[group.heading] = code
    print()
    for heading, code in results.items():
        print(f"{WORDS.get(code, 'FAILED')}: {heading}")
    return int(not set(results.values()) <= {0, NOTHING_SELECTED} or 0 not in results.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
