"""What is to be tuned, and what was found."""

from __future__ import annotations

from dataclasses import dataclass, field

from mindie_cache.calibration.planning import Plan
from mindie_cache.calibration.search.evaluator import Outcome
from mindie_cache.calibration.search.profile import Profile
from mindie_cache.calibration.search.targets import Target
from mindie_cache.calibration.tuning.aim import Aim
from mindie_cache.calibration.tuning.frames import Album
from mindie_cache.calibration.tuning.ladders import Rung
from mindie_cache.calibration.tuning.verify import Verification


@dataclass(frozen=True)
class Task:
    """What to tune, and how.

    Args:
        recorded: prompts (text, seed) that are recorded, and that settings are chosen on.
        held_out: prompts that only finalists are run on.
        methods: see `ladders`.
        front: budgets of the plan, beside the finalists, that are verified too.
        minutes: after so many no further setting is begun; what is found is verified.
        frames: whether latents are decoded, for PSNR and pictures; the time that it takes is part of all times then.
        scores: further ones that are written down.
    """

    aim: Aim
    recorded: tuple[tuple[str, int], ...]
    held_out: tuple[tuple[str, int], ...]
    methods: tuple[str, ...]
    front: int = 4
    minutes: float | None = None
    frames: bool = True
    scores: tuple[str, ...] = ()


@dataclass
class Stage:
    """A part of the work: its seconds and generations."""

    title: str
    seconds: float
    generations: int


@dataclass
class Tuning:
    """What was found. `verified` and `outcomes` hold every setting that was run; `chosen` is a key of `verified`."""

    task: Task
    target: Target
    plan: Plan | None
    outcomes: dict[str, tuple[Rung, Outcome, float]]  # by title; with the speed-up by counted work
    verification: Verification
    chosen: str
    album: Album
    profile: Profile
    stages: list[Stage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
