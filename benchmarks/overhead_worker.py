"""The side of `overhead_diffusers.py` that runs in the side venv: one model, the variants of one library, one process.

Time is CPU time of this thread. A forward stands in the model's `cache_context`, as in a pipeline, also the bare one. That a
step was computed or skipped is checked by counting matrix products, once before and once after the timed steps; a forward
that did other work than the one it is compared with is an error, never a number.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from overhead_variants import HIT, SUBJECTS, VARIANTS, WARM_UP, Phase, Sampler, Subject, Variant, make, quiet
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {"aten::addmm", "aten::mm", "aten::bmm", "aten::linear"}
READS = {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::is_nonzero"}
COMPILED_STEPS = 50


class WrongWorkError(RuntimeError):
    """A forced step was not what it was forced to be."""


class Ops(TorchDispatchMode):
    """Counts matrix products, and what a device would be waited for: reads of the timestep apart from others."""

    def __init__(self, timestep: Tensor):
        super().__init__()
        self.timestep = timestep.data_ptr()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name
        if name in PRODUCTS:
            self.seen["products"] += 1
        elif name in READS:
            own = isinstance(args[0], Tensor) and args[0].data_ptr() == self.timestep
            self.seen["timestep" if own else "reads"] += 1
        return func(*args, **(kwargs or {}))


class Lists(TorchFunctionMode):
    """Counts the reads that reach no dispatcher on the CPU, but wait for any other device."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += func in (Tensor.tolist, Tensor.numpy)
        return func(*args, **(kwargs or {}))


def forward(model: Any, inputs: dict[str, Any]) -> Any:
    with model.cache_context("cond"):
        return model(**inputs)


def timed(model: Any, inputs: dict[str, Any]) -> float:
    """Milliseconds of CPU time."""
    began = time.thread_time_ns()
    forward(model, inputs)
    return (time.thread_time_ns() - began) / 1e6


def counted(model: Any, inputs: dict[str, Any]) -> Counter[str]:
    with Ops(inputs["timestep"]) as ops, Lists() as lists:
        forward(model, inputs)
    ops.seen["reads"] += lists.reads
    return ops.seen


def twin(model: nn.Module, subject: Subject) -> nn.Module:
    """Another model of the same weights in the same memory: what the caches of the processor hold is the same for both."""
    other = make(subject)
    other.load_state_dict(model.state_dict(), assign=True)
    return other


class Series:
    """A cached model, and the bare or the cut one that its steps are compared with."""

    def __init__(self, variant: Variant, phase: Phase, subject: Subject, pairs: int):
        self.phase, self.pairs = phase, pairs
        steps = WARM_UP + phase.every * (pairs + 6)
        self.sampler = Sampler(subject, steps)
        self.model = make(subject)
        self.other = twin(self.model, subject)
        if phase.kind == HIT:
            assert variant.cut is not None
            variant.cut(self.other, subject, self.sampler.inputs(0))
        self.handle = phase.apply(self.model, subject, steps)
        self.step = 0
        self.reads: dict[str, int] = {}

    def run(self) -> list[tuple[float, float]]:
        """Pairs of milliseconds, (other, cached)."""
        while self.step < WARM_UP:
            inputs = self._next()
            for model in (self.other, self.model):
                forward(model, inputs)
        self._check()
        pairs: list[tuple[float, float]] = []
        gc.collect()
        gc.disable()
        for number in range(self.pairs + 2):
            inputs = self._next()
            if number % 2:  # who goes first finds colder caches
                cached = timed(self.model, inputs)
                pairs.append((timed(self.other, inputs), cached))
            else:
                other = timed(self.other, inputs)
                pairs.append((other, timed(self.model, inputs)))
            self._rest()
        gc.enable()
        self._check()
        return pairs[2:]

    def _next(self) -> dict[str, Any]:
        self.step += 1
        return self.sampler.inputs(self.step - 1)

    def _rest(self) -> None:
        for _ in range(self.phase.every - 1):
            forward(self.model, self._next())

    def _check(self) -> None:
        inputs = self._next()
        wanted, done = counted(self.other, inputs), counted(self.model, inputs)
        if done["products"] != wanted["products"]:
            raise WrongWorkError(
                f"step {self.step - 1}, forced to {self.phase.kind}: {done['products']} matrix products instead of "
                f"{wanted['products']}"
            )
        self.reads = {name: done[name] - wanted[name] for name in ("reads", "timestep")}
        self._rest()


