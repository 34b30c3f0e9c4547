"""Arguments that several commands share. Imports nothing heavy: it is there before the command is known."""

from __future__ import annotations

import argparse
from pathlib import Path

DTYPES = "bf16", "fp16", "fp32"


def add_model(group: argparse._ArgumentGroup) -> None:
    """Of a model that settings are looked for on, whatever names it."""
    add = group.add_argument
    add("--blocks", metavar="NAME", help="the model's list of blocks, if it is not found")
    add("--guidance", type=float, metavar="X", help="guidance scale (default: 2, or the pipeline's own)")
    add("--shift", type=float, metavar="X", help="sigma shift (default: 3, or the pipeline's own)")
    add("--sharded", action="store_true", help="the ranks of torchrun hold one model together, e.g. by context parallelism")
    add_call(group)


def add_call(group: argparse._ArgumentGroup) -> None:
    """Of loading and calling a pipeline of diffusers."""
    add = group.add_argument
    add("--dtype", choices=DTYPES, help="of a folder's weights (default: bf16, on the CPU fp32)")
    add("--offload", action="store_true", help="keep components on the CPU until they are needed")
    add("--negative-prompt", metavar="TEXT", help="what not to generate")
    add("--height", type=int, metavar="N", help="pixels (default: the pipeline's)")
    add("--width", type=int, metavar="N", help="pixels (default: the pipeline's)")
    add("--frames", type=int, metavar="N", help="of a video (default: the pipeline's)")
    add("--image", type=Path, action="append", metavar="FILE", help="picture to edit or to start from; repeatable")
    add("--call", action="append", metavar="NAME=VALUE", help="any other argument of the pipeline's call; repeatable")
