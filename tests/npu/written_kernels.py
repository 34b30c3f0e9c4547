"""The kernels that the project has, found in the files of ops/triton: so that a test can tell which one it missed."""

from __future__ import annotations

import importlib
import pkgutil

from triton.runtime.jit import JITFunction

import mindie_cache.ops.triton as package


def written_kernels() -> set[str]:
    """Names of all kernels; names that begin with an underscore are functions that kernels call."""
    modules = [
        importlib.import_module(f"{package.__name__}.{found.name}") for found in pkgutil.iter_modules(package.__path__)
    ]
    values = [value for module in modules for value in vars(module).values() if isinstance(value, JITFunction)]
    return {value.__name__ for value in values if not value.__name__.startswith("_")}
