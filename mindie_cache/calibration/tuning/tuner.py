"""The whole of tuning: record, plan, try the other methods, verify, choose. Everything finished is on disk at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mindie_cache.calibration.planning import Plan, Recording, make_plan
from mindie_cache.calibration.search import scores
from mindie_cache.calibration.search.evaluator import Evaluator, Outcome
from mindie_cache.calibration.search.ranks import Leader, Place
from mindie_cache.calibration.search.store import Store
from mindie_cache.calibration.search.targets import Target
from mindie_cache.calibration.tuning.climb import Climb
from mindie_cache.calibration.tuning.frames import FOLDER, Album
from mindie_cache.calibration.tuning.ladders import PLAN, Ladder, Rung, ladders, spread
from mindie_cache.calibration.tuning.task import Stage, Task, Tuning
from mindie_cache.calibration.tuning.verify import Verification
from mindie_cache.errors import CacheError, ConfigError

STATE, SEARCH, PICTURED = "state", "search", 3
FINALISTS = 4


class Tuner:
    """Tunes a target in a folder.

    Args:
        out: the folder; state of an earlier run with the same target and prompts is gone on from.
        progress: whether to show bars.
        leader: of ranks that hold the model together.
    """

    def __init__(
        self,
        target: Target,
        task: Task,
        out: Path,
        where: Place,
        *,
        progress: bool = False,
        leader: Leader | None = None,
    ):
        self.target, self.task, self.out = target, task, out
        self._end = None if task.minutes is None else time.monotonic() + 60 * task.minutes
        self._album = Album(out / FOLDER, PICTURED if task.frames else 0)
        device = where.device.type
        settings: dict[str, Any] = {"progress": progress, "leader": leader}
        self.searcher = self._evaluator(SEARCH, task.recorded, where.rank, device, **settings)
        self.verifier = self._evaluator("held-out", task.held_out, where.rank, device, watch=self._album.add, **settings)
        self._stages: list[Stage] = []

    def _evaluator(
        self, name: str, prompts: Sequence[tuple[str, int]], rank: int, device: str, **settings: Any
    ) -> Evaluator:
        decoded = ("psnr",) if self.task.frames else ()
        chosen = tuple(dict.fromkeys((*self.task.aim.scores, scores.LATENTS, *decoded, *self.task.scores)))
        texts, seeds = [text for text, _ in prompts], [seed for _, seed in prompts]
        header = {"search": f"tune, {name}", **self.target.facts(), "prompts": texts, "seeds": seeds}
        store = Store(self.out / STATE / name, {**header, "scores": sorted(chosen), "device": device}, rank)
        found = [scores.find(score) for score in chosen]
        return Evaluator(self.target, texts, seeds, found, store, **settings)

    def _is_over(self) -> bool:
        return self._end is not None and time.monotonic() > self._end

    @contextmanager
    def _stage(self, title: str) -> Iterator[None]:
        """Adds to what earlier processes have spent on it."""
        begin, before = time.monotonic(), self._generations
        try:
            yield
        finally:
            store = self.searcher.store
            own = f"stage {title}, rank {store.rank}.json"
            known = store.read(own) or {"seconds": 0.0, "generations": 0}
            seconds = known["seconds"] + time.monotonic() - begin
            store.write(own, {"seconds": seconds, "generations": known["generations"] + self._generations - before})
            parts = [store.read(path.name) or {} for path in store.path.glob(f"stage {title}, rank *.json")]
            now = Stage(title, seconds, sum([part["generations"] for part in parts]))
            self._stages.append(now)

    @property
    def _generations(self) -> int:
        return self.searcher.generations + self.verifier.generations

    def run(self) -> Tuning:
        """All of it; what is on disk already is not done again."""
        notes: list[str] = []
        with self._stage("uncached generations, recorded"):
            recording, plan = self._recorded(notes)
            if not self.searcher.generations and not self.searcher.is_measured:
                self.searcher.warm_up()  # the first generation of a process would be measured as slow
            self.searcher.prepare()
        found, unfit = ladders(self.task.methods, self.searcher, plan, recording)
        notes += unfit
        climb = Climb(self.searcher, self.task.aim, self._is_over)
        with self._stage("search"):
            candidates = climb.candidates(found)
            notes += climb.notes
            if not candidates:
                raise ConfigError("no method of --methods can be tried on this model in this time. " + " ".join(notes))
            outcomes = {} if self._is_over() else self._tried(climb, candidates)
        verification = Verification(self.verifier, self.task.aim, climb.speedup, self._is_over)
        with self._stage("verification on held-out prompts"):
            verification.run(self._finalists(candidates, outcomes), found)
        with self._stage("front of the plan"):
            self._verify_front(verification, found)
        if self._is_over():
            notes.append(f"The {self.task.minutes:g} minutes were over before everything had been tried.")
        notes += verification.notes
        if not verification.found:
            raise ConfigError("no setting could be run on the held-out prompts. " + " ".join(notes))
        if verification.is_short:
            notes.append("Fewer held-out prompts than asked for were run, for want of time.")
        best = verification.best()
        if not math.isfinite(self.task.aim.error(best.scores)):
            raise ConfigError("every setting that was run on the held-out prompts gave NaN or infinity. " + " ".join(notes))
        chosen = best.rung.title
        return Tuning(
            self.task,
            self.target,
            plan,
            outcomes,
            verification,
            chosen,
            self._album,
            self.searcher.profile,
            self._stages,
            notes,
        )

    def _recorded(self, notes: list[str]) -> tuple[Recording | None, Plan | None]:
        """The recordings of all prompts together, and the plan; the generations serve as uncached ones, too."""
        if PLAN not in self.task.methods:
            return None, None
        works: dict[str, Callable[[], Any]] = {
            f"recording-{p}": partial(self._record, p) for p in range(len(self.task.recorded))
        }
        store = self.searcher.store
        try:
            self.searcher.share_out(works, lambda key: store.read(f"{key}.json") is not None, "recording")
        except CacheError as error:
            notes.append(f"{PLAN} was left out: {error}")
            return None, None
        parts = [_read(store.read(f"{key}.json") or {}, store.path / f"{key}.json") for key in works]
        total = sum(parts[1:], start=parts[0])
        self.searcher.check_steps(len(total.sigmas) - 1)
        texts, seeds = zip(*self.task.recorded, strict=True)
        origin = self.target.provenance(texts, seeds)
        return total, make_plan(total, guidance=origin.get("cfg_scale"), provenance=origin)

    def _record(self, prompt: int) -> None:
        values = asdict(self.searcher.record(prompt))
        plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}
        self.searcher.store.write(f"recording-{prompt}.json", plain)

    def _tried(self, climb: Climb, candidates: Mapping[str, Sequence[Rung]]) -> dict[str, tuple[Rung, Outcome, float]]:
        """The candidates on the recorded prompts; poor ones are not run on all of them."""
        running = climb.runs([rung for some in candidates.values() for rung in some])
        rungs = {str(rung.config.to_dict()): rung for rung in running}
        outcomes = self.searcher.run([rung.config for rung in running], "candidates")
        found = {}
        for outcome in outcomes:
            rung = rungs[str(outcome.config.to_dict())]
            found[rung.title] = rung, outcome, climb.speedup(rung, outcome.share)
        return found

    def _finalists(
        self, candidates: Mapping[str, Sequence[Rung]], outcomes: Mapping[str, tuple[Rung, Outcome, float]]
    ) -> dict[str, Rung]:
        """The best rung of each of the best ladders."""

        def rank(rung: Rung) -> tuple[bool, float]:
            _, outcome, speedup = outcomes[rung.title]
            return self.task.aim.rank(speedup, outcome.scores)

        if not outcomes:  # time was over
            return {title: rungs[0] for title, rungs in candidates.items()}
        best: dict[str, Rung] = {}
        for title, rungs in candidates.items():
            known = [rung for rung in rungs if rung.title in outcomes and outcomes[rung.title][1].share < 1]
            if known:
                best[title] = min(known, key=rank)
        ordered = sorted(best, key=lambda title: rank(best[title]))
        if not ordered:
            raise ConfigError("no setting that was tried reuses anything on this model. Try more --methods.")
        return {title: best[title] for title in ordered[:FINALISTS]}

    def _verify_front(self, verification: Verification, found: Sequence[Ladder]) -> None:
        plan = next((ladder for ladder in found if ladder.title == PLAN), None)
        if plan is not None and self.task.front and not self._is_over():
            verification.verify(spread(plan, self.task.front), "front of the plan")


def verified_plan(tuning: Tuning) -> Plan | None:
    """The plan with the errors that were measured on held-out prompts, at the chosen budget if a plan was chosen."""
    if tuning.plan is None:
        return None
    steps = tuning.plan.steps_count
    errors = {title: one.scores[scores.LATENTS] for title, one in tuning.verification.found.items()}
    measured = {title: error for title, error in errors.items() if math.isfinite(error)}
    front = [replace(e, verified=measured.get(f"plan, {e.budget} of {steps}", e.verified)) for e in tuning.plan.front]
    chosen = tuning.verification.found[tuning.chosen].rung
    is_plan = chosen.title.startswith("plan, ")
    budget = len(chosen.config.options.compute_steps) if is_plan else tuning.plan.budget
    return replace(tuning.plan, front=tuple(front), budget=budget)


def _read(values: dict[str, Any], path: Path) -> Recording:
    try:
        return Recording(**{**values, "gram": np.asarray(values["gram"]), "sigmas": np.asarray(values["sigmas"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged: {error}. Move it away, and it is recorded again.") from None
