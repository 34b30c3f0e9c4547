"""Line: through the two newest snapshots, in the noise level. And what is repaired at a computed step after a gap.

`sigmas` are noise levels, or coordinates like them in which the steps of another sampler add up: see
`mindie_cache.calibration.planning.samplers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """A straight line in the noise level; one snapshot is held.

    Args:
        sigmas: noise level at every step, and at the end: one more than steps.
    """

    sigmas: tuple[float, ...]
    depth = 2
    warmup = 1

    def weights(self, points: Sequence[float], at: float) -> Sequence[float]:
        if len(points) == 1:
            return (1.0,)
        before, here, target = (self.sigmas[int(step)] for step in (*points[-2:], at))
        ahead = (target - here) / (here - before)
        return (*(0.0,) * (len(points) - 2), -ahead, 1.0 + ahead)


@dataclass(frozen=True)
class Retroactive:
    """The correction of the skipped steps, once the next computed one shows how far off the line was.

    After a gap from step i to step j the output v_j differs from its estimate by d. The remainder of interpolation says
    which share q_t of d a skipped step t was off: q_t = (u_t - u_i)(u_t - u_p) / ((u_j - u_i)(u_j - u_p)) with u = sigma,
    without the factors of p if there was one snapshot only. With D_t = u_(t+1) - u_t the latents are repaired by
    ``gain * sum(D_t q_t) * d``. A sampler that adds D_j times the model's output does just that if the model returns
    ``v_j + factor * d`` with ``factor = gain * sum(D_t q_t) / D_j``. What is kept is v_j itself.

    It is exact for every sampler that is linear and whose D_t say what an output counts in the final latents: at once if
    a step uses the latest output only, as those of Euler and DDIM, and after a few steps if it uses several. Guidance is
    linear: each branch corrects its own part.
    The last step corrects nothing: it goes to the clean sample that the network sees in whatever latents it is given, so
    that an error is gone already, and would be taken away twice.
    """

    sigmas: tuple[float, ...]
    gain: float = 1.0

    def factor(self, points: Sequence[int], at: int) -> float:
        """Of d at the computed step `at`, after the snapshots at the steps `points`; 0 if nothing was skipped."""
        u, here = self.sigmas, points[-1]
        if at - here < 2 or at == len(u) - 2:
            return 0.0
        total = 0.0
        for t in range(here + 1, at):
            share = (u[t] - u[here]) / (u[at] - u[here])
            if len(points) > 1:
                share *= (u[t] - u[points[-2]]) / (u[at] - u[points[-2]])
            total += (u[t + 1] - u[t]) * share
        return self.gain * total / (u[at + 1] - u[at])
