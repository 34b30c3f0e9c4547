"""Whether a call of a pipeline's model holds both branches of guidance in one batch: by what the pipeline says of itself."""

from __future__ import annotations

from typing import Any
from weakref import ref

from mindie_cache.hooks.generation import ORDINALS
from mindie_cache.hooks.sight import BOTH
from mindie_cache.lanes import Track

NO_PAIR = (
    'cfg_cache with layout="batch" computes calls of {} in full: nothing says that their batch is both branches of guidance '
    "and not several pictures. Leave cfg_cache out where there is no guidance. If each branch has calls of its own, use "
    'layout="sequential". If the pipeline has guidance, and computes both branches in one call without saying so, generate '
    'inside `with mindie_cache.branch("both"):`.'
)


class Pairs:
    """Of one generation. Its calls are known by their size.

    Args:
        pipe: the pipeline around the model; without one, the user's word for both branches in a batch is taken.
        is_its: the generation is made by this pipeline, so that what it says is of this generation.
    """

    def __init__(self, pipe: ref[Any] | None, is_its: bool):
        self._pipe = pipe
        self._is_its = is_its
        self._sizes: dict[str, int] = {}  # of the batch, by branch

    def __call__(self, track: Track, size: int) -> bool:
        self._sizes[track.branch] = size
        largest = max([other for branch, other in self._sizes.items() if branch != track.branch], default=0)
        pipe = None if self._pipe is None else self._pipe()
        if size < largest or pipe is None:  # less than both: a call beside guidance, e.g. with layers left out
            return size >= largest
        is_alone = track.named in ORDINALS and size > largest
        if self._is_its and (is_alone or track.named == BOTH) and _is_guided(pipe, track.named):
            return True
        track.common.warn("no pair", NO_PAIR.format(type(pipe).__name__))
        return False


def _is_guided(pipe: Any, branch: str) -> bool:
    """Whether it has guidance with two rows a picture. Some name their calls "cond_uncond" without guidance too, and some
    of these tell it by the scale only; a scale alone may be that of a distilled model, which has no guidance."""
    told, scale = getattr(pipe, "do_classifier_free_guidance", None), getattr(pipe, "_guidance_scale", None)
    if told is None:
        told = branch == BOTH and not (isinstance(scale, int | float) and scale <= 1)
    return bool(told) and not getattr(pipe, "do_perturbed_attention_guidance", False)
