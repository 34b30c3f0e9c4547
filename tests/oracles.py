"""The published methods restated in plain Python and NumPy, as an independent second opinion.

Every class here is written from the published rule alone and knows nothing of the package. A decider has
`compute(step, ...)`, called once for each step and branch in order, that says whether the rule runs the model;
a predictor has `keep(step, feature)` and `estimate(step)`. Everything is float64.
"""

import math
from typing import Any

import numpy as np

Array = np.ndarray


class Margin:
    """How close a decision came to its threshold: sums of other libraries are in single precision, so a decision that is
    closer than that is nobody's to make."""

    closest = math.inf

    def below(self, value: float, threshold: float) -> bool:
        self.closest = min(self.closest, abs(value - threshold) / max(threshold, 1e-12))
        return value < threshold

    @property
    def unclear(self) -> bool:
        return self.closest < 1e-4


def relative_l1(new: Array, old: Array) -> float:
    return float(np.abs(new - old).mean() / np.abs(old).mean())


class Tea(Margin):
    """Accumulated polynomial of the signal's relative change; the previous signal is replaced every step.

    clamp and most are the two additions of the package: no negative contribution, no longer run of reuses.
    """

    def __init__(
        self,
        polynomial: list[float],
        threshold: float,
        forced: set[int],
        clamp: bool = True,
        most: int | None = None,
    ) -> None:
        self.polynomial, self.threshold, self.forced = polynomial, threshold, forced
        self.clamp, self.most = clamp, most
        self.total, self.row, self.previous = 0.0, 0, None

    def contribution(self, distance: float) -> float:
        degree = len(self.polynomial) - 1
        value = sum(c * distance ** (degree - i) for i, c in enumerate(self.polynomial))
        return max(value, 0.0) if self.clamp else value

    def compute(self, step: int, signal: Array) -> bool:
        previous, self.previous = self.previous, np.array(signal, dtype=np.float64)
        if step not in self.forced and previous is not None:
            self.total += self.contribution(relative_l1(self.previous, previous))
            if self.below(self.total, self.threshold) and (self.most is None or self.row < self.most):
                self.row += 1
                return False
        self.total, self.row = 0.0, 0
        return True


def sea_response(sizes: tuple[int, ...], sigma: float, exponent: float) -> Array:
    """SeaCache's frequency response on a grid, as published: the linear denoiser (1 - s) P / ((1 - s)^2 P + s^2) of each
    axis for the power P = 1 / |f|^b, their product, divided by its mean over all frequencies."""
    sigma = min(max(sigma, 1e-6), 1 - 1e-6)
    response = np.ones(sizes)
    for axis, size in enumerate(sizes):
        power = 1 / (np.abs(np.fft.fftfreq(size)) ** exponent + 1e-16)
        gain = (1 - sigma) * power / ((1 - sigma) ** 2 * power + sigma**2 + 1e-16)
        response = response * gain.reshape([-1 if other == axis else 1 for other in range(len(sizes))])
    return response / response.mean()


def sea_filter(x: Array, axes: tuple[int, ...], sigma: float, exponent: float) -> Array:
    """`x` filtered along `axes`, ascending."""
    response = sea_response(tuple(x.shape[axis] for axis in axes), sigma, exponent)
    shape = [x.shape[axis] if axis in axes else 1 for axis in range(x.ndim)]
    return np.fft.ifftn(np.fft.fftn(x, axes=axes) * response.reshape(shape), axes=axes).real


class Sea(Tea):
    """TeaCache's sum with the identity as polynomial, of the filtered signal; also in the forced steps."""

    def __init__(
        self, sigmas: list[float], exponent: float, threshold: float, forced: set[int], most: int | None = None
    ) -> None:
        super().__init__([1.0, 0.0], threshold, forced, most=most)
        self.sigmas, self.exponent = sigmas, exponent

    def look(self, step: int, signal: Array, axes: tuple[int, ...]) -> bool:
        return self.compute(step, sea_filter(signal, axes, self.sigmas[step], self.exponent))


class Magnitude:
    """MagCache's online rule: the drift of the accumulated ratio, a window in front, a limit of reuses."""

    def __init__(
        self, ratios: list[float], steps: int, threshold: float, most: int, retention: float, last: int = 0
    ) -> None:
        self.ratios, self.steps, self.threshold, self.most = ratios, steps, threshold, most
        self.window, self.last = int(steps * retention), last
        self.error, self.row, self.product = 0.0, 0, 1.0

    def compute(self, step: int) -> bool:
        if step < self.window:
            return True
        if step < self.steps - self.last:
            self.product *= self.ratios[step]
            self.row += 1
            self.error += abs(1.0 - self.product)
            if self.error < self.threshold and self.row <= self.most:
                return False
        self.error, self.row, self.product = 0.0, 0, 1.0
        return True


