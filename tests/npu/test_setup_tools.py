"""Setting up the tools: what is complete is left alone, what was interrupted is begun again, what is missing is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import setup_tools


@pytest.fixture
def commands(monkeypatch, tmp_path) -> list[list[str]]:
    """The commands that a set-up in an empty folder runs; none of them does anything but what `effects` holds."""
    ran: list[list[str]] = []

    def run(command, cwd=None, **options):
        words = [str(word) for word in command]
        ran.append(words)
        if words[0] == "apt-get" and words[1] == "download":
            for name in setup_tools.DEBIAN:
                (Path(cwd) / f"{name}.deb").touch()
        if words[0] == "dpkg":
            tool = Path(words[-1]) / "usr/lib/llvm-19/bin/mlir-opt"
            tool.parent.mkdir(parents=True, exist_ok=True)
            tool.touch()
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(setup_tools.subprocess, "run", run)
    return ran


def test_mlir_is_unpacked_once(commands, tmp_path):
    folder = tmp_path / "mlir19"
    setup_tools._unpack_mlir(folder)
    assert [command[0] for command in commands] == ["apt-get", *["dpkg"] * len(setup_tools.DEBIAN)]
    assert not list(folder.glob("*.deb"))
    assert list(tmp_path.iterdir()) == [folder]
    setup_tools._unpack_mlir(folder)
    assert len(commands) == 1 + len(setup_tools.DEBIAN)


def test_an_interrupted_unpacking_leaves_nothing_that_looks_complete(commands, monkeypatch, tmp_path):
    folder, run = tmp_path / "mlir19", subprocess.run

    def interrupted(command, **options):
        if command[0] == "dpkg":
            raise KeyboardInterrupt
        return run(command, **options)

    monkeypatch.setattr(setup_tools.subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        setup_tools._unpack_mlir(folder)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(setup_tools.subprocess, "run", run)
    setup_tools._unpack_mlir(folder)
    assert (folder / "usr/lib/llvm-19/bin/mlir-opt").exists()


def test_missing_package_lists_are_fetched_and_then_the_user_is_told(monkeypatch, tmp_path, capsys):
    ran = []

    def run(command, **options):
        ran.append(command[1])
        return SimpleNamespace(returncode=int(command[1] == "download"), stderr="E: Unable to locate package")

    monkeypatch.setattr(setup_tools.subprocess, "run", run)
    with pytest.raises(
        SystemExit, match="add its sources to apt, run `apt-get update` as root, then `make npu-tools` again"
    ):
        setup_tools._unpack_mlir(tmp_path / "mlir19")
    assert ran == ["download", "update", "download"]
    assert "Unable to locate package" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_apt_the_user_is_told_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(setup_tools.shutil, "which", {"dpkg": "/usr/bin/dpkg"}.get)
    with pytest.raises(SystemExit, match="apt-get is missing, and the NPU tests need it: run this on Debian 12, or unpack"):
        setup_tools._unpack_mlir(tmp_path / "mlir19")


def test_an_environment_is_made_again_when_something_of_it_is_gone(monkeypatch, tmp_path):
    made = []

    def run(command, **options):
        words = [str(word) for word in command]
        made.append(words[2])
        if "install" in words:
            package = setup_tools._site_packages(tmp_path / "env") / "one-1.0.dist-info"
            package.mkdir(parents=True, exist_ok=True)
            (package / "METADATA").write_text("Name: one\nVersion: 1.0\n")

    monkeypatch.setattr(setup_tools.subprocess, "run", run)
    monkeypatch.setattr(setup_tools, "ROOT", tmp_path)
    for _ in range(2):
        setup_tools._make_environment(tmp_path / "env", ["one==1.0"])
        assert made == ["venv", "pip"]
    shared = setup_tools._site_packages(Path(sys.prefix))
    assert str(shared) in (setup_tools._site_packages(tmp_path / "env") / "shared.pth").read_text()

    metadata = setup_tools._site_packages(tmp_path / "env") / "one-1.0.dist-info/METADATA"
    for spoil in (metadata.unlink, (tmp_path / "env/.ready").unlink):
        spoil()
        made.clear()
        setup_tools._make_environment(tmp_path / "env", ["one==1.0"])
        assert made == ["venv", "pip"]


def test_another_version_makes_an_environment_anew(monkeypatch, tmp_path):
    site_packages = setup_tools._site_packages(tmp_path / "env") / "one_two-1.0.dist-info"
    site_packages.mkdir(parents=True)
    (site_packages / "METADATA").write_text("Name: one-two\nVersion: 1.0\n")
    assert setup_tools._holds(site_packages.parent, ["one_two==1.0"])
    assert not setup_tools._holds(site_packages.parent, ["one_two==1.1"])
