"""Magnitude tables: skip while the error that the published growth of the residual predicts stays small.

A table says how much the residual of step k is larger than that of step k - 1. It is known before the run, so the rule of
MagCache and of TeleFuser's AdaTaylorCache becomes a plan, a set of computed steps; it is executed by `Schedule`.
Sources: MagCache (Ma et al., NeurIPS 2025, arXiv 2506.09045); TeleFuser (Tele-AI), AdaTaylorCache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from mindie_cache.checks import choice
from mindie_cache.errors import ConfigError

RULES = ("telefuser", "magcache")
RESAMPLINGS = ("product", "nearest")


def plan(
    ratios: Sequence[float],
    steps_count: int,
    threshold: float,
    max_skip_steps: int,
    retention_ratio: float,
    *,
    rule: str = "magcache",
    final_steps: int = 1,
    init_step: int = 0,
) -> frozenset[int]:
    """Return the steps that are computed.

    After a computed step, P is the product of the ratios since, E the sum of |1 - P|, n the number of steps since: a step
    is skipped while E < threshold and n <= max_skip_steps.

    Args:
        ratios: one a step, ``steps_count`` of them; see `resample`. Entry 0 is not used.
        threshold: of E.
        max_skip_steps: most skipped steps in a row.
        retention_ratio: share of the first steps that are always computed: ``int(steps_count * retention_ratio)`` of
            them with rule "magcache", one more with rule "telefuser".
        rule: the two published rules differ in the warm-up only, and in what `final_steps` is: MagCache forces none.
        final_steps: the last steps that are always computed.
        init_step: one more step that is always computed, where a second expert takes over.
    """
    choice("rule", rule, RULES)
    if len(ratios) != steps_count:
        raise ConfigError(f"A magnitude table of {len(ratios)} entries does not fit {steps_count} steps. Use resample().")
    warmup = int(steps_count * retention_ratio) + (rule == "telefuser")
    computed: set[int] = set()
    error, skips, product = 0.0, 0, 1.0
    for step in range(steps_count):
        forced = step < max(1, warmup) or step >= steps_count - final_steps or step == init_step
        if not forced:
            product *= ratios[step]
            skips += 1
            error += abs(1.0 - product)
            if error < threshold and skips <= max_skip_steps:
                continue
        computed.add(step)
        error, skips, product = 0.0, 0, 1.0
    return frozenset(computed)


def resample(ratios: Sequence[float], steps_count: int, how: str = "product") -> tuple[float, ...]:
    """A table for another number of steps.

    "product": the growth between the same places of the run, as each new step covers several old ones, or a part of one:
    the logarithm of the accumulated product is interpolated linearly. "nearest": the entry at the nearest place, as
    published; it underestimates the growth of fewer steps and overestimates that of more.
    """
    choice("resampling", how, RESAMPLINGS)
    if len(ratios) == steps_count:
        return tuple(ratios)
    last = len(ratios) - 1
    if steps_count == 1:
        return (ratios[last],) if how == "nearest" else (1.0,)
    places = [step * last / (steps_count - 1) for step in range(steps_count)]
    if how == "nearest":
        return tuple([ratios[round(place)] for place in places])
    logs = [0.0]
    for ratio in ratios[1:]:
        logs.append(logs[-1] + math.log(ratio))
    grown = [_at(logs, place) for place in places]
    return (1.0, *[math.exp(after - before) for before, after in pairwise(grown)])


def _at(values: Sequence[float], place: float) -> float:
    """`values` between its entries."""
    below = min(int(place), len(values) - 1)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (place - below)
