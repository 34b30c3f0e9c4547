"""Setting up: `make demo` in an empty folder, with a Python that only writes down what it was asked to do."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = """#!/bin/sh
echo "$(basename $0) $*" >> log
case "$*" in
  *sys.version_info*) exit {is_old} ;;
  "-m venv --clear "*)
    rm -rf "$4" && mkdir -p "$4/bin"
    for name in python pip mindie-cache; do cp "$0" "$4/bin/$name"; done ;;
esac
"""


def script(path: Path, is_old: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PYTHON.replace("{is_old}", str(int(is_old))))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def demo(tmp_path):
    """Runs `make demo`; returns the exit code, what was printed, and the command lines of the scripts."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("setup.py", "mindie_cache/version.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    script(tmp_path / "python")

    def run() -> tuple[int, str, list[str]]:
        (tmp_path / "log").write_text("")
        command = ["make", "demo", "PYTHON=./python"]
        own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # we may run in `make test`
        done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr, (tmp_path / "log").read_text().splitlines()

    return run


def test_the_first_run_sets_up_and_says_so_and_the_second_does_not(demo):
    code, text, log = demo()
    assert (code, log[-1]) == (0, "mindie-cache demo")
    assert "Setting up .venv: this may download PyTorch and take a few minutes." in text
    assert [line.split()[:2] for line in log[1:-1]] == [["python", "-m"], ["python", "-c"], ["pip", "install"]]
    assert demo() == (0, ".venv/bin/mindie-cache demo \n", ["mindie-cache demo"])


def test_an_interrupted_set_up_is_begun_again(demo, tmp_path):
    """`python -m venv` writes pip last."""
    script(tmp_path / ".venv/bin/python")
    code, _, log = demo()
    assert code == 0
    assert "python -m venv --clear .venv" in log


def test_an_environment_of_an_old_python_is_replaced(demo, tmp_path):
    for name in ("python", "pip"):
        script(tmp_path / ".venv/bin" / name, is_old=True)
    code, _, log = demo()
    assert code == 0
    assert "python -m venv --clear .venv" in log


@pytest.mark.parametrize("exists", [True, False])
def test_an_old_python_leaves_no_environment(demo, tmp_path, exists):
    (tmp_path / "python").unlink()
    if exists:
        script(tmp_path / "python", is_old=True)
    code, text, _ = demo()
    assert code == 2
    assert "PYTHON=./python is not Python 3.10 or later. Name one that is" in text
    assert not (tmp_path / ".venv").exists()
