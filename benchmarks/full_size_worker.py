"""The side of `full_size.py` that runs where the other libraries are: one model, all caches on it in turn, one process.

The bare model, the cut ones and one for each cache share their weights. Every loop that is timed is also counted: a hook on
a part of each block tells which forward computed how many of them.
"""

from __future__ import annotations

import gc
import importlib
import json
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from full_size_models import SCALES, Denoising, RealSubject, assemble, random_weights
from overhead_variants import CACHE_DIT, DIFFUSERS, OURS, cache_dit, diffusers, first_block, no_blocks, ours, quiet
from overhead_worker import WrongWorkError, versions
from torch import nn
from tqdm import tqdm

from mindie_cache import presets
from mindie_cache.device import resolve, synchronize

UNCACHED = "uncached"
CUTS = {0: no_blocks, 1: first_block}  # by the blocks that a hit computes
NO_LIMIT = 1e9


@dataclass(frozen=True)
class Row:
    """One cache. Rows of the same `work` are settings of different libraries that shall compute the same blocks.

    Args:
        kept: blocks that a hit computes.
        apply: takes the model, the subject and the number of steps.
    """

    work: str
    library: str
    name: str
    kept: int
    apply: Callable[..., object]

    @property
    def label(self) -> str:
        return f"{self.library} {self.name}"


def rest(kept: int) -> str:
    """The name of the cut model that computes so many blocks."""
    return f"{kept} blocks"


def rows(subject: RealSubject, steps: int) -> tuple[Row, ...]:
    half, first, once, table = "every 2nd step", "every 2nd step, block 0", "step 0 only, block 0", "magnitude table"
    every_2nd = {"step_start": 0, "step_interval": 2}
    never_again = {"step_start": 0, "step_interval": steps}
    settings = presets.find("magcache", subject.preset).settings
    same: dict[str, Any] = {name: settings[name] for name in ("threshold", "max_skip_steps", "retention_ratio")}
    same |= {"mag_ratios": list(settings["cond_ratios"]), "num_inference_steps": steps}
    forced: dict[str, Any] = {"threshold": NO_LIMIT, "max_skip_steps": 1, "retention_ratio": 1 / steps}
    forced |= {"mag_ratios": [1.0] * steps, "num_inference_steps": steps}
    return (
        Row(half, OURS, "dit_block_cache", 0, ours("dit_block_cache", **every_2nd)),
        Row(half, DIFFUSERS, "MagCache, forced", 0, diffusers("MagCache", **forced)),
        Row(first, OURS, "dit_block_cache F1", 1, ours("dit_block_cache", block_start=1, **every_2nd)),
        Row(first, CACHE_DIT, "static mask F1B0", 1, cache_dit(2, enable_separate_cfg=len(subject.branches) > 1)),
        Row(table, OURS, "magcache", 0, ours("magcache", preset=subject.preset, resampling="nearest", final_steps=0)),
        Row(table, DIFFUSERS, "MagCache", 0, diffusers("MagCache", **same)),
        Row(once, OURS, "dit_block_cache F1, once", 1, ours("dit_block_cache", block_start=1, **never_again)),
        Row(once, DIFFUSERS, "FirstBlock, forced", 1, diffusers("FirstBlockCache", threshold=NO_LIMIT)),
    )


def begin(library: str, model: Any) -> None:
    """Before a generation: what a loop without a pipeline has to do. Ours needs nothing, it is told by `run`."""
    if library == DIFFUSERS:
        model._reset_stateful_cache()  # as diffusers' pipelines do
    elif library == CACHE_DIT:  # by itself it notices a forward too late, and reuses what the last generation kept
        importlib.import_module("cache_dit").refresh_context(model)


def clock(device: torch.device) -> Callable[[], float]:
    return time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


class Entry:
    """A model that is timed: bare, cut or cached.

    Of the loop under way: `seconds`, and `forwards`, the blocks that each forward has computed.
    """

    def __init__(self, model: Any, subject: RealSubject, library: str):
        self.model, self.library = model, library
        self._seen = 0
        blocks = [block for name in subject.lists for block in getattr(model, name)]
        for block in blocks:
            getattr(block, subject.part).register_forward_pre_hook(self._note)
        self.blocks = len(blocks)

    def _note(self, module: nn.Module, arguments: Any) -> None:
        self._seen += 1

    def _after(self) -> None:
        self.forwards.append(self._seen)
        self._seen = 0

    def begin(self, loop: Denoising) -> None:
        self.seconds, self._seen = 0.0, 0
        self.forwards: list[int] = []
        begin(self.library, self.model)
        self._loop = loop.run(self.model, self._after)

    def advance(self, steps: int, device: torch.device) -> None:
        """So many steps of the loop."""
        now = clock(device)
        with importlib.import_module("mindie_cache").run(request=self) if self.library == OURS else nullcontext():
            synchronize(device)
            began = now()
            latents = deque(islice(self._loop, steps), maxlen=1).pop()
            synchronize(device)
            self.seconds += now() - began
        if not latents.isfinite().all():
            raise WrongWorkError("the latents are not finite")


