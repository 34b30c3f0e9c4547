"""A plan: which steps are computed, at every budget, with what it is made for. Plain data in a small JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise, takewhile
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from mindie_cache.calibration import files
from mindie_cache.checks import real
from mindie_cache.errors import ConfigError
from mindie_cache.predictors import Line, Retroactive

KIND = "mindie_cache plan"
STARTS = "experts begin at"  # in the provenance


@dataclass(frozen=True)
class Entry:
    """One budget.

    Args:
        steps: the computed ones.
        gain: of the correction.
        predicted: relative squared error of the final latents, over the recorded prompts: the squares of what gaps leave in
            them, summed with the growth of errors or without, whichever is more, by the squares of the latents. Nothing is
            generated for it, and it is optimistic: up to 32 times too small on the testbed. Take it as a ranking, and as
            no more where a sampler permits no correction: what its steps add up to is not known.
        verified: the same, measured on other prompts, if it was: see `Plan.with_verified`.
    """

    steps: tuple[int, ...]
    gain: float
    predicted: float
    verified: float | None = None

    @property
    def budget(self) -> int:
        return len(self.steps)

    @property
    def error(self) -> float:
        return self.predicted if self.verified is None else self.verified


@dataclass(frozen=True)
class Plan:
    """What was planned.

    Args:
        sigmas: noise level at every step and at the end, one more than steps.
        front: an entry for every budget, the smallest first.
        budget: the chosen one.
        provenance: of what and how it was recorded: model and a checksum of its configuration, prompts,
            guidance scale, scheduler, shift, resolution, versions.
    """

    sigmas: tuple[float, ...]
    front: tuple[Entry, ...]
    budget: int
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps_count(self) -> int:
        return len(self.sigmas) - 1

    @property
    def starts(self) -> tuple[int, ...]:
        """The first step of every expert, such as the two of Wan2.2; 0 for a single model."""
        return tuple(self.provenance.get(STARTS, (0,)))

    @property
    def chosen(self) -> Entry:
        return self.at(self.budget)

    def at(self, budget: int) -> Entry:
        """The entry of a number of computed steps.

        Raises:
            ConfigError: there is none; says which there are.
        """
        found = next((entry for entry in self.front if entry.budget == budget), None)
        if found is None:
            raise ConfigError(f"budget={budget}: the plan has {_spans([e.budget for e in self.front])} computed steps.")
        return found

    def choose(self, *, budget: int | None = None, speedup: float | None = None, max_error: float | None = None) -> Plan:
        """The same plan at another budget.

        Args:
            budget: so many computed steps.
            speedup: at least so many times fewer than all steps, from 1 on: of these budgets the one with the least
                predicted error, which need not be the largest one.
            max_error: the fewest, from which on no budget has a larger relative error of the latents than this one. An error
                is the `verified` one where there is one, and else the `predicted` one, which is optimistic: see `Entry`.

        Raises:
            ConfigError: not one of the three, out of range, or the plan has no such budget.
        """
        targets = {"budget": budget, "speedup": speedup, "max_error": max_error}
        given = [name for name, value in targets.items() if value is not None]
        if len(given) != 1:
            raise ConfigError(f"choose: got {' and '.join(given) or 'no target'}. Give one of budget, speedup, max_error.")
        if budget is not None:
            return replace(self, budget=self.at(budget).budget)
        found = None
        if speedup is not None:
            found = self._as_fast(speedup)
        elif max_error is not None:
            found = self._as_close(max_error)
        if found is None:
            best = min(entry.error for entry in self.front)
            raise ConfigError(
                f"No budget of the plan reaches {given[0]}={targets[given[0]]}. It has {self.front[0].budget} of "
                f"{self.steps_count} computed steps at the least, and an error of {best:.2e} at best."
            )
        return replace(self, budget=found.budget)

    def _as_fast(self, speedup: float) -> Entry | None:
        real("speedup", speedup, 1.0, None)
        allowed = [entry for entry in self.front if entry.budget * speedup <= self.steps_count]
        return min(reversed(allowed), key=lambda entry: entry.predicted, default=None)

    def _as_close(self, max_error: float) -> Entry | None:
        real("max_error", max_error, 0.0, None)
        fine = list(takewhile(lambda entry: entry.error <= max_error, reversed(self.front)))
        return fine[-1] if fine else None

    def with_verified(self, errors: Mapping[int, float]) -> Plan:
        """The same plan with relative errors that were measured, by number of computed steps.

        Raises:
            ConfigError: the plan has no schedule with so many steps, or an error is no number from 0 on.
        """
        for budget, error in errors.items():
            self.at(budget)
            real(f"verified error of {budget} computed steps", error, 0.0, None)
        front = tuple(replace(entry, verified=errors.get(entry.budget, entry.verified)) for entry in self.front)
        return replace(self, front=front)

    def for_steps(self, steps_count: int) -> Plan:
        """The plan for another number of steps, an estimate: the computed steps at the same places, by index, the last one
        included; noise levels between the recorded ones, and an expert begins where they are as at its first step before."""
        if steps_count == self.steps_count:
            return self
        turns = {step: min(steps_count - 1, round(step * steps_count / self.steps_count)) for step in self.starts}
        entries = [
            replace(e, steps=_moved(e.steps, self.steps_count, steps_count, turns), verified=None) for e in self.front
        ]
        by_budget = {entry.budget: entry for entry in entries}
        scaled = round(self.budget * steps_count / self.steps_count)
        nearest = min(by_budget, key=lambda budget: abs(budget - scaled))
        places = np.linspace(0, self.steps_count, steps_count + 1)
        sigmas = tuple(np.interp(places, range(self.steps_count + 1), self.sigmas).tolist())
        noted = dict(self.provenance)
        if STARTS in noted:
            noted[STARTS] = sorted(set(turns.values()))
        front = tuple(by_budget[b] for b in sorted(by_budget))
        return replace(self, sigmas=sigmas, front=front, budget=nearest, provenance=noted)

    def weights(self) -> dict[str, dict[str, float]]:
        """Of the chosen schedule: for each estimated step, by which factors the outputs of which computed steps are summed;
        for each step that corrects, of which share of the observed difference it is corrected. For other programs; `load`
        does not read them, since they follow from the rest. Nothing goes from one expert to the next."""
        line, corrector = Line(self.sigmas), Retroactive(self.sigmas, self.chosen.gain)
        found: dict[str, dict[str, float]] = {}
        known: tuple[int, ...] = ()
        for step in range(self.steps_count):
            known = () if step in self.starts else known
            if step in self.chosen.steps:
                factor = corrector.factor(known, step) if known else 0.0
                if factor:
                    found[str(step)] = {"correction": factor}
                known = (*known, step)[-line.depth :]
            else:
                found[str(step)] = dict(zip(map(str, known), line.weights(known, step), strict=True))
        return found

    def save(self, path: str | PathLike[str]) -> None:
        """Write it, whole or not at all."""
        document = {
            "kind": KIND,
            "version": 1,
            "budget": self.budget,
            "compute_steps": self.chosen.steps,
            "gain": self.chosen.gain,
            "weights": self.weights(),
            "sigmas": self.sigmas,
            "provenance": dict(self.provenance),
            "front": [asdict(entry) for entry in self.front],
        }
        files.write(path, document)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Plan:
        """Read a plan.

        Raises:
            ConfigError: it cannot be read, or is none; says what is wrong.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"plan {str(path)!r} cannot be read: {error.strerror}. Give the path of a plan file."
            ) from None
        except ValueError as error:
            raise ConfigError(f"plan {str(path)!r} is no JSON: {error}") from None
        if not isinstance(document, Mapping) or document.get("kind") != KIND:
            raise ConfigError(f'{str(path)!r} is no plan: its "kind" is not {KIND!r}. Plan.save(path) writes plans.')
        try:
            return cls(
                sigmas=tuple(float(sigma) for sigma in document["sigmas"]),
                front=tuple(_entry(entry) for entry in document["front"]),
                budget=int(document["budget"]),
                provenance=document.get("provenance", {}),
            ).checked()
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"plan {str(path)!r} is damaged: {type(error).__name__}: {error}. Make it again.") from None

    def checked(self) -> Plan:
        """Itself, if it can be executed."""
        count = self.steps_count
        for entry in self.front:
            steps = entry.steps
            rises = all(before < after for before, after in pairwise(steps))
            if not steps or steps[0] != 0 or steps[-1] != count - 1 or not rises:
                raise ConfigError(f"compute_steps={list(steps)} must rise from 0 to the last step, {count - 1}.")
        if not all(before > after for before, after in pairwise(self.sigmas)):
            raise ConfigError("sigmas must fall from step to step.")
        self.at(self.budget)
        return self


def _entry(values: Mapping[str, Any]) -> Entry:
    known = {one.name for one in fields(Entry)}
    return Entry(**{**{name: value for name, value in values.items() if name in known}, "steps": tuple(values["steps"])})


def _moved(steps: Sequence[int], before: int, now: int, turns: Mapping[int, int]) -> tuple[int, ...]:
    """Index quantiles: t (now - 1) / (before - 1), rounded to different steps; the first and the last stay. Steps in
    `turns` go where that says."""
    places = {turns.get(step, round(step * (now - 1) / max(1, before - 1))) for step in steps}
    return tuple(sorted(places | {0, now - 1}))


def _spans(numbers: Sequence[int]) -> str:
    """ "2 to 9 and 12" """
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return " and ".join(str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts)
