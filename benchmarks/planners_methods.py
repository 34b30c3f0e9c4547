"""What `planners.py` compares: for each name the setting at a number of computed steps, and what it cost to find it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

from planners_runs import Runs, Store, Task, calibration
from planners_search import Graph, Steps, anneal_generations, reused_seer, uniform
from quality_families import Family, families

from mindie_cache import CacheConfig
from mindie_cache.calibration.planning import Plan, Program, Recording, make_plan, record_testbed
from mindie_cache.calibration.search import store
from mindie_cache.calibration.search.cost import Window, Work
from mindie_cache.calibration.search.evaluator import Evaluator
from mindie_cache.calibration.search.findings import Goal
from mindie_cache.calibration.search.procedures import BlockSearch
from mindie_cache.calibration.search.scores import find
from mindie_cache.calibration.search.targets import TestbedTarget
from mindie_cache.testbed import TestbedTransformer
from mindie_cache.testbed.weights import CALIBRATION_PATH

WINDOWED = ("dit_block_cache", "dit_block_cache, line", "taylorseer, lite", "taylorseer, lite, order 2")
ADAPTIVE = (
    "adastep",
    "teacache",
    "custom",
    "seacache",
    "seacache, line",
    "seacache, latents",
    "seacache, latents, line",
    "magcache",
    "ada_taylor",
    "adacache",
    "first_block",
    "dual_block",
    "dynamic_block",
    "easycache",
)
WINDOWS = "search of blocks and steps"
SLOW = (WINDOWS, *WINDOWED, *ADAPTIVE)
STARTS, INTERVALS = (1, 2, 3, 4, 6, 9, 12), range(2, 15)
BISECTIONS, CLOSE, TOO_FAR = 10, 0.15, 0.75  # the last two in computed steps
LATE = 2.2  # ratio below which windows may start late
BASELINE = "uniform, TaylorSeer-1"


@dataclass(frozen=True)
class Setting:
    """`batch`: prompts that are run together. `mark`: contents of the files that the configurations name. `generations`:
    what was generated to find it, in whole generations; with `once` for all budgets together. `seconds` of the CPU. `own`:
    PSNR on the prompt that was searched on."""

    configs: tuple[CacheConfig, ...]
    batch: int = 8
    mark: str = ""
    generations: float = 0
    once: bool = False
    seconds: float = 0.0
    own: float | None = None


Build = Callable[[int], Setting | None]  # of a budget; None: the method cannot have it


class Methods:
    """All methods by name. What is not asked for is not searched.

    Args:
        folder: of what searches keep.
        tuning: prompts that thresholds are set on.
        evaluations: of the annealing, for each budget.
    """

    def __init__(self, model: TestbedTransformer, steps: int, results: Store, folder: Path, tuning: int, evaluations: int):
        self.model, self.steps, self.folder, self.evaluations = model, steps, folder, evaluations
        self.results, self.tuning, self.blocks = results, tuning, model.config.blocks
        self.costs: dict[str, float] = {}  # CPU seconds
        self._runs: dict[Task, Runs] = {}
        self._recordings: dict[int, tuple[Recording, float]] = {}
        self._graph: Graph | None = None

    def all(self) -> dict[str, Build]:
        """In the order of the table; the baseline first."""
        held, seer = (reused_seer(self.blocks, self.steps, order) for order in (0, 1))
        found: dict[str, Build] = {
            BASELINE: lambda budget: Setting((seer(uniform(self.steps, budget)),)),
            "uniform, line": lambda budget: Setting((self._planned(uniform(self.steps, budget), 0.0),)),
            "plan": lambda budget: self._plan(4, budget),
            "plan, 2 recorded": lambda budget: self._plan(2, budget),
            "plan, 1 recorded": lambda budget: self._plan(1, budget),
            "plan without correction": lambda budget: self._plan(4, budget, correct=False),
            "plan without correction and growth": self._bare,
            "annealing, TaylorSeer-1": lambda budget: self._annealed(budget, seer),
            "annealing, plan's executor": lambda budget: self._annealed(budget, lambda some: self._planned(some, 1.0)),
            "smallest largest gap, reuse": lambda budget: self._path(budget, held),
            "smallest largest gap, TaylorSeer-1": lambda budget: self._path(budget, seer),
            WINDOWS: self._windows,
        }
        known = {family.name: family for family in families(self.steps, self.blocks, str(CALIBRATION_PATH))}
        for name in WINDOWED:
            found[name] = lambda budget, family=known[name]: self._windowed(family, budget)
        for name in ADAPTIVE:
            found[name] = lambda budget, family=known[name]: self._adaptive(family, budget)
        return found

    def runs(self, count: int) -> Runs:
        """Of so many calibration prompts."""
        task = calibration(count, steps=self.steps)
        return self._runs.setdefault(task, Runs(self.model, task, self.results))

    def recording(self, count: int) -> tuple[Recording, float]:
        """Of so many prompts, and the CPU seconds that it took."""
        if count not in self._recordings:
            task, start = calibration(count, steps=self.steps), process_time()
            made = record_testbed(self.model, task.prompts, seeds=task.seeds, steps=self.steps)
            self._recordings[count] = made, process_time() - start
        return self._recordings[count]

    def _plan(self, count: int, budget: int, *, correct: bool = True) -> Setting:
        recording, seconds = self.recording(count)
        start, path = process_time(), self.folder / f"plan-{count}{'' if correct else '-bare'}.json"
        plan: Plan = make_plan(recording, correct=correct)
        planning = process_time() - start
        self.costs[f"recording {count}, s"], self.costs["planning every budget, s"] = round(seconds, 2), round(planning, 3)
        plan.save(path)
        options = {"plan": str(path), "budget": budget}
        config = CacheConfig("plan", 1, self.steps, options=options)
        return Setting((config,), mark=repr(plan.at(budget)), generations=count, once=True, seconds=seconds + planning)

    def _bare(self, budget: int) -> Setting:
        """No error counts more than another one."""
        recording, seconds = self.recording(4)
        schedule = Program(recording.gram, recording.sigmas, 0.0).solve([budget])[budget].steps
        return Setting((self._planned(schedule, 0.0),), generations=4, once=True, seconds=seconds)

    def _planned(self, schedule: Steps, gain: float) -> CacheConfig:
        levels = tuple(self.recording(1)[0].sigmas.tolist())
        return CacheConfig("plan", 1, self.steps, options={"compute_steps": schedule, "sigmas": levels, "gain": gain})

    def _annealed(self, budget: int, config: Callable[[Steps], CacheConfig]) -> Setting:
        schedule, seconds = anneal_generations(self.runs(1), budget, config, self.evaluations)
        own = self.runs(1).measure([config(schedule)]).psnr[0]
        return Setting((config(schedule),), generations=self.evaluations + 1, seconds=seconds, own=own)

    def _path(self, budget: int, config: Callable[[Steps], CacheConfig]) -> Setting:
        graph = self._graph = self._graph or Graph(self.runs(1))
        whole = 1 + graph.forwards / self.steps
        return Setting((config(graph.path(budget)),), generations=whole, once=True, seconds=graph.seconds)

    def _windows(self, budget: int) -> Setting:
        """MindIE-SD's procedure, with intervals as large as the budget needs: see docs/searching.md."""
        folder = self.folder / f"windows-{budget}"
        task, start = calibration(4, steps=self.steps), process_time()
        target = TestbedTarget(self.model, steps=self.steps)
        kept = store.Store(folder, {**target.facts(), "prompts": task.prompts, "seeds": task.seeds})
        evaluator = Evaluator(target, task.prompts, task.seeds, [find("latents")], kept, progress=True)
        goal = Goal(self.steps / (budget + TOO_FAR / 2))
        found = [one for space in self._spaces(goal.ratio) for one in BlockSearch(goal, **space).run(evaluator)]
        chosen = [one.rows[one.chosen] for one in found if one.chosen is not None]
        count = sum(len(path.read_text().splitlines()) for path in folder.glob("evaluations-*.jsonl"))
        seconds = process_time() - start
        config = min(chosen, key=lambda row: row.error).outcome.config
        return Setting((config,), generations=count + len(task.prompts), seconds=seconds)

    def _spaces(self, ratio: float) -> Iterator[dict[str, tuple[int, ...]]]:
        """With and without a computed last step, the three smallest intervals that reach the ratio; also from the usual late
        starts, if that leaves enough to save."""
        work, steps = Work.counted(self.blocks), self.steps
        usual = (0, round(0.1 * steps), round(0.2 * steps))
        for starts in ((0,), usual) if ratio < LATE else ((0,),):
            for stop in (steps, steps - 1):
                windows = [Window(starts[-1], every, stop, 1, self.blocks - 1) for every in range(2, steps)]
                least = next((window.interval for window in windows if work.ratio(window, steps) >= ratio), None)
                if least:
                    yield {"intervals": (least, least + 1, least + 2), "starts": starts, "stops": (stop,)}

    def _windowed(self, family: Family, budget: int) -> Setting | None:
        """The best of the windows with so many computed steps: so many at the beginning, then one in so many."""
        runs = self.runs(self.tuning)
        fitting = [(s, k) for s in STARTS for k in INTERVALS if s + math.ceil((self.steps - 1 - s) / k) + 1 == budget]
        found = {knob: runs.measure(family.build(knob)) for knob in fitting}
        right = [knob for knob in fitting if abs(found[knob].computed - budget) < TOO_FAR]
        if not right:
            return None
        best = max(right, key=lambda knob: sum(found[knob].psnr))
        return Setting(family.build(best), **self._cost([one.seconds for one in found.values()]))

    def _adaptive(self, family: Family, budget: int) -> Setting | None:
        """The threshold with about so many computed steps on the mean. Each prompt is run alone, and decides for itself."""
        assert family.span is not None
        runs, (low, high), seconds = self.runs(self.tuning), family.span, []
        off: dict[float, float] = {}
        for _ in range(BISECTIONS):
            middle = math.sqrt(low * high)
            found = runs.measure(family.build(middle), batch=1)
            seconds.append(found.seconds)
            off[middle] = abs(found.computed - budget)
            if off[middle] < CLOSE:
                break
            low, high = (middle, high) if found.computed > budget else (low, middle)
        best = min(off, key=off.__getitem__)
        return Setting(family.build(best), batch=1, **self._cost(seconds)) if off[best] < TOO_FAR else None

    def _cost(self, seconds: list[float]) -> dict[str, Any]:
        return {"generations": len(seconds) * self.tuning, "seconds": sum(seconds)}
