"""Find in which steps attention_cache should skip the attentions, on your own model."""

import argparse

from mindie_cache.calibration.search.command import Procedure, main, parser
from mindie_cache.calibration.search.findings import Goal
from mindie_cache.calibration.search.procedures import AttentionSearch

TEXT = """\
attention_cache reuses the output of every attention, in all but every k-th step of a window. This finds the window:
  1. the ratio gives the number of steps that have to do without attention (--cost time: from the measured share of time);
  2. for each start from 0.15 to 0.35 of the steps: the smallest interval that leaves out so many, and where it may end;
  3. all of them are tried; the one with the smallest error is chosen.
It keeps one output of each attention. That this fits into memory is checked first."""
EXAMPLES = """\
  python search_scripts/search_attention_cache.py --ratio 1.5
  python search_scripts/search_attention_cache.py --ratio 1.2 --cost time --pipeline models/HunyuanVideo --steps 50
  python search_scripts/search_attention_cache.py --memory-gib 24 --block-end 20"""


def procedure(options: argparse.Namespace, goal: Goal) -> Procedure:
    return AttentionSearch(
        goal,
        tuple(options.starts or ()),
        options.extra_intervals,
        options.block_start,
        options.block_end,
        options.order,
        options.memory_gib,
    )


if __name__ == "__main__":
    made = parser("search_attention_cache.py", TEXT, EXAMPLES)
    group = made.add_argument_group("what is searched")
    add = group.add_argument
    add("--starts", type=int, nargs="+", metavar="STEP", help="step_start (default: all from 0.15 to 0.35 of the steps)")
    add("--extra-intervals", type=int, default=1, metavar="N", help="for each start also N larger intervals (default: 1)")
    add("--block-start", type=int, default=0, metavar="N", help="first attention that is reused (default: 0)")
    add("--block-end", type=int, metavar="N", help="attentions from here on are computed (default: none)")
    add("--order", type=int, default=0, metavar="N", help="extrapolate with a polynomial of this order (default: 0, reuse)")
    add("--memory-gib", type=float, metavar="X", help="what may be kept (default: what is free on the device)")
    raise SystemExit(main(made, procedure))
