"""What is installed: the top-level folder ops/ only as mindie_cache.ops, the weights, the command, one version."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mindie_cache

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    copied = ["git", "-C", str(ROOT), "checkout-index", "--all", f"--prefix={source}/"]  # a build would litter the checkout
    subprocess.run(copied, check=True)
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_ops_is_installed_inside_the_package_only(wheel):
    names = wheel.namelist()
    assert "mindie_cache/ops/combine.py" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mindie_cache"}


def test_everything_of_the_package_is_in_the_wheel(wheel):
    command = ["git", "-C", str(ROOT), "ls-files", "mindie_cache"]
    tracked = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert set(tracked) <= set(wheel.namelist())


def test_metadata(wheel):
    name = next(name for name in wheel.namelist() if name.endswith("METADATA"))
    text = wheel.read(name).decode()
    assert f"Version: {mindie_cache.__version__}\n" in text
    assert "Requires-Python: >=3.10" in text
    assert "Requires-Dist: torch>=2.5\n" in text
    for extra in ("npu", "cuda", "diffusers", "dev"):
        assert f"Provides-Extra: {extra}" in text
    scripts = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "mindie-cache = mindie_cache.cli:main" in wheel.read(scripts).decode()


def test_the_checkout_is_importable_as_installed():
    code = "import mindie_cache.ops as ops; print(ops.__name__, ops.__file__)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd="/").stdout
    name, file = out.split()
    assert name == "mindie_cache.ops"
    assert Path(file).is_file()
