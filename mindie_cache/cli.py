"""`mindie-cache`: turns arguments into calls and errors into one line. Owns no behaviour of its own."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mindie_cache.calibration.arguments import add_call
from mindie_cache.calibration.tuning import arguments as tuning
from mindie_cache.errors import CacheError
from mindie_cache.version import __version__

EXIT_OK, EXIT_USER_ERROR, EXIT_INTERRUPTED, EXIT_PIPE_CLOSED = 0, 2, 130, 141

_DEMO_TEXT = """\
Generate the same prompts with the same seeds without a cache and with every caching method at several strengths, and
compare speed and likeness. It runs a small text-to-video transformer that is part of the package, on any device.

It prints a table and writes to the folder given by --out:
  contact_sheet.png  a frame of every video beside its difference to the uncached one
  demo.gif           all videos, moving
  results.json       every measurement, with versions, machine and arguments"""
_DEMO_EXAMPLES = """\
prompts are sentences "a <colour> <shape> moving <direction>":
  colours     red green blue yellow magenta cyan
  shapes      square circle triangle cross
  directions  left right up down

examples:
  mindie-cache demo
  mindie-cache demo --prompt "a cyan cross moving up" --seed 7
  mindie-cache demo --steps 50 --repeats 8        more steps, steadier timings
  mindie-cache demo --config mine.yaml            your settings beside the others
  mindie-cache demo --config a.yaml --config b.json --only-config
  mindie-cache demo --device cuda:1 --out out/gpu

a configuration file holds the fields of a CacheConfig. For this model and 30 steps:
  method: dit_block_cache    # or attention_cache, or adastep (then blocks_count: 1)
  blocks_count: 12
  steps_count: 30
  step_start: 4              # the first steps shape the picture: compute them all
  step_interval: 2           # then compute every 2nd step
  step_end: 29               # and the last one"""
_DOCTOR_TEXT = """\
Say what is installed, which devices can be used, why others cannot, and which implementation of each op runs on them.
Nothing is changed. The exit code is 0 whatever is found; put the output into bug reports."""
_DOCTOR_EXAMPLES = """\
examples:
  mindie-cache doctor
  mindie-cache doctor --json"""

_PRESETS_TEXT = """\
List the calibrated numbers that this package has, or show some of them: their settings, where they come from, and which
steps of a run they compute.

A preset is used by its name: options={"preset": NAME}. It should be made for your number of steps, shift and resolution."""
_PRESETS_EXAMPLES = """\
NAME is a model, model@variant, or a calibration file of yours (.json). "." and "/" equal "_", and case does not matter.

in a row of steps, # is computed and . is reused; in a curve, small bars run from the smallest value to the largest.

examples:
  mindie-cache presets
  mindie-cache presets --method magcache
  mindie-cache presets Wan2.1-T2V-1.3B                 every method's presets for a model
  mindie-cache presets Wan2.1-T2V-1.3B --method ada_taylor --steps 30
  mindie-cache presets Wan2.1-T2V-1.3B@ret-steps --method teacache --plot teacache.png
  mindie-cache presets calibration.json --method magcache
  mindie-cache presets FLUX.1-dev --json"""

