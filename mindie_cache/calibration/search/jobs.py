"""What a process of a search or of tuning has to do, by its command line: the model, and its place among the ranks."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mindie_cache import testbed
from mindie_cache.calibration import loading
from mindie_cache.calibration.facts import default_of
from mindie_cache.calibration.search.ranks import Leader, Place, agree_on, follow, place, together
from mindie_cache.calibration.search.targets import PipelineTarget, Target, TestbedTarget, UserTarget
from mindie_cache.checks import whole
from mindie_cache.errors import ConfigError

USER_STEPS = 30
_PIPELINE_ONLY = ("dtype", "offload", "negative_prompt", "height", "width", "frames", "image", "call")


class Job(NamedTuple):
    """What this process has to do: `where`, on which `target`; with a `leader` if others hold the model with it."""

    where: Place
    target: Target
    leader: Leader | None


@contextmanager
def joined(options: argparse.Namespace, folder: Path) -> Iterator[Job | None]:
    """The model, on the ranks there are. None on a rank that has followed another one, and has nothing left to do."""
    where = place(options.device)
    with ExitStack() as stack:
        if not options.sharded:
            agree_on(folder, where)
            yield Job(where, target_of(options, where), None)
            return
        stack.enter_context(together(where))
        target = target_of(options, where)
        if where.rank:
            follow(target)
            yield None
            return
        leader = Leader()
        stack.callback(leader.end)
        yield Job(Place(0, 1, where.device), target, leader)


def target_of(options: argparse.Namespace, where: Place) -> Target:
    """The model that the arguments name.

    Raises:
        ConfigError: it cannot be loaded, or an argument is for another kind of target.
    """
    misplaced = [name for name in _PIPELINE_ONLY if getattr(options, name)]
    if misplaced and not options.pipeline:
        raise ConfigError(f"--{misplaced[0].replace('_', '-')} is for a pipeline. Name one, or leave it out.")
    if options.pipeline:
        return _pipeline(options, where)
    if options.model_file:
        for name in ("guidance", "shift"):
            if getattr(options, name) is not None:
                raise ConfigError(
                    f"--{name}: {options.model_file} decides about it, in its function generate. Leave it out."
                )
        return UserTarget.load(options.model_file, options.steps or USER_STEPS, where.device, options.blocks)
    given: dict[str, Any] = {name: getattr(options, name) for name in ("steps", "shift", "guidance")}
    target = TestbedTarget(
        testbed.load_testbed(where.device), **{name: value for name, value in given.items() if value is not None}
    )
    whole("--steps", target.steps, 4)
    return target


def _pipeline(options: argparse.Namespace, where: Place) -> PipelineTarget:
    sizes: dict[str, Any] = {"height": options.height, "width": options.width, "num_frames": options.frames}
    sizes["negative_prompt"] = options.negative_prompt
    sizes["image"] = loading.pictures(options.image) if options.image else None
    call = loading.assignments(options.call or ())
    if ".py:" in options.pipeline:
        if options.dtype:
            raise ConfigError("--dtype is for a folder: the function of --pipeline chooses the dtype itself. Leave it out.")
        loaded = loading.from_file(options.pipeline, where.device, options.offload)
    else:
        loaded = loading.from_pretrained(options.pipeline, where.device, options.dtype, options.offload)
    call = {**loaded.call, **{name: value for name, value in sizes.items() if value is not None}, **call}
    for name in ("prompt", "generator", "output_type"):
        call.pop(name, None)
    own = call.pop("num_inference_steps", None)
    steps = options.steps or own or default_of(loaded.pipe, "num_inference_steps")
    return PipelineTarget(
        loaded.pipe,
        loaded.name,
        steps,
        where.device,
        call,
        options.shift,
        options.guidance,
        options.blocks,
    )
