"""What a cache costs on diffusers' transformers: this package beside cache-dit's and diffusers' own caches, in one run.

    python benchmarks/overhead_diffusers.py                               # about 15 minutes
    python benchmarks/overhead_diffusers.py --only mindie_cache --pairs 30 --without-compile

Milliseconds of host time a forward, on tiny models (2 heads of 16), so that what is measured is the library:

    compute   a forward in which everything is computed, above the same forward of the bare model
    hit       a forward in which the cached part is skipped, above the same forward of a model without that part

CPU time of the thread, pairs of both models in turn, the median of the differences with its quartiles. "no cache" compares
the model with itself: what it shows is noise. Then, unless left out, torch.compile over 50 steps: graphs, graph breaks and
recompilations, of the whole model and of `compile_repeated_blocks`. A variant that fails, or whose forced step did other
work than it should, is shown with its error. The packages live in a side environment, out/bench/peers, that is set up the
first time; each library and model has processes of its own. Nothing here fails because of a time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from overhead_variants import CACHE_DIT, DIFFUSERS, OURS, SUBJECTS, VARIANTS
from peers import FOLDER, ROOT, prepare
from tqdm import tqdm

OUT = Path("out/bench/overhead_diffusers")
LIBRARIES = ("-", OURS, CACHE_DIT, DIFFUSERS)
COMPILED = ("flux-4-8", "wan-8")  # more blocks of the same kinds show nothing else
INDUCTOR = ("wan-8", "dit_block_cache")  # the smallest model
Request = dict[str, Any]


def ask(python: Path, request: Request) -> dict[str, Any]:
    """One process of the side environment: results by variant; all of them an error if it died."""
    with tempfile.TemporaryDirectory() as name:
        asked, answer = Path(name, "request.json"), Path(name, "answer.json")
        asked.write_text(json.dumps({**request, "answer": str(answer)}), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        words = [str(python), __file__, "--worker", str(asked)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
        if answer.exists():
            return json.loads(answer.read_text(encoding="utf-8"))
    said = (done.stderr.strip() or "no output").splitlines()[-1]
    error = {"error": f"the process ended with {done.returncode}: {said}"}
    return {"results": dict.fromkeys(request["variants"], error), "versions": {}}


def requests(options: argparse.Namespace) -> Iterator[Request]:
    """Of every process: first all rounds of times, in which the libraries take turns, then the compiled runs."""
    chosen = {library: chosen_variants(library, options.only) for library in LIBRARIES}
    named = {library: names for library, names in chosen.items() if names}
    for number, subject, library in product(range(options.rounds), options.models, named):
        common = {"subject": subject, "library": library, "variants": named[library]}
        yield {"task": "time", "round": number, "pairs": options.pairs, **common}
    if options.without_compile:
        return
    compiled = [subject for subject in options.models if subject in COMPILED]
    for regional, subject, library in product((False, True), compiled, named):
        common = {"subject": subject, "library": library, "variants": named[library]}
        yield {"task": "compile", "regional": regional, "backend": "eager", **common}
    subject, variant = INDUCTOR
    if variant in named.get(OURS, ()) and subject in options.models and has_compiler():
        common = {"subject": subject, "library": OURS, "variants": [variant]}
        for regional in (False, True):
            yield {"task": "compile", "regional": regional, "backend": "inductor", **common}


def chosen_variants(library: str, only: list[str] | None) -> list[str]:
    names = [variant.name for variant in VARIANTS if variant.library == library]
    return [name for name in names if only is None or library == "-" or library in only or name in only]


def has_compiler() -> bool:
    found = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if not found:
        print("inductor is left out: it needs a C++ compiler, and there is none (CXX, g++ or clang++).", file=sys.stderr)
    return bool(found)


# ---------------------------------------------------------------------------------------------- the table


def over(pairs: list[list[float]]) -> tuple[float, float, float]:
    """Median and quartiles of cached - other, in milliseconds."""
    differences = [cached - other for other, cached in pairs]
    low, middle, high = statistics.quantiles(differences, n=4) if len(differences) > 1 else differences * 3
    return middle, low, high


def merged(answers: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """All rounds of each (subject, variant): pairs by kind, reads, and the first error."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for one in answers:
        if one["request"]["task"] != "time":
            continue
        for name, result in one["results"].items():
            row = rows.setdefault((one["request"]["subject"], name), {"pairs": {}, "reads": {}, "error": None})
            row["error"] = row["error"] or result.get("error")
            row["reads"] |= result.get("reads", {})
            for kind, pairs in result.get("pairs", {}).items():
                row["pairs"].setdefault(kind, []).extend(pairs)
    return rows


