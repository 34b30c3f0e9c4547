"""What is searched on: the testbed, a pipeline of diffusers, or a user's own file. Generates; knows nothing of caches."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mindie_cache import testbed
from mindie_cache.calibration.facts import guidance_name, quiet, shifted
from mindie_cache.calibration.loading import _executed
from mindie_cache.calibration.planning import Recorder, Recording, made_on, record_run
from mindie_cache.calibration.search.made import Made, as_frames, as_latents, called, fact, fingerprint, keeper, timed
from mindie_cache.checks import whole
from mindie_cache.device import synchronize
from mindie_cache.doctor import NOT_INSTALLED, versions
from mindie_cache.errors import ConfigError, did_you_mean
from mindie_cache.testbed.sampler import initial_noise


class Target(Protocol):
    """A model, and how to generate with it."""

    @property
    def subject(self) -> Any:
        """For enable_cache: the pipeline or the model."""

    @property
    def steps(self) -> int:
        """Of one generation."""

    @property
    def blocks(self) -> str | None:
        """The name of the list of blocks, if it cannot be found."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def facts(self) -> dict[str, Any]:
        """What changes the results, as plain data."""

    def provenance(self, prompts: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
        """What a plan that is recorded here says of its origin."""

    def generate(self, prompt: str, seed: int, *, frames: bool = False, start: int = 0, made: Made | None = None) -> Made:
        """One generation; with `start`, from that step of `made`, which has a trace."""

    def record(self, prompt: str, seed: int, *, frames: bool = False) -> tuple[Made, Recording]:
        """One uncached generation, and what the planner needs of it.

        Raises:
            ConfigError: this target shows no steps.
        """


@dataclass(frozen=True)
class TestbedTarget:
    """The small video model of this package."""

    __test__ = False

    subject: testbed.TestbedTransformer
    steps: int = 30
    shift: float = 3.0
    guidance: float = 2.0
    blocks: str | None = None

    @property
    def device(self) -> torch.device:
        return next(self.subject.parameters()).device

    def facts(self) -> dict[str, Any]:
        return {"target": "testbed", "steps": self.steps, "shift": self.shift, "guidance": self.guidance}

    def provenance(self, prompts: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
        return {**_origin(self.facts(), prompts, seeds), "cfg_scale": self.guidance}

    def generate(self, prompt: str, seed: int, *, frames: bool = False, start: int = 0, made: Made | None = None) -> Made:
        traced: list[Tensor] = []
        marks = [perf_counter()]

        def note(step: int, latents: Tensor) -> None:
            synchronize(latents.device)
            marks.append(perf_counter())
            traced.append(latents.cpu())

        result = testbed.generate(
            self.subject,
            [prompt],
            seeds=[seed],
            steps=self.steps,
            shift=self.shift,
            guidance_scale=self.guidance,
            callback=note,
            start=start,
            latents=made.trace[start] if made is not None and start else None,
        )
        seconds = tuple([after - before for before, after in pairwise(marks)])
        begin = torch.empty(0)  # of step 0, which nobody goes on from
        return Made(
            result.latents.cpu(), result.videos.cpu() if frames else None, sum(seconds), (begin, *traced[:-1]), seconds
        )

    def record(self, prompt: str, seed: int, *, frames: bool = False) -> tuple[Made, Recording]:
        made, recorder = self.generate(prompt, seed, frames=frames), Recorder()
        assert made.latents is not None
        levels = testbed.sigmas(self.steps, self.shift)
        noise = initial_noise([seed], made.latents.shape[1:])
        for step, (before, after) in enumerate(pairwise((noise, *made.trace[1:], made.latents))):
            recorder.step((after - before) / (levels[step + 1] - levels[step]), after)
        return made, recorder.result(levels)


@dataclass(frozen=True)
class PipelineTarget:
    """A pipeline of diffusers.

    Args:
        name: what tells it from other ones.
        call: arguments of every generation.
        shift, guidance: None leaves the pipeline's.
    """

    subject: Any
    name: str
    steps: int
    device: torch.device
    call: Mapping[str, Any] = field(default_factory=dict)
    shift: float | None = None
    guidance: float | None = None
    blocks: str | None = None

    @cached_property
    def mark(self) -> str:
        """Of the weights and the scheduler."""
        return fingerprint(self.subject)

    def __post_init__(self) -> None:
        whole("steps", self.steps, 2)
        known = self._known
        unknown = [name for name in self.call if name not in known]
        if unknown and not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values()):
            kind = type(self.subject).__name__
            raise ConfigError(f"{kind} takes no argument {unknown[0]!r}. {did_you_mean(unknown[0], known)}")

    @property
    def _known(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(type(self.subject).__call__).parameters

    @property
    def gives_both(self) -> bool:
        """Whether one generation shows latents beside frames."""
        return {"callback_on_step_end", "output_type"} <= self._known.keys()

    def facts(self) -> dict[str, Any]:
        parts = {name: fact(value) for name, value in sorted(self.call.items())}
        return {
            "target": f"{type(self.subject).__name__} {self.name}",
            "fingerprint": self.mark,
            "steps": self.steps,
            "shift": self.shift,
            "guidance": self.guidance,
            "call": parts,
        }

    def provenance(self, prompts: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
        guidance = {} if self.guidance is None else {guidance_name(self.subject): self.guidance}
        with shifted(self.subject, self.shift):
            return made_on(self.subject, prompts, seeds, {**self.call, **guidance})

    def generate(self, prompt: str, seed: int, *, frames: bool = False, start: int = 0, made: Made | None = None) -> Made:
        assert start == 0, "pipelines generate from the beginning"
        call = {**self.call, "prompt": prompt, "num_inference_steps": self.steps}
        call["generator"] = torch.Generator().manual_seed(seed)
        if self.guidance is not None:
            call[guidance_name(self.subject)] = self.guidance
        last: list[Tensor] = []
        if "output_type" in self._known:
            call["output_type"] = "np" if frames else "latent"
        if frames and "callback_on_step_end" in self._known:
            call["callback_on_step_end"] = keeper(last)
            call["callback_on_step_end_tensor_inputs"] = ["latents"]
        with shifted(self.subject, self.shift), quiet(self.subject):
            title = type(self.subject).__name__
            with called(title):
                output, seconds = timed(self.device, lambda: self.subject(**call), title)
        if frames:
            return Made(last[-1] if last else None, as_frames(output[0]), seconds)
        return Made(as_latents(output[0], type(self.subject).__name__), None, seconds)

    def record(self, prompt: str, seed: int, *, frames: bool = False) -> tuple[Made, Recording]:
        with shifted(self.subject, self.shift):
            return record_run(self.subject, lambda: replace(self, shift=None).generate(prompt, seed, frames=frames))


@dataclass(frozen=True)
class UserTarget:
    """A user's own Python file: `build() -> pipe_or_model`, `generate(pipe, prompt, seed) -> latents`, and if frames are to
    be scored `decode(pipe, latents) -> frames`. To be planned for, a pipeline has a `scheduler` whose `step` it calls; any
    other model has `sigmas() -> noise levels`, and `generate` an argument `on_step`, a function that it calls after each
    step with the output after guidance and the new latents."""

    subject: Any
    path: Path
    steps: int
    device: torch.device
    module: Any
    blocks: str | None = None

    @classmethod
    def load(cls, path: Path, steps: int, device: torch.device, blocks: str | None = None) -> UserTarget:
        """Execute the file, and build what it builds, on the device if that has a method `to`.

        Raises:
            ConfigError: there is no such file, or it does not keep to the protocol.
        """
        whole("steps", steps, 2)
        if path.suffix != ".py" or not path.is_file():
            raise ConfigError(f"--model-file {path}: no such Python file. Give the path of a file with build and generate.")
        module = _executed(path)
        for name in ("build", "generate"):
            if not callable(getattr(module, name, None)):
                raise ConfigError(
                    f"--model-file {path} has no function {name}. Define build() -> pipe_or_model and "
                    "generate(pipe, prompt, seed) -> latents; examples/tune_my_model.py shows both."
                )
        subject = module.build()
        if not isinstance(subject, nn.Module) and not hasattr(subject, "transformer") and not hasattr(subject, "unet"):
            raise ConfigError(
                f"--model-file {path}: build() returned {type(subject).__name__}. Return a pipeline with a transformer, or "
                "the model: a torch.nn.Module with a list of blocks."
            )
        return cls(subject.to(device) if hasattr(subject, "to") else subject, path, steps, device, module, blocks)

    def facts(self) -> dict[str, Any]:
        content = hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]
        mark = fingerprint(self.subject)
        return {
            "target": self.path.name,
            "content": content,
            "fingerprint": mark,
            "steps": self.steps,
            "blocks": self.blocks,
        }

    def provenance(self, prompts: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
        if hasattr(self.subject, "scheduler"):  # its guidance is known to its file alone
            return {**made_on(self.subject, prompts, seeds, {}), "guidance_scale": None, "cfg_scale": None}
        return _origin(self.facts(), prompts, seeds)

    def generate(
        self, prompt: str, seed: int, *, frames: bool = False, start: int = 0, made: Made | None = None, **watched: Any
    ) -> Made:
        assert start == 0, "a user's own model generates from the beginning"
        title = f"generate of {self.path.name}"
        latents, seconds = timed(self.device, lambda: self.module.generate(self.subject, prompt, seed, **watched), title)
        kept = as_latents(latents, title)
        if not frames:
            return Made(kept, None, seconds)
        decode = getattr(self.module, "decode", None)
        if decode is None:
            raise ConfigError(
                f"this score needs frames, but {self.path} has no function decode. Define decode(pipe, latents) -> "
                "frames (batch, frames, height, width, 3) in [0, 1], or leave scores on latents."
            )
        frames_made, more = timed(self.device, lambda: decode(self.subject, latents), f"decode of {self.path.name}")
        return Made(kept, as_frames(frames_made), seconds + more)

    def record(self, prompt: str, seed: int, *, frames: bool = False) -> tuple[Made, Recording]:
        if hasattr(self.subject, "scheduler"):
            return record_run(self.subject, lambda: self.generate(prompt, seed, frames=frames))
        watches = "on_step" in inspect.signature(self.module.generate).parameters
        if not watches or not callable(getattr(self.module, "sigmas", None)):
            raise ConfigError(
                f"{self.path} shows no steps, so nothing can be planned. Define sigmas() -> noise levels, and give generate "
                "an argument on_step=None, to be called after each step with the guided output and the new latents."
            )
        recorder, levels = Recorder(), self.module.sigmas()
        if not isinstance(levels, Sequence | Tensor) or len(levels) != self.steps + 1:
            raise ConfigError(
                f"sigmas() of {self.path} gives {_count(levels)}, and {self.steps} steps need {self.steps + 1}: one each, "
                "and one for the end. Correct it, or give --steps."
            )
        made = self.generate(prompt, seed, frames=frames, on_step=recorder.step)
        return made, recorder.result(levels)


def _count(levels: Any) -> str:
    return f"{len(levels)} noise levels" if isinstance(levels, Sequence | Tensor) else type(levels).__name__


def _origin(facts: Mapping[str, Any], prompts: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    known = {name: version for name, version in versions().items() if version != NOT_INSTALLED}
    return {**facts, "prompts": list(prompts), "seeds": list(seeds), "versions": known}
