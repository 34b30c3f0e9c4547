"""What dit_block_cache costs where blocks compute nothing, so that the processor's caches hold everything.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/overhead_empty.py

Microseconds of CPU time of the thread: a forward of 57 blocks that return their two streams, called by keyword as Flux calls
its blocks. A hit is compared with the model without blocks, a computed forward with the same model without a cache; rows
without a cache, which show what the loop and PyTorch take, with the model without blocks. Medians of pairs.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mindie_cache import enable_cache

BLOCKS, STEPS = 57, 10_000


class Block(nn.Module):
    """Has weights, as a block has."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(1, 1) for _ in range(3)])

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary: Any) -> Any:
        return encoder_hidden_states, hidden_states


def function(hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary: Any) -> Any:
    return encoder_hidden_states, hidden_states


class Model(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks: Any = nn.ModuleList([Block() for _ in range(blocks)])
        self.eval()

    def forward(self, hidden_states: Any, encoder_hidden_states: Any, timestep: Any, temb: Any, rotary: Any) -> Any:
        for block in self.blocks:
            encoder_hidden_states, hidden_states = block(
                hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, temb=temb, rotary=rotary
            )
        return hidden_states


def functions() -> nn.Module:
    """The loop alone."""
    model = Model(0)
    del model.blocks
    model.blocks = [function] * BLOCKS
    return model


def cached(every: int) -> nn.Module:
    model = Model(BLOCKS)
    fields = {"method": "dit_block_cache", "step_start": 0, "step_interval": every}
    enable_cache(model, fields, num_inference_steps=STEPS)
    return model


ROWS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {  # the model, blocks of the other one, every how many steps
    "57 functions, no cache": (functions, 0, 1),
    "57 blocks, no cache": (lambda: Model(BLOCKS), 0, 1),
    "dit_block_cache, computed": (lambda: cached(2), BLOCKS, 2),
    "dit_block_cache, hit": (lambda: cached(STEPS), 0, 1),
}


def timed(model: nn.Module, inputs: dict[str, Any]) -> float:
    began = time.thread_time_ns()
    model(**inputs)
    return (time.thread_time_ns() - began) / 1000


@torch.no_grad()
def measure(model: nn.Module, other: nn.Module, every: int, pairs: int) -> list[float]:
    """Differences of the steps that are multiples of `every`, the first ones left out."""
    streams = {"hidden_states": torch.randn(1, 16, 32), "encoder_hidden_states": torch.randn(1, 8, 32)}
    same = {**streams, "temb": torch.randn(1, 32), "rotary": (torch.randn(24, 16), torch.randn(24, 16))}
    found = []
    gc.collect()
    gc.disable()
    for step in range(10 + every * pairs):
        inputs = {**same, "timestep": torch.tensor([1 - step / STEPS])}
        taken, wanted = timed(model, inputs), timed(other, inputs)
        if step >= 10 and not step % every:
            found.append(taken - wanted)
    gc.enable()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1500, help="a row (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, (build, blocks, every) in ROWS.items():
        low, middle, high = statistics.quantiles(measure(build(), Model(blocks), every, options.pairs), n=4)
        print(f"{name:28} {middle:6.1f} us  ({low:.1f} to {high:.1f})")


if __name__ == "__main__":
    main()
