"""`mindie-cache tune`: its arguments as a target and a task."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from mindie_cache.calibration.search.jobs import Job, joined
from mindie_cache.calibration.search.targets import PipelineTarget, Target, UserTarget
from mindie_cache.calibration.tuning import ladders, prompts, results
from mindie_cache.calibration.tuning.aim import MAX_ERROR, MIN_PSNR, SPEEDUP, Aim
from mindie_cache.calibration.tuning.arguments import DEFAULT_SPEEDUP, TESTBED
from mindie_cache.calibration.tuning.task import Task
from mindie_cache.calibration.tuning.tuner import SEARCH, STATE, Tuner
from mindie_cache.checks import real, whole
from mindie_cache.errors import ConfigError


def run(options: argparse.Namespace) -> str:
    """Tune, and write the files.

    Returns:
        What was found, to be printed; of ranks but the first nothing.
    """
    aim = _aim(options)
    for name, least in (("recorded", 1), ("front", 0), ("seed", 0)):
        whole(f"--{name}", getattr(options, name), least)
    if options.held_out is not None:
        whole("--held-out", options.held_out, 2)
    if options.budget_minutes is not None:
        real("--budget-minutes", options.budget_minutes, 0.0, None)
    ladders.check_methods(options.methods)
    if options.prompts is not None and not options.prompts.is_file():
        raise ConfigError(f"--prompts {options.prompts}: there is no such file. Give a text with one prompt a line.")
    _refuse_strangers(options.out)  # now, before another rank fills the folder
    with joined(_with_source(options), options.out) as job:
        return "" if job is None else _tuned(options, aim, job)


def _tuned(options: argparse.Namespace, aim: Aim, job: Job) -> str:
    where, target, leader = job
    whole("--steps", target.steps, 4)
    recorded, held_out = prompts.draw(target, options.prompts, options.recorded, options.held_out, options.seed)
    task = Task(
        aim=aim,
        recorded=recorded,
        held_out=held_out,
        methods=tuple(options.methods),
        front=options.front,
        minutes=options.budget_minutes,
        frames=_shows_frames(target, aim) and (aim.kind == MIN_PSNR or not options.no_pictures),
        scores=tuple(options.score or ()),
    )
    tuning = Tuner(target, task, options.out, where, progress=where.rank == 0, leader=leader).run()
    if where.rank:
        return ""
    written = results.write(tuning, options.out, _typed())
    return f"{results.summary(tuning)}\n\nwritten: {', '.join(map(str, written))}"


def _refuse_strangers(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file. Name a folder.")
    strangers = sorted(one.name for one in out.iterdir() if not one.name.startswith(".")) if out.exists() else []
    if strangers and not (out / STATE / SEARCH).is_dir():
        raise ConfigError(
            f"--out {out} is not empty and holds no tuning (it has {', '.join(strangers[:3])}, but no {STATE}/{SEARCH}). "
            "Nothing was changed. Choose another folder."
        )


def _aim(options: argparse.Namespace) -> Aim:
    if options.max_error is not None:
        return Aim(MAX_ERROR, options.max_error)
    if options.min_psnr is not None:
        return Aim(MIN_PSNR, options.min_psnr)
    return Aim(SPEEDUP, DEFAULT_SPEEDUP if options.target_speedup is None else options.target_speedup)


def _with_source(options: argparse.Namespace) -> argparse.Namespace:
    """--model as the searches name it."""
    given = dict(vars(options))
    model: str = given.pop("model")
    source: dict[str, Any] = {"pipeline": None, "model_file": None}
    if model.endswith(".py"):
        source["model_file"] = Path(model)
    elif model != TESTBED:
        source["pipeline"] = model
    return argparse.Namespace(**given, **source)


def _shows_frames(target: Target, aim: Aim) -> bool:
    """Whether latents and frames can be had of one generation."""
    if isinstance(target, UserTarget):
        shows = callable(getattr(target.module, "decode", None))
    else:
        shows = not isinstance(target, PipelineTarget) or target.gives_both
    if aim.kind == MIN_PSNR and not shows:
        raise ConfigError(
            "--min-psnr needs frames beside latents, which this model does not give: its pipeline has no "
            "callback_on_step_end, or its file no decode(pipe, latents). Use --max-error or --target-speedup."
        )
    return shows


def _typed() -> str:
    return shlex.join(["mindie-cache", *sys.argv[1:]])
