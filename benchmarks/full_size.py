"""What caches are worth on real architectures: seconds of the denoising loop of FLUX.1-dev and Wan2.1-T2V-1.3B.

    python benchmarks/full_size.py                                # at full size, on the accelerator that is there
    python benchmarks/full_size.py --scale small --device cpu     # real widths, few blocks and tokens: 6 minutes a round
    python benchmarks/full_size.py --models wan --only "mindie_cache magcache" diffusers --rounds 5

The transformers are diffusers' own, in bf16, with random weights that are made on the device: nothing is downloaded. The
loop is 50 Euler steps of flow matching: FLUX with 1024 x 1024 pixels and one branch, Wan with 81 frames of 480p and two.

Rows that are compared compute the same blocks. A schedule that a library lacks is forced by its settings; where another one
always computes the first block, so does ours (F1: block_start=1). Blocks are counted in the very loops that are timed; if
they differ all the same, the row says so.

    dit_block_cache; MagCache, forced           every 2nd step is skipped
    dit_block_cache F1; static mask F1B0        every 2nd step is skipped but for the first block
    magcache; MagCache                          the table that this package ships for the model, without a last step forced
    dit_block_cache F1, once; FirstBlock, forced    all steps but the first one are skipped but for the first block

"share of ideal" is how much of the saving that is there a library gets:

    (uncached - cached) / (uncached - ideal)
    ideal = computed forwards * seconds of an uncached forward + skipped forwards * seconds of a forward of the cut model

The cut model has the blocks that a skipped forward computes, none or the first one, and everything around them; it runs the
same loop. All models share their weights and take turns in one process, on the CPU step by step, else loop by loop. A share
is taken within a round; the table has medians of the rounds, and the lowest to the highest share. 1 is a cache that costs
nothing; what is above 1 is noise. Not in the seconds: this package tries what it has kept first, by one skipped forward for
each model that it is enabled on, once; that comes before the loops.

On the CPU with one thread, seconds are CPU time, so that other work on the machine counts little; else they are of the wall
clock. A cache that fails is shown with its error and stops nothing. Nothing here fails because of a time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from full_size_models import SCALES
from full_size_worker import UNCACHED, rest, rows
from peers import FOLDER, ROOT, PeersUnavailableError, prepare

from mindie_cache.device import resolve
from mindie_cache.errors import ConfigError

OUT = Path("out/bench/full_size")
Request = dict[str, Any]
COLUMNS = ("model", "cache", "blocks computed", "uncached s", "ideal s", "cached s", "times faster", "share of ideal")


def ask(python: Path, request: Request) -> Request:
    """One process; it writes its progress to stderr. Returns what it had measured when it ended."""
    with tempfile.TemporaryDirectory() as name:
        asked, answer = Path(name, "request.json"), Path(name, "answer.json")
        asked.write_text(json.dumps({**request, "answer": str(answer)}), encoding="utf-8")
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        words = [str(python), __file__, "--worker", str(asked)]
        done = subprocess.run(words, check=False, env={**os.environ, "PYTHONPATH": paths})
        reply = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else {"results": {}}
    error = f"the process ended with {done.returncode}" if done.returncode else None
    return {"request": request, **reply, "error": error}


def chosen(names: list[str], only: list[str] | None) -> list[str]:
    """Labels of which a word of `only` is the beginning."""
    return [name for name in names if only is None or name.startswith(tuple(only))]


def interpreter(here: bool) -> Path:
    """The Python that has the other libraries: this one, or that of the side environment."""
    if here or all([importlib.util.find_spec(name) for name in ("diffusers", "cache_dit")]):
        return Path(sys.executable)
    try:
        return prepare(FOLDER)
    except PeersUnavailableError as error:
        sys.exit(f"{error}\n--here uses the libraries of this environment, those that it has.")


# ---------------------------------------------------------------------------------------------- the table


class Line(NamedTuple):
    """One round of a row: blocks, forwards that computed all of them, the other forwards; seconds of the three loops."""

    blocks: int
    computed: int
    skipped: int
    uncached: float
    rest: float
    cached: float

    @property
    def ideal(self) -> float:
        return (self.computed * self.uncached + self.skipped * self.rest) / (self.computed + self.skipped)

    @property
    def times(self) -> float:
        return self.uncached / self.cached

    @property
    def share(self) -> float:
        """Of the ideal saving; NaN where nothing was skipped."""
        return (self.uncached - self.cached) / (self.uncached - self.ideal) if self.skipped else math.nan


def measured(answer: Request, label: str) -> list[Line] | str:
    """The rounds of a row; if it, or a loop that it is compared with, has failed: why."""
    results = answer["results"]
    row = results.get(label, {})
    needed = {name: results.get(name, {}) for name in (UNCACHED, rest(row.get("kept", 0)), label)}
    for name, result in needed.items():
        if result.get("error") or not result.get("seconds"):
            return f"{name}: {result.get('error') or answer['error'] or 'not run'}".replace("|", "/")
    computed = row["forwards"].count(answer["blocks"])
    counts = sum(row["forwards"]), computed, len(row["forwards"]) - computed
    return [Line(*counts, *seconds) for seconds in zip(*[result["seconds"] for result in needed.values()], strict=True)]


def table(answers: list[Request]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    for answer in answers:
        found = {label: measured(answer, label) for label in answer["request"]["rows"]}
        for label, rounds in found.items():
            row = [rounds, *["-"] * (len(COLUMNS) - 3)] if isinstance(rounds, str) else cells(rounds, answer, label, found)
            lines.append(f"| {' | '.join([answer.get('title', answer['request']['model']), label, *row])} |")
    return "\n".join(lines)


def cells(rounds: list[Line], answer: Request, label: str, found: dict[str, list[Line] | str]) -> list[str]:
    work, count = answer["results"][label]["work"], rounds[0].blocks
    same = [other for name, other in found.items() if answer["results"].get(name, {}).get("work") == work]
    others = sorted({other[0].blocks for other in same if not isinstance(other, str)} - {count})
    blocks = f"{count} of {answer['blocks'] * answer['forwards']}"
    blocks += f", not {' or '.join(map(str, others))} as the row that it is compared with" if others else ""
    columns = [[getattr(line, name) for line in rounds] for name in ("uncached", "ideal", "cached", "times")]
    return [blocks, *[f"{statistics.median(values):.2f}" for values in columns], spread([line.share for line in rounds])]


def spread(shares: list[float]) -> str:
    """The median, and the lowest to the highest."""
    if math.isnan(shares[0]):
        return "-"
    around = f" ({min(shares):.3f} to {max(shares):.3f})" if len(shares) > 1 else ""
    return f"{statistics.median(shares):.3f}{around}"


def facts(answers: list[Request]) -> str:
    """What it was measured on, of the first process that answered; which processes died, and the rounds that they left."""
    first = next((one for one in answers if "machine" in one), {"machine": {"nothing": "was measured"}})
    lines = [", ".join(f"{key} {value}" for key, value in first["machine"].items())]
    for one in answers:
        if one["error"]:
            rounds = len(one["results"].get(UNCACHED, {}).get("seconds", []))
            lines.append(f"{one['request']['model']}: {one['error']}, after {rounds} of {one['request']['rounds']} rounds")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cpu, cuda, npu, cuda:1 (default: an accelerator, if there is one)")
    parser.add_argument("--scale", choices=list(SCALES), help="default: full; on the CPU small, as full takes days there")
    parser.add_argument(
        "--models", nargs="+", choices=list(SCALES["full"]), default=list(SCALES["full"]), help="default: all"
    )
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="denoising steps (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="times that every loop is timed (default: %(default)s)"
    )
    names = [row.label for row in rows(SCALES["full"]["flux"], steps=50)]
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"beginnings of rows, of: {'; '.join(names)}")
    parser.add_argument("--here", action="store_true", help=f"never set up the side environment, {FOLDER}")
    parser.add_argument("--out", type=Path, default=OUT, help="for results.json and table.md (default: %(default)s)")
    parser.add_argument("--worker", type=Path, metavar="REQUEST.json", help="answer one request, where the libraries are")
    options = parser.parse_args()
    if min(options.steps, options.rounds) < 1:
        parser.error("--steps and --rounds are at least 1")
    if not chosen(names, options.only):
        parser.error("--only: no row begins like that, see --help")
    return options


def main() -> None:
    options = parse()
    if options.worker:
        from full_size_worker import serve

        serve(options.worker)
        return
    try:
        device = resolve(options.device)
    except ConfigError as error:
        sys.exit(str(error))
    scale = options.scale or ("small" if device.type == "cpu" else "full")
    python = interpreter(options.here)
    options.out.mkdir(parents=True, exist_ok=True)
    answers: list[Request] = []
    for model in options.models:
        labels = chosen([row.label for row in rows(SCALES[scale][model], options.steps)], options.only)
        request = {"model": model, "scale": scale, "device": str(device), "rows": labels}
        answers.append(ask(python, {**request, "steps": options.steps, "rounds": options.rounds}))
        (options.out / "results.json").write_text(json.dumps(answers) + "\n", encoding="utf-8")
    text = f"{table(answers)}\n\n{options.steps} steps, {options.rounds} rounds, {facts(answers)}"
    (options.out / "table.md").write_text(f"{text}\n", encoding="utf-8")
    print(f"{text}\nevery number: {options.out}/results.json")


if __name__ == "__main__":
    main()