def cell(row: dict[str, Any] | None) -> str:
    """ "compute / hit" with the spread of each; the error where there is one."""
    if row is None or row["error"]:
        return "-" if row is None else row["error"].split(":")[0]
    found = [over(row["pairs"][kind]) for kind in ("compute", "hit") if kind in row["pairs"]]
    middle = " / ".join(f"{one[0]:.2f}" for one in found)
    return f"{middle} ({', '.join(f'{low:.2f} to {high:.2f}' for _, low, high in found)})"


def time_table(answers: list[dict[str, Any]], subjects: list[str]) -> str:
    """Markdown. Reads: of the host, in a hit (in a computed forward, if there is no hit)."""
    rows = merged(answers)
    lines = [
        f"| | {' | '.join(SUBJECTS[name].title for name in subjects)} | reads |",
        "|---|" + "---|" * (len(subjects) + 1),
    ]
    for variant in VARIANTS:
        found = [rows.get((subject, variant.name)) for subject in subjects]
        if any(found):
            reads = next((list(row["reads"].values())[-1] for row in found if row and row["reads"]), None)
            words = "-" if reads is None else f"{reads['reads']} + {reads['timestep']}"
            label = variant.name if variant.library == "-" else f"{variant.library} {variant.name}"
            lines.append(f"| {label} | {' | '.join(map(cell, found))} | {words} |")
    return "\n".join(lines)


def compile_table(answers: list[dict[str, Any]]) -> str:
    """Markdown: graphs, breaks and recompilations of each variant and model, whole model and by blocks."""
    found: dict[tuple[str, str, str], dict[bool, str]] = {}
    for one in answers:
        request = one["request"]
        if request["task"] == "compile":
            for name, result in one["results"].items():
                label = name if request["library"] == "-" else f"{request['library']} {name}"
                key = (SUBJECTS[request["subject"]].title, request["backend"], label)
                found.setdefault(key, {})[request["regional"]] = compiled_cell(result)
    lines = ["| model | backend | cache | torch.compile(model) | compile_repeated_blocks |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(key)} | {both.get(False, '-')} | {both.get(True, '-')} |" for key, both in found.items()]
    return "\n".join(lines)


def compiled_cell(result: dict[str, Any]) -> str:
    if result.get("error"):
        return result["error"].split(":")[0]
    gave_up = ", gave up" if result["gave_up"] else ""
    return f"{result['graphs']} / {result['breaks']} / {result['recompilations']}{gave_up}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [variant.name for variant in VARIANTS if variant.library != "-"]
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="times that everything is timed (default: 1)")
    parser.add_argument("--pairs", type=int, default=150, metavar="N", help="a variant, kind and round (default: 150)")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=[*LIBRARIES[1:], *names],
        help=f"of {', '.join([*LIBRARIES[1:], *names])}",
    )
    parser.add_argument("--models", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS), help="all by default")
    parser.add_argument("--without-compile", action="store_true", help="times only")
    parser.add_argument("--out", type=Path, default=OUT, help="for results.json and table.md (default: %(default)s)")
    parser.add_argument("--worker", type=Path, metavar="REQUEST.json", help="answer one request, in the side environment")
    options = parser.parse_args()
    if options.worker:
        from overhead_worker import serve

        serve(options.worker)
        return
    python = prepare(FOLDER)
    options.out.mkdir(parents=True, exist_ok=True)
    answers: list[dict[str, Any]] = []
    for request in tqdm(list(requests(options)), unit="process"):
        answers.append({"request": request, **ask(python, request)})
        for name, result in answers[-1]["results"].items():
            if result.get("error"):
                tqdm.write(f"{request['subject']}, {request['task']}, {name}: {result['error']}", file=sys.stderr)
        versions = {name: version for one in answers for name, version in one["versions"].items()}
        machine = {"python": platform.python_version(), "machine": platform.machine(), **versions}
        everything = {"machine": machine, "answers": answers}
        (options.out / "results.json").write_text(json.dumps(everything) + "\n", encoding="utf-8")
    table = time_table(answers, options.models)
    if not options.without_compile:
        table += "\n\ngraphs / breaks / recompilations over 50 steps\n\n" + compile_table(answers)
    (options.out / "table.md").write_text(f"{table}\n", encoding="utf-8")
    print(table)
    print(
        f"\n{' '.join(f'{name} {version}' for name, version in machine.items())}\nevery number: {options.out}/results.json"
    )


if __name__ == "__main__":
    main()
