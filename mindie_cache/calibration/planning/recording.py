"""Recording: the inner products of the guided outputs of uncached generations. Nothing else of them is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mindie_cache.calibration.planning.samplers import Sampler, sampler_of
from mindie_cache.errors import ModelExecError, ParametersInvalid

EXPERTS = "transformer", "transformer_2"  # as pipelines name them


@dataclass(frozen=True)
class Recording:
    """What the planner needs.

    Args:
        gram: ``(steps, steps)``: inner products of the outputs after guidance, summed over samples.
        sigmas: ``(steps + 1,)``: noise levels, or other coordinates in which steps add up, falling: see `samplers`.
        energy: sum of the squares of the final latents, over samples.
        samples: how many generations.
        exact: whether the sampler is linear, so that a correction can be folded into outputs; else `why` not.
        starts: the steps at which a model takes over from another one, and 0: Wan2.2 has two experts.
    """

    gram: np.ndarray
    sigmas: np.ndarray
    energy: float
    samples: int
    exact: bool = True
    why: str = ""
    starts: tuple[int, ...] = (0,)

    def __add__(self, other: Recording) -> Recording:
        """Both together: plans for several prompts are made from the sum."""
        if self.sigmas.shape != other.sigmas.shape or not np.allclose(self.sigmas, other.sigmas, rtol=1e-5, atol=1e-6):
            raise ParametersInvalid("Recordings with different noise levels cannot be added: use the same steps and shift.")
        if tuple(self.starts) != tuple(other.starts):
            raise ParametersInvalid(
                f"The experts take turns at steps {list(self.starts)} in one recording and {list(other.starts)} in another. "
                "Use the same boundary."
            )
        return replace(
            self,
            gram=self.gram + other.gram,
            energy=self.energy + other.energy,
            samples=self.samples + other.samples,
        )


class Recorder:
    """Takes the outputs of one uncached generation, or of a batch of them, step by step.

    They are kept on the host in float32 until the generation is over: steps times the size of the latents. After that
    only steps x steps numbers are left. `sampler`: of the scheduler as it was at the first step.
    `model`: the name of the one at work, if there are several.
    """

    sampler: Sampler | None = None
    model = ""

    def __init__(self) -> None:
        self._outputs: list[Tensor] = []
        self._models: list[str] = []
        self._latents = torch.empty(0)

    def step(self, output: Tensor, latents: Tensor) -> None:
        """The model's `output` after guidance, and the `latents` after the step."""
        if self._outputs and output.numel() != self._outputs[0].numel():
            raise ParametersInvalid(
                "The latents changed their size while they were recorded. Record one generation at a time."
            )
        self._models.append(self.model)
        self._outputs.append(output.detach().float().cpu().flatten())
        self._latents = latents.detach()

    def result(self, sigmas: Sequence[float] | Tensor, exact: bool = True, why: str = "") -> Recording:
        """The Gram matrix, in float64.

        Args:
            sigmas: noise levels of the sampler, falling, the last one included.
        """
        levels = np.asarray(torch.as_tensor(sigmas).double())
        steps = len(levels) - 1
        if len(self._outputs) != steps:
            raise ParametersInvalid(
                f"{len(self._outputs)} outputs were recorded, but there are {steps} steps. Record one whole generation, "
                "with one scheduler step for each (no second-order scheduler)."
            )
        gram = np.empty((steps, steps))
        wide = [output.double() for output in self._outputs]
        for row, output in enumerate(wide):
            for column in range(row + 1):
                gram[row, column] = gram[column, row] = float(torch.dot(output, wide[column]))
        energy = float(self._latents.cpu().double().square().sum())
        if not (np.isfinite(gram).all() and np.isfinite(energy)):
            raise ModelExecError("The recorded generation has NaN or infinite numbers. Look for overflow, e.g. in fp16.")
        starts = tuple(step for step, name in enumerate(self._models) if not step or name != self._models[step - 1])
        return Recording(gram, levels, energy, int(self._latents.shape[0]), exact, why, starts)


@contextmanager
def recording(scheduler: Any) -> Iterator[Recorder]:
    """Record what `scheduler.step` is given, for the time of a `with`; the scheduler is afterwards as it was."""
    recorder, own = Recorder(), vars(scheduler).get("step")
    inner = scheduler.step

    @wraps(inner)  # pipelines look at the signature for `eta` and `generator`
    def step(model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        recorder.sampler = recorder.sampler or sampler_of(scheduler, kwargs)
        result = inner(model_output, *args, **kwargs)
        recorder.step(model_output, result[0] if isinstance(result, tuple) else result.prev_sample)
        return result

    scheduler.step = step
    try:
        yield recorder
    finally:
        if own is None:
            del scheduler.step
        else:
            scheduler.step = own


def record_testbed(model: Any, prompts: Sequence[str], *, seeds: Sequence[int], steps: int, **settings: Any) -> Recording:
    """Generate with the testbed, without a cache, and record it.

    Args:
        settings: further arguments of `mindie_cache.testbed.generate`: shift, guidance_scale.
    """
    from mindie_cache.testbed.sampler import DEFAULT_SHIFT, generate, initial_noise, sigmas

    config, recorder = model.config, Recorder()
    levels = sigmas(steps, settings.get("shift", DEFAULT_SHIFT))
    before = initial_noise(seeds, (config.channels, config.frames, config.height, config.width))

    def step(index: int, latents: Tensor) -> None:
        nonlocal before
        now = latents.cpu()
        recorder.step((now - before) / (levels[index + 1] - levels[index]), now)
        before = now.clone()

    generate(model, prompts, seeds=seeds, steps=steps, callback=step, **settings)
    return recorder.result(levels)


@contextmanager
def _experts(pipe: Any, recorder: Recorder) -> Iterator[None]:
    """Tell the recorder which of several models is at work."""

    def tell(name: str) -> Callable[..., None]:
        def begin(*_: Any) -> None:
            recorder.model = name

        return begin

    found = {name: getattr(pipe, name, None) for name in EXPERTS}
    hooks = [one.register_forward_pre_hook(tell(name)) for name, one in found.items() if isinstance(one, torch.nn.Module)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def record_run(pipe: Any, generate: Callable[[], Any]) -> tuple[Any, Recording]:
    """What `generate` returns, and the recording of the one generation that it makes with the pipeline."""
    with recording(pipe.scheduler) as recorder, _experts(pipe, recorder):
        made = generate()
    sampler = recorder.sampler
    if sampler is None:
        raise ParametersInvalid(
            f"{type(pipe).__name__} made no step with its scheduler, so nothing was recorded. Plans need pipelines "
            "that call pipe.scheduler.step."
        )
    return made, recorder.result(sampler.levels, sampler.exact, sampler.why)


def record(pipe: Any, **call: Any) -> Recording:
    """Generate once with a pipeline of diffusers, without a cache, and record it.

    Args:
        call: arguments of the pipeline: prompt, generator, num_inference_steps, ...
    """
    return record_run(pipe, lambda: pipe(**call))[1]