_CALIBRATE_TEXT = """\
Measure how much the residual of a model's blocks grows from step to step. The file is a preset for magcache and ada_taylor
(with --signal also for teacache), made for your steps, schedule and resolution. Every step is computed.

Without --model and --pipeline it measures the testbed, the small video model that is part of the package. With one of them
it measures a pipeline of diffusers; both experts of Wan2.2 go into one file. Several prompts or seeds are generated one
after the other and averaged. Everything here is also a class: mindie_cache.calibration.pipeline.PipelineCalibration."""
_CALIBRATE_EXAMPLES = """\
--pipeline FILE.py:function is for pipelines that you load yourself. The function takes no arguments and returns a pipeline,
or a pipeline and a dictionary of arguments for its calls.

examples, the testbed:
  mindie-cache calibrate
  mindie-cache calibrate --steps 50 --shift 5 --out wan.json --plot wan.png
  mindie-cache calibrate --prompt "a cyan cross moving up" --seed 7 --seed 8

examples, pipelines:
  mindie-cache calibrate --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --steps 50 --shift 8 --out wan.json
  mindie-cache calibrate --model models/Qwen-Image-Edit --image cat.png --prompt "put a hat on the cat" --steps 40
  mindie-cache calibrate --model models/Wan2.2 --height 480 --width 832 --frames 81 --call guidance_scale_2=3 --offload
  mindie-cache calibrate --pipeline mine.py:load --steps 30 --prompt-file prompts.txt --format lightx2v --out mag.json"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Errors of the user are one line on stderr and exit code 2."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, e.g. `| head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered must not fail at exit
        return EXIT_PIPE_CLOSED
    except (CacheError, OSError) as error:
        print("mindie-cache: error:", " ".join(str(error).split()), file=sys.stderr)  # messages of parsers span lines
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        going_on = "; the same command goes on where it stopped" if getattr(options, "goes_on", False) else ""
        print(f"mindie-cache: interrupted{going_on}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mindie-cache", description="Caching for diffusion-transformer inference on Ascend NPU, CUDA and CPU."
    )
    parser.add_argument("--version", action="version", version=f"mindie-cache {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    tuning.add(commands).set_defaults(run=_tune, goes_on=True)
    _add_calibrate(commands)
    _add_doctor(commands)
    _add_presets(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="compare the caching methods on a small video model: a table and pictures",
        description=_DEMO_TEXT,
        epilog=_DEMO_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--prompt", action="append", default=[], metavar="TEXT", help="what to generate; repeat for several (default: a mix)"
    )
    add("--steps", type=int, metavar="N", help="denoising steps of the uncached run, at least 4 (default: 30)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the first video; the others count on (default: 0)")
    add("--repeats", type=int, metavar="N", help="batches of prompts, each run under every setting (default: 3)")
    add(
        "--config",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="YAML or JSON CacheConfig to add; repeatable",
    )
    add("--only-config", action="store_true", help="compare only the --config files with uncached")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, npu, npu:0 (default: auto, the best)")
    add("--out", type=Path, default=Path("out/demo"), metavar="FOLDER", help="where files go (default: out/demo)")
    add("--quick", action="store_true", help="a smoke run of seconds: 12 steps, 2 prompts, 1 repetition, 5 settings")
    parser.set_defaults(run=_demo)


def _add_calibrate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "calibrate",
        help="measure a model: a preset file for magcache and ada_taylor",
        description=_CALIBRATE_TEXT,
        epilog=_CALIBRATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, out = parser.add_argument, Path("out/calibration.json")
    add("--steps", type=int, metavar="N", help="denoising steps (default: 30, or the pipeline's own number)")
    add("--shift", type=float, metavar="X", help="sigma shift of the schedule (default: 3, or the pipeline's own)")
    add("--guidance", type=float, metavar="X", help="guidance scale (default: 2, or the pipeline's own)")
    add(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="what to generate; repeat for several (default: a mix of six, or one)",
    )
    add(
        "--seed",
        type=int,
        action="append",
        metavar="N",
        help="every prompt is made with every seed; repeatable (default: 0)",
    )
    add("--format", choices=("telefuser", "lightx2v"), default="telefuser", help="of the file (default: telefuser)")
    add("--out", type=Path, default=out, metavar="FILE", help=f"where it goes (default: {out})")
    add("--plot", type=Path, metavar="FILE.png", help="also draw the curves (needs matplotlib)")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, npu, npu:0 (default: auto, the best)")
    _add_pipeline(parser)
    parser.set_defaults(run=_calibrate)


def _add_pipeline(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a pipeline of diffusers")
    add = group.add_argument
    source = group.add_mutually_exclusive_group()
    source.add_argument("--model", metavar="DIR", help="folder or repository of the pipeline")
    source.add_argument("--pipeline", metavar="FILE.py:function", help="a function that returns the pipeline")
    add("--name", metavar="NAME", help="what the file calls the model (default: the folder's, or the pipeline's name)")
    add("--prompt-file", type=Path, metavar="FILE", help="more prompts, one a line")
    add_call(group)
    add("--signal", metavar="NAME", help="also fit TeaCache's polynomial: temb, modulated, or an argument of the blocks")


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "doctor",
        help="what is installed, which devices work, which ops run by what",
        description=_DOCTOR_TEXT,
        epilog=_DOCTOR_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(run=_doctor)


def _add_presets(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "presets",
        help="calibrated numbers of models: list them, show them, draw them",
        description=_PRESETS_TEXT,
        epilog=_PRESETS_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = parser.add_mutually_exclusive_group()
    names.add_argument("name", nargs="?", metavar="NAME", help="show the presets of this model, in detail")
    names.add_argument("--model", metavar="NAME", help="the same as NAME")
    parser.add_argument("--method", metavar="METHOD", help="only presets of this method")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of the run to plan (default: those of the preset)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw one preset into FILE, e.g. preset.png")
    parser.set_defaults(run=_presets)


def _demo(arguments: argparse.Namespace) -> None:
    from mindie_cache import device, testbed
    from mindie_cache.demo import DemoOptions, run_demo
    from mindie_cache.demo.table import summary

    options = DemoOptions(
        prompts=tuple(arguments.prompt),
        steps=arguments.steps,
        seed=arguments.seed,
        repeats=arguments.repeats,
        configs=tuple(arguments.config),
        only_config=arguments.only_config,
        quick=arguments.quick,
        out=arguments.out,
    )
    model = testbed.load_testbed(device.resolve(arguments.device))
    run_demo(options, model, show=lambda outcomes: print(summary(outcomes), flush=True))
    print(f"\npictures and results.json are in {options.out}")


def _tune(arguments: argparse.Namespace) -> None:
    from mindie_cache.calibration.tuning import command

    found = command.run(arguments)
    if found:  # one rank of several has it
        print(found)


def _calibrate(arguments: argparse.Namespace) -> None:
    from mindie_cache.calibration import command, files, pipeline, show

    if arguments.plot:
        show.check_plot()
        files.prepare(arguments.plot)
    is_pipeline = bool(arguments.model or arguments.pipeline)
    calibration = command.of_pipeline(arguments) if is_pipeline else command.of_testbed(arguments)
    print(show.summary(calibration))
    if arguments.plot:
        show.plot(calibration, arguments.plot)
        print(f"\nthe curves are in {arguments.plot}")
    if is_pipeline and arguments.format != "lightx2v":
        print("\n" + pipeline.usage(calibration, arguments.out))
    else:
        print("\n" + show.usage(calibration, arguments.out, arguments.format))


def _doctor(arguments: argparse.Namespace) -> None:
    from mindie_cache.doctor import diagnose

    diagnosis = diagnose()
    print(diagnosis.to_json() if arguments.json else diagnosis)


def _presets(arguments: argparse.Namespace) -> None:
    from mindie_cache.checks import whole
    from mindie_cache.presets import text

    if arguments.steps is not None:
        whole("--steps", arguments.steps, 1)
    name = arguments.name or arguments.model
    chosen = text.select(name, arguments.method)
    if arguments.plot is not None:
        text.write_plot(chosen, arguments.plot, arguments.steps)
    if arguments.json:
        print(text.as_json(chosen, arguments.steps))
    elif name is None and len(chosen) > 1:
        print(text.table(chosen))
    else:
        print("\n\n".join([text.details(preset, arguments.steps) for preset in chosen]))
    if arguments.plot is not None and not arguments.json:
        print(f"\nthe picture is in {arguments.plot}")
