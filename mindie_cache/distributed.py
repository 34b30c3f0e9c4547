"""Agreement across the ranks that share a tensor. Uses the process group it is given, never the default one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from mindie_cache.device import Reading


class Ranks(NamedTuple):
    """The ranks of `group` (a `torch.distributed.ProcessGroup`), or this process alone if it is None.

    Every rank of the group must make the same calls in the same order.
    """

    group: Any = None

    @property
    def size(self) -> int:
        return 1 if self.group is None else torch.distributed.get_world_size(self.group)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes what all of them have measured."""
        return self.group is None or torch.distributed.get_rank(self.group) == 0

    @property
    def is_everyone(self) -> bool:
        """Whether no other rank runs beside these."""
        dist = torch.distributed
        return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == self.size

    def gather(self, table: torch.Tensor) -> list[Any]:
        """`table`, which has the same shape everywhere, of each rank as host numbers: one all-gather and one host read."""
        if self.group is None:
            return [table.tolist()]
        parts = [torch.empty_like(table) for _ in range(self.size)]
        torch.distributed.all_gather(parts, table.contiguous(), group=self.group)
        return torch.stack(parts).tolist()

    def join(self, part: torch.Tensor, dim: int) -> torch.Tensor:
        """The whole of a tensor of which each rank has an equal part along `dim`, in rank order: one all-gather."""
        if self.group is None:
            return part
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.size)]
        torch.distributed.all_gather(parts, part.contiguous(), group=self.group)
        return torch.cat(parts, dim)

    def read(self, sums: torch.Tensor) -> list[float]:
        """`sums` ``(n,)`` added up over the ranks, as host numbers: one small all-reduce and one host read."""
        if self.group is not None:
            sums = sums.clone()
            torch.distributed.all_reduce(sums, group=self.group)
        return sums.tolist()

    def send(self, sums: torch.Tensor) -> Reading:
        """`sums` ``(n,)`` added up over the ranks, on their way to the host: one small all-reduce, and no wait."""
        if self.group is not None:
            sums = sums.clone()
            torch.distributed.all_reduce(sums, group=self.group)
        return Reading(sums)

    def agree(self, wish: bool, device: torch.device) -> bool:
        """True where every rank wishes so: one all-reduce of a single number on `device`."""
        if self.group is None:
            return wish
        vote = torch.tensor(int(wish), device=device)
        torch.distributed.all_reduce(vote, op=torch.distributed.ReduceOp.MIN, group=self.group)
        return bool(vote.item())
