"""Drive a method with inputs that do not depend on what it does, so that an oracle can follow it decision by decision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mindie_cache import CacheAgent, CacheConfig

DTYPE = torch.float64
torch.set_num_threads(1)  # the tensors are tiny


class AdaNorm(nn.Module):
    """An adaptive layer norm as in diffusers: the modulated input, and the gate."""

    def forward(self, hidden: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        return nn.functional.layer_norm(hidden, hidden.shape[-1:]) * (1 + emb) + 0.5 * emb, torch.cos(emb)


class TokenBlock(nn.Module):
    """A transformer block whose attention mixes channels only, so that a shard of the tokens gives a shard of the answer."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm1 = AdaNorm()
        self.attn = nn.Linear(dim, dim, dtype=DTYPE)
        self.norm2 = nn.LayerNorm(dim, dtype=DTYPE)
        self.ff = nn.Linear(dim, dim, dtype=DTYPE)
        self.runs = 0

    def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        self.runs += 1
        normed, gate = self.norm1(hidden_states, emb=temb)
        hidden_states = hidden_states + self.gated(self.attn(normed), gate)
        return hidden_states + 0.3 * torch.tanh(self.ff(self.norm2(hidden_states)))

    def gated(self, attended: Tensor, gate: Tensor) -> Tensor:
        return 0.4 * gate * torch.tanh(attended)

    def attention_residual(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        normed, gate = self.norm1(hidden_states, emb=temb)
        return self.gated(self.attn(normed), gate)


class Inputs(NamedTuple):
    """Of one step and branch."""

    hidden: Tensor
    temb: Tensor


def make_model(blocks: int = 4, dim: int = 6, seed: int = 0) -> nn.ModuleList:
    torch.manual_seed(seed)
    return nn.ModuleList([TokenBlock(dim) for _ in range(blocks)]).requires_grad_(False)


def make_inputs(
    steps: int, seed: int, speed: float = 0.05, shape: tuple[int, ...] = (2, 5, 6), constant: bool = False
) -> list[Inputs]:
    """A path of uneven step lengths that goes one way and trembles; `constant` repeats its first step."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=DTYPE)

    hidden, temb, row = rand(*shape), rand(shape[-1]), []
    ahead, turn = rand(*shape), rand(shape[-1])
    for _ in range(steps):
        row.append(Inputs(hidden.clone(), temb.clone()))
        if not constant:
            length = speed * float(torch.rand((), generator=generator)) ** 2
            hidden, temb = hidden + length * (ahead + 0.5 * rand(*shape)), temb + length * (turn + 0.5 * rand(shape[-1]))
    return row


def agent_of(method: str, steps: int, blocks: int = 4, options: Any = None, **fields: Any) -> CacheAgent:
    group = fields.pop("process_group", None)
    return CacheAgent(CacheConfig(method, blocks, steps, options=options, **fields), group)


class Outcome(NamedTuple):
    """Of one branch: one mark a step (# all blocks ran, . some did not); which blocks ran; the model's outputs."""

    marks: str
    ran: list[list[bool]]
    outputs: list[np.ndarray]

    @property
    def computed(self) -> list[int]:
        return [step for step, mark in enumerate(self.marks) if mark == "#"]


def drive(
    agent: CacheAgent, model: Sequence[Any], inputs: dict[str, list[Inputs]], told: Sequence[int] | None = None
) -> dict[str, Outcome]:
    """One generation; the branches of a step take turns. `told`: the steps, if the caller tells them."""
    outcomes = {name: Outcome("", [], []) for name in inputs}
    for at in range(len(next(iter(inputs.values())))):
        for name, rows in inputs.items():
            hidden, ran = rows[at].hidden.clone(), []
            with agent.branch(name, step=None if told is None else told[at]):
                for block in model:
                    before = block.runs
                    hidden = agent.apply(block, hidden_states=hidden, temb=rows[at].temb)
                    ran.append(block.runs > before)
            old = outcomes[name]
            outcomes[name] = Outcome(
                old.marks + ("#" if all(ran) else "."), [*old.ran, ran], [*old.outputs, hidden.numpy().copy()]
            )
    return outcomes


def streams(model: Sequence[Any], row: Inputs) -> list[np.ndarray]:
    """What enters block 0, 1, ... of the bare model, and what leaves the last one."""
    hidden = row.hidden.clone()
    entered = [hidden.numpy().copy()]
    for block in model:
        hidden = block(hidden, temb=row.temb)
        entered.append(hidden.numpy().copy())
    return entered


def finish(model: Sequence[Any], start: int, hidden: np.ndarray, row: Inputs) -> np.ndarray:
    """Run the blocks from `start` on."""
    value = torch.from_numpy(np.array(hidden))
    for block in model[start:]:
        value = block(value, temb=row.temb)
    return value.numpy()


def expected(
    model: Sequence[Any],
    rows: list[Inputs],
    decide: Callable[[int, Inputs, list[np.ndarray]], bool],
    predictor: Any,
    span: tuple[int, int] | None = None,
    steps: Sequence[int] | None = None,
) -> Outcome:
    """What a block-range method must return, given an oracle's decisions and predictor."""
    start, stop = span or (0, len(model))
    marks, outputs = "", []
    for at, row in enumerate(rows):
        step = at if steps is None else steps[at]
        entered = streams(model, row)
        if decide(step, row, entered):
            predictor.keep(step, entered[stop] - entered[start])
            marks, outputs = marks + "#", [*outputs, entered[-1]]
        else:
            estimate = entered[start] + predictor.estimate(step)
            marks, outputs = marks + ".", [*outputs, finish(model, stop, estimate, row)]
    return Outcome(marks, [], outputs)


def agree(got: Outcome, wanted: Outcome, tolerance: float = 1e-10) -> None:
    """The same decisions; computed steps bit for bit; reused steps to `tolerance`."""
    assert got.marks == wanted.marks
    for mark, mine, theirs in zip(got.marks, got.outputs, wanted.outputs, strict=True):
        if mark == "#":
            assert np.array_equal(mine, theirs)
        else:
            assert np.abs(mine - theirs).max() <= tolerance * max(1.0, np.abs(theirs).max())


_READS = {"tolist", "item", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "equal", "nonzero", "unique"}


class HostReads(TorchFunctionMode):
    """Counts what would make a device wait for the host: one for every `tolist`, `item`, `bool(tensor)`, ..."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(func, "__name__", "") in _READS
        return func(*args, **(kwargs or {}))


class LocalScalars(TorchDispatchMode):
    """Counts reads of a scalar below the level of functions, whoever asks for them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def host_reads(agent: CacheAgent, model: Sequence[Any], inputs: dict[str, list[Inputs]]) -> list[int]:
    """Host reads of each step, over all branches, in one generation."""
    counts = []
    for at in range(len(next(iter(inputs.values())))):
        with HostReads() as functions, LocalScalars() as scalars:
            for name, rows in inputs.items():
                hidden = rows[at].hidden
                with agent.branch(name):
                    for block in model:
                        hidden = agent.apply(block, hidden_states=hidden, temb=rows[at].temb)
        counts.append(max(functions.count, scalars.count))
    return counts
