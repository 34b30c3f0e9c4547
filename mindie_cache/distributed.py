"""Agreement across the ranks that share a tensor. Uses the process group it is given, never the default one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Ranks(NamedTuple):
    """The ranks of `group` (a `torch.distributed.ProcessGroup`), or this process alone if it is None.

    Every rank of the group must make the same calls in the same order.
    """

    group: Any = None

    def read(self, sums: torch.Tensor) -> list[float]:
        """`sums` ``(n,)`` added up over the ranks, as host numbers: one small all-reduce and one host read."""
        if self.group is not None:
            sums = sums.clone()
            torch.distributed.all_reduce(sums, group=self.group)
        return sums.tolist()

    def agree(self, wish: bool, device: torch.device) -> bool:
        """True where every rank wishes so: one all-reduce of a single number on `device`."""
        if self.group is None:
            return wish
        vote = torch.tensor(int(wish), device=device)
        torch.distributed.all_reduce(vote, op=torch.distributed.ReduceOp.MIN, group=self.group)
        return bool(vote.item())
