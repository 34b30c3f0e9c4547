"""The command line that the scripts of search_scripts/ share: arguments, target, folder, and what is printed at the end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from mindie_cache import testbed
from mindie_cache.calibration import loading
from mindie_cache.calibration.arguments import add_model
from mindie_cache.calibration.pipeline import DEFAULT_PROMPT
from mindie_cache.calibration.search import findings, scores
from mindie_cache.calibration.search.evaluator import Evaluator
from mindie_cache.calibration.search.findings import COSTS, Findings, Goal
from mindie_cache.calibration.search.jobs import Job, joined
from mindie_cache.calibration.search.scores import Score
from mindie_cache.calibration.search.store import PROFILE, Store
from mindie_cache.calibration.search.targets import Target, TestbedTarget, UserTarget
from mindie_cache.calibration.testbed import DEFAULT_PROMPTS
from mindie_cache.checks import real, whole
from mindie_cache.errors import CacheError, ConfigError

EXIT_OK, EXIT_USER_ERROR, EXIT_INTERRUPTED = 0, 2, 130
TESTBED_PROMPTS, USER_PROMPTS = 4, 4
SHARED_TEXT = """\
What is searched on: the testbed (the small video model of this package); --pipeline, a folder or repository of diffusers, or
FILE.py:function that returns a pipeline; or --model-file, your own Python file (examples/tune_my_model.py shows it).

Every finished evaluation is in --out at once. Interrupt whenever you like: the same command goes on. Several devices:
  torchrun --nproc-per-node 8 search_scripts/{script} ...

What it writes to --out: the chosen setting (YAML: CacheConfig.from_yaml and enable_cache read it), results.json (every
setting, the Pareto front, the model's times), evaluations-*.jsonl, uncached-*.pt. docs/searching.md explains them.

examples:
{examples}"""


class Procedure(Protocol):
    """A search."""

    def run(self, evaluator: Evaluator) -> list[Findings]: ...


def parser(script: str, text: str, examples: str) -> argparse.ArgumentParser:
    """A parser with the arguments that all searches share."""
    made = argparse.ArgumentParser(
        prog=script,
        description=text,
        epilog=SHARED_TEXT.format(script=script, examples=examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    goal = made.add_argument_group("what is wanted")
    goal.add_argument("--ratio", type=float, default=1.3, metavar="X", help="times cheaper than uncached (default: 1.3)")
    goal.add_argument("--max-error", type=float, metavar="X", help="instead choose the cheapest with at most this error")
    goal.add_argument(
        "--cost",
        choices=COSTS,
        default="calls",
        help="what the ratio is of: calls of blocks or attentions; time end to end, from the measured milliseconds of a "
        "block; seconds, measured in every evaluation (default: calls)",
    )
    goal.add_argument(
        "--score",
        action="append",
        metavar="NAME",
        help="latents (relative squared error), frames (of 8 bits), psnr, ssim, lpips, or package.module:function; the "
        "first one chooses, more are written down (default: latents)",
    )
    run = made.add_argument_group("the run")
    run.add_argument("--out", type=Path, metavar="FOLDER", help=f"state and results (default: out/{Path(script).stem})")
    run.add_argument("--steps", type=int, metavar="N", help="denoising steps (default: 30, or the pipeline's own number)")
    run.add_argument("--prompt", action="append", metavar="TEXT", help="what to generate; repeat for several")
    run.add_argument("--prompt-file", type=Path, metavar="FILE", help="more prompts, one a line")
    run.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the first prompt; the others count on (default: 0)"
    )
    run.add_argument("--no-halving", action="store_true", help="run every setting on every prompt, also poor ones")
    run.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, npu, npu:0 (default: auto)")
    run.add_argument(
        "--block-ms",
        action="append",
        metavar="STACK=MS",
        help="milliseconds of a block of this list, instead of the measured ones; repeatable",
    )
    group = made.add_argument_group("the model")
    source = group.add_mutually_exclusive_group()
    source.add_argument("--pipeline", metavar="DIR", help="folder or repository of a pipeline, or FILE.py:function")
    source.add_argument("--model-file", type=Path, metavar="FILE.py", help="with build() and generate(pipe, prompt, seed)")
    add_model(group)
    return made


def main(
    made: argparse.ArgumentParser,
    procedure: Callable[[argparse.Namespace, Goal], Procedure],
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a search from its command line; errors of the user are one line on stderr and exit code 2."""
    options = made.parse_args(arguments)
    try:
        real("--ratio", options.ratio, 1.0, None)
        if options.max_error is not None:
            real("--max-error", options.max_error, 0.0, None)
        goal = Goal(options.ratio, options.max_error, options.cost)
        wanted = procedure(options, goal)
        _search(made.prog, options, wanted)
    except (CacheError, OSError) as error:
        print(f"{made.prog}: error:", " ".join(str(error).split()), file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"\n{made.prog}: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK


def _search(script: str, options: argparse.Namespace, wanted: Procedure) -> None:
    chosen = [scores.find(name) for name in dict.fromkeys(options.score or (scores.LATENTS,))]
    folder = options.out or Path("out") / Path(script).stem
    with joined(options, folder) as job:
        if job is not None:
            _searched(script, options, wanted, chosen, folder, job)


def _searched(
    script: str, options: argparse.Namespace, wanted: Procedure, chosen: Sequence[Score], folder: Path, job: Job
) -> None:
    where, target, leader = job
    prompts = _prompts(options, target)
    whole("--seed", options.seed, 0)
    seeds = tuple(range(options.seed, options.seed + len(prompts)))
    header = {
        "search": Path(script).stem,
        **target.facts(),
        "prompts": list(prompts),
        "seeds": list(seeds),
        "scores": [score.name for score in chosen],
        "device": where.device.type,
    }
    store = Store(folder, header, where.rank)
    show = where.rank == 0
    evaluator = Evaluator(
        target,
        prompts,
        seeds,
        chosen,
        store,
        progress=show,
        halving=not options.no_halving,
        block_ms=_times(options.block_ms),
        leader=leader,
    )
    found = wanted.run(evaluator)
    files = findings.write(evaluator, found)
    if show:
        for one in found:
            print("\n" + findings.table(one))
        print("\nwritten: " + ", ".join(map(str, files)) + f" (and {PROFILE}, evaluations-*.jsonl, uncached-*.pt)")


def _prompts(options: argparse.Namespace, target: Target) -> tuple[str, ...]:
    found = [*(options.prompt or ()), *(loading.lines(options.prompt_file) if options.prompt_file else ())]
    if isinstance(target, UserTarget) and not found and callable(getattr(target.module, "prompts", None)):
        return tuple(target.module.prompts()[:USER_PROMPTS])
    if isinstance(target, TestbedTarget):
        found = found or list(DEFAULT_PROMPTS[:TESTBED_PROMPTS])
        testbed.data.tokenize(found)  # a prompt that the model does not know is refused now
    return tuple(found or [DEFAULT_PROMPT])


def _times(pairs: Sequence[str] | None) -> Mapping[str, float]:
    found: dict[str, float] = {}
    for pair in pairs or ():
        name, _, text = pair.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not name or not value > 0:
            raise ConfigError(
                f"--block-ms {pair}: give STACK=MS with a time above 0, e.g. --block-ms transformer_blocks=41.5."
            )
        found[name] = value
    return found
