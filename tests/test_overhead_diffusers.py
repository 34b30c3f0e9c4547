"""The benchmark of costs on diffusers' transformers: forced steps do the work that they say, and its tables. No installs."""

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import overhead_diffusers as overhead  # noqa: E402
import overhead_variants as variants  # noqa: E402
import overhead_worker as worker  # noqa: E402

pytest.importorskip("diffusers")
WAN = variants.SUBJECTS["wan-8"]
HERE = [variant for variant in variants.VARIANTS if variant.library != variants.CACHE_DIT]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("subject", ["wan-8", "flux-4-8"])
@pytest.mark.parametrize("variant", HERE, ids=lambda variant: f"{variant.library} {variant.name}")
def test_forced_steps_do_the_work_that_they_are_compared_with(variant, subject):
    result = worker.measure(variant, variants.SUBJECTS[subject], pairs=2)
    for phase in variant.phases:
        assert len(result["pairs"][phase.kind]) == 2
    if variant.library == variants.OURS:
        expected = int(variant.name == "first_block")  # the others follow a schedule
        assert {kind: reads["reads"] for kind, reads in result["reads"].items()} == {"compute": expected, "hit": expected}


def test_other_work_than_forced_is_an_error():
    variant = next(v for v in variants.VARIANTS if v.name == "dit_block_cache")
    compute, hit = variant.phases
    with pytest.raises(worker.WrongWorkError, match="forced to hit"):
        worker.measure(replace(variant, phases=(replace(hit, apply=compute.apply),)), WAN, pairs=1)
    with pytest.raises(worker.WrongWorkError, match="forced to compute"):
        worker.measure(replace(variant, phases=(replace(compute, apply=hit.apply),)), WAN, pairs=1)


def test_the_table_has_medians_spread_and_errors():
    request = {"task": "time", "subject": "wan-8", "library": variants.OURS}
    pairs = {"compute": [[1.0, 1.1 + i / 100] for i in range(5)], "hit": [[1.0, 1.02]] * 3}
    good = {"pairs": pairs, "reads": {"compute": {"reads": 0, "timestep": 1}, "hit": {"reads": 0, "timestep": 1}}}
    answers = [{"request": request, "results": {"dit_block_cache": good, "pab": {"error": "WrongWorkError: step 8"}}}] * 2
    table = overhead.time_table(answers, ["wan-8"])
    assert "| mindie_cache dit_block_cache | 0.12 / 0.02 (0.11 to 0.13, 0.02 to 0.02) | 0 + 1 |" in table
    assert "| mindie_cache pab | WrongWorkError | - |" in table


def test_what_is_asked_for():
    options = argparse.Namespace(only=["pab"], rounds=2, models=["wan-8"], pairs=3, without_compile=True)
    asked = [(one["round"], one["library"], one["variants"]) for one in overhead.requests(options)]
    assert asked == [(n, *rest) for n in (0, 1) for rest in (("-", ["no cache"]), (variants.OURS, ["pab"]))]


def test_help():
    command = [sys.executable, BENCHMARKS / "overhead_diffusers.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--without-compile" in done.stdout
