"""What is installed: the top-level folder ops/ only as mindie_cache.ops, the weights, the command, one version."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import mindie_cache

ROOT = Path(__file__).parents[1]


USE_CHECKOUT = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in finder.__module__]
import mindie_cache
print(mindie_cache.__file__, mindie_cache.ops.__file__, sep="\\n")
"""


@pytest.fixture
def source(tmp_path):
    """A copy of what is tracked: a build would litter the checkout."""
    return checkout(tmp_path / "source")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*command, str(checkout(folder / "source"))], check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def checkout(folder):
    subprocess.run(["git", "-C", str(ROOT), "checkout-index", "--all", f"--prefix={folder}/"], check=True)
    return folder


def tracked(*paths):
    command = ["git", "-C", str(ROOT), "ls-files", *paths]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def test_ops_is_installed_inside_the_package_only(wheel):
    names = wheel.namelist()
    assert "mindie_cache/ops/combine.py" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mindie_cache"}


def test_everything_of_the_package_is_in_the_wheel(wheel):
    assert tracked("mindie_cache") <= set(wheel.namelist())


def test_the_source_distribution_holds_everything_but_hidden_files(source):
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(source.parent), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    with tarfile.open(next(source.parent.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in tracked() if not name.startswith(".")} <= names


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


def test_a_checkout_finds_its_own_ops_also_where_another_one_is_installed(source):
    done = subprocess.run([sys.executable, "-c", USE_CHECKOUT], check=True, capture_output=True, text=True, cwd=source)
    assert done.stdout.split() == [str(source / "mindie_cache/__init__.py"), str(source / "ops/__init__.py")]
