"""plan: from recordings to a plan with an entry for every budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from mindie_cache.calibration.facts import cfg_scale, default_of, guidance_name, quiet
from mindie_cache.calibration.planning.identity import identity
from mindie_cache.calibration.planning.plan import STARTS, Entry, Plan
from mindie_cache.calibration.planning.program import GAP_FACTOR
from mindie_cache.calibration.planning.recording import EXPERTS, Recording, record_run
from mindie_cache.calibration.planning.relay import program_of
from mindie_cache.doctor import NOT_INSTALLED, versions
from mindie_cache.errors import ParametersInvalid
from mindie_cache.hooks.handle import has_cache

GROWTH = 5.0  # of the square of an error, see docs/planning.md
MODERATE, STRONG, HALF = 2.0, 4.0, 0.45  # guidance scales and a share of computed steps, see docs/planning-measured.md


def make_plan(
    recording: Recording,
    *,
    budget: int | None = None,
    correct: bool | None = None,
    guidance: float | None = None,
    factor: float = GAP_FACTOR,
    provenance: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of a recording: the exact optimum for every number of computed steps.

    Args:
        budget: the chosen one, half of the steps by default, or the least above that there is: the first step of every
            expert and the last step are computed in any case. `Plan.choose` chooses another one.
        correct: whether computed steps correct what the estimates before them were off, if the sampler permits it. By
            default where that has proved worth it, see `corrects`. It does not change the schedules: those that are the best
            ones without a correction by what is predicted are worse.
        guidance: the scale by which branches were combined in the recorded generations; None: one branch, or not known.
        factor: of steps by computed steps, the longest gap; rounded up, see `largest_gap`.
        provenance: what the plan should say of its origin.

    Raises:
        ParametersInvalid: the final latents of the recording are zero, or not finite.
    """
    if not 0 < recording.energy < math.inf:
        raise ParametersInvalid(
            f"The squares of the recorded final latents sum to {recording.energy}, so no error can be set beside them. Look "
            "at what the model generates without a cache, and record it again."
        )
    steps = len(recording.sigmas) - 1
    possible = 1.0 if recording.exact else 0.0
    solved = program_of(recording, possible, GROWTH).solve(list(range(2, steps + 1)), factor)
    priced = {gain: [program_of(recording, gain, growth) for growth in (GROWTH, 0.0)] for gain in {0.0, possible}}
    front = []
    for computed, found in solved.items():
        wanted = corrects(computed / steps, guidance) if correct is None else correct
        gain = possible if wanted else 0.0
        predicted = max(0.0, *[program.cost(found.steps) for program in priced[gain]])
        front.append(Entry(found.steps, gain, predicted / recording.energy))
    noted = {**(provenance or {}), "samples": recording.samples}
    if len(recording.starts) > 1:
        noted[STARTS] = list(recording.starts)
    corrected = [entry.budget for entry in front if entry.gain]
    if not recording.exact or correct is False:
        noted["no correction"] = recording.why or "it was planned without"
    elif len(corrected) < len(front):
        noted["correction"] = f"from {min(corrected)} computed steps on" if corrected else "none"
        noted["correction"] += f", because of guidance by {guidance:g}"
    chosen = budget if budget is not None else max(front[0].budget, steps // 2)
    return Plan(tuple(recording.sigmas.tolist()), tuple(front), chosen, noted).checked()


def corrects(share: float, guidance: float | None) -> bool:
    """Whether a correction is likely to be worth it with this share of computed steps. Strong guidance makes errors of the
    latents grow; then what is seen at a computed step is no longer what the estimates were off. Measured on the testbed."""
    return guidance is None or guidance <= (STRONG if share >= HALF else MODERATE)


def plan(
    pipe: Any, prompts: str | Sequence[str], *, seeds: Sequence[int] = (0,), budget: int | None = None, **call: Any
) -> Plan:
    """Record one generation a prompt and seed with a pipeline of diffusers, and plan. Two prompts are enough.

    Args:
        prompts: what the model is used for; a string is one prompt.
        call: further arguments of the pipeline; num_inference_steps as in production.

    Raises:
        ParametersInvalid: the pipeline has a cache, there is no prompt or seed, or a generation was not recorded whole.
    """
    total: Recording | None = None
    with quiet(pipe):
        for run in tqdm(generations(pipe, prompts, seeds, call), desc="recording", unit="generation", disable=None):
            one = record_run(pipe, run)[1]
            total = one if total is None else total + one
    assert total is not None
    origin = made_on(pipe, listed(prompts), seeds, call)
    return make_plan(total, budget=budget, guidance=origin["cfg_scale"], provenance=origin)


def listed(prompts: str | Sequence[str]) -> list[str]:
    """A string is one prompt."""
    return [prompts] if isinstance(prompts, str) else list(prompts)


def generations(
    pipe: Any, prompts: str | Sequence[str], seeds: Sequence[int], call: Mapping[str, Any]
) -> list[Callable[[], Any]]:
    """Makes the latents of each prompt and seed, the same ones each time that it is called.

    Raises:
        ParametersInvalid: the pipeline has a cache, or there is no prompt or seed.
    """
    prompts = listed(prompts)
    if not (prompts and seeds):
        raise ParametersInvalid(f"plan: got prompts={prompts} and seeds={list(seeds)}. Give at least one of each.")
    if has_cache(pipe):
        raise ParametersInvalid(
            "The pipeline has a cache, and generations without one are needed here. Call disable_cache(pipe) first."
        )

    def generated(prompt: str, seed: int) -> Any:
        return pipe(**{"output_type": "latent", **call}, prompt=prompt, generator=torch.Generator().manual_seed(seed))

    return [partial(generated, prompt, seed) for prompt, seed in itertools.product(prompts, seeds)]


def made_on(pipe: Any, prompts: Sequence[str], seeds: Sequence[int], call: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance of a plan: what it is compared with when it is used, and what a reader wants to know."""
    guidance = call.get(guidance_name(pipe), default_of(pipe, guidance_name(pipe)))
    sizes = [call.get(name) or default_of(pipe, name) for name in ("width", "height", "num_frames")]
    return {
        **identity(pipe, EXPERTS),
        "cfg_scale": cfg_scale(pipe, call),
        "guidance_scale": guidance if isinstance(guidance, int | float) else None,
        "resolution": "x".join(str(size) for size in sizes if size) or None,
        "prompts": list(prompts),
        "seeds": list(seeds),
        "versions": {name: version for name, version in versions().items() if version != NOT_INSTALLED},
    }
