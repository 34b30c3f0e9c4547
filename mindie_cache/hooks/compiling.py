"""Under torch.compile: the model's code is compiled block by block, this package's code stays as it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., object])


def runs_eagerly(function: Function) -> Function:
    """As `torch.compiler.disable(recursive=False)`, without importing the compiler: a compiled caller calls it as it is."""
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    return function


def stay_eager() -> bool:
    """Tell torch.compile, if it is in use, to run the frames of this package and to compile those that they call.

    Returns whether the caller is called by compiled code.
    """
    if "torch._dynamo" not in sys.modules:
        return False
    return callable(_compiler()())


@cache
def _compiler() -> Callable[[], object]:
    """Introduce this package to it; returns what tells who compiles the frames of this thread."""
    from torch._dynamo import trace_rules

    for package in ("mindie_cache", "mindie_cache.ops"):
        trace_rules.add(package)
    found: Callable[[], object] = torch._C._dynamo.eval_frame.get_eval_frame_callback
    return found
