"""Agreement across the ranks that share a tensor. Uses the process group it is given, never the default one."""

from __future__ import annotations

from typing import Any

import torch


def all_agree(wish: bool, group: Any, device: torch.device) -> bool:
    """True where every rank of `group` wishes so: one all-reduce of a single number on `device`.

    Every rank of the group must call this at the same point. `group` is a `torch.distributed.ProcessGroup`.
    """
    vote = torch.tensor(int(wish), device=device)
    torch.distributed.all_reduce(vote, op=torch.distributed.ReduceOp.MIN, group=group)
    return bool(vote.item())
