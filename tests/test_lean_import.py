"""Importing does nothing: no optional package, no environment, no logging, no device. In a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

LOOK = """
import json, logging, os, sys, warnings
import torch

def look():
    return {
        "environment": dict(os.environ),
        "handlers": [repr(handler) for handler in logging.root.handlers],
        "levels": {name: logging.getLogger(name).level for name in ("", "mindie_cache")},
        "own handlers": [repr(handler) for handler in logging.getLogger("mindie_cache").handlers],
        "filters": [repr(entry) for entry in warnings.filters],
        "cuda": torch.cuda.is_initialized(),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "path": list(sys.path),
        "directory": os.getcwd(),
    }

before, modules = look(), set(sys.modules)
import {module}
print(json.dumps({"same": before == look(), "new": sorted(set(sys.modules) - modules)}))
"""
FORBIDDEN = (
    "triton",
    "torch_npu",
    "diffusers",
    "transformers",
    "yaml",
    "PIL",
    "tqdm",
    "safetensors",
    "einops",
    "numpy.testing",
    "torch._dynamo",
    "torch._inductor",
    "mindie_cache.testbed",
    "mindie_cache.demo",
    "mindie_cache.cli",
)


@pytest.fixture(scope="module")
def imported():
    code = LOOK.replace("{module}", "mindie_cache")
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, f"importing printed: {done.stdout}"
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_importing_changes_nothing_outside(imported):
    assert imported["same"]


@pytest.mark.parametrize("name", FORBIDDEN)
def test_importing_brings_no_optional_package(imported, name):
    assert not [module for module in imported["new"] if module == name or module.startswith(name + ".")]


def test_importing_brings_the_package_and_the_standard_library_only(imported):
    names = {module.partition(".")[0] for module in imported["new"]}
    assert "mindie_cache" in names
    assert names - set(sys.stdlib_module_names) - {"torch"} == {"mindie_cache"}
