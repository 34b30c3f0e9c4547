"""enable_cache: one line for a pipeline or a model, and the handle that undoes it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from mindie_cache.calibration import Calibration
from mindie_cache.checks import choice, whole
from mindie_cache.config import CacheConfig
from mindie_cache.errors import CacheWarning, ConfigError
from mindie_cache.hooks.attachment import Attachment
from mindie_cache.hooks.discover import KINDS
from mindie_cache.hooks.known import model_names
from mindie_cache.hooks.patches import ModelPatch
from mindie_cache.hooks.plan_fit import PlanFit
from mindie_cache.hooks.regions import scope_of
from mindie_cache.hooks.wish import Wish, read_wish, suited
from mindie_cache.report import Report
from mindie_cache.wrappers import unwrapped

_DENOISERS = ("transformer", "transformer_2", "unet", "prior", "decoder")


@dataclass(frozen=True)
class CacheReport:
    """What was asked for, and what each model has done in the last generation, by the model's name in the pipeline."""

    asked: str
    models: Mapping[str, Report]

    @property
    def share_computed(self) -> float:
        """Executed calls over all calls, over all models."""
        calls = sum(report.calls for report in self.models.values())
        return 1.0 - sum(report.calls_reused for report in self.models.values()) / calls if calls else 1.0

    def to_json(self) -> str:
        parts = {name: json.loads(report.to_json()) for name, report in self.models.items()}
        return json.dumps({"asked": self.asked, "share_computed": self.share_computed, "models": parts}, indent=2)

    def __str__(self) -> str:
        lines = [self.asked]
        for name, report in self.models.items():
            lines += [f"{name}: {report}"] if len(self.models) > 1 else [str(report)]
        return "\n".join(lines)


class CacheHandle:
    """A cache that is enabled. Also a context manager: `with enable_cache(...):` undoes itself at the end."""

    def __init__(self, wish: Wish, attachments: Mapping[str, Attachment]):
        self._wish = wish
        self._attachments = dict(attachments)

    @property
    def config(self) -> CacheConfig:
        """The configuration in use (of the first model)."""
        return next(iter(self._attachments.values())).config

    def report(self) -> CacheReport:
        """The generation under way in this context, or else the last one."""
        return CacheReport(self._wish.title, {name: one.report() for name, one in self._attachments.items()})

    def disable(self) -> None:
        """Restore the models exactly, and drop everything kept. May be called twice."""
        for one in self._attachments.values():
            one.remove()

    def reset(self) -> None:
        """Drop everything kept: the next forward begins a generation."""
        for one in self._attachments.values():
            one.reset()

    def refresh(self, num_inference_steps: int) -> CacheHandle:
        """Another number of steps from the next generation on; a pipeline tells it by itself."""
        whole("num_inference_steps", num_inference_steps, 1)
        for one in self._attachments.values():
            one.refresh(num_inference_steps)
        return self

    def calibration(self, name: str | None = None) -> Calibration:
        """What method "calibrator" has measured in the last generation, of the model `name` (the first one by default)."""
        return self._attachments[name or next(iter(self._attachments))].calibration()

    def __enter__(self) -> CacheHandle:
        return self

    def __exit__(self, *error: object) -> None:
        self.disable()

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}: {one.scope.named}" for name, one in self._attachments.items())
        return f"CacheHandle({self._wish.title}; {parts})"


