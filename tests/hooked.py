"""What the tests of enable_cache share: tiny pipelines that give latents, and what ran in them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from zoo import ZOO, Entry

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from tiny_pipelines import TINY as TINY
from tiny_pipelines import generate

EVERY_OTHER = {"method": "dit_block_cache", "step_interval": 2}
ALWAYS = {"method": "first_block", "options": {"threshold": 0.0}}  # looks, and computes every step
LITE = {"method": "taylorseer", "options": {"lite": True, "order": 1, "interval": 3, "warmup_steps": 2}}
SCHEDULED = {
    "dit_block_cache": EVERY_OTHER,
    "taylorseer lite": LITE,
    "compute_steps": {"method": "dit_block_cache", "options": {"compute_steps": (0, 1, 4)}},
    "magcache": {
        "method": "magcache",
        "options": {"cond_ratios": (1.0, *[0.98] * 7), "retention_ratio": 0.0, "max_skip_steps": 1},
    },
}
BLOCKS = ("transformer_blocks.", "single_transformer_blocks.", "blocks.", "layers.")  # of the tiny pipelines
ENTRIES: dict[str, Entry] = {entry.name: entry for entry in ZOO}


def latents(name: str, pipe: Any, steps: int = 4, **changes: Any) -> Tensor:
    """What a generation hands to the VAE."""
    return generate(name, pipe, steps=steps, **{"output_type": "latent", **changes})


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    found = {name: getattr(pipe, name, None) for name in ("transformer", "transformer_2")}
    return {name: model for name, model in found.items() if model is not None}


@contextmanager
def linears_run(*models: nn.Module) -> Iterator[Counter[str]]:
    """How often each linear layer of the models runs, by its name."""
    runs: Counter[str] = Counter()
    named = [(name, module) for model in models for name, module in model.named_modules()]
    hooks = [
        module.register_forward_hook(lambda *_, name=name: runs.update([name]))
        for name, module in named
        if isinstance(module, nn.Linear)
    ]
    try:
        yield runs
    finally:
        for hook in hooks:
            hook.remove()


def of_blocks(runs: Counter[str]) -> int:
    """Runs of linear layers inside the blocks of a tiny pipeline."""
    return sum(count for name, count in runs.items() if name.startswith(BLOCKS))


def traces(pipe: Any) -> list[Any]:
    """What enabling could leave in a pipeline's models: attributes of their modules, keys of their state dicts."""
    modules = [module for model in denoisers(pipe).values() for module in model.modules()]
    return [[sorted(vars(module)) for module in modules], *[list(m.state_dict()) for m in denoisers(pipe).values()]]


def marks(report: Any) -> dict[str, str]:
    """The steps of each branch of a report of one model: # computed, . reused, _ not called."""
    done = {(record.branch, record.step): "#."[record.reused] for record in report.steps}
    branches = dict.fromkeys(branch for branch, _ in done)
    last = max([step for _, step in done], default=-1)
    return {name: "".join(done.get((name, step), "_") for step in range(last + 1)) for name in branches}


def only(handle: Any) -> Any:
    """The report of the only model."""
    (report,) = handle.report().models.values()
    return report


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


class Stepper(nn.Module):
    """A model of one stream with closed-form blocks: block i adds (i + 1) * (rate * t + offset)."""

    def __init__(self, blocks: int = 3):
        super().__init__()
        self.blocks = nn.ModuleList([LineBlock(i + 1) for i in range(blocks)])
        self.eval()

    def forward(self, hidden_states: Tensor, timestep: Any = None, encoder_hidden_states: Tensor | None = None) -> Tensor:
        push = timestep if encoder_hidden_states is None else timestep + encoder_hidden_states.mean()
        for block in self.blocks:
            hidden_states = block(hidden_states, push)
        return hidden_states


class LineBlock(nn.Module):
    """Its weights are ones: a block has at least three matrices."""

    def __init__(self, factor: float):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.ones(1, 1), requires_grad=False) for _ in range(3)])
        self.factor = factor
        self.runs = 0

    def forward(self, hidden_states: Tensor, push: Any) -> Tensor:
        self.runs += 1
        return hidden_states + self.factor * push
