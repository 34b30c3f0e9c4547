"""Builds the stand-ins for CANN's libraries that torch_npu links, so that torch_npu works on a machine without CANN.

    python build.py        # with the interpreter that has torch and torch_npu; prints the folder of the result

1. Every library that torch_npu needs and the machine lacks becomes an empty one, which depends on libascendcl.so.
2. Every symbol that neither PyTorch nor the C and C++ libraries offer goes into libascendcl.so: from the sources here where
   they have it, else as a function that returns 0 (an operator: an error), or as zeros for a table of virtual functions.
3. operators.cpp becomes liboperators.so: the ATen operators of device 'npu', run by the CPU.

The result lies in ${XDG_CACHE_HOME:-~/.cache}/mindie_cache/, under a name that depends on these sources and on the versions
of torch and torch_npu. It appears there complete or not at all. About a quarter of a minute the first time.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

SOURCES = Path(__file__).parent
RUNTIME = ("streams.cpp", "memory.cpp", "device.cpp")
OPERATORS = "operators.cpp"
TOOLS = {"g++": "g++", "gcc": "gcc", "nm": "binutils", "readelf": "binutils"}
RUNTIME_LIBRARY = "libascendcl.so"
OPERATORS_LIBRARY = "liboperators.so"
SYSTEM_LIBRARIES = ("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libdl.so.2", "libpthread.so.0")
IS_SYSTEM = re.compile(r"^(lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|gomp)\.so|ld-linux)")
IS_PYTHON = re.compile(r"_?Py[A-Z_]")
IS_TABLE = re.compile(r"_ZT[IVTS]")  # C++: type information and virtual functions
OPERATOR_ERROR = 561000  # what an aclnn function returns: an operator never seems to have run


class BuildError(RuntimeError):
    pass


def folder() -> Path:
    """Where the result is, or will be."""
    key = hashlib.sha256()
    for path in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"), Path(__file__)]):
        key.update(path.name.encode() + path.read_bytes())
    key.update(f"{_version('torch')} {_version('torch_npu')} {sys.implementation.cache_tag}".encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "mindie_cache" / f"cann_sim-{key.hexdigest()[:16]}"


def build() -> Path:
    """The folder with the libraries; builds them if they are not there."""
    target = folder()
    if target.is_dir():
        return target
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if missing:
        raise BuildError(f"cann_sim needs tools that are not installed: apt-get install {' '.join(missing)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be building
        if not target.is_dir():
            scratch = Path(tempfile.mkdtemp(prefix="building-", dir=target.parent))
            try:
                _build_in(scratch)
                scratch.rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return target


def _build_in(out: Path) -> None:
    torch, torch_npu = _package("torch"), _package("torch_npu")
    theirs = [
        *torch_npu.glob("_C*.so"),
        *(torch_npu / "lib").glob("*.so"),
        *(torch_npu / "dynamo/torchair/core").glob("*.so"),
    ]
    offered = [*(torch / "lib").glob("*.so*")]
    lacking = _lacking_libraries(theirs, offered)
    objects = [_compile(out, SOURCES / name, f"-I{torch_npu}/include/third_party/acl/inc") for name in RUNTIME]
    simulated = _defined(objects)
    undefined = _undefined(theirs) - _defined([*theirs, *offered], dynamic=True) - _system_symbols() - simulated
    stubs = out / "stubs.c"
    stubs.write_text("\n".join([_stub(symbol) for symbol in sorted(undefined)]) + "\n")
    objects.append(_compile(out, stubs, "-w"))
    _run("g++", "-shared", f"-Wl,-soname,{RUNTIME_LIBRARY}", "-o", out / RUNTIME_LIBRARY, *objects, "-lpthread")
    needs_runtime = ["-Wl,--no-as-needed", f"-L{out}", "-lascendcl", "-Wl,-rpath,$ORIGIN"]
    for name in lacking - {RUNTIME_LIBRARY}:
        _run("gcc", "-shared", f"-Wl,-soname,{name}", "-o", out / name, "-x", "c", "/dev/null", *needs_runtime)
    operators = _compile(out, SOURCES / OPERATORS, f"-I{torch}/include", f"-I{torch}/include/torch/csrc/api/include")
    linked = [f"-L{torch}/lib", "-ltorch", "-ltorch_cpu", "-lc10", *needs_runtime]
    _run("g++", "-shared", "-o", out / OPERATORS_LIBRARY, operators, *linked)
    for scrap in [*objects, operators, stubs]:
        scrap.unlink()


def _lacking_libraries(theirs: Iterable[Path], offered: Iterable[Path]) -> set[str]:
    have = {path.name for path in [*theirs, *offered]}
    needed = {name for path in theirs for name in re.findall(r"NEEDED.*\[(.*?)\]", _run("readelf", "-d", path))}
    return {name for name in needed - have if not IS_SYSTEM.match(name)}


def _undefined(libraries: Iterable[Path]) -> set[str]:
    """Symbols that somebody else has to offer; those with a version ("@") come from the system's libraries."""
    found = set()
    for library in libraries:
        for line in _run("nm", "-D", "--undefined-only", library).splitlines():
            kind, symbol = line.split()[-2:]
            if kind != "w" and "@" not in symbol and not IS_PYTHON.match(symbol):
                found.add(symbol)
    return found


def _defined(files: Iterable[Path], dynamic: bool = False) -> set[str]:
    lines = [line for path in files for line in _run("nm", *["-D"] * dynamic, "--defined-only", path).splitlines()]
    return {line.split()[-1].split("@")[0] for line in lines if line.strip()}


def _system_symbols() -> set[str]:
    return _defined([Path(_run("gcc", f"-print-file-name={name}").strip()) for name in SYSTEM_LIBRARIES], dynamic=True)


def _stub(symbol: str) -> str:
    if IS_TABLE.match(symbol):
        return f"char {symbol}[4096];"
    return f"long {symbol}(void) {{ return {OPERATOR_ERROR if symbol.startswith('aclnn') else 0}; }}"


def _compile(out: Path, source: Path, *flags: str) -> Path:
    compiled = out / f"{source.stem}.o"
    compiler = ["g++", "-std=c++20"] if source.suffix == ".cpp" else ["gcc"]
    _run(*compiler, "-O1", "-fPIC", *flags, "-c", source, "-o", compiled)
    return compiled


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"cann_sim: {' '.join(map(str, command))}\n{done.stderr[-4000:]}")
    return done.stdout


def _package(name: str) -> Path:
    """Its folder, found without importing it."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise _lacks(name)
    return Path(next(iter(found.submodule_search_locations)))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise _lacks(name) from None


def _lacks(name: str) -> BuildError:
    return BuildError(f"cann_sim needs {name}, which {sys.executable} does not have: pip install {name}==2.13.0")


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{build()}\n")
    except BuildError as error:
        sys.exit(str(error))