def measure(variant: Variant, subject: Subject, pairs: int) -> dict[str, Any]:
    result: dict[str, Any] = {"pairs": {}, "reads": {}}
    for phase in variant.phases:
        series = Series(variant, phase, subject, pairs)
        result["pairs"][phase.kind] = series.run()
        result["reads"][phase.kind] = series.reads
    return result


# ---------------------------------------------------------------------------------------------- torch.compile


def compiled(variant: Variant, subject: Subject, regional: bool, backend: str) -> dict[str, Any]:
    """Graphs, breaks, recompilations. Every other step is computed; all of them, where a threshold decides."""
    from torch._dynamo.testing import CompileCounterWithBackend
    from torch._dynamo.utils import clear_compilation_metrics, counters, get_compilation_metrics

    torch._dynamo.reset()
    counters.clear()
    clear_compilation_metrics()
    sampler, model = Sampler(subject, COMPILED_STEPS), make(subject)
    phase = max(variant.phases, key=lambda phase: phase.every)  # a schedule of both, if there is one
    phase.apply(model, subject, COMPILED_STEPS)
    counter = CompileCounterWithBackend(backend)
    called: Any = model
    if regional:
        model.compile_repeated_blocks(backend=counter)  # type: ignore[operator]
    else:
        called = torch.compile(model, backend=counter)
    when: list[int] = []  # graphs so far, by step
    began = time.perf_counter()
    for step in range(COMPILED_STEPS):
        with model.cache_context("cond"):  # type: ignore[operator]
            called(**sampler.inputs(step))
        when.append(counter.frame_count)
    again = [one for one in get_compilation_metrics() if one.recompile_reason]
    reasons = Counter(str(one.recompile_reason).split("\n")[0][:160] for one in again)
    at_limit = [one for one in get_compilation_metrics() if "limit" in str(one.fail_reason)]
    return {
        "graphs": counter.frame_count,
        "breaks": sum(counters["graph_break"].values()),
        "recompilations": len(again),
        "gave_up": bool(at_limit or counters["recompile_limit"]),
        "last_new_graph_at_step": next((i for i, n in enumerate(when) if n == when[-1]), 0),
        "break_reasons": {reason[:160]: count for reason, count in counters["graph_break"].items()},
        "recompile_reasons": dict(reasons),
        "seconds": time.perf_counter() - began,
    }


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """One entry for each variant: what was measured, or what went wrong."""
    subject, task = SUBJECTS[request["subject"]], request["task"]
    results: dict[str, Any] = {}
    for variant in VARIANTS:
        if variant.name not in request["variants"] or variant.library != request["library"]:
            continue
        try:
            if task == "time":
                results[variant.name] = measure(variant, subject, request["pairs"])
            else:
                regional = request["regional"]
                results[variant.name] = compiled(variant, subject, regional, request["backend"])
        except Exception as error:
            text = " ".join(str(error).split())
            results[variant.name] = {"error": f"{type(error).__name__}: {text}"[:400], "traceback": traceback.format_exc()}
    return results


def versions() -> dict[str, str]:
    found = {name: list(importlib.metadata.distributions(name=name)) for name in ("torch", "diffusers", "cache-dit")}
    from mindie_cache import __version__

    return {"mindie_cache": __version__, **{name: copies[0].version for name, copies in found.items() if copies}}


def serve(path: Path) -> None:
    """Answer the request at `path`."""
    request = json.loads(path.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    quiet()
    with torch.no_grad():
        reply = {"results": answer(request), "versions": versions()}
    Path(request["answer"]).write_text(json.dumps(reply), encoding="utf-8")
