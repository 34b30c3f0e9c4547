"""A driver for triton-ascend that runs kernels on the CPU: after `install()`, `kernel[grid](...)` works on host memory.

Everything up to and with the Linalg text is triton-ascend's own: the JIT's binder, its specialisation, its front end and
its adapter. Only the last two steps are replaced, those that need the vendor's compiler and a device: Linalg is compiled
by `mlir_to_cpu`, and the programs of a launch run one after another. `Settings` say in which order, and with what traps.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from guard_pages import Extent, MemoryFault, Side, run_guarded
from mlir_to_cpu import LoweringError, MemRef, Native, compile_linalg
from triton.backends import backends
from triton.backends.ascend import compiler as ascend
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver as triton_driver

TARGET = GPUTarget("npu", "Ascend910B2", 0)
SCALARS = {
    **{f"i{bits}": getattr(ctypes, f"c_int{bits}") for bits in (8, 16, 32, 64)},
    **{f"u{bits}": getattr(ctypes, f"c_uint{bits}") for bits in (8, 16, 32, 64)},
    "i1": ctypes.c_bool,
    "fp32": ctypes.c_float,
    "fp64": ctypes.c_double,
}


@dataclass(frozen=True)
class Settings:
    """How programs run."""

    order: Literal["forward", "reverse", "shuffled"] = "shuffled"
    seed: int = 0
    guard: Side | None = None  # where an inaccessible page lies, seen from each tensor
    poison: int = 0xFF  # the byte in local memory that nothing was written to: NaN in each float type
    cores: int = 48  # vector cores that the device says it has: so many programs run on an Atlas A2
    named: bool = True  # the form of Linalg that devices get; the other one is a second opinion


class Kernel(NamedTuple):
    """One specialisation of a kernel, as it was lowered."""

    name: str
    file: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    linalg: str
    local_bytes: int


class Launch(NamedTuple):
    """One launch of `kernel` with `grid` programs."""

    kernel: Kernel
    grid: tuple[int, int, int]


class AscendOnCPU(DriverBase):
    """The driver. `before_launch` is called ahead of each launch: whoever queues work by himself waits for it there."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = Settings()
        self.devices: list[tuple[int, bool]] = []
        self.launches: list[Launch] = []
        self.lowered: list[str] = []  # all Linalg so far, also what the next step refused
        self.before_launch: Callable[[], None] = _nothing
        self.utils = self
        self.launcher_cls = functools.partial(_Launcher, self)

    @contextmanager
    def using(self, **changes: Any) -> Iterator[list[Launch]]:
        """Change `Settings` for a while; yields the list of launches made meanwhile."""
        before, first, launches = self.settings, len(self.launches), []
        self.settings = replace(before, **changes)
        try:
            yield launches
        finally:
            self.settings = before
            launches.extend(self.launches[first:])

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        """A number for each setting that a kernel is compiled for: Triton and `ops.tiling` keep what they know by device."""
        kind = (self.settings.cores, self.settings.named)
        if kind not in self.devices:
            self.devices.append(kind)
        return self.devices.index(kind)

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_device_interface(self) -> Any:
        return torch.cpu

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("Times on a CPU say nothing of a device.")

    def get_device_properties(self, device: int) -> dict[str, int]:
        cores, _ = self.devices[device]
        return {"max_shared_mem": 1, "num_aicore": -(-cores // 2), "num_vectorcore": cores}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[str, tuple[str, Native], int, int]:
        linalg = kernel.decode()
        return name, (linalg, compile_linalg(linalg, name.split()[0])), 0, 0

    def to_linalg(self, module: Any, metadata: dict[str, Any], options: Any, named_ops: bool = True) -> str:
        linalg: str = _ttir_to_linalg(module, metadata, options, named_ops=self.settings.named)
        self.lowered.append(linalg)
        return linalg


class _Launcher:
    """What Triton calls at a launch: made once a specialisation."""

    def __init__(self, driver: AscendOnCPU, source: Any, metadata: Any) -> None:
        names = source.fn.arg_names
        constants = {names[key] if isinstance(key, int) else key: value for key, value in source.constants.items()}
        signature = {names[key] if isinstance(key, int) else key: kind for key, kind in source.signature.items()}
        self.driver = driver
        self.kinds = [None if name in constants else kind for name, kind in signature.items()]
        self.describe = functools.partial(
            Kernel,
            source.fn.__name__,
            source.fn.fn.__code__.co_filename,
            tuple(signature.items()),
            tuple(constants.items()),
        )

    def __call__(
        self,
        x: int,
        y: int,
        z: int,
        stream: int,
        function: tuple[str, Native],
        packed: Any,
        metadata: Any,
        enter: Any,
        leave: Any,
        *arguments: Any,
    ) -> None:
        linalg, native = function
        given = [(kind, value) for kind, value in zip(self.kinds, arguments, strict=True) if kind]
        kernel = self.describe(linalg, native.local_bytes)
        self.driver.before_launch()
        native.poison.value = self.driver.settings.poison
        run = functools.partial(_run_grid, native, given, (x, y, z), self.driver.settings)
        if self.driver.settings.guard is None:
            run(_unmoved)
        else:
            extents = [_extent(value) for _, value in given if isinstance(value, torch.Tensor)]
            try:
                run_guarded(run, extents, self.driver.settings.guard)
            except MemoryFault as fault:
                shapes = [tuple(value.shape) if isinstance(value, torch.Tensor) else value for _, value in given]
                raise MemoryFault(f"{kernel.name} with {shapes}: {fault}") from None
        self.driver.launches.append(Launch(kernel, (x, y, z)))


def _run_grid(
    native: Native,
    given: list[tuple[str, Any]],
    grid: tuple[int, int, int],
    settings: Settings,
    moved: Callable[[int], int],
) -> None:
    """All programs, one after another."""
    scratch = ctypes.create_string_buffer(256)  # lock and workspace, which vector kernels do not use
    pointers = [MemRef.at(ctypes.addressof(scratch))] * 2
    arguments: list[Any] = [ctypes.byref(pointer) for pointer in pointers]
    for kind, value in given:
        if kind.startswith("*"):
            pointers.append(MemRef.at(moved(value.data_ptr())))
            arguments.append(ctypes.byref(pointers[-1]))
        else:
            arguments.append(SCALARS[kind](value))
    arguments += [ctypes.c_int32(size) for size in grid]
    programs = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])]
    if settings.order == "reverse":
        programs.reverse()
    elif settings.order == "shuffled":
        random.Random(settings.seed).shuffle(programs)
    for program in programs:
        native.run(*arguments, *map(ctypes.c_int32, program))


