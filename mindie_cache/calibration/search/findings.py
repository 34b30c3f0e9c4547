"""What a search has found: every setting with its costs and errors, the front, the chosen one. Writes it, and shows it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindie_cache import CacheConfig
from mindie_cache.calibration import files
from mindie_cache.calibration.search.cost import ratio_of_shares
from mindie_cache.calibration.search.evaluator import Evaluator, Outcome
from mindie_cache.calibration.search.pareto import choose, front
from mindie_cache.calibration.search.profile import Profile
from mindie_cache.doctor import versions
from mindie_cache.errors import ConfigError
from mindie_cache.methods.base import NO_END
from mindie_cache.recipes import METHODS

COSTS = ("calls", "time", "seconds")
RESULTS = "results.json"
_SHOWN = {"psnr": "-psnr", "ssim": "1-ssim"}  # every score is an error


@dataclass(frozen=True)
class Goal:
    """What is asked for.

    Args:
        ratio: times cheaper than uncached, at least.
        most_error: instead, the cheapest setting with at most this error.
        cost: what the ratio is of: "calls" (blocks, attentions, forwards), "time" (end to end, from the measured times of
            blocks), or "seconds" (measured in each evaluation).
    """

    ratio: float
    most_error: float | None = None
    cost: str = "calls"


@dataclass(frozen=True)
class Row:
    """A setting, its error (the first score), and how many times cheaper it is by each cost."""

    outcome: Outcome
    error: float
    ratios: Mapping[str, float]


@dataclass(frozen=True)
class Findings:
    """Rows in the order of evaluation; `front`: indices by falling ratio; `chosen`: one of them, or None."""

    name: str
    goal: Goal
    rows: tuple[Row, ...]
    front: tuple[int, ...]
    chosen: int | None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> CacheConfig | None:
        return None if self.chosen is None else self.rows[self.chosen].outcome.config


def conclude(
    name: str, evaluator: Evaluator, outcomes: Sequence[Outcome], goal: Goal, facts: Mapping[str, Any] | None = None
) -> Findings:
    """Rows, front and choice. Of outcomes with the same setting one is kept."""
    profile, score = evaluator.profile, evaluator.scores[0].name
    seconds = sum(evaluator.uncached(p).seconds for p in range(len(evaluator.prompts))) / len(evaluator.prompts)
    different = {str(one.config.to_dict()): one for one in outcomes}.values()
    rows = tuple([Row(one, one.scores[score], _ratios(one, profile, seconds)) for one in different])
    points = [(1 / row.ratios[goal.cost], row.error) for row in rows]
    chosen = choose(points, most_cost=1 / goal.ratio, most_error=goal.most_error)
    return Findings(name, goal, rows, tuple(front(points)), chosen, {"seconds_uncached": seconds, **(facts or {})})


def _ratios(outcome: Outcome, profile: Profile, seconds: float) -> dict[str, float]:
    return {
        "calls": round(1 / max(outcome.share, 1e-9), 9),  # shares are quotients of counts: rounding is all that differs
        "time": ratio_of_shares(outcome.share, part_of(outcome.config, profile)),
        "seconds": seconds / outcome.seconds,
    }


def part_of(config: CacheConfig, profile: Profile) -> float:
    """The share of a step's time that a setting works on: what its skipped calls save at most."""
    config = config.validated()
    unit = METHODS[config.method].build(config).unit
    if unit == "forward":
        part = 1 - profile.outside_ms / profile.work.step
    elif unit == "block":
        part = sum(profile.block_ms) / profile.work.step
        if config.method == "dit_block_cache":  # which blocks are saved is known: they may cost more than others
            span = sum(profile.block_ms[config.block_start : config.block_end])
            count = len(profile.block_ms[config.block_start : config.block_end])
            part = span * len(profile.block_ms) / (count * profile.work.step)
    else:
        part = profile.attention_share
    return part


