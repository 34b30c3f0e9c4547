"""Searches for schedules by real generations: simulated annealing on the final error, and shortest paths over measured gaps.

Written anew from the descriptions of BudCache (arXiv 2606.13496) and LeMiCa (arXiv 2511.00090). Every generation is kept in
the store, so that an interrupted search goes on where it stopped.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from functools import partial
from time import process_time

import torch
from planners_runs import Runs
from torch import Tensor
from tqdm import tqdm

from mindie_cache import CacheConfig
from mindie_cache.demo.attach import attached
from mindie_cache.testbed import generate

Steps = tuple[int, ...]
EVALUATIONS, ANNEALED = 200, 130  # the rest climbs
TRIES = 20  # a move to a schedule that is known costs nothing
WARM, COLD = 3.0, 0.1  # dB: a loss that is accepted in one of e tries, at the beginning and at the end
LONGEST = 12  # gap that LeMiCa's graph has


def uniform(steps: int, budget: int) -> Steps:
    """Computed steps at equal distances, the first and the last among them."""
    return tuple([round(place * (steps - 1) / (budget - 1)) for place in range(budget)])


def anneal(steps: int, budget: int, score: Callable[[Steps], float], evaluations: int = EVALUATIONS) -> Steps:
    """The schedule of the largest `score`, in dB, that so many distinct evaluations find.

    Simulated annealing from the uniform schedule moves one computed step at a time; then hill climbing from the best one, to
    neighbours by one step first. The first and the last step are always computed.
    """
    draw, known = random.Random(budget), {}
    evaluations = min(evaluations, math.comb(steps - 2, budget - 2))

    def value(schedule: Steps) -> float:
        if schedule not in known:
            known[schedule] = score(schedule)
        return known[schedule]

    now = uniform(steps, budget)
    value(now)
    annealed = max(1, evaluations * ANNEALED // EVALUATIONS)
    for _ in range(TRIES * annealed):
        if len(known) >= annealed:
            break
        heat = WARM * (COLD / WARM) ** (len(known) / annealed)
        moved = _moved(now, draw)
        gain = value(moved) - value(now)
        if gain >= 0 or draw.random() < math.exp(gain / heat):
            now = moved
    while len(known) < evaluations:
        best = max(known, key=known.__getitem__)
        near = [moved for moved in _neighbours(best) if moved not in known]
        moved = near[0] if near else _moved(best, draw)
        value(moved if moved not in known else _moved(draw.choice([*known]), draw))
    return max(known, key=known.__getitem__)


def _free(schedule: Steps) -> list[int]:
    return [step for step in range(schedule[-1]) if step not in schedule]


def _moved(schedule: Steps, draw: random.Random) -> Steps:
    leaving, coming = draw.choice(schedule[1:-1]), draw.choice(_free(schedule))
    return tuple(sorted({*schedule} - {leaving} | {coming}))


def _neighbours(schedule: Steps) -> list[Steps]:
    free = {*_free(schedule)}
    moves = [(step, step + by) for step in schedule[1:-1] for by in (-1, 1) if step + by in free]
    return [tuple(sorted({*schedule} - {old} | {new})) for old, new in moves]


def anneal_generations(
    runs: Runs, budget: int, config: Callable[[Steps], CacheConfig], evaluations: int
) -> tuple[Steps, float]:
    """`anneal` on real generations of the first prompt of a task, and the CPU seconds that they took."""
    with tqdm(total=evaluations, desc=f"annealing, {budget} steps", unit="generation", leave=False) as bar:
        seconds = 0.0

        def score(schedule: Steps) -> float:
            nonlocal seconds
            found = runs.measure([config(schedule)])
            seconds += found.seconds
            bar.update()
            return found.psnr[0]

        return anneal(runs.task.steps, budget, score, evaluations), seconds


class Graph:
    """LeMiCa's graph: an edge from i to j weighs what reusing the blocks of step i up to j does to the final latents, all
    other steps computed: mean |x - x*|."""

    def __init__(self, runs: Runs, longest: int = LONGEST):
        steps = runs.task.steps
        self.edges = [(i, j) for j in range(2, steps) for i in range(max(0, j - longest), j - 1)]
        self.weights: dict[tuple[int, int], float] = {}
        self.seconds, self.forwards = 0.0, 0
        trace: list[Tensor] = []
        for i, j in tqdm(self.edges, desc="edges", unit="generation", leave=False):
            known = runs.store.get(f"edge {i} {j} {runs.task}")
            if known is None:
                trace = trace or _trace(runs)
                known = runs.store.add(f"edge {i} {j} {runs.task}", _edge(runs, trace, i, j))
            self.weights[i, j], seconds = known
            self.seconds += seconds
            self.forwards += 1 + steps - j
        self._steps = steps

    def path(self, budget: int) -> Steps:
        return smallest_largest(self.weights, self._steps, budget)


def smallest_largest(weights: Mapping[tuple[int, int], float], steps: int, budget: int) -> Steps:
    """The path of `budget` steps from the first to the last one whose largest edge is smallest, then its second largest, ...

    That order stays when the same edge is added to two paths, so the best path to each step is enough.

    Args:
        weights: of the edges (i, j) with j > i + 1; those to the next step weigh nothing.
    """
    ways: dict[int, tuple[tuple[float, ...], Steps]] = {0: ((), (0,))}  # to a step: edges, largest first, and path
    for _ in range(budget - 1):
        found: dict[int, tuple[tuple[float, ...], Steps]] = {}
        for i, (edges, path) in ways.items():
            for j in range(i + 1, steps):
                weight = weights.get((i, j)) if j > i + 1 else 0.0
                if weight is not None:
                    way = tuple(sorted((*edges, weight), reverse=True)), (*path, j)
                    found[j] = min(found.get(j, way), way)
        ways = found
    return ways[steps - 1][1]


def _trace(runs: Runs) -> list[Tensor]:
    """Uncached latents before each step, and at the end."""
    found: list[Tensor] = [torch.empty(0)]
    generate(runs.model, runs.task.prompts, callback=lambda step, latents: found.append(latents), **runs.task.arguments)
    return found


def _edge(runs: Runs, trace: list[Tensor], i: int, j: int) -> tuple[float, float]:
    """Weight, and CPU seconds."""
    steps, start = runs.task.steps, process_time()
    config = CacheConfig(
        "dit_block_cache", runs.model.config.blocks, steps, options={"compute_steps": (i, *range(j, steps))}
    )
    go_on = {"start": i, "latents": trace[i]} if i else {}
    with attached(runs.model, [config]) as caches:
        made = generate(runs.model, runs.task.prompts, forward_cache=caches.forward_cache, **runs.task.arguments, **go_on)
    return float((made.latents - trace[-1]).abs().mean()), process_time() - start


def reused_seer(blocks: int, steps: int, order: int) -> Callable[[Steps], CacheConfig]:
    """Schedules executed on the residual of the blocks: reused (order 0), or extrapolated as TaylorSeer does (1)."""
    return partial(_seer, blocks, steps, order)


def _seer(blocks: int, steps: int, order: int, schedule: Steps) -> CacheConfig:
    options = {"compute_steps": schedule, **({"order": order} if order else {})}
    return CacheConfig("dit_block_cache", blocks, steps, options=options)
