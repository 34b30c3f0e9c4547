"""`mindie-cache calibrate`: its arguments as a calibration of the testbed or of a pipeline. Prints nothing."""

from __future__ import annotations

import argparse

from mindie_cache import device, testbed
from mindie_cache.calibration import Calibration, files, loading
from mindie_cache.calibration.pipeline import PipelineCalibration
from mindie_cache.calibration.testbed import DEFAULT_PROMPTS, TestbedCalibration
from mindie_cache.errors import ConfigError

_PIPELINE_ONLY = (
    *("name", "dtype", "offload", "prompt_file", "negative_prompt", "height", "width", "frames"),
    *("image", "call", "signal"),
)


def of_testbed(arguments: argparse.Namespace) -> Calibration:
    """The small model of this package.

    Raises:
        ConfigError: an argument is for pipelines, or out of range.
    """
    misplaced = [name for name in _PIPELINE_ONLY if getattr(arguments, name)]
    if misplaced:
        flag = misplaced[0].replace("_", "-")
        raise ConfigError(f"--{flag} is for a pipeline, but this measures the testbed. Add --model or --pipeline.")
    given = {name: getattr(arguments, name) for name in ("steps", "shift", "guidance")}
    run = TestbedCalibration(
        out=arguments.out,
        prompts=tuple(arguments.prompt or DEFAULT_PROMPTS),
        seeds=tuple(arguments.seed or (0,)),
        format=arguments.format,
        **{name: value for name, value in given.items() if value is not None},
    )
    return run.run(testbed.load_testbed(device.resolve(arguments.device)), progress=True)


def of_pipeline(arguments: argparse.Namespace) -> Calibration:
    """A pipeline of diffusers.

    Raises:
        ConfigError: it cannot be loaded, or an argument does not fit it.
    """
    files.prepare(arguments.out)
    prompts = [*(arguments.prompt or ()), *(loading.lines(arguments.prompt_file) if arguments.prompt_file else ())]
    call = loading.assignments(arguments.call or ())
    sizes = {"height": arguments.height, "width": arguments.width, "num_frames": arguments.frames}
    sizes["negative_prompt"] = arguments.negative_prompt
    sizes["image"] = loading.pictures(arguments.image) if arguments.image else None
    where = device.resolve(arguments.device)
    if arguments.model:
        loaded = loading.from_pretrained(arguments.model, where, arguments.dtype, arguments.offload)
    elif arguments.dtype:
        raise ConfigError("--dtype is for --model: the function of --pipeline chooses the dtype itself. Leave it out.")
    else:
        loaded = loading.from_file(arguments.pipeline, where, arguments.offload)
    run = PipelineCalibration(
        name=arguments.name or loaded.name,
        steps=arguments.steps,
        prompts=tuple(prompts),
        seeds=tuple(arguments.seed or (0,)),
        call={**loaded.call, **{name: value for name, value in sizes.items() if value is not None}, **call},
        shift=arguments.shift,
        guidance=arguments.guidance,
        out=arguments.out,
        format=arguments.format,
        signal=arguments.signal,
    )
    return run.run(loaded.pipe, progress=True)
