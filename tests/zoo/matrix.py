"""What is promised of every method on every transformer, checked on one entry of the zoo: the rows of the support matrix."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mindie_cache import CacheError, branch
from mindie_cache.hooks import CacheHandle, enable_cache

from .core import Entry

STEPS = 6
TABLE = tuple(1.0 if not step else 0.98 for step in range(STEPS))

METHODS: dict[str, dict[str, Any]] = {
    "block range": {"method": "dit_block_cache", "step_interval": 2, "block_start": 1},
    "whole stack": {"method": "dit_block_cache", "step_interval": 2},
    "attention": {"method": "attention_cache", "step_interval": 2},
    "teacache": {"method": "teacache", "options": {"threshold": 1e6, "max_skip_steps": 1}},
    "taylorseer": {"method": "taylorseer", "options": {"interval": 2, "warmup_steps": 2}},
    "taylorseer lite": {"method": "taylorseer", "options": {"interval": 2, "warmup_steps": 2, "lite": True}},
    "magcache": {"method": "magcache", "options": {"cond_ratios": TABLE, "retention_ratio": 0.0, "max_skip_steps": 1}},
    "ada_taylor": {"method": "ada_taylor", "options": {"cond_ratios": TABLE, "retention_ratio": 0.0, "max_skip_steps": 1}},
    "custom": {"method": "custom", "options": {"threshold": 1e6, "max_skip_steps": 1}},
    "first_block": {"method": "first_block", "options": {"threshold": 1e6, "max_skip_steps": 1}},
    "fastercache": {"method": "fastercache", "options": {"reuse_from": 2, "interval": 2, "phase": 0}},
}


def output(result: Any) -> list[Tensor]:
    """Every tensor of a model's output."""
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference, relative to the largest value."""
    assert len(one) == len(other)
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-9)) for a, b in zip(one, other, strict=True))


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """Count the linear layers that are run."""
    count = [0]

    def note(*_: Any) -> None:
        count[0] += 1

    handles = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


class Player:
    """Plays generations on one entry. `bare` is what the model gives without a cache, `work` its linear layers."""

    def __init__(self, entry: Entry):
        self.entry = entry
        self.model = entry.build()
        self.inputs = [entry.inputs(step=step / STEPS) for step in range(STEPS)]
        with counted(self.model) as linear:
            self.bare = self.generate()
        self.work = linear[0]

    @torch.no_grad()
    def call(self, given: dict[str, Any], model: nn.Module | None = None) -> list[Tensor]:
        return output((model or self.model)(**copy.deepcopy(given)))

    def generate(self, steps: int = STEPS) -> list[list[Tensor]]:
        return [self.call(given) for given in self.inputs[:steps]]


def enable(model: nn.Module, method: str) -> CacheHandle:
    return enable_cache(model, METHODS[method], num_inference_steps=STEPS)


@dataclass
class Outcome:
    """One cell of the matrix. `failures` by the name of the promise; `refused`: the clear error instead."""

    failures: dict[str, str] = field(default_factory=dict)
    refused: str = ""


class Trial:
    """One method on one model, and its first generation."""

    def __init__(self, player: Player, handle: CacheHandle):
        self.player = player
        self.handle = handle
        self.call, self.generate = player.call, player.generate
        self.first = player.generate()
        (self.report,) = handle.report().models.values()
        self.reused = self.reused_now()

    def reused_now(self) -> set[int]:
        (report,) = self.handle.report().models.values()
        return {record.step for record in report.steps if record.reused}


def check(player: Player, method: str) -> Outcome:
    """Every promise, for one method."""
    model, outcome = player.model, Outcome()
    before = set(vars(model)), list(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with enable(model, method) as handle:
                trial = Trial(player, handle)
                for promise in PROMISES:
                    handle.reset()
                    wrong = promise(trial)
                    if wrong:
                        outcome.failures[promise.__name__.replace("_", " ")] = wrong
        except CacheError as error:
            outcome.refused = str(error)
    if (set(vars(model)), list(model.state_dict())) != before:
        outcome.failures["disable"] = "attributes or the state dict have changed"
    elif not same(player.generate(), player.bare):
        outcome.failures["disable"] = "outputs differ after disabling"
    return outcome


def same(found: list[list[Tensor]], wanted: list[list[Tensor]]) -> bool:
    """Bit for bit."""
    return not any(difference(one, other) for one, other in zip(found, wanted, strict=True))


def saves_work(trial: Trial) -> str:
    if not trial.reused:
        return "no step was reused"
    with counted(trial.player.model) as linear:  # not in the first generation, which tries once more what it has kept
        trial.generate()
    return "" if linear[0] < trial.player.work else f"{linear[0]} linear layers were run, as without a cache"


def computed_steps_are_exact(trial: Trial) -> str:
    bare = trial.player.bare
    wrong = [step for step in range(STEPS) if step not in trial.reused and difference(trial.first[step], bare[step])]
    return f"steps {wrong}" if wrong else ""


def frees_memory(trial: Trial) -> str:
    now, peak = trial.report.bytes_now, trial.report.bytes_peak
    return f"{now} bytes are kept after the last step, {peak} at peak" if now or not peak else ""


def identity(trial: Trial) -> str:
    """With the same input in every step a reused step gives the uncached output."""
    worst = 0.0
    for step in range(STEPS):
        with branch("cond", step=step):
            worst = max(worst, difference(trial.call(trial.player.inputs[0]), trial.player.bare[0]))
    if not trial.reused_now():
        return "no step was reused"
    return f"{worst:.1e}" if worst > 1e-5 else ""


def second_generation(trial: Trial) -> str:
    trial.generate()
    return "" if same(trial.generate(), trial.first) else "differs from the first"


def interruption(trial: Trial) -> str:
    """A generation that is broken off after three steps, then one that ends with an exception in its third step."""
    trial.generate(3)
    if not same(trial.generate(), trial.first):
        return "shows in the next generation"
    trial.generate(2)
    linear = [module for module in trial.player.model.modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_pre_hook(_raise) for module in linear]
    with suppress(InterruptedError):
        trial.call(trial.player.inputs[2])
    for hook in hooks:
        hook.remove()
    return "" if same(trial.generate(), trial.first) else "an exception shows in the next generation"


def _raise(*_: Any) -> None:
    raise InterruptedError


def changed_batch_or_size(trial: Trial) -> str:
    """In the middle of a generation, at a step that would be reused."""
    step = min(trial.reused, default=3)
    for name, change in (("batch", {"batch": 2}), ("size", {"size": 1})):
        given = trial.player.entry.inputs(step=step / STEPS, **change)
        trial.handle.reset()
        trial.generate(step)
        found = trial.call(given)
        trial.handle.reset()
        if difference(found, trial.call(given)):
            return f"another {name} is not recomputed"
    return ""


def deepcopy(trial: Trial) -> str:
    twin = copy.deepcopy(trial.player.model)
    for parameter in twin.parameters():
        parameter.data.zero_()
    if not difference(trial.call(trial.player.inputs[0], twin), trial.first[0]):
        return "the copy runs the weights of the original"
    return "" if same(trial.generate(), trial.first) else "the original is not independent of its copy"


PROMISES: tuple[Callable[[Trial], str], ...] = (
    saves_work,
    computed_steps_are_exact,
    frees_memory,
    identity,
    second_generation,
    interruption,
    changed_batch_or_size,
    deepcopy,
)