def enable_cache(
    pipe_or_model: Any,
    config: Any = "balanced",
    *,
    num_inference_steps: int | None = None,
    blocks: str | Sequence[str] | None = None,
    streams: Sequence[str] | None = None,
    attentions: Sequence[str] = KINDS,
    process_group: Any = None,
) -> CacheHandle:
    """Cache what a pipeline's transformer (or a model of your own) computes. Its own code stays in place.

    Args:
        pipe_or_model: a diffusers pipeline, or one transformer: any `torch.nn.Module` with a list of blocks.
        config: "quality", "balanced" or "fast"; the name of a method or of a preset ("magcache:FLUX.1-dev"); a CacheConfig
            or a mapping of its fields, of which blocks_count and steps_count may be left out; or the path of a file.
        num_inference_steps: for a model without a pipeline, unless `config` says it.
        blocks: name(s) of the block list(s) in the model, if they are not found by themselves.
        streams: what a block returns, by the names of its arguments, if that cannot be seen from its code.
        attentions: which kinds methods for attentions work on: "self" (spatial), "temporal", "cross".
        process_group: of the ranks that share the tensors; see `CacheAgent`.

    Raises:
        ConfigError: the configuration, or the model, does not fit; the model is left as it was.
    """
    models = _models(pipe_or_model)
    pipe = None if isinstance(pipe_or_model, nn.Module) else pipe_or_model
    if num_inference_steps is not None:
        whole("num_inference_steps", num_inference_steps, 1)
    attachments: dict[str, Attachment] = {}
    wish = None
    for name, model in models.items():
        wish = suited(read_wish(config, model_names(model, pipe)), pipe)
        if num_inference_steps is not None:
            wish = wish.for_steps(num_inference_steps)
        scope = scope_of(model, wish, _names(blocks), tuple(streams) if streams else None, _kinds(attentions))
        attachments[name] = Attachment(model, wish, scope, pipe, process_group)
    assert wish is not None
    if words := PlanFit(next(iter(attachments.values())).config).on(models, pipe):
        warnings.warn(words, CacheWarning, stacklevel=2)
    for one in attachments.values():
        one.generations.siblings = [other.generations for other in attachments.values() if other is not one]
    replaced = [old for old in map(_attached, models.values()) if old is not None]
    if replaced:
        names = ", ".join(type(old.model).__name__ for old in replaced)
        warnings.warn(f"{names} had a cache already: it is replaced.", CacheWarning, stacklevel=2)
    done: list[Attachment] = []
    try:
        for old in replaced:
            old.remove()
        for one in attachments.values():
            one.install()
            done.append(one)
    except BaseException:
        for one in done:
            one.remove()
        for old in replaced:
            old.install()
        raise
    return CacheHandle(wish, attachments)


def disable_cache(pipe_or_model: Any) -> None:
    """Undo `enable_cache` on a pipeline or a model, also on a copy. Nothing happens if no cache is enabled."""
    for model in _models(pipe_or_model).values():
        attachment = _attached(model)
        if attachment is not None:
            attachment.remove()


def has_cache(pipe_or_model: Any) -> bool:
    """Whether `enable_cache` is in force on it."""
    return any([_attached(model) is not None for model in _models(pipe_or_model).values()])


def _attached(model: nn.Module) -> Attachment | None:
    patch = vars(model).get("forward")
    while patch is not None and not isinstance(patch, ModelPatch):  # another library may have wrapped it since
        patch = getattr(patch, "__wrapped__", None)
    return patch.owner if patch is not None and patch.active else None


def _models(pipe_or_model: Any) -> dict[str, nn.Module]:
    """The denoising models, by name."""
    if isinstance(pipe_or_model, nn.Module):
        inner = unwrapped(pipe_or_model)
        return {type(inner).__name__: inner}
    models: dict[str, nn.Module] = {}
    for name in _DENOISERS:
        model = getattr(pipe_or_model, name, None)
        if isinstance(model, nn.Module) and unwrapped(model) not in models.values():
            models[name] = unwrapped(model)
    if not models:
        raise ConfigError(
            f"{type(pipe_or_model).__name__} has no transformer: looked for {', '.join(_DENOISERS)}. Pass the model itself: "
            "enable_cache(model, config)."
        )
    return models


def _kinds(attentions: Sequence[str]) -> tuple[str, ...]:
    kinds = (attentions,) if isinstance(attentions, str) else tuple(attentions)
    for kind in kinds:
        choice("attentions", kind, KINDS)
    return kinds


def _names(blocks: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if blocks is None:
        return None
    return (blocks,) if isinstance(blocks, str) else tuple(blocks)
