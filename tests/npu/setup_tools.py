"""Sets up the tools of `make test-npu`: two virtual environments in .npu/, and MLIR 19 in the user's cache folder.

    .npu/ascend   triton-ascend and torch_npu     .npu/cuda   triton for CUDA

Both packages of Triton are called `triton`, so neither may enter .venv; all else (PyTorch, pytest, this project) the two
environments share with .venv. MLIR and LLVM 19 are Debian's packages, unpacked and not installed. What is complete is left
alone; what was interrupted is begun again. Nothing here is tested: see the test files beside this one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".npu"
PACKAGES = {
    "ascend": ["triton-ascend==3.2.0", "torch_npu==2.13.0", "pybind11==3.1.0", "ninja==1.13.2"],
    "cuda": ["triton==3.7.1"],
}
DEBIAN = ["mlir-19-tools", "libmlir-19", "libllvm19", "llvm-19", "libz3-4", "libedit2", "libbsd0", "libmd0"]


def cache_root() -> Path:
    """The folder of what is not bound to one checkout."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mindie_cache"


def main() -> None:
    """Make everything ready, and say what is done."""
    cache_root().mkdir(parents=True, exist_ok=True)
    ENVIRONMENTS.mkdir(exist_ok=True)
    with _lock(ENVIRONMENTS / ".lock"):
        for name, packages in PACKAGES.items():
            _make_environment(ENVIRONMENTS / name, packages)
    with _lock(cache_root() / ".lock"):
        _unpack_mlir(cache_root() / "mlir19")
    _need("gcc", "apt-get install gcc")
    stand_ins = Path(__file__).parent / "cann_sim/build.py"
    if stand_ins.exists():
        environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
        subprocess.run([ENVIRONMENTS / "ascend/bin/python", stand_ins], check=True, env=environment)
    print("The tools of the NPU tests are ready.")


def _make_environment(folder: Path, packages: list[str]) -> None:
    """A virtual environment with `packages`, on top of the packages of the environment that runs this."""
    shared = _site_packages(Path(sys.prefix))
    mark, key = folder / ".ready", "\n".join([sys.version, str(shared), str(folder), *packages])
    own = _site_packages(folder)
    if mark.exists() and mark.read_text() == key and _holds(own, packages):
        return
    print(f"Setting up {folder.relative_to(ROOT)}: {', '.join(packages)}. This downloads some hundred MB.", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(folder / "bin/python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", *packages], check=True)
    (own / "shared.pth").write_text(f"import site; site.addsitedir({str(shared)!r})\n")
    mark.write_text(key)


def _site_packages(prefix: Path) -> Path:
    return prefix / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"


def _holds(site_packages: Path, packages: list[str]) -> bool:
    """Whether what pip noted there is what is asked for (somebody may have uninstalled or upgraded a package)."""
    found = metadata.distributions(path=[str(site_packages)])
    there = {f"{package.name}=={package.version}".lower().replace("-", "_") for package in found}
    return all(package.lower().replace("-", "_") in there for package in packages)


def _unpack_mlir(folder: Path) -> None:
    """Debian's MLIR and LLVM 19 in `folder`, which appears only when it is complete."""
    key = hashlib.sha256(repr(DEBIAN).encode()).hexdigest()[:16]
    mark = folder / ".ready"
    if mark.exists() and mark.read_text() == key and (folder / "usr/lib/llvm-19/bin/mlir-opt").exists():
        return
    print(f"Unpacking MLIR 19 into {folder}. This downloads 110 MB.", flush=True)
    for tool in ("apt-get", "dpkg"):
        _need(tool, f"run this on Debian 12, or unpack {', '.join(DEBIAN)} into {folder} and write {key} to {mark}")
    if folder.exists():
        shutil.rmtree(folder)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix="mlir19-"))
    try:
        temporary.chmod(0o755)
        if not _download(temporary):
            print("The package lists are missing or old: apt-get update.", flush=True)
            subprocess.run(["apt-get", "update", "--quiet"], check=False, stdout=subprocess.DEVNULL)
            if not _download(temporary):
                sys.exit(
                    f"apt-get could not download {', '.join(DEBIAN)}. They are in Debian 12 (bookworm): add its sources "
                    "to apt, run `apt-get update` as root, then `make npu-tools` again."
                )
        for package in temporary.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, temporary], check=True)
            package.unlink()
        (temporary / ".ready").write_text(key)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _download(folder: Path) -> bool:
    command = ["apt-get", "download", "--quiet", *DEBIAN]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr.strip(), file=sys.stderr, flush=True)
    return not done.returncode


def _need(tool: str, action: str) -> None:
    if shutil.which(tool) is None:
        sys.exit(f"{tool} is missing, and the NPU tests need it: {action}.")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One set-up at a time: another one that runs beside this finds all there when it gets its turn."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    main()
