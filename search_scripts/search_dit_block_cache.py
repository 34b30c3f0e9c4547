"""Find which blocks dit_block_cache should skip, and in which steps, on your own model."""

import argparse

from mindie_cache.calibration.search.command import Procedure, main, parser
from mindie_cache.calibration.search.findings import Goal
from mindie_cache.calibration.search.procedures import BlockSearch

TEXT = """\
dit_block_cache reuses what a range of blocks adds, in all but every k-th step of a window. This finds range and window:
  1. a cost model gives, for each interval k, the smallest number of blocks that makes a run --ratio times cheaper;
  2. every range of so many blocks is tried from the latest start; the three best block starts go on, for each interval;
  3. they are tried with more blocks, other starts and other ends of the window.
The setting with the smallest error that reaches the ratio is chosen; the Pareto front shows what more or less would cost."""
EXAMPLES = """\
  python search_scripts/search_dit_block_cache.py --ratio 1.5
  python search_scripts/search_dit_block_cache.py --ratio 1.3 --cost time --pipeline models/FLUX.1-dev --steps 28 \\
      --prompt-file prompts.txt --stacks separate --out out/flux
  python search_scripts/search_dit_block_cache.py --published --ratio 1.3        the published lists and arithmetic"""


def procedure(options: argparse.Namespace, goal: Goal) -> Procedure:
    return BlockSearch(
        goal,
        options.stacks,
        tuple(options.intervals or ()),
        tuple(options.starts or ()),
        tuple(options.ends or ()),
        options.order,
        options.published,
    )


if __name__ == "__main__":
    made = parser("search_dit_block_cache.py", TEXT, EXAMPLES)
    group = made.add_argument_group("what is searched")
    add = group.add_argument
    add("--intervals", type=int, nargs="+", metavar="K", help="one of so many steps is computed (default: 2 3 4)")
    add("--starts", type=int, nargs="+", metavar="STEP", help="step_start (default: 0, 0.1 and 0.2 of the steps)")
    add("--ends", type=int, nargs="+", metavar="STEP", help="step_end (default: the number of steps, and one less)")
    add(
        "--stacks",
        default="together",
        metavar="WHICH",
        help="of a model with several lists of blocks (Flux: double and single): together, separate, or a list's name "
        "(default: together)",
    )
    add("--order", type=int, default=0, metavar="N", help="extrapolate with a polynomial of this order (default: 0, reuse)")
    add(
        "--published",
        action="store_true",
        help="as the published tool does it, with its rounding: starts 0 and 5, interval 2, at most 7 blocks more",
    )
    raise SystemExit(main(made, procedure))