def ada_taylor_plan(
    ratios: list[float], steps: int, k: int, threshold: float, retention: float, init_step: int = 0
) -> list[int]:
    """TeleFuser's walk, fixed at construction: start + 1 steps in front, the last step and init_step forced."""
    start, plan = int(steps * retention), []
    error, row, product = 0.0, 0, 1.0
    for step in range(steps):
        if not (step <= start or step == steps - 1 or step == init_step):
            product *= ratios[step]
            row += 1
            error += abs(1 - product)
            if error < threshold and row <= k:
                continue
        plan.append(step)
        error, row, product = 0.0, 0, 1.0
    return plan


def nearest_table(ratios: list[float], steps: int) -> list[float]:
    if steps == len(ratios):
        return list(ratios)
    if steps == 1:
        return [ratios[-1]]
    return [ratios[round(j * (len(ratios) - 1) / (steps - 1))] for j in range(steps)]


class Hold:
    depth = 1

    def __init__(self) -> None:
        self.feature: Any = None

    def keep(self, step: int, feature: Array) -> None:
        self.feature = feature

    def estimate(self, step: int) -> Array:
        return self.feature


class Ladder:
    """Differences between computed steps, every order divided by the newest gap; a Taylor sum in the distance.

    Beyond `hold_beyond` steps from the newest the plain feature is used (TeleFuser's hybrid). Derivatives are
    formed from step `first_enhance - 1` on (TaylorSeer), which is every step for first_enhance <= 1.
    """

    def __init__(self, order: int, hold_beyond: float = math.inf, derivatives_from: int = -1) -> None:
        self.order, self.hold_beyond, self.derivatives_from = order, hold_beyond, derivatives_from
        self.rungs: list[Array] = []
        self.last = -1

    def keep(self, step: int, feature: Array) -> None:
        gap = max(step - self.last, 1)
        rungs = [feature]
        if step >= self.derivatives_from:
            for old in self.rungs[: self.order]:
                rungs.append((rungs[-1] - old) / gap)
        self.rungs, self.last = rungs, step

    def estimate(self, step: int) -> Array:
        distance = step - self.last
        if distance > self.hold_beyond:
            return self.rungs[0]
        return sum(d * distance**i / math.factorial(i) for i, d in enumerate(self.rungs))  # type: ignore[return-value]


class Polynomial:
    """The polynomial through the newest order + 1 kept features on their true steps (Lagrange's form)."""

    def __init__(self, order: int, hold_beyond: float = math.inf, derivatives_from: int = -1) -> None:
        self.order, self.hold_beyond, self.derivatives_from = order, hold_beyond, derivatives_from
        self.points: list[tuple[int, Array]] = []

    def keep(self, step: int, feature: Array) -> None:
        if step < self.derivatives_from:
            self.points = []
        self.points = [*self.points, (step, feature)][-(self.order + 1) :]

    def estimate(self, step: int) -> Array:
        newest, feature = self.points[-1]
        if step - newest > self.hold_beyond:
            return feature
        total = np.zeros_like(feature)
        for at, value in self.points:
            factor = 1.0
            for other, _ in self.points:
                if other != at:
                    factor *= (step - other) / (at - other)
            total = total + factor * value
        return total


def taylorseer_computes(steps: int, interval: int, first_enhance: int, last: bool) -> list[int]:
    """Every step of the warm-up, then each time interval - 1 steps were skipped since the last computed one."""
    plan, since = [], 0
    for step in range(steps):
        if step == 0 or step < first_enhance or since == interval - 1 or (last and step == steps - 1):
            plan.append(step)
            since = 0
        else:
            since += 1
    return plan


CODEBOOK_100 = ((0.03, 12), (0.05, 10), (0.07, 8), (0.09, 6), (0.11, 4))


