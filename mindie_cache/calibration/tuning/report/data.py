"""What a report is made of: the results of a tuning, checked once. Unknown keys are left alone; what is missing is None or
empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mindie_cache.calibration.tuning.report.fields import Fields
from mindie_cache.errors import ConfigError

KIND = "mindie_cache tuning"
VERSION = 1
HELD_OUT = "held out"
STAGES = "search", HELD_OUT


@dataclass(frozen=True)
class Goal:
    """`kind`: "speedup", "max_error" or "min_psnr"."""

    kind: str
    value: float


@dataclass(frozen=True)
class Prompt:
    text: str
    seed: float | None
    use: str


@dataclass(frozen=True)
class OnPrompt:
    """One generation; `prompt` is an index."""

    prompt: int
    scores: Mapping[str, float]
    seconds: float | None
    share: float | None


@dataclass(frozen=True)
class Branch:
    """The steps that are `computed` for one branch of guidance."""

    name: str
    computed: frozenset[int]


@dataclass(frozen=True)
class Frames:
    """Names of pictures of one prompt; None: there is none."""

    prompt: int
    uncached: str | None
    cached: str | None
    difference: str | None
    amplified: float | None


@dataclass(frozen=True)
class Candidate:
    """A setting that was run. Scores and seconds are means over prompts; `estimate`: times faster by counted work; `family`:
    what looks alike in plots, the method if nothing else is said."""

    title: str
    method: str
    family: str
    held_out: bool
    config: Mapping[str, Any]
    share: float | None
    seconds: float | None
    speedup: float | None
    estimate: float | None
    scores: Mapping[str, float]
    prompts: tuple[OnPrompt, ...]
    predicted: float | None
    on_front: bool
    notes: tuple[str, ...]
    schedule: tuple[Branch, ...]
    frames: tuple[Frames, ...]


@dataclass(frozen=True)
class Budget:
    """A number of computed steps of the plan, and the relative errors of the latents."""

    budget: int
    predicted: float | None
    verified: float | None


@dataclass(frozen=True)
class Stage:
    title: str
    seconds: float | None
    generations: float | None


@dataclass(frozen=True)
class Results:
    """Everything that a report shows. `chosen`: an index into `candidates`, of one on held-out prompts."""

    candidates: tuple[Candidate, ...]
    chosen: int | None
    goal: Goal | None
    met: bool | None
    prompts: tuple[Prompt, ...]
    uncached_seconds: float | None
    sigmas: tuple[float, ...]
    steps: int
    why: tuple[str, ...]
    warnings: tuple[str, ...]
    budgets: tuple[Budget, ...]
    stages: tuple[Stage, ...]
    command: str = ""
    date: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)

    @property
    def choice(self) -> Candidate | None:
        return None if self.chosen is None else self.candidates[self.chosen]

    @property
    def finalists(self) -> tuple[int, ...]:
        """Indices of what was run on held-out prompts, the chosen one first."""
        found = [index for index, one in enumerate(self.candidates) if one.held_out]
        return tuple(sorted(found, key=lambda index: index != self.chosen))

    @property
    def families(self) -> tuple[str, ...]:
        """That of the chosen candidate, then the others as they come."""
        first = [self.choice] if self.choice else []
        return tuple(dict.fromkeys(one.family for one in [*first, *self.candidates]))

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of scores, in the order in which they are shown."""
        return tuple(dict.fromkeys(name for one in self.candidates for name in one.scores))