def write(evaluator: Evaluator, found: Sequence[Findings]) -> list[Path]:
    """Each chosen setting as YAML, and everything as JSON; in the folder of the search.

    Returns:
        The files.
    """
    store = evaluator.store
    written = []
    for one in found:
        path = store.path / f"{one.name}.yaml"
        if one.config is not None:
            files.write_text(path, one.config.to_yaml())
            written.append(path)
        elif path.exists():  # of a run with another goal
            path.unlink()
    document: dict[str, Any] = {"versions": versions(), "profile": evaluator.profile.to_dict()}
    for one in found:
        document[one.name] = _plain(one)
    store.write(RESULTS, document)
    return [*written, store.path / RESULTS]


def _plain(found: Findings) -> dict[str, Any]:
    def row(index: int) -> dict[str, Any]:
        entry = found.rows[index]
        scores = {name: value if math.isfinite(value) else None for name, value in entry.outcome.scores.items()}
        return {
            "config": entry.outcome.config.to_dict(),
            "scores": scores,
            "share_computed": entry.outcome.share,
            "seconds": entry.outcome.seconds,
            "ratios": dict(entry.ratios),
            "notes": list(entry.outcome.notes),
        }

    return {
        "goal": {"ratio": found.goal.ratio, "most_error": found.goal.most_error, "cost": found.goal.cost},
        "facts": dict(found.facts),
        "chosen": None if found.chosen is None else row(found.chosen),
        "front": [row(index) for index in found.front],
        "all": [row(index) for index in range(len(found.rows))],
    }


def table(found: Findings, most_rows: int = 20) -> str:
    """The front, cheapest first, with the chosen setting marked; what is missing is said."""
    shown = list(found.front)
    if found.chosen is not None and found.chosen not in shown:
        shown.append(found.chosen)
    if len(shown) > most_rows:
        near = sorted(shown, key=lambda i: abs(math.log(found.rows[i].ratios[found.goal.cost] / found.goal.ratio)))
        keep = {*near[:most_rows], found.chosen}
        shown = [index for index in shown if index in keep]
    if not found.rows:
        raise ConfigError("no setting was evaluated on all prompts. Use more --trials.")
    names = list(found.rows[0].outcome.scores)
    head = ["", "calls", "time", "seconds", *[_SHOWN.get(name, name) for name in names], "setting"]
    lines = [head]
    for index in shown:
        row = found.rows[index]
        ratios = [f"{row.ratios[kind]:.3f}x" for kind in ("calls", "time")]
        scores = [f"{row.outcome.scores[name]:.3g}" for name in names]
        mark = "*" if index == found.chosen else ""
        lines.append([mark, *ratios, f"{row.outcome.seconds:.2f}", *scores, words(row.outcome.config)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = "\n".join(
        "  ".join([line[0].ljust(1), *[cell.rjust(w) for cell, w in zip(line[1:-1], widths[1:-1], strict=True)], line[-1]])
        for line in lines
    )
    title = f"{found.name}: {len(found.rows)} settings on all prompts, {len(found.front)} on the Pareto front; "
    title += f"uncached {found.facts['seconds_uncached']:.2f} s"
    if found.chosen is not None:
        return f"{title}; * chosen\n{text}"
    goal = found.goal
    wanted = f"an error of at most {goal.most_error}" if goal.most_error is not None else f"{goal.cost} {goal.ratio}x"
    return f"{title}; none has {wanted}\n{text}"


def words(config: CacheConfig) -> str:
    """A setting in a few words: fields and options that are not at their defaults."""
    values = config.to_dict()
    parts = []
    if "step_interval" in values:
        end = "" if config.step_end == NO_END else f" to {config.step_end}"
        parts.append(f"steps {config.step_start}{end} every {config.step_interval}")
    if "block_start" in values or "block_end" in values:
        parts.append(f"blocks {config.block_start} to {config.block_end if config.block_end != NO_END else 'the last'}")
    for name, value in values.get("options", {}).items():
        parts.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(parts) or config.method
