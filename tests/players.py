"""Models that play a recording: what a call returns depends on its step and branch alone, so an oracle can know it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from open_loop import LocalScalars
from torch import Tensor, nn

from mindie_cache import CacheAgent

F64 = torch.float64


def recording(steps: int, shape: tuple[int, ...], seed: int = 0, constant: bool = False, dtype: torch.dtype = F64) -> Tensor:
    """One random tensor a step; `constant` repeats the first."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(steps, *shape, generator=generator, dtype=F64)
    return (values[:1].expand_as(values).clone() if constant else values).to(dtype)


class Player(nn.Module):
    """Returns its recording of (branch, step), in a new tensor; `form` makes another output of that tensor."""

    def __init__(self, recordings: dict[str, Tensor], form: Callable[[Tensor], Any] | None = None):
        super().__init__()
        self.recordings = recordings
        self.form = form
        self.runs: list[tuple[str, int]] = []

    def forward(self, hidden_states: Tensor, branch: str, step: int) -> Any:
        self.runs.append((branch, step))
        value = self.recordings[branch][step].clone()
        return value if self.form is None else self.form(value)


def play(
    agent: CacheAgent, players: Sequence[Player], steps: int, branches: dict[str, Sequence[int]], like: Tensor | None = None
) -> tuple[dict[str, str], dict[str, list[list[Any]]], int]:
    """One generation. `branches` gives the steps in which each branch is called.

    Returns marks per branch (# computed, . reused), outputs per branch, step and call, and the number of host reads.
    """
    marks = dict.fromkeys(branches, "")
    outputs: dict[str, list[list[Any]]] = {branch: [] for branch in branches}
    hidden = torch.zeros(1) if like is None else like
    with LocalScalars() as scalars, agent.run():
        for step in range(steps):
            for branch, present in branches.items():
                if step not in present:
                    continue
                row, ran = [], []
                with agent.branch(branch, step=step):
                    for player in players:
                        before = len(player.runs)
                        row.append(agent.apply(player, hidden, branch=branch, step=step))
                        ran.append(len(player.runs) > before)
                assert len(set(ran)) == 1 or agent.config.method == "pab"
                marks[branch] += "#" if all(ran) else "."
                outputs[branch].append(row)
    return marks, outputs, scalars.count


def as_numpy(value: Any) -> np.ndarray:
    return value.detach().to(F64).numpy()
