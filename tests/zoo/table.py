"""Writes docs/support-matrix.md: every method on every transformer of the zoo.

python tests/zoo/table.py                     # all of it, about ten minutes on one core
python tests/zoo/table.py --only Wan Flux     # shows these rows, and writes nothing
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from zoo import NOT_DENOISERS, ZOO, Entry
from zoo.matrix import METHODS, PROMISES, STEPS, Outcome, Player, check

PATH = Path(__file__).parents[2] / "docs" / "support-matrix.md"
YES, HEAD = "yes", "| transformer | " + " | ".join(METHODS) + " |"


def outcomes(entry: Entry) -> dict[str, Outcome]:
    """What every method does on one transformer."""
    player = Player(entry)
    return {method: check(player, method) for method in METHODS}


def row(entry: Entry, found: dict[str, Outcome]) -> str:
    """One line of the table."""
    return f"| {entry.name} | " + " | ".join(map(cell, found.values())) + " |"


def cell(outcome: Outcome) -> str:
    if outcome.refused:
        return f"error: {outcome.refused.split('. ')[0].replace('|', '/')}"
    return f"fails: {'; '.join(f'{name}: {why}' for name, why in outcome.failures.items())}" if outcome.failures else YES


def known_row(name: str) -> str | None:
    """The row of this transformer in the document."""
    lines = PATH.read_text(encoding="utf-8").splitlines() if PATH.exists() else []
    return next((line for line in lines if line.startswith(f"| {name} |")), None)


def document(rows: list[str]) -> str:
    cells = [part for line in rows for part in line.split(" | ")[1:]]
    passed = sum(part.removesuffix(" |") == YES for part in cells)
    classes = len({entry.name.partition("/")[0] for entry in ZOO})
    promises = "".join(f"* {_words(promise)}\n" for promise in PROMISES)
    left_out = "".join(f"* `{name}`: {why}\n" for name, why in sorted(NOT_DENOISERS.items()))
    return f"""# Support matrix

Written by `python tests/zoo/table.py`, never by hand; the tests compare every row with what they find.

{passed} of {len(cells)} combinations pass: {len(METHODS)} methods on {len(rows)} tiny transformers with random weights, of {classes} classes of
diffusers 0.42.1. Each is enabled with `enable_cache(transformer, ...)` for {STEPS} steps, without a pipeline. "yes" means that all of
this holds:

{promises}* disable: outputs are the uncached ones bit for bit, and no attribute or key of the state dict has changed

"error" is what is raised instead of a wrong image.

{HEAD}
|---{"|---" * len(METHODS)}|
{chr(10).join(rows)}

## Left out

{left_out}"""


def _words(promise: object) -> str:
    meanings = {
        "saves_work": "steps are reused, and fewer linear layers are run",
        "computed_steps_are_exact": "a computed step equals the uncached one bit for bit",
        "frees_memory": "something is kept during the run, and nothing after its last step",
        "identity": "with the same input in every step, reused steps equal the uncached output to 1e-5",
        "second_generation": "a second generation equals the first bit for bit",
        "interruption": "neither a generation that was broken off nor an exception shows in the next one",
        "changed_batch_or_size": "another batch size or resolution at a step that would be reused is computed",
        "deepcopy": "a deep copy has its own weights and its own cache",
    }
    name = promise.__name__  # type: ignore[attr-defined]
    return f"{name.replace('_', ' ')}: {meanings[name]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="transformers whose names contain one of these")
    parser.add_argument("--update", nargs="+", metavar="NAME", help="the same, but write their rows into the document")
    asked = parser.parse_args()
    wanted = asked.only or asked.update
    from tqdm import tqdm

    chosen = [entry for entry in ZOO if not wanted or any(part in entry.name for part in wanted)]
    rows = {entry.name: row(entry, outcomes(entry)) for entry in tqdm(chosen, unit="transformer")}
    if asked.only:
        print("\n".join([HEAD, *rows.values()]))
        return
    kept = [rows.get(entry.name) or known_row(entry.name) or "" for entry in ZOO]
    PATH.write_text(document([line for line in kept if line]), encoding="utf-8")
    print(f"{PATH} written.")


if __name__ == "__main__":
    main()
