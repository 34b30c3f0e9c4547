"""Generations that `planners.py` and `transfer.py` compare: each is made once and kept in a file. Chooses no settings."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor

from mindie_cache import CacheConfig, CacheWarning, Report
from mindie_cache.calibration.testbed import DEFAULT_PROMPTS
from mindie_cache.demo.attach import attached
from mindie_cache.testbed import TestbedTransformer, all_prompts, generate

BATCH, SEED, CALIBRATION_SEED = 8, 300, 9000
PEAK = 2.0  # latents are in [-1, 1]


class Store:
    """Finished results: one JSON line each, in a file that is only appended to."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self._known = {key: value for key, value in map(_parsed, lines) if key}

    def get(self, key: str) -> Any:
        """None, if there is nothing."""
        return self._known.get(key)

    def add(self, key: str, value: Any) -> Any:
        self._known[key] = value
        with self.path.open("a") as file:
            file.write(json.dumps([key, value]) + "\n")
        return value


def _parsed(line: str) -> tuple[str, Any]:
    try:
        key, value = json.loads(line)
    except ValueError:  # the last line of a run that was killed
        return "", None
    return key, value


@dataclass(frozen=True)
class Task:
    """What is generated: one seed a prompt."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int = 30
    guidance: float = 2.0
    shift: float = 3.0

    def part(self, first: int, count: int) -> Task:
        """`count` of the prompts, from the first one on."""
        end = first + count
        return replace(self, prompts=self.prompts[first:end], seeds=self.seeds[first:end])

    @property
    def arguments(self) -> dict[str, Any]:
        """For `generate`."""
        return {"seeds": self.seeds, "steps": self.steps, "guidance_scale": self.guidance, "shift": self.shift}


def unseen(count: int, **settings: Any) -> Task:
    """Prompts and seeds that nothing is calibrated on, neither here nor in the other benchmarks."""
    prompts = [prompt for prompt in all_prompts() if prompt not in DEFAULT_PROMPTS][1::2]
    if not 0 < count <= len(prompts):
        raise SystemExit(f"--prompts {count}: there are {len(prompts)} unseen prompts. Use 1 to {len(prompts)}.")
    prompts = prompts[:: len(prompts) // count][:count]
    return Task(tuple(prompts), tuple(range(SEED, SEED + count)), **settings)


def calibration(count: int, first: int = 0, **settings: Any) -> Task:
    """Prompts and seeds that are calibrated on."""
    numbers = range(first, first + count)
    prompts = tuple([DEFAULT_PROMPTS[number % len(DEFAULT_PROMPTS)] for number in numbers])
    return Task(prompts, tuple([CALIBRATION_SEED + number for number in numbers]), **settings)


@dataclass(frozen=True)
class Found:
    """PSNR of the final latents beside the uncached ones in dB, one a prompt; `computed`: calls of blocks, or of the
    model, that were not served from the cache, in steps, mean over the prompts; `seconds` of the CPU, all prompts."""

    psnr: tuple[float, ...]
    computed: float
    seconds: float


class Runs:
    """Cached generations of a task beside the uncached ones."""

    def __init__(self, model: TestbedTransformer, task: Task, store: Store):
        self.model, self.task, self.store = model, task, store

    @cached_property
    def exact(self) -> Tensor:
        """The uncached latents; kept beside the store."""
        path = self.store.path.parent / f"uncached-{_mark(self.task, self._kind)}.pt"
        if not path.exists():
            torch.save(self._latents((), BATCH)[0], path)
        return torch.load(path)

    def measure(self, configs: Sequence[CacheConfig], batch: int = BATCH, mark: str = "", *, again: bool = False) -> Found:
        """One setting on all prompts, `batch` at a time: methods that look at data decide for a batch.

        Args:
            mark: what the configurations refer to but do not contain, as the contents of a file.
            again: generate even if the result is known.
        """
        key = _mark(self.task, self._kind, [config.to_dict() for config in configs], batch, mark)
        known = self.store.get(key)
        if known is None or again:
            exact, start = self.exact, process_time()
            latents, computed = self._latents(configs, batch)
            seconds = process_time() - start
            error = (latents - exact).square().flatten(1).mean(1).clamp_min(1e-12)
            psnr = (10 * torch.log10(PEAK**2 / error)).tolist()
            known = self.store.add(key, [psnr, computed, seconds])
        return Found(tuple(known[0]), known[1], known[2])

    @property
    def _kind(self) -> str:
        return f"{next(self.model.parameters()).dtype} {self.model.config}"

    def _latents(self, configs: Sequence[CacheConfig], batch: int) -> tuple[Tensor, float]:
        made, computed, count = [], 0.0, len(self.task.prompts)
        for first in range(0, count, batch):
            task = self.task.part(first, batch)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CacheWarning)
                with attached(self.model, configs) as caches:
                    one = generate(self.model, task.prompts, forward_cache=caches.forward_cache, **task.arguments)
                reports = [agent.report() for agent in caches.agents]
            made.append(one.latents)
            computed += task.steps * _share_computed(reports) * len(task.prompts)
        return torch.cat(made), computed / count


def _share_computed(reports: Sequence[Report]) -> float:
    calls = sum(report.calls for report in reports)
    return 1 - sum(report.calls_reused for report in reports) / calls if calls else 1.0


def _mark(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]