def read(results: Mapping[str, Any]) -> Results:
    """Check `results`, plain JSON.

    Raises:
        ConfigError: they are not of a tuning, or damaged; says where.
    """
    if not isinstance(results, Mapping) or results.get("kind") != KIND:
        raise ConfigError(
            f'These are no results of a tuning: "kind" is not {KIND!r}. `mindie-cache tune` writes such a file.'
        )
    if results.get("version", VERSION) != VERSION:
        raise ConfigError(
            f"The results have version {results['version']!r}, but this package reads {VERSION}. "
            "Use the package that wrote them."
        )
    top = Fields(results, "results")
    prompts = tuple(Prompt(one.text("text"), one.number("seed"), one.text("use")) for one in top.many("prompts"))
    uncached = top.part("uncached")
    sigmas = tuple(uncached.numbers("sigmas"))
    entries = top.many("candidates", required=True)
    steps = _steps(top, sigmas, entries)
    candidates = tuple(_candidate(one, len(prompts), steps) for one in entries)
    chosen = top.index("chosen", len(candidates))
    if chosen is not None and not candidates[chosen].held_out:
        raise ConfigError(f'results.chosen={chosen} is no candidate of the stage "{HELD_OUT}". Choose one of those.')
    goal = top.part("goal")
    value = goal.number("value")
    return Results(
        candidates=candidates,
        chosen=chosen,
        goal=None if value is None else Goal(goal.text("kind"), value),
        met=top.flag("met"),
        prompts=prompts,
        uncached_seconds=uncached.number("seconds"),
        sigmas=sigmas,
        steps=steps,
        why=top.texts("why"),
        warnings=top.texts("warnings"),
        budgets=tuple(_budget(one) for one in top.part("plan").many("front")),
        stages=tuple(Stage(s.text("title"), s.number("seconds"), s.number("generations")) for s in top.many("stages")),
        command=top.text("command"),
        date=top.text("date"),
        environment=top.part("environment").values,
        model=top.part("model").values,
    )


def _steps(top: Fields, sigmas: Sequence[float], candidates: Sequence[Fields]) -> int:
    """How many steps a generation has, by the first that says so; 0: nothing does."""
    said = [top.part("model").whole("steps"), len(sigmas) - 1 if sigmas else None]
    said += [one.part("config").whole("steps_count") for one in candidates]
    steps = next((count for count in said if count), 0)
    if sigmas and len(sigmas) != steps + 1:
        raise ConfigError(f"results.uncached.sigmas has {len(sigmas)} noise levels. {steps} steps have {steps + 1}.")
    return steps


def _candidate(one: Fields, prompts: int, steps: int) -> Candidate:
    stage = one.text("stage")
    if stage not in STAGES:
        raise ConfigError(f"{one.where}.stage={stage!r} is not known. It is one of {', '.join(map(repr, STAGES))}.")
    return Candidate(
        title=one.text("title", required=True),
        method=one.text("method", required=True),
        family=one.text("family") or one.text("method"),
        held_out=stage == HELD_OUT,
        config=one.part("config").values,
        share=one.number("share"),
        seconds=one.number("seconds"),
        speedup=one.number("speedup"),
        estimate=one.number("estimate"),
        scores=one.scores(),
        prompts=tuple(_on_prompt(each, prompts) for each in one.many("prompts")),
        predicted=one.number("predicted"),
        on_front=bool(one.flag("on_front")),
        notes=one.texts("notes"),
        schedule=tuple(_branch(each, steps) for each in one.many("schedule")),
        frames=tuple(_frames(each, prompts) for each in one.many("pictures")),
    )


def _on_prompt(one: Fields, prompts: int) -> OnPrompt:
    return OnPrompt(one.index("prompt", prompts, required=True), one.scores(), one.number("seconds"), one.number("share"))


def _branch(one: Fields, steps: int) -> Branch:
    computed = one.numbers("computed")
    if not all(step in range(steps) for step in computed):
        raise ConfigError(f"{one.where}.computed={computed} must be steps from 0 to {steps - 1}.")
    return Branch(one.text("branch"), frozenset(int(step) for step in computed))


def _frames(one: Fields, prompts: int) -> Frames:
    names = {name: one.text(name) or None for name in ("uncached", "cached", "difference")}
    return Frames(one.index("prompt", prompts, required=True), amplified=one.number("amplified"), **names)


def _budget(one: Fields) -> Budget:
    budget = one.whole("budget")
    if not budget:
        raise ConfigError(f"{one.where}.budget is missing or no whole number above 0.")
    return Budget(budget, one.number("predicted"), one.number("verified"))
