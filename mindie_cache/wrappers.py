"""Modules around a module, which pass their arguments on: of torch.compile, of sharding, of activation checkpointing."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from torch import nn


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside its wrappers. A wrapper takes any arguments and has one child: `OptimizedModule`,
    `FullyShardedDataParallel`, `DistributedDataParallel`, `CheckpointWrapper`, and those of other libraries."""
    while len(module._modules) == 1 and _is_wrapper(module):
        (inner,) = module._modules.values()
        if inner is None or not _is_called(inner):
            break
        module = inner
    return module


def _is_wrapper(module: nn.Module) -> bool:
    kind: Any = type(module)
    return _is_called(module) and _takes_anything(kind)


@cache
def _takes_anything(kind: Any) -> bool:
    parameters = [*inspect.signature(kind.forward).parameters.values()][1:]
    return all([one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in parameters])


def _is_called(module: nn.Module) -> bool:
    """Not so lists of modules, which have no forward."""
    return type(module).forward is not nn.Module.forward or "forward" in vars(module)
