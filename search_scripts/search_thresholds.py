"""Find the threshold (or two options) of a method that decides from what it sees, on your own model."""

import argparse

from mindie_cache.calibration.loading import assignments
from mindie_cache.calibration.search.command import Procedure, main, parser
from mindie_cache.calibration.search.findings import Goal
from mindie_cache.calibration.search.knobs import SPANS, GridSearch, OptunaSearch, threshold_knobs

TEXT = f"""\
Methods that decide from data skip more the higher their threshold is. This finds the threshold, or two options, of least
error that reach the ratio. With --grid N: N evenly spread values of each. Otherwise Optuna suggests them, and stops a poor
trial after its first prompts; its study is a data base, which other processes can join, and the same command goes on.
methods with a threshold: {", ".join(SPANS)}"""
EXAMPLES = """\
  python search_scripts/search_thresholds.py --method first_block --ratio 1.8
  python search_scripts/search_thresholds.py --method magcache --option preset=out/calibration.json --trials 30
  python search_scripts/search_thresholds.py --method easycache --range threshold=0.01:0.2 --range warmup_steps=2:8
  python search_scripts/search_thresholds.py --method teacache --grid 9 --ratio 1.5"""


def procedure(options: argparse.Namespace, goal: Goal) -> Procedure:
    knobs = threshold_knobs(options.method, options.range or ())
    fixed = assignments(options.option or ())
    if options.grid is not None:
        grid = {knob.name: knob.grid(options.grid) for knob in knobs}
        return GridSearch(goal, options.method, grid, fixed)
    return OptunaSearch(goal, options.method, knobs, options.trials, options.storage, fixed)


if __name__ == "__main__":
    made = parser("search_thresholds.py", TEXT, EXAMPLES)
    group = made.add_argument_group("what is searched")
    add = group.add_argument
    add("--method", required=True, metavar="METHOD", help="one of the methods above")
    add("--range", action="append", metavar="NAME=LOW:HIGH", help="option to search; one or two (default: the threshold)")
    add("--option", action="append", metavar="NAME=VALUE", help="option that is the same in all trials; repeatable")
    add("--grid", type=int, metavar="N", help="N values of each option instead of Optuna")
    add("--trials", type=int, default=40, metavar="N", help="of Optuna, over all ranks (default: 40)")
    add("--storage", metavar="URL", help="of Optuna's study (default: sqlite:///FOLDER/optuna.db)")
    raise SystemExit(main(made, procedure))