def _extent(tensor: torch.Tensor) -> Extent:
    """The memory from the first to the last element of a tensor (or view)."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return Extent(tensor.data_ptr(), (last + 1) * tensor.element_size() if tensor.numel() else 0)


def _unmoved(address: int) -> int:
    return address


def _nothing() -> None:
    pass


def _compile_for_cpu(linalg: str, metadata: dict[str, Any], options: Any) -> bytes:
    """Stands for the vendor's compiler: fails where that would, at the first launch."""
    _, found = ascend._parse_linalg_metadata(linalg, metadata)
    metadata.update(found)
    compile_linalg(linalg, metadata["kernel_name"])
    return linalg.encode()


_ttir_to_linalg = ascend.ttir_to_linalg


@functools.cache
def install() -> AscendOnCPU:
    """Make the driver the active one, for all of the process: kernels that are launched from now on run on the CPU."""
    driver = AscendOnCPU()
    cache = tempfile.mkdtemp(prefix="triton-ascend-")
    atexit.register(shutil.rmtree, cache)
    os.environ.update(TRITON_CACHE_DIR=cache, TRITON_ALWAYS_COMPILE="1")  # a stale text would be one that was not tested
    in_use = backends["ascend"].compiler.add_stages.__globals__  # Triton loads the compiler's file under a name of its own
    in_use["linalg_to_bin_enable_npu_compile_A2_A3"] = _compile_for_cpu
    in_use["ttir_to_linalg"] = driver.to_linalg
    triton_driver.set_active(driver)
    triton_driver.default = driver
    return driver


__all__ = ["AscendOnCPU", "Kernel", "Launch", "LoweringError", "MemoryFault", "Settings", "install"]
