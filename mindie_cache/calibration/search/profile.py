"""What a model consists of, and what its parts cost: blocks, attentions, the rest of a step. One generation with hooks."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mindie_cache import enable_cache
from mindie_cache.calibration.search.cost import Work
from mindie_cache.calibration.search.targets import Target
from mindie_cache.device import synchronize
from mindie_cache.errors import ConfigError, did_you_mean
from mindie_cache.hooks.discover import attentions, main_lists


class Stack(NamedTuple):
    """A list of blocks of the model, [start, stop) of all its blocks: e.g. Flux's double and single ones."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Profile:
    """Per denoising step, over all branches and models of a pipeline.

    Args:
        stacks: the model's lists of blocks.
        block_ms: of each block.
        rest_ms: of everything else: embeddings, output, scheduler; text encoder and decoder by their share of a step.
        attention_count: attentions in the blocks.
        attention_ms: of all of them.
        attention_bytes: what they return: what `attention_cache` keeps.
        outside_ms: the part of `rest_ms` that is not the model's: scheduler, text encoder, decoder.
    """

    stacks: tuple[Stack, ...]
    block_ms: tuple[float, ...]
    rest_ms: float
    attention_count: int
    attention_ms: float
    attention_bytes: int
    outside_ms: float = 0.0

    @property
    def work(self) -> Work:
        return Work(self.block_ms, self.rest_ms)

    @property
    def attention_share(self) -> float:
        """Of the time of a step."""
        return min(1.0, self.attention_ms / self.work.step)

    def stack(self, name: str) -> Stack:
        """The stack of that name, or its number."""
        names = [stack.name for stack in self.stacks]
        if name not in names:
            raise ConfigError(f"--stacks {name}: the model has no such list of blocks. {did_you_mean(name, names)}")
        return self.stacks[names.index(name)]

    def with_times(self, times: Mapping[str, float]) -> Profile:
        """With given milliseconds per block for whole stacks."""
        blocks = list(self.block_ms)
        for name, ms in times.items():
            stack = self.stack(name)
            blocks[stack.start : stack.stop] = [ms] * (stack.stop - stack.start)
        return Profile(**{**vars(self), "block_ms": tuple(blocks)})

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "stacks": [stack._asdict() for stack in self.stacks]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Profile:
        """Raises ConfigError if it is not what `to_dict` gives."""
        try:
            stacks = tuple([Stack(**entry) for entry in values["stacks"]])
            return cls(**{**values, "stacks": stacks, "block_ms": tuple(values["block_ms"])})
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"profile.json is damaged: {error}. Move it away, and one generation will measure it again."
            ) from None


def models_of(target: Target) -> dict[str, nn.Module]:
    """The denoising models, by name, as `enable_cache` finds them."""
    asked = {"method": "dit_block_cache", "step_interval": 2}
    with enable_cache(target.subject, asked, num_inference_steps=_told(target), blocks=target.blocks) as handle:
        names = list(handle.report().models)
    if isinstance(target.subject, nn.Module):
        return {names[0]: target.subject}
    return {name: getattr(target.subject, name) for name in names}


def _told(target: Target) -> int | None:
    """A pipeline tells its number of steps by itself."""
    return target.steps if isinstance(target.subject, nn.Module) else None


class Meter:
    """Sums over one generation: seconds in blocks and attentions, bytes that attentions return."""

    def __init__(self, target: Target):
        self._target = target
        self._models = models_of(target)
        self._lists = {name: main_lists(model, _names(target.blocks)) for name, model in self._models.items()}
        first = next(iter(self._lists.values()))
        bounds = [0]
        for entry in first:
            bounds.append(bounds[-1] + len(entry.blocks))
        self._stacks = tuple([Stack(e.name, a, b) for e, a, b in zip(first, bounds, bounds[1:], strict=False)])
        self._seconds: list[list[float]] = [[] for _ in range(bounds[-1])]  # of each call of each block
        self._attention_seconds: list[float] = []
        self._model_seconds: list[float] = []
        self._attention_bytes = 0
        self._attention_count = len(attentions(first))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on every block and attention, which wait for the device so that times are theirs."""
        with ExitStack() as stack:
            for model in self._models.values():
                self._watch(stack, model, lambda seconds, output: self._model_seconds.append(seconds))
            for lists in self._lists.values():
                blocks = [block for entry in lists for block in entry.blocks]
                for index, block in enumerate(blocks):
                    self._watch(stack, block, self._block_adder(index))
                for part in attentions(lists):
                    self._watch(stack, part.module, self._add_attention)
            yield

    def _watch(self, stack: ExitStack, module: nn.Module, add: Any) -> None:
        begun: list[float] = []

        def enter(*_: Any) -> None:
            synchronize(self._target.device)
            begun.append(perf_counter())

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            synchronize(self._target.device)
            add(perf_counter() - begun.pop(), output)

        stack.callback(module.register_forward_pre_hook(enter).remove)
        stack.callback(module.register_forward_hook(leave).remove)

    def _block_adder(self, index: int) -> Any:
        def add(seconds: float, output: Any) -> None:
            if index < len(self._seconds):
                self._seconds[index].append(seconds)

        return add

    def _add_attention(self, seconds: float, output: Any) -> None:
        self._attention_seconds.append(seconds)
        tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        self._attention_bytes += sum(one.numel() * one.element_size() for one in tensors)

    def profile(self, seconds: float) -> Profile:
        """Of the generation that was watched, which took so long.

        Raises:
            ConfigError: no block ran in it.
        """
        steps = self._target.steps
        if not all(self._seconds):
            silent = self._seconds.index([])
            raise ConfigError(
                f"block {silent} of {len(self._seconds)} was never called in a generation. Name the right list: --blocks "
                "NAME."
            )
        inside = sum(map(sum, self._seconds))
        blocks: list[float] = []
        for stack in self._stacks:  # blocks of a stack are alike
            count = stack.stop - stack.start
            calls = [one for block in self._seconds[stack.start : stack.stop] for one in block]
            blocks += [round(1e3 * _total(calls) / (count * steps), 6)] * count
        return Profile(
            self._stacks,
            tuple(blocks),
            round(1e3 * max(0.0, seconds - inside) / steps, 6),
            self._attention_count,
            round(1e3 * _total(self._attention_seconds) / steps, 6),
            round(self._attention_bytes / steps),
            round(1e3 * max(0.0, seconds - sum(self._model_seconds)) / steps, 6),
        )


def _total(calls: Sequence[float]) -> float:
    """Of all calls, by their median: the first ones are slow, and tell nothing of a warm model."""
    return statistics.median(calls) * len(calls) if calls else 0.0


def _names(blocks: str | None) -> tuple[str, ...] | None:
    return None if blocks is None else (blocks,)
