"""The arguments of `mindie-cache tune`. Imports nothing heavy: it is there before the command is known."""

from __future__ import annotations

import argparse
from pathlib import Path

from mindie_cache.calibration.arguments import add_model

TESTBED = "testbed"
DEFAULT_SPEEDUP = 2.0
METHODS = ("plan", "uniform", "dit_block_cache", "seacache", "easycache", "first_block")  # that are tried without a word
TEXT = """\
Find the best setting for your model and your target: so many times faster, or no worse than so.

Two prompts are generated without a cache and recorded; the best schedule for every budget follows from that
(docs/planning.md). Other methods are tried where they just meet the target. The best ones are run on other prompts, beside
uncached ones, and what is best there is chosen."""
EPILOG = """\
what it writes to --out:
  best.yaml     the chosen setting: enable_cache(pipe, "best.yaml"), or CacheConfig.from_yaml
  plan.json     the schedule of every budget, with predicted and measured errors: enable_cache(pipe, "plan.json")
  report.html   all of it to look at: front, schedules, pictures, tables. One file, opens anywhere
  results.json  every number
  state/        every finished generation: interrupt whenever you like, the same command goes on. Another target, too,
                starts from what is there

examples:
  mindie-cache tune                                           the small model of this package, twice as fast
  mindie-cache tune --max-error 1e-4 --out out/careful
  mindie-cache tune --model models/Wan2.1-T2V-1.3B --target-speedup 2.5 --prompts prompts.txt --height 480 --width 832
  mindie-cache tune --model mine.py:load --min-psnr 35        a function that returns a pipeline
  mindie-cache tune --model examples/tune_my_model.py         your own model and loop: build() and generate()
  mindie-cache tune --methods plan uniform --budget-minutes 30

several devices: torchrun --nproc-per-node 8 --no-python mindie-cache tune ..."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = commands.add_parser(
        "tune",
        help="find the best setting for your model at your target speed or quality",
        description=TEXT,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    goal = parser.add_argument_group("the target (default: --target-speedup 2)").add_mutually_exclusive_group()
    goal.add_argument("--target-speedup", type=float, metavar="X", help="times faster, end to end, as measured")
    goal.add_argument("--max-error", type=float, metavar="X", help="relative squared error of the final latents, e.g. 1e-3")
    goal.add_argument("--min-psnr", type=float, metavar="DB", help="of decoded frames beside uncached ones, e.g. 30")
    run = parser.add_argument_group("the run")
    add_to = run.add_argument
    add_to("--out", type=Path, default=Path("out/tune"), metavar="FOLDER", help="results and state (default: out/tune)")
    add_to("--methods", nargs="+", default=list(METHODS), metavar="NAME", help=_methods_help())
    add_to("--prompts", type=Path, metavar="FILE", help="one a line: the first are recorded, the others held out")
    add_to("--recorded", type=int, default=2, metavar="N", help="prompts to record and to choose on (default: 2)")
    add_to(
        "--held-out", type=int, metavar="N", help="prompts to verify on (default: 4, on the testbed 8, or the file's rest)"
    )
    add_to("--seed", type=int, default=0, metavar="N", help="of the first prompt; the others count on (default: 0)")
    add_to("--front", type=int, default=4, metavar="N", help="further budgets of the plan to verify (default: 4)")
    add_to(
        "--score", action="append", metavar="NAME", help="also measure, on held-out prompts: ssim, lpips, module:function"
    )
    add_to("--budget-minutes", type=float, metavar="M", help="begin nothing new after so long; verify what is found")
    add_to("--no-pictures", action="store_true", help="do not decode: no PSNR, no pictures, and times without decoder")
    add_to("--steps", type=int, metavar="N", help="denoising steps (default: 30, or the pipeline's own number)")
    add_to("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, npu, npu:0 (default: auto)")
    model = parser.add_argument_group("the model")
    model.add_argument(
        "--model",
        default=TESTBED,
        metavar="MODEL",
        help="testbed (default); folder or repository of a pipeline; FILE.py:function that returns one; or FILE.py with "
        "build() and generate(pipe, prompt, seed)",
    )
    add_model(model)
    return parser


def _methods_help() -> str:
    return (
        f"plan, uniform, or names of methods (default: {' '.join(METHODS)}). uniform is an even schedule with a line; "
        "dit_block_cache the same inside the blocks; methods with a threshold are searched by it, others run as they are"
    )
