"""The examples run, say in one line what is wrong, and the docs show what they print."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from mindie_cache import CacheConfig
from mindie_cache.testbed import TestbedConfig

ROOT = Path(__file__).parents[1]
BLOCKS = TestbedConfig().blocks


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs a script with arguments, in an empty folder; returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def script(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return script


def test_quickstart_prints_the_report_that_the_docs_show(run, tmp_path):
    printed = run("quickstart.py")
    text = (ROOT / "docs/concepts.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```\n(dit_block_cache: .*?)```", text, flags=re.DOTALL)
    (head, *rows), (shown_head, *shown_rows) = printed.splitlines()[:-1], shown.splitlines()
    assert head.rpartition(",")[0] == shown_head.rpartition(",")[0]  # the seconds follow
    assert rows == shown_rows
    marks = "".join(re.findall(r"^  (?:cond|uncond) +(\S+)$", shown, flags=re.MULTILINE))
    assert shown.startswith(f"dit_block_cache: {10 * marks.count('.')} of {BLOCKS * len(marks)} blocks reused")
    assert (tmp_path / "out/quickstart.gif").stat().st_size > 1000


def test_quickstart_refuses_what_the_model_has_not_learned(run):
    with pytest.raises(SystemExit, match=r"^error: .*unknown words \['pink'\]"):
        run("quickstart.py", "a pink square moving left")


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ("dit_block_cache", "dit_block_cache: 48 of 144 blocks reused"),
        ("attention_cache", "attention_cache: 48 of 144 attention calls reused"),
        ("adastep", "adastep: 4 of 12 forwards reused"),
    ],
)
def test_evaluation_with_a_cache_of_any_method(run, tmp_path, method, line):
    window = {} if method == "adastep" else {"step_start": 1, "step_interval": 2}
    options = {"warmup_steps": 2, "skip_thr": 9.0} if method == "adastep" else None
    calls = 1 if method == "adastep" else BLOCKS
    CacheConfig(method, calls, 6, **window, options=options).to_yaml(tmp_path / "cache.yaml")
    printed = run("evaluate_testbed.py", "--videos", "1", "--steps", "6", "--config", "cache.yaml")
    assert printed.startswith(line)
    assert "Accuracy(" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "missing.yaml"], "^error: missing.yaml: cannot be read"),
        (["--config", "cache.yaml"], "^error: cache.yaml: the file is empty"),
        (["--device", "xpu"], "^error: device='xpu' is not known"),
        (["--videos", "0"], "^2$"),
        (["--steps", "-1"], "^2$"),
    ],
)
def test_evaluation_says_in_a_line_what_is_wrong(run, tmp_path, arguments, message):
    (tmp_path / "cache.yaml").touch()
    with pytest.raises(SystemExit, match=message):
        run("evaluate_testbed.py", *arguments)


def test_training_needs_a_device_that_exists(run, tmp_path):
    with pytest.raises(SystemExit, match="'xpu' is not known"):
        run("train_testbed.py", "--device", "xpu", "--out", str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
