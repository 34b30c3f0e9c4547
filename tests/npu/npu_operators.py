"""Which operators a piece of code runs, and which of them have no kernel on an NPU. Imports the simulated torch_npu."""

from __future__ import annotations

from typing import Any

import sim_npu
import torch
from torch.utils._python_dispatch import TorchDispatchMode

DOUBLES = (torch.float64, torch.complex128)
COMPOSITE = ("CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")


def falls_back(name: str) -> bool:
    """Whether torch_npu has no kernel for the operator `name`, e.g. "aten::add.Tensor": it is then run by the CPU, which
    costs two copies and a wait. Composite operators come apart into others, which are looked at by themselves."""
    if name in sim_npu.REGISTERED or not name.startswith("aten::"):
        return False
    return not any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in COMPOSITE)


class Operators(TorchDispatchMode):
    """Notes the operators that run on NPU tensors, and those that take or give float64 or complex128."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.doubles: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        leaves = torch.utils._pytree.tree_leaves((args, kwargs, result))
        on_npu = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.device.type == "npu"]
        if on_npu:
            self.names.add(
                function._schema.name + (f".{function._overloadname}" if function._overloadname != "default" else "")
            )
        if any(leaf.dtype in DOUBLES for leaf in on_npu):
            self.doubles.add(str(function))
        return result

    @property
    def on_cpu(self) -> set[str]:
        """Those that fall back to the CPU."""
        return {name for name in self.names if falls_back(name)}
