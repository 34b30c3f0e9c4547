"""Find the options of adastep, which skips whole forwards where the latents move evenly, on your own model."""

import argparse

from mindie_cache.calibration.search.command import Procedure, main, parser
from mindie_cache.calibration.search.findings import Goal
from mindie_cache.calibration.search.knobs import ADASTEP_GRID, GridSearch, OptunaSearch, adastep_knobs

TEXT = """\
adastep skips a forward if the latents have moved evenly: if their third difference is below skip_thr, which decay_ratio
lowers from step to step, and at most max_skip_steps times in a row. This tries all combinations of the values below, or
--trials of Optuna in their ranges."""
EXAMPLES = """\
  python search_scripts/search_adastep.py --ratio 1.5
  python search_scripts/search_adastep.py --skip-thr 0.006 0.009 0.012 --max-skip-steps 1 2 --decay-ratio 0.99
  python search_scripts/search_adastep.py --trials 40 --ratio 2"""


def procedure(options: argparse.Namespace, goal: Goal) -> Procedure:
    if options.trials is not None:
        return OptunaSearch(goal, "adastep", adastep_knobs(), options.trials, options.storage)
    given = {name: tuple(getattr(options, name) or values) for name, values in ADASTEP_GRID.items()}
    return GridSearch(goal, "adastep", given)


if __name__ == "__main__":
    made = parser("search_adastep.py", TEXT, EXAMPLES)
    group = made.add_argument_group("what is searched")
    add = group.add_argument
    for name, values in ADASTEP_GRID.items():
        kind = int if name == "max_skip_steps" else float
        default = " ".join(map(str, values))
        add(f"--{name.replace('_', '-')}", type=kind, nargs="+", metavar="X", help=f"values (default: {default})")
    add("--trials", type=int, metavar="N", help="use Optuna: so many trials, over all ranks")
    add("--storage", metavar="URL", help="of Optuna's study (default: sqlite:///FOLDER/optuna.db)")
    raise SystemExit(main(made, procedure))
