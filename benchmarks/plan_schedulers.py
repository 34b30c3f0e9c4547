"""Plans with schedulers of diffusers that keep earlier outputs: what the correction is worth there, on the trained testbed.

    python benchmarks/plan_schedulers.py                                   # UniPC, DPM-Solver++ and Euler, 32 unseen prompts
    python benchmarks/plan_schedulers.py --schedulers unipc --budgets 15 --prompts 8

Recorded are four generations of prompts that are not evaluated, with the same scheduler. Compared are, for each number of
computed steps: a uniform schedule with a line through the last two outputs; the plan without correction; the plan with the
correction in the scheduler's sigmas, as if its steps were those of Euler; and with the correction in the coordinates that
the trial of the scheduler gives. PSNR of the final latents beside the uncached ones of the same scheduler; "paired" is the
difference to the plan without correction, prompt by prompt. Results also go to out/bench/plan_schedulers.json.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mindie_cache import CacheAgent, CacheConfig, branch, run
from mindie_cache.calibration.planning import Recorder, Recording, make_plan, recording
from mindie_cache.calibration.testbed import DEFAULT_PROMPTS
from mindie_cache.testbed import TestbedTransformer, all_prompts, data, load_testbed
from mindie_cache.testbed.sampler import DEFAULT_GUIDANCE, DEFAULT_SHIFT, initial_noise

OUT = Path("out/bench/plan_schedulers.json")
BATCH, RECORDED, RECORDED_SEED, SEED = 8, 4, 9000, 100
PEAK = 2.0  # latents are in [-1, 1]
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": DEFAULT_SHIFT}
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**FLOW),
    "dpm": lambda: diffusers.DPMSolverMultistepScheduler(**FLOW),
    "euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=DEFAULT_SHIFT),
}


def started(name: str, steps: int) -> Any:
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(steps)
    return scheduler


@torch.no_grad()
def generate(
    model: TestbedTransformer, scheduler: Any, prompts: Sequence[str], seeds: Sequence[int], agent: CacheAgent | None = None
) -> Tensor:
    """Final latents, with guidance."""
    size = model.config
    x = initial_noise(seeds, (size.channels, size.frames, size.height, size.width))
    ids = {"cond": data.tokenize(prompts), "uncond": data.null_tokens(len(prompts))}
    with run():
        for t in scheduler.timesteps:
            outputs = {}
            for name, tokens in ids.items():
                times = torch.full((len(prompts),), float(t))
                call = {"hidden_states": x, "timestep": times, "encoder_hidden_states": tokens}
                with branch(name):
                    outputs[name] = model(**call) if agent is None else agent.apply(model, **call)
            guided = outputs["uncond"] + DEFAULT_GUIDANCE * (outputs["cond"] - outputs["uncond"])
            x = scheduler.step(guided, t, x, return_dict=False)[0]
    return x


def recorded(model: TestbedTransformer, name: str, steps: int) -> Recorder:
    prompts = DEFAULT_PROMPTS[:RECORDED]
    scheduler = started(name, steps)
    with recording(scheduler) as recorder:
        generate(model, scheduler, prompts, range(RECORDED_SEED, RECORDED_SEED + len(prompts)))
    return recorder


def settings(steps: int, budget: int, recorder: Recorder, sigmas: Sequence[float]) -> Iterator[tuple[str, CacheConfig]]:
    """The compared ones; the second is what the others are paired with."""
    assert recorder.sampler is not None
    levels = recorder.sampler.levels

    def planned(schedule: tuple[int, ...], points: Sequence[float], gain: float) -> CacheConfig:
        return CacheConfig("plan", 1, steps, options={"compute_steps": schedule, "sigmas": tuple(points), "gain": gain})

    def best(found: Recording) -> tuple[int, ...]:
        return make_plan(found).at(budget).steps

    even = tuple(sorted({round(place) for place in np.linspace(0, steps - 1, budget)}))
    yield "uniform, line", planned(even, sigmas, 0.0)
    yield "plan without correction", planned(best(recorder.result(sigmas, exact=False)), sigmas, 0.0)
    yield "plan, gain 1, in sigma", planned(best(recorder.result(sigmas)), sigmas, 1.0)
    yield "plan, gain 1", planned(best(recorder.result(levels)), levels, 1.0)


def rows_of(model: TestbedTransformer, name: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    steps, prompts = options.steps, unseen(options.prompts)

    def latents(config: CacheConfig | None) -> Tensor:
        parts = []
        for first in range(0, len(prompts), BATCH):
            some = prompts[first : first + BATCH]
            agent = None if config is None else CacheAgent(config)
            seeds = range(SEED + first, SEED + first + len(some))
            parts.append(generate(model, started(name, steps), some, seeds, agent))
        return torch.cat(parts)

    exact, recorder = latents(None), recorded(model, name, steps)
    sigmas = [float(sigma) for sigma in started(name, steps).sigmas]
    for budget in tqdm(options.budgets, desc=name):
        found = {
            setting: (10 * torch.log10(PEAK**2 / (latents(config) - exact).square().flatten(1).mean(1))).numpy()
            for setting, config in settings(steps, budget, recorder, sigmas)
        }
        for setting, psnr in found.items():
            paired = psnr - found["plan without correction"]
            yield {
                "scheduler": name,
                "computed": budget,
                "setting": setting,
                "psnr": round(float(psnr.mean()), 1),
                "worst": round(float(psnr.min()), 1),
                "paired": round(float(paired.mean()), 1),
                "standard error": round(float(paired.std() / len(paired) ** 0.5), 1),
                "paired, worst": round(float(paired.min()), 1),
                "wins": f"{int((paired > 0).sum())}/{len(paired)}",
            }


def unseen(count: int) -> list[str]:
    found = [prompt for prompt in all_prompts() if prompt not in DEFAULT_PROMPTS]
    return found[:: max(1, len(found) // count)][:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedulers", nargs="+", choices=SCHEDULERS, default=list(SCHEDULERS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=30, metavar="N")
    parser.add_argument("--budgets", type=int, nargs="+", default=[20, 15, 12, 10, 8], metavar="B")
    parser.add_argument("--prompts", type=int, default=32, metavar="N")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    model = load_testbed("cpu")
    rows = [row for name in options.schedulers for row in rows_of(model, name, options)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"steps": options.steps, "rows": rows}, indent=1))
    names = [*rows[-1]]
    print(f"| {' | '.join(names)} |\n|{' --- |' * len(names)}")
    for row in rows:
        print(f"| {' | '.join(str(row[name]) for name in names)} |")


if __name__ == "__main__":
    main()
