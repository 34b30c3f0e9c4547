"""Proof: what was kept is used once on the step that it comes from, where it has to give what was computed.

A region of blocks stands for a chain: each block takes over the streams of the one before, and nobody else looks at them on
the way. No code says of itself that it is one; a model that is none shows it here, before anything is reused.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils import _pytree as pytree

from mindie_cache.distributed import Ranks
from mindie_cache.lanes import Track
from mindie_cache.ops import relative_l1

# Relative L1 distances: where fp32 is kept, where a type of half the size is, where codes are.
EXACT, ROUNDED, CODED = 1e-3, 0.1, 0.5

NO_CHAIN = (
    "What the cached blocks add was tried on the step that it comes from, and the output was {:.1%} off: these blocks are "
    "no chain. They take turns with another list, run in another order or side by side, change what they do not return, or "
    "hand their states to later ones. Everything is computed. Cache one of the lists: enable_cache(..., blocks=...); or a "
    "range that ends where the states are used up; or whole forwards: method easycache."
)


def difference(found: Any, wanted: Any, ranks: Ranks) -> float:
    """The largest relative L1 distance of the tensors in two outputs of a model, over all ranks. One host read.

    NaN if that cannot be said, because what is wanted is not finite.
    """
    sums = [relative_l1(*pair) for pair in zip(_tensors(found), _tensors(wanted), strict=True)]
    numbers = ranks.read(torch.cat(sums)) if sums else []
    if not all(map(math.isfinite, numbers[1::2])):
        return math.nan
    off = [moved / (size or 1.0) for moved, size in zip(numbers[::2], numbers[1::2], strict=True)]
    return max([math.inf if math.isnan(one) else one for one in off], default=0.0)


def allowed(track: Track, placement: str) -> float:
    """How far off an output may be because of rounding."""
    types = {kind for lane in track.ranges for kind in lane.history.dtypes}
    if placement != "device":
        return CODED
    return EXACT if types <= {torch.float32, torch.float64} else ROUNDED


def spare(call: Any) -> Any:
    """The same arguments in containers of their own: a model may take them out of a list that it is given."""
    return pytree.tree_map(lambda leaf: leaf, call)


def copies(output: Any) -> Any:
    """The output of a forward before another one: one that replays a captured graph returns the same tensors again."""
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, output)


def _tensors(output: Any) -> list[torch.Tensor]:
    """The tensors of real numbers in an output, also in objects with attributes."""
    leaves = pytree.tree_leaves(output)
    others = [leaf for leaf in leaves if not isinstance(leaf, torch.Tensor)]
    leaves += pytree.tree_leaves([vars(other) for other in others if hasattr(other, "__dict__")])
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
