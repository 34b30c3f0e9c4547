"""Turns the Linalg text of a kernel into a function of this process: MLIR's own passes, LLVM, the C compiler, ctypes.

No pass here knows anything of Triton or Ascend. Compiled kernels are kept in the cache folder, by their text.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from setup_tools import cache_root

RUNTIME = Path(__file__).parent / "mlir_runtime.c"
TO_BUFFERS = (
    "--allow-unregistered-dialect",
    "--convert-elementwise-to-linalg",
    "--eliminate-empty-tensors",
    "--empty-tensor-to-alloc-tensor",
    "--one-shot-bufferize=allow-return-allocs-from-loops=true",
    "--canonicalize",
)
TO_LLVM = (
    "--allow-unregistered-dialect",
    "--buffer-deallocation-pipeline",
    "--convert-bufferization-to-memref",
    "--convert-linalg-to-loops",
    "--arith-expand=include-bf16=true",
    "--lower-affine",
    "--convert-scf-to-cf",
    "--expand-strided-metadata",
    "--lower-affine",
    "--llvm-request-c-wrappers",
    "--convert-vector-to-llvm",
    "--convert-math-to-llvm",
    "--convert-math-to-libm",
    "--convert-index-to-llvm",
    "--finalize-memref-to-llvm=use-generic-functions=true",  # buffers come from mlir_runtime.c, which poisons them
    "--convert-func-to-llvm",
    "--convert-arith-to-llvm",
    "--convert-cf-to-llvm",
    "--canonicalize",
    "--reconcile-unrealized-casts",
)
BITS = {"f64": 64, "f32": 32, "bf16": 16, "f16": 16, "i64": 64, "i32": 32, "i16": 16, "i8": 8, "i1": 8, "index": 64}


class LoweringError(RuntimeError):
    """A tool refused the text of a kernel."""


class MemRef(ctypes.Structure):
    """What a compiled kernel expects for a pointer: MLIR's descriptor of a one-dimensional memref."""

    _fields_ = [("allocated", ctypes.c_void_p), ("aligned", ctypes.c_void_p)] + [
        (name, ctypes.c_int64) for name in ("offset", "size", "stride")
    ]

    @classmethod
    def at(cls, address: int) -> MemRef:
        return cls(address, address, 0, 1, 1)  # Triton's memrefs have no static size, and no pass reads the dynamic one


class Native(NamedTuple):
    """A kernel in machine code: `run(*arguments)` is one program of the grid."""

    run: Callable[..., None]
    local_bytes: int
    poison: ctypes.c_int


@functools.cache
def compile_linalg(linalg: str, name: str) -> Native:
    """Compile the function `name` of `linalg`. Raises LoweringError with the words of the tool that refused it."""
    recipe = repr((linalg, TO_BUFFERS, TO_LLVM, RUNTIME.read_text()))
    folder = cache_root() / "kernels"
    library = folder / f"{hashlib.sha256(recipe.encode()).hexdigest()[:24]}.so"
    buffers = library.with_suffix(".mlir")
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            _compile(linalg, Path(temporary))
            (Path(temporary) / "buffers.mlir").rename(buffers)
            (Path(temporary) / "kernel.so").rename(library)
    loaded = ctypes.CDLL(str(library))
    run = getattr(loaded, f"_mlir_ciface_{name}")
    run.restype = None
    return Native(run, local_bytes(buffers.read_text()), ctypes.c_int.in_dll(loaded, "poison"))


def _compile(linalg: str, folder: Path) -> None:
    (folder / "kernel.mlir").write_text(linalg)
    _tool(folder, "mlir-opt", *TO_BUFFERS, "kernel.mlir", "-o", "buffers.mlir")
    _tool(folder, "mlir-opt", *TO_LLVM, "buffers.mlir", "-o", "llvm.mlir")
    _tool(folder, "mlir-translate", "--mlir-to-llvmir", "llvm.mlir", "-o", "kernel.ll")
    _tool(folder, "opt", "-O2", "-S", "kernel.ll", "-o", "fast.ll")
    _tool(folder, "llc", "-O2", "--relocation-model=pic", "-filetype=obj", "fast.ll", "-o", "kernel.o")
    # -Bsymbolic: the kernel finds its own runtime, also where the process has functions of the same names
    options = ["-O2", "-fPIC", "-shared", "-Wl,--no-undefined,-Bsymbolic"]
    _run(folder, "gcc", *options, "kernel.o", str(RUNTIME), "-lm", "-o", "kernel.so")


def _tool(folder: Path, name: str, *arguments: str) -> None:
    root = cache_root() / "mlir19/usr/lib"
    libraries = [*root.glob("*-linux-gnu"), root / "llvm-19/lib"]
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, libraries))}
    program = root / "llvm-19/bin" / name
    if not program.exists():
        raise LoweringError(f"{program} is missing. Run `make npu-tools`.")
    _run(folder, str(program), *arguments, environment=environment)


def _run(folder: Path, program: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
    command = [program, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoweringError(f"{Path(program).name}: {done.stderr[:2000]}")


def local_bytes(buffers: str) -> int:
    """Bytes of all local buffers in a bufferised text: an upper estimate, since the device's compiler reuses some."""
    total = 0
    for given, shape, element in re.findall(
        r"memref\.alloca?\(([^)]*)\)(?: *\{[^}]*\})? *: memref<((?:[\d?]+x)*)(\w+)", buffers
    ):
        if given or "?" in shape:
            raise LoweringError(f"A local buffer has no static size: memref<{shape}{element}>.")
        total += math.prod(int(size) for size in shape.split("x")[:-1]) * BITS[element] // 8
    return total
