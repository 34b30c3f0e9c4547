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

EXACT, ROUNDED = 1e-3, 0.1  # relative L1 distances: where fp32 is kept; where types, or a placement, round more

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
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True)
    sums = [relative_l1(one, other) for one, other in pairs if isinstance(other, torch.Tensor) and other.is_floating_point()]
    numbers = ranks.read(torch.cat(sums)) if sums else []
    if not all(map(math.isfinite, numbers[1::2])):
        return math.nan
    off = [moved / (size or 1.0) for moved, size in zip(numbers[::2], numbers[1::2], strict=True)]
    return max([math.inf if math.isnan(one) else one for one in off], default=0.0)


def allowed(track: Track, placement: str) -> float:
    """How far off an output may be because of rounding."""
    types = {kind for lane in track.ranges for kind in lane.history.dtypes}
    return EXACT if placement == "device" and types <= {torch.float32, torch.float64} else ROUNDED
