"""Guards at run time: whether the observed error of a plan's estimates can make it safer for single prompts.

    OMP_NUM_THREADS=1 python benchmarks/plan_guards.py                # 32 unseen prompts, about 10 minutes

At a computed step after a gap the squared difference between the output and its estimate is divided by what the recording
has for the same steps. Guards make use of the logarithm of that:

    recompute         the larger it is, the richer the plan that is followed from there on; the smaller, the poorer. By
                      1 + follow * logarithm times the budget, from 0.7 to 1.5 times
    recompute, late   by the difference one computed step before, as a guard that never waits for the device would
    correction off    no correction where the difference is more than twice that of the recording

"beside uniform" is the difference to a line on an even schedule of the same budget, "beside plan" that to the plan, prompt
by prompt: mean, worst, wins. Everything is executed here sample by sample, apart from the package's engine. The PSNR of
each prompt goes to out/bench/plan_guards.json.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from planners_runs import BATCH, PEAK, Task, unseen
from plans import recorded_plan, uniform
from torch import Tensor
from tqdm import tqdm

from mindie_cache.predictors import Line, Retroactive
from mindie_cache.testbed import TestbedTransformer, data, load_testbed
from mindie_cache.testbed.sampler import initial_noise, sigmas

OUT = Path("out/bench/plan_guards.json")
STEPS, GUIDANCE, RECORDED = 30, 2.0, "plan"
POOREST, RICHEST, TOO_LARGE = 0.7, 1.5, math.log(2)


@dataclass(frozen=True)
class Guard:
    """What is done about the difference: `follow` is 0 if no other plan is followed."""

    follow: float = 0.0
    late: bool = False
    off: bool = False


GUARDS = {
    RECORDED: Guard(),
    "recompute, follow 0.1": Guard(follow=0.1),
    "recompute, follow 0.2": Guard(follow=0.2),
    "recompute, late, follow 0.1": Guard(follow=0.1, late=True),
    "recompute, late, follow 0.2": Guard(follow=0.2, late=True),
    "correction off": Guard(off=True),
}


@dataclass
class Sample:
    """One prompt: its latents, what is kept of computed steps, the next of them; and what was seen of differences."""

    x: Tensor
    kept: dict[int, Tensor] = field(default_factory=dict)
    next: int = 0
    calls: int = 0
    seen: list[float] = field(default_factory=list)  # logarithms


class Bench:
    """The model, and a plan with all budgets."""

    def __init__(self, model: TestbedTransformer):
        self.model, self.u = model, tuple(sigmas(STEPS).tolist())
        self.plan, self.recording = recorded_plan(model, STEPS, guidance_scale=GUIDANCE)
        self.line = Line(self.u)

    def latents(self, task: Task, budget: int, guard: Guard | None) -> tuple[Tensor, list[Sample]]:
        """Without a guard: the even schedule of that budget, and no correction."""
        shape = [getattr(self.model.config, name) for name in ("channels", "frames", "height", "width")]
        samples = [Sample(noise) for noise in initial_noise(task.seeds, shape)]
        prompts, empty = data.tokenize(task.prompts), data.null_tokens(1)
        for step in range(STEPS):
            computed = [(one, tokens) for one, tokens in zip(samples, prompts, strict=True) if one.next == step]
            outputs = iter(self._velocities(computed, empty, step))
            for sample in samples:
                velocity = self._estimate(sample, step) if sample.kept else torch.zeros_like(sample.x)
                if sample.next == step:
                    velocity = self._computed(sample, step, next(outputs), velocity, budget, guard)
                sample.x = sample.x + (self.u[step + 1] - self.u[step]) * velocity
        return torch.stack([sample.x for sample in samples]), samples

    @torch.no_grad()
    def _velocities(self, computed: list[tuple[Sample, Tensor]], empty: Tensor, step: int) -> list[Tensor]:
        found: list[Tensor] = []
        for first in range(0, len(computed), BATCH):
            some = computed[first : first + BATCH]
            outputs = self.model(
                hidden_states=torch.stack([sample.x for sample, _ in some] * 2),
                timestep=torch.full((2 * len(some),), 1000 * self.u[step]),
                encoder_hidden_states=torch.cat([torch.stack([tokens for _, tokens in some]), empty.expand(len(some), -1)]),
            )
            cond, uncond = outputs.chunk(2)
            found += (uncond + GUIDANCE * (cond - uncond)).unbind()
        return found

    def _estimate(self, sample: Sample, step: int) -> Tensor:
        weights = self.line.weights([*sample.kept], step)
        return torch.stack([weight * kept for weight, kept in zip(weights, sample.kept.values(), strict=True)]).sum(0)

    def _computed(
        self, sample: Sample, step: int, output: Tensor, estimate: Tensor, budget: int, guard: Guard | None
    ) -> Tensor:
        """The velocity that the step makes; keeps the output, and chooses the next computed step."""
        points, sample.calls = [*sample.kept], sample.calls + 1
        difference = output - estimate
        if points and step - points[-1] > 1:
            sample.seen.append(math.log(float(difference.square().sum()) / self._recorded(points, step)))
        kept = {**sample.kept, step: output}
        sample.kept = {point: kept[point] for point in [*kept][-2:]}
        if guard is None:
            sample.next = min([one for one in uniform(STEPS, budget) if one > step], default=STEPS)
            return output
        seen = sample.seen[: -1 if guard.late else None]
        share = min(RICHEST, max(POOREST, 1 + guard.follow * seen[-1])) if seen and guard.follow else 1.0
        followed = self.plan.at(max(4, round(budget * share))).steps
        sample.next = min([one for one in followed if one > step], default=STEPS)
        gain = 0.0 if guard.off and sample.seen and sample.seen[-1] > TOO_LARGE else self.plan.at(budget).gain
        factor = Retroactive(self.u, gain).factor(points, step) if points else 0.0
        return output + factor * difference

    def _recorded(self, points: list[int], step: int) -> float:
        """Mean of |output - estimate|^2 in the recording."""
        weights = np.zeros(STEPS)
        weights[points] = self.line.weights(points, step)
        weights[step] = -1
        return float(weights @ self.recording.gram @ weights) / self.recording.samples


def psnr(latents: Tensor, exact: Tensor) -> np.ndarray:
    return (10 * torch.log10(PEAK**2 / (latents - exact).square().flatten(1).mean(1))).numpy()


def beside(found: np.ndarray, other: np.ndarray) -> str:
    paired = found - other
    return f"{paired.mean():+.1f}, {paired.min():+.1f}, {int((paired > 0).sum())}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=int, nargs="+", default=[15, 10, 8], metavar="B")
    parser.add_argument("--prompts", type=int, default=32, metavar="N")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE")
    options = parser.parse_args()
    bench, task = Bench(load_testbed("cpu")), unseen(options.prompts)
    exact = bench.latents(task, STEPS, None)[0]
    rows: list[list[object]] = []
    each = {}
    for budget in tqdm(options.budgets, desc="budgets"):
        even = psnr(bench.latents(task, budget, None)[0], exact)
        found: dict[str, np.ndarray] = {}
        for name, guard in GUARDS.items():
            latents, samples = bench.latents(task, budget, guard)
            found[name] = psnr(latents, exact)
            calls = np.mean([sample.calls for sample in samples])
            cells = [budget, name, f"{calls:.1f}", f"{found[name].mean():.1f}", f"{found[name].min():.1f}"]
            rows.append([*cells, beside(found[name], even), beside(found[name], found[RECORDED])])
            if name == RECORDED:
                seen = [np.mean(sample.seen) for sample in samples]
                related = [f"{np.corrcoef(seen, values)[0, 1]:.2f}" for values in (found[name], found[name] - even)]
                rows.append([budget, "correlation with the mean logarithm", "", related[0], "", related[1], ""])
        each[budget] = {"uniform": even.tolist(), **{name: values.tolist() for name, values in found.items()}}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"steps": STEPS, "psnr": each}))
    print("| budget | guard | computed | psnr | worst | beside uniform | beside plan |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")


if __name__ == "__main__":
    main()
