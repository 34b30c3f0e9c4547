"""The command line: exit codes, one line for errors, what doctor and the help texts say."""

import json
import platform
import shlex
import subprocess
import sys
from subprocess import PIPE

import pytest
import torch

from mindie_cache import ConfigError, __version__, cli, testbed
from mindie_cache.demo.plan import read_settings
from mindie_cache.recipes import bypass_reason
from mindie_cache.testbed import TestbedConfig, TestbedTransformer, data


@pytest.fixture
def small_model(monkeypatch):
    """What the demo loads: random weights, so that it is fast."""
    model = TestbedTransformer(TestbedConfig(patch=(4, 8, 8), dim=24, blocks=2, heads=2)).eval()
    monkeypatch.setattr(testbed, "load_testbed", lambda device: model.to(device))
    return model


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == f"mindie-cache {__version__}"


@pytest.mark.parametrize(("command", "words"), [("demo", "contact_sheet.png"), ("doctor", "--json")])
def test_help_teaches_by_examples(command, words, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert words in text
    assert f"examples:\n  mindie-cache {command}\n" in text
    assert max(map(len, text.splitlines())) < 125


def test_the_help_text_is_true(tmp_path):
    """Its vocabulary is the model's, and its example of a configuration fits the model."""
    for words in (data.COLOURS, data.SHAPES, data.DIRECTIONS):
        assert f"  {' '.join(words)}\n" in cli._DEMO_EXAMPLES
    example = tmp_path / "mine.yaml"
    example.write_text(cli._DEMO_EXAMPLES.split("30 steps:\n")[1])
    (setting,) = read_settings([example], steps=30, blocks=TestbedConfig().blocks)
    assert bypass_reason(setting.configs[0]) == ""


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
    assert "COMMAND" in capsys.readouterr().err


def test_demo_prints_a_table_and_where_the_files_are(small_model, tmp_path, capsys):
    assert cli.main(["demo", "--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split() == ["setting", "computed", "speed-up", "PSNR", "dB", "SSIM", "accuracy", "kept"]
    assert lines[2].split()[:3] == ["uncached", "100%", "1.00x"]
    assert "##.#.#.#.#.#  attention calls" in out
    assert lines[-1] == f"pictures and results.json are in {tmp_path}"
    assert {path.name for path in tmp_path.iterdir()} == {"contact_sheet.png", "demo.gif", "results.json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--prompt 'a red dog moving left'", "unknown words ['dog']"),
        ("--steps 3", "steps=3 is out of range"),
        ("--device xpu", "device='xpu' is not known"),
        ("--device cuda:99", "'cuda:99' is not usable here"),
        ("--config missing.yaml", "missing.yaml: cannot be read"),
        ("--config broken.yaml", "broken.yaml is not valid YAML"),
        ("--config empty.yaml", "empty.yaml: the file is empty"),
        ("--only-config", "error: --only-config leaves nothing to compare with uncached. Add --config FILE"),
        ("--out broken.yaml/out", "--out broken.yaml/out: cannot be written"),
    ],
)
def test_errors_of_the_user_are_one_line(small_model, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "empty.yaml").write_text("")
    assert cli.main(["demo", *shlex.split(arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("mindie-cache: error: ")
    assert message in captured.err


def test_missing_weights_are_one_line(monkeypatch, tmp_path, capsys):
    def load(device):
        raise FileNotFoundError("no testbed weights")

    monkeypatch.setattr(testbed, "load_testbed", load)
    assert cli.main(["demo", "--device", "cpu", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "mindie-cache: error: no testbed weights\n"


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    def load(device):
        raise RuntimeError("a defect")

    monkeypatch.setattr(testbed, "load_testbed", load)
    with pytest.raises(RuntimeError, match="a defect"):
        cli.main(["demo", "--device", "cpu"])


def test_interrupting_is_quiet(monkeypatch, capsys):
    def load(device):
        raise KeyboardInterrupt

    monkeypatch.setattr(testbed, "load_testbed", load)
    assert cli.main(["demo", "--device", "cpu"]) == 130
    assert capsys.readouterr().err == "mindie-cache: interrupted\n"


def test_a_reader_that_goes_away_is_no_error():
    process = subprocess.Popen([sys.executable, "-m", "mindie_cache", "doctor"], stdout=PIPE, stderr=PIPE, text=True)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 141)
    process.stderr.close()


# ------------------------------------------------------------------------------------------------ doctor


def test_doctor_says_what_is_there(capsys, monkeypatch):
    monkeypatch.setenv("MINDIE_TEST", "1")
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for words in (
        platform.python_version(),
        __version__,
        torch.__version__,
        "torch_threads",
        "MINDIE_TEST",
        "combine on cpu",
    ):
        assert words in out
    assert "cpu" in out.split("devices\n")[1]


def test_doctor_for_machines(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"versions", "machine", "environment", "devices", "ops"}
    assert [device["kind"] for device in found["devices"]] == ["npu", "cuda", "cpu"]
    assert all(device["usable"] or device["reason"] for device in found["devices"])
    assert {"combine", "low_pass", "relative_l1", "quantize_rows"} < {op["op"] for op in found["ops"]}


def test_doctor_shows_why_an_npu_is_not_usable(monkeypatch, tmp_path, capsys):
    (tmp_path / "torch_npu.py").write_text("raise ImportError('libhccl.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.main(["doctor"]) == 0
    assert "not usable: ImportError: libhccl.so: cannot open shared object file" in capsys.readouterr().out


def test_doctor_shows_what_is_not_installed(monkeypatch, capsys):
    from mindie_cache import doctor

    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "surely-not-installed"))
    assert cli.main(["doctor"]) == 0
    assert "surely-not-installed  not installed" in capsys.readouterr().out


def test_user_errors_are_value_errors():
    assert issubclass(ConfigError, ValueError)
