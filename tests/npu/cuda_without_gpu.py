"""A driver for Triton that compiles for CUDA and launches nothing: after `install()`, `kernel[grid](...)` ends in a cubin.

Results stay what `torch.empty` made of them. What was compiled, and what ptxas says of it, is in `Compiled`.
"""

from __future__ import annotations

import atexit
import functools
import io
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver as triton_driver

THREADS = 1024


class Model(NamedTuple):
    """A GPU, as far as the choice of blocks and the limits of a launch ask."""

    capability: int
    multiprocessors: int
    shared_memory: int


MODELS = (Model(80, 108, 166912), Model(90, 132, 232448))  # A100, H100


class Compiled(NamedTuple):
    """One specialisation of a kernel for one compute capability.

    `aligned` names the arguments, addresses and lengths, that 16 divides. `stack_bytes` of a thread hold what
    did not fit into registers.
    """

    name: str
    capability: int
    signature: tuple[tuple[str, str], ...]
    constants: dict[str, Any]
    aligned: set[str]
    ttir: str
    ptx: str
    registers: int
    stack_bytes: int


class CudaWithoutGpu(DriverBase):
    """The driver; one device a model."""

    def __init__(self) -> None:
        super().__init__()
        self.device = 0
        self.compiled: list[Compiled] = []
        self.keys: set[str] = set()
        self.said = io.StringIO()
        self.source: Any = None
        self.utils = self

    @contextmanager
    def compiling_for(self, model: Model) -> Iterator[list[Compiled]]:
        """Compile for `model`; yields the list of what was compiled for it so far, and in the block."""
        self.device, before, so_far = MODELS.index(model), self.device, []
        self.said = io.StringIO()
        try:
            with redirect_stdout(self.said):
                yield so_far
        finally:
            self.device = before
            so_far.extend(done for done in self.compiled if done.capability == model.capability)

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """Called once a specialisation, after ptxas; what it returns is called at each launch."""
        self.source = source
        return _launch_nothing

    def note(self, module: None, function: None, name: str, files: dict[str, str], key: str) -> None:
        """Triton's hook before it loads a cubin: record what was compiled. `files` are the texts of all stages."""
        if key in self.keys:  # compiled before: ptxas was not asked again
            return
        self.keys.add(key)
        log = self.said.getvalue()
        self.said.seek(0)
        self.said.truncate()
        registers, stack = re.search(r"Used (\d+) registers", log), re.search(r"(\d+) bytes stack frame", log)
        assert registers, f"ptxas said nothing of {name}: {log}"
        texts = {Path(path).suffix: Path(path) for path in files.values()}
        names = self.source.fn.arg_names
        self.compiled.append(
            Compiled(
                self.source.fn.__name__,
                MODELS[self.device].capability,
                tuple(self.source.signature.items()),
                {names[at[0]]: value for at, value in self.source.constants.items()},
                {names[at[0]] for at, hints in self.source.attrs.items() if ["tt.divisibility", 16] in hints},
                texts[".ttir"].read_text(),
                texts[".ptx"].read_text(),
                int(registers[1]),
                int(stack[1]) if stack else 0,
            )
        )

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError("There is no launcher to write.")

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", MODELS[self.device].capability, 32)

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("There is nothing to measure.")

    def get_device_properties(self, device: int) -> dict[str, int]:
        model = MODELS[device]
        return {"max_shared_mem": model.shared_memory, "multiprocessor_count": model.multiprocessors}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[None, None, int, int, int]:
        return None, None, 0, 0, THREADS


def _launch_nothing(*arguments: Any) -> None:
    pass


@functools.cache
def install() -> CudaWithoutGpu:
    """Make the driver the active one, for all of the process."""
    cache = tempfile.mkdtemp(prefix="triton-cuda-")
    atexit.register(shutil.rmtree, cache)
    knobs.cache.dir = cache
    knobs.compilation.always_compile = True  # else ptxas says nothing
    knobs.nvidia.dump_ptxas_log = True
    driver = CudaWithoutGpu()
    knobs.runtime.kernel_load_start_hook.add(driver.note)
    triton_driver.set_active(driver)
    return driver
