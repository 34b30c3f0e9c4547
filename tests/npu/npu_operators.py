"""What a piece of code does on the simulated NPU that an NPU does not like: operators without a kernel, double precision."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

DOUBLES = (torch.float64, torch.complex128)
FALLS_BACK = re.compile(r"The operator '([\w:.]+)' is not currently supported on the NPU")  # torch_npu's own warning


class Operators(TorchDispatchMode):
    """Notes, by name, operators on NPU tensors. Afterwards `on_cpu` are those for which torch_npu has no kernel, so that it
    ran them on the CPU: two copies and a wait. `doubles` took or gave float64 or complex128."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.doubles: set[str] = set()
        self.on_cpu: set[str] = set()

    def __enter__(self) -> Operators:
        self._always = torch.is_warn_always_enabled()
        torch.set_warn_always(True)  # also of what was warned of before
        sys.stderr.flush()
        self._terminal, self._file = os.dup(2), tempfile.TemporaryFile()
        os.dup2(self._file.fileno(), 2)  # PyTorch writes past Python's sys.stderr
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        sys.stderr.flush()
        os.dup2(self._terminal, 2)
        os.close(self._terminal)
        torch.set_warn_always(self._always)
        self._file.seek(0)
        written = self._file.read().decode(errors="replace")
        self._file.close()
        self.on_cpu |= set(FALLS_BACK.findall(written))
        sys.stderr.write(written)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        leaves = torch.utils._pytree.tree_leaves((args, kwargs, result))
        on_npu = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.device.type == "npu"]
        if on_npu:
            self.names.add(function.name())
        if any(leaf.dtype in DOUBLES for leaf in on_npu):
            self.doubles.add(function.name())
        return result