class Ada(Margin):
    """AdaCache as LightX2V writes it: distance of the probe over the step length, motion, code book -> length."""

    def __init__(
        self,
        steps: int,
        codebook: tuple[tuple[float, int], ...] = CODEBOOK_100,
        otherwise: int = 3,
        frame_tokens: int | None = None,
        scale: float = 0.385,
        power: float = 8,
        gradient: float = 10.0,
        last: int = 0,
    ) -> None:
        self.steps, self.codebook, self.otherwise = steps, codebook, otherwise
        self.frame_tokens, self.scale, self.power, self.gradient, self.last = frame_tokens, scale, power, gradient, last
        self.flags = [True] * steps
        self.previous: Any = None
        self.length, self.motion = 1, 1.0

    def compute(self, step: int) -> bool:
        return self.flags[step] or step >= self.steps - self.last

    def observe(self, step: int, probe: Array) -> None:
        """Called at a computed step with the probe of shape [..., tokens, channels]."""
        if step > self.steps - 2:
            return
        if self.previous is None:
            self.length = 1
        else:
            old = self.previous
            distance = np.abs(old - probe).sum() / np.abs(old).sum() / self.length
            motion = 1.0
            if self.frame_tokens and int(0.1 * self.steps) <= step <= int(0.9 * self.steps):
                late, early = probe[..., self.frame_tokens :, :], probe[..., : -self.frame_tokens, :]
                share = np.abs(late - early).sum() / (np.abs(late).sum() + np.abs(early).sum())
                motion = float(share / self.scale) ** self.power
            grad = self.gradient * (motion - self.motion) / self.length
            self.motion = motion
            distance *= motion + abs(grad)
            self.length = next((n for bound, n in self.codebook if self.below(distance, bound)), self.otherwise)
        self.previous = probe
        for later in range(step + 1, min(step + self.length, self.steps)):
            self.flags[later] = False


class ProbeChange(Margin):
    """Block-residual caches: compute where the probe moved by the threshold; every f-th channel is compared.

    always=True replaces the probe every step (as published), False only at computed steps.
    """

    def __init__(self, threshold: float, factor: int, always: bool, most: int | None = None) -> None:
        self.threshold, self.factor, self.always, self.most = threshold, factor, always, most
        self.previous: Any = None
        self.row = 0

    def compute(self, probe: Array, forced: bool = False) -> bool:
        old = self.previous
        distance = 1.0
        if old is not None:
            distance = relative_l1(probe[..., :: self.factor], old[..., :: self.factor])
        answer = forced or not self.below(distance, self.threshold) or (self.most is not None and self.row >= self.most)
        if answer or self.always:
            self.previous = probe
        self.row = 0 if answer else self.row + 1
        return answer


class Easy(Margin):
    """EasyCache: the output's rate of change per input change, learned at computed steps, sums up until tau."""

    def __init__(self, threshold: float, forced: set[int], most: int | None = None) -> None:
        self.threshold, self.forced, self.most = threshold, forced, most
        self.total, self.row, self.rate = 0.0, 0, None
        self.before: Any = None
        self.computed_in: Any = None
        self.computed_out: Any = None

    def compute(self, step: int, x: Array) -> bool:
        before, self.before = self.before, x
        if step not in self.forced and self.rate is not None and before is not None:
            self.total += self.rate * np.abs(x - before).mean() / np.abs(self.computed_out).mean()
            if self.below(self.total, self.threshold) and (self.most is None or self.row < self.most):
                self.row += 1
                return False
        self.total, self.row = 0.0, 0
        return True

    def observe(self, x: Array, v: Array) -> None:
        if self.computed_in is not None:
            moved = np.abs(x - self.computed_in).mean()
            grown = float(np.abs(v - self.computed_out).mean())
            self.rate = grown / moved if moved else 0.0 if not grown else math.nan
        self.computed_in, self.computed_out = x, v


class Dynamic(Margin):
    """One block of the DynamicBlock cache: compared is the block's own input with that of the previous step.

    published: this step's distance against the threshold. Otherwise the distances since the last computed step are
    added up, this step's being taken as that of the step before, because it is not known yet.
    """

    def __init__(self, threshold: float, factor: int, published: bool, most: int | None = None) -> None:
        self.threshold, self.factor, self.published, self.most = threshold, factor, published, most
        self.inputs: list[Array] = []
        self.last, self.feature = -1, None  # last computed step, its residual

    def distance(self, step: int) -> float:
        if step < 1:
            return math.inf  # unknown
        return relative_l1(self.inputs[step][..., :: self.factor], self.inputs[step - 1][..., :: self.factor])

    def compute(self, step: int, entering: Array, forced: bool = False) -> bool:
        self.inputs.append(entering)
        if self.published:
            drift = self.distance(step)
        else:
            known = [self.distance(earlier) for earlier in range(self.last + 1, step)]
            drift = sum(known) + self.distance(step - 1)
        answer = forced or not self.below(drift, self.threshold)
        answer = answer or (self.most is not None and step - self.last > self.most)
        if answer:
            self.last = step
        return answer
