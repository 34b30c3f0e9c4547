"""TeaCache's polynomial: from the change of a cheap signal to the change of what is cached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from mindie_cache.errors import ParametersInvalid

DEGREE = 4
LEAST_STEPS = DEGREE + 2  # a fit needs one more change than its degree, and N steps have N - 1 changes


class Polynomial(NamedTuple):
    """`coefficients`, the highest power first, fitted on changes of the signal within `fitted_range` (a closed range)."""

    coefficients: tuple[float, ...]
    fitted_range: tuple[float, float]


def fit(changes: Sequence[tuple[float, float]], degree: int = DEGREE) -> Polynomial:
    """Least squares over pairs (relative L1 change of the signal, of the residual), one pair for each step and branch.

    Raises:
        ParametersInvalid: the pairs do not determine a polynomial of this degree.
    """
    import numpy as np

    if not all(math.isfinite(value) for pair in changes for value in pair):
        raise ParametersInvalid("A change of the signal is NaN or infinite: no polynomial can be fitted.")
    given = [pair[0] for pair in changes]
    problem = (
        f"{len(set(given))} different changes of the signal do not determine a polynomial of degree {degree}. "
        "Choose a signal that changes from step to step (signal='temb' or 'modulated'), or calibrate with more steps."
    )
    if len(set(given)) <= degree:
        raise ParametersInvalid(problem)
    coefficients, _, rank, *_ = np.polyfit(given, [pair[1] for pair in changes], degree, full=True)
    if rank <= degree:
        raise ParametersInvalid(problem)
    return Polynomial(tuple(coefficients.tolist()), (min(given), max(given)))
