"""Under torch.compile: the model's code is compiled block by block, this package's code stays as it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import TypeVar

Function = TypeVar("Function", bound=Callable[..., object])


def runs_eagerly(function: Function) -> Function:
    """As `torch.compiler.disable(recursive=False)`, without importing the compiler: a compiled caller calls it as it is."""
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    return function


def stay_eager() -> None:
    """Tell torch.compile, if it is in use, to run the frames of this package and to compile those that they call."""
    if "torch._dynamo" in sys.modules:
        _skip_own_frames()


@cache
def _skip_own_frames() -> None:
    from torch._dynamo import trace_rules

    for package in ("mindie_cache", "mindie_cache.ops"):
        trace_rules.add(package)
