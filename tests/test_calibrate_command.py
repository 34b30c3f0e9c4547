"""`mindie-cache calibrate`, and the example that shows the same with the API."""

from __future__ import annotations

import json
import runpy
import shlex
from pathlib import Path

import pytest
import torch
from toy import quiet

from mindie_cache import CacheConfig, cli, testbed
from mindie_cache.calibration.show import sparkline
from mindie_cache.testbed import TestbedConfig, TestbedTransformer


@pytest.fixture
def small_model(monkeypatch):
    model = TestbedTransformer(TestbedConfig(patch=(4, 8, 8), dim=24, blocks=2, heads=2)).eval()
    torch.nn.init.normal_(model.time_out[1].weight)  # as if trained: the time embedding changes
    monkeypatch.setattr(testbed, "load_testbed", lambda device="cpu": model.to(device))
    return model


def test_the_command_writes_a_preset_and_says_how_to_use_it(small_model, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    file, picture = tmp_path / "table.json", tmp_path / "curves.png"
    arguments = f"calibrate --steps 9 --shift 5 --guidance 1.5 --device cpu --out {file} --plot {picture}"
    assert cli.main([*shlex.split(arguments), "--prompt", "a red square moving left", "--seed", "3", "--seed", "4"]) == 0
    captured = capsys.readouterr()
    assert "calibrating" in captured.err
    lines = captured.out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["branch", "cond", "uncond"]
    assert f"{file} is a preset of magcache, ada_taylor and teacache" in captured.out
    assert picture.read_bytes().startswith(b"\x89PNG")
    document = json.loads(file.read_text())
    facts = document["provenance"]
    assert (facts["steps"], facts["sigma_shift"], facts["guidance_scale"], facts["tokens"]) == (9, 5.0, 1.5, 36)
    assert len(document["uncond_mag_ratios"]) == 9
    assert small_model.cache is None
    config = CacheConfig("teacache", 2, 9, options={"preset": str(file), "sigma_shift": 5.0})
    assert config.validated()


def test_the_command_writes_for_lightx2v(small_model, tmp_path, capsys):
    file = tmp_path / "table.json"
    assert cli.main(["calibrate", "--steps", "8", "--device", "cpu", "--format", "lightx2v", "--out", str(file)]) == 0
    assert "--config_json" in capsys.readouterr().out
    assert len(json.loads(file.read_text())["magcache_ratios"][1]) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--steps 3", "steps_count of a calibration=3 is out of range"),
        ("--prompt 'a red dog moving left'", "unknown words ['dog']"),
        ("--seed -1", "seed=-1"),
        ("--shift -2", "sigma_shift=-2.0"),
        ("--out taken/table.json", "cannot be written"),
        ("--plot taken/curves.png", "cannot be written"),
    ],
)
def test_errors_of_the_user_are_one_line(small_model, tmp_path, monkeypatch, capsys, arguments, message):
    if "--plot" in arguments:
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    assert cli.main(["calibrate", "--device", "cpu", *shlex.split(arguments)]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / "calibration.json").exists()


def test_a_sparkline_goes_from_the_lowest_to_the_highest():
    assert sparkline([0.0, 0.5, 1.0]) in ("▁▄█", "▁▅█")
    assert sparkline([2.0, 2.0]) == "▁▁"


def test_the_example_of_the_api(small_model, tmp_path, monkeypatch, capsys):
    file = tmp_path / "table.json"
    monkeypatch.setattr("sys.argv", ["calibrate_testbed.py", str(file)])
    with quiet():  # the small model is not trained: teacache has nothing to reuse
        runpy.run_path(str(Path(__file__).parents[1] / "examples" / "calibrate_testbed.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert "magcache: " in out
    assert "teacache: " in out
    assert len(json.loads(file.read_text())["cond_mag_ratios"]) == 30