def check_hits(forwards: list[int], blocks: int, kept: int) -> None:
    """Every forward computes all blocks or `kept`: else no ideal is known for it."""
    other = sorted(set(forwards) - {blocks, kept})
    if other:
        raise WrongWorkError(f"a forward computed {other[0]} of {blocks} blocks; a hit should compute {kept}")


class Race:
    """All models of one subject, and what was measured of each. `request`: model, scale, device, steps and rows."""

    def __init__(self, request: dict[str, Any]):
        self.device = resolve(request["device"])
        self.subject = SCALES[request["scale"]][request["model"]]
        self.loop = Denoising(self.subject, request["steps"], self.device)
        self.entries: dict[str, Entry] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self._weights = random_weights(self.subject, self.device)
        self._enter(UNCACHED, "-", lambda model: None)
        for kept, cut in CUTS.items():
            self._enter(rest(kept), "-", partial(cut, subject=self.subject, inputs={}), kept=kept)
        for row in rows(self.subject, request["steps"]):
            if row.label in request["rows"]:
                apply = partial(row.apply, subject=self.subject, steps=request["steps"])
                self._enter(row.label, row.library, apply, kept=row.kept, work=row.work)
        self.blocks = self.entries[UNCACHED].blocks
        self.turns = request["steps"] if self.device.type == "cpu" else 1
        self.entries[UNCACHED].model(**self.loop.first_inputs())  # the weights are read for the first time

    def _enter(self, name: str, library: str, change: Callable[[nn.Module], object], **facts: Any) -> None:
        self.results[name] = {"seconds": [], "forwards": [], "error": None, **facts}
        with self._noting(name):
            entry = Entry(assemble(self.subject, self._weights), self.subject, library)
            change(entry.model)
            entry.model.set_attention_backend("native")  # the same for all; on an NPU cache-dit chooses another one
            if library == OURS:  # the trial of what is kept, once for a model
                with importlib.import_module("mindie_cache").run():
                    entry.model(**self.loop.first_inputs())
            self.entries[name] = entry

    @contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        """What goes wrong is a result of that entry, and the end of it."""
        try:
            yield
        except Exception as error:
            text = " ".join(str(error).split())
            self.results[name] |= {"error": f"{type(error).__name__}: {text}"[:400], "traceback": traceback.format_exc()}
            self.entries.pop(name, None)
            gc.collect()  # what it kept on the device

    def round(self, number: int, timed: bool = True, after: Callable[[], object] = lambda: None) -> None:
        """Every entry runs the loop once. They take turns: whole loops where a queue would run dry between steps, else
        steps, so that all of them meet the same moods of the machine. Each turn begins with another one."""
        for name in [*self.entries]:
            with self._noting(name):
                self.entries[name].begin(self.loop)
        names = [*self.results]
        for turn in range(self.turns):
            first = (number + turn) % len(names)
            for name in names[first:] + names[:first]:
                if name in self.entries:
                    with self._noting(name):
                        self.entries[name].advance(len(self.loop.timesteps) // self.turns, self.device)
                after()
        for name in [*self.entries] if timed else []:
            with self._noting(name):
                self._keep(name)

    def _keep(self, name: str) -> None:
        entry, result = self.entries[name], self.results[name]
        check_hits(entry.forwards, self.blocks, result.get("kept", self.blocks))
        result["seconds"].append(entry.seconds)
        result["forwards"] = entry.forwards


def serve(path: Path) -> None:
    """Answer the request at `path`, anew after every round, so that a process that dies leaves what it had measured."""
    request = json.loads(path.read_text(encoding="utf-8"))
    quiet()
    with torch.no_grad():
        race = Race(request)
        warm_up = 0 if race.device.type == "cpu" else 1  # kernels are compiled and chosen in the first round
        total = (warm_up + request["rounds"]) * race.turns * len(race.results)
        with tqdm(total=total, unit="turn", desc=request["model"]) as bar:
            for number in range(-warm_up, request["rounds"]):
                race.round(number, number >= 0, bar.update)
                Path(request["answer"]).write_text(json.dumps(reply(race)), encoding="utf-8")


def reply(race: Race) -> dict[str, Any]:
    device = str(race.device) if race.device.type == "cpu" else getattr(torch, race.device.type).get_device_name(race.device)
    seconds = "CPU time" if clock(race.device) is time.thread_time else "wall clock"
    machine = {"device": device, "threads": torch.get_num_threads(), "seconds": seconds, **versions()}
    counts = {"blocks": race.blocks, "forwards": race.loop.forwards}
    return {"title": race.subject.title, "machine": machine, **counts, "results": race.results}
