"""What can be seen of one forward on the host: which branch, step and generation it belongs to. Never waits for a device.

Branches are told apart by the name that the pipeline gives (`cache_context`), or by their conditioning: the same embeddings
are the same branch. Steps follow from the scheduler's index, or from the timestep by value. Nothing goes by call parity.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple
from weakref import ref

import torch

from mindie_cache.clock import Scope
from mindie_cache.hooks.families import LATENTS, TIMESTEPS

_TEXT = re.compile(r"encoder_hidden|prompt|text|cap_feats|llama|^txts?$|txt_(?:emb|feat|hidden|tokens)")
_DETAIL = re.compile(r"image_(?:emb|feat|hidden|cond_hidden)|clip_fea|pooled|class_labels|^y$")  # beside the text
_OTHER = re.compile(r"class_labels|input_ids|pooled|^y$|context|cond")  # only if there is no text
_NO_CONDITION = re.compile(r"mask|lens|indexes|indices|token_tags")
BOTH = "both"
_SHOWN = {"cond_uncond": BOTH}  # diffusers' name of one batch with both branches


class telling:  # noqa: N801 - a context manager, as small as it can be: it is entered for every forward
    """What a pipeline tells through `cache_context`: forwards inside belong to the branch `name`.

    Args:
        inner: the model's own context manager.
        fields: what else is told, by diffusers' names; the step and the number of steps count here.
    """

    __slots__ = ("_inner", "_token", "branch", "position", "steps")

    def __init__(self, inner: Any, name: str, fields: Mapping[str, Any]):
        self._inner = inner
        self.branch = _SHOWN.get(name, name)
        self.position: int | None = fields.get("step_index")
        self.steps: int | None = fields.get("num_inference_steps")

    def __enter__(self) -> Any:
        entered = self._inner.__enter__()
        self._token = _told.set(self)
        return entered

    def __exit__(self, *error: Any) -> Any:
        _told.reset(self._token)
        return self._inner.__exit__(*error)


_told: ContextVar[telling | None] = ContextVar("mindie_cache_context", default=None)
_telling_now = _told.get


class Sight(NamedTuple):
    """One forward. None stands for what is not known."""

    branch: str | None
    position: int | None  # index of the scheduler
    timestep: float | None
    timesteps: Any  # the scheduler's, to be known by identity
    begin: int  # position of the first step, of a run that starts with a given image
    steps: int | None  # of the run
    conditions: Mapping[str, torch.Tensor]
    driven: bool | None = None  # whether the scheduler is at this timestep, or the pipeline at this step
    told: bool = False  # the position is the caller's word
    begun: bool = True  # the scheduler says where it is; before its first step it may not know where a run begins

    def placed(self, expected: Any) -> Sight:
        """Where a run begins whose scheduler has not begun: at the entry with this timestep, else so that `expected` are
        left. Pipelines that start from a given video leave the first timesteps out without telling the scheduler."""
        if self.begun or not isinstance(self.timesteps, torch.Tensor):
            return self
        count = len(self.timesteps)
        begin = _place(self.timesteps, self.timestep)
        if begin is None:
            begin = count - expected if isinstance(expected, int) and 0 < expected < count else 0
        return self.at(begin)._replace(begin=begin, steps=count - begin)

    def at(self, begin: int) -> Sight:
        """Of a run that begins there, if its scheduler has not begun."""
        return self if self.begun or self.position is None else self._replace(position=begin)

    def without_scheduler(self) -> Sight:
        """As of a forward that another pipeline makes, with a scheduler that is not known."""
        return self._replace(position=None, timesteps=None, begin=0)


def look(values: Mapping[str, Any], scope: Scope, pipe: ref[Any] | None, rises: bool = False) -> Sight:
    """See what there is in the arguments of a forward, by name, and in the pipeline's state.

    Args:
        rises: the model's timestep is 1 - t.
    """
    branch, position, steps = None, None, None
    if (context := _telling_now()) is not None:
        branch, position, steps = context.branch, context.position, context.steps
    elif scope.named:
        branch = scope.branch
    scheduler = getattr(pipe(), "scheduler", None) if pipe is not None else None
    timesteps, begin, begun = None, 0, scheduler is None
    is_shown = position is not None  # by the pipeline, which goes by its own scheduler
    is_told = is_shown or scope.told
    if scheduler is not None:
        timesteps = getattr(scheduler, "timesteps", None)
        first = getattr(scheduler, "begin_index", None)
        begun, begin = first is not None, first or 0
        if position is None and isinstance(timesteps, torch.Tensor):
            position = getattr(scheduler, "step_index", None)
            begun = begun or position is not None
            if position is None and hasattr(type(scheduler), "step_index"):
                position = begin
        if not (begun or is_told) and _is_unset(scheduler, timesteps):
            position = timesteps = None
    timestep = host_value(_first(values, TIMESTEPS))
    driven = is_shown or (None if is_told or not begun else _is_at(timesteps, position, timestep))
    if rises and timestep is not None:
        timestep = -timestep
    if scope.told:
        position, timestep = _told_by_user(scope)
        begin = 0
    if steps is None and isinstance(timesteps, torch.Tensor):
        steps = len(timesteps) - begin
    conditions = {} if branch is not None else _conditions(values)
    return Sight(branch, position, timestep, timesteps, begin, steps, conditions, driven, is_told, begun or is_told)


def _is_at(timesteps: Any, position: int | None, timestep: float | None) -> bool | None:
    """Whether a scheduler at `position` gives this timestep, in one of the usual units; None if that cannot be read."""
    if position is None or timestep is None or not isinstance(timesteps, torch.Tensor) or timesteps.device.type != "cpu":
        return None
    if position >= len(timesteps):
        return False
    at = float(timesteps[position])
    return any([abs(unit - timestep) <= 5e-3 * abs(unit) for unit in (at, at / 1000, 1000 - at, 1 - at / 1000)])


def _is_unset(scheduler: Any, timesteps: Any) -> bool:
    """Whether it still has the timesteps of training: no pipeline has told it a number of steps."""
    trained = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None)
    unset = getattr(scheduler, "num_inference_steps", None) is None
    return unset and isinstance(timesteps, torch.Tensor) and len(timesteps) == trained


def _place(timesteps: torch.Tensor, timestep: float | None) -> int | None:
    """The entry that is this timestep, or nearest to it; None if that cannot be read."""
    first = _is_at(timesteps, 0, timestep)
    if first is None or timestep is None:
        return None
    if first or timestep <= 0:  # rising timesteps are below zero here
        return 0
    listed = timesteps.tolist()
    away = [min(abs(at - timestep), abs(at - 1000 * timestep)) / max(abs(at), 1e-9) for at in listed]
    nearest = away.index(min(away))
    return nearest if away[nearest] <= 5e-3 else 0


def _told_by_user(scope: Scope) -> tuple[int | None, float | None]:
    """The step or the timestep of `mindie_cache.branch(step=...)`."""
    run = scope.now.run()
    return (run.step, None) if run is not None else scope.tell or (None, None)


def _first(values: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        if values.get(name) is not None:
            return values[name]
    return None


def host_value(timestep: Any) -> float | None:
    """The (largest) timestep, if it can be read without waiting for a device."""
    if isinstance(timestep, torch.Tensor):
        if not timestep.is_cpu or not timestep.numel():
            return None
        return float(timestep.item() if timestep.numel() == 1 else timestep.max())
    return float(timestep) if isinstance(timestep, int | float) else None


def _conditions(values: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    text, others, details = _condition_names(tuple(values))
    if not (found := _tensors(values, text)):
        return _tensors(values, others)
    return {**found, **_tensors(values, details)} if details else found


@cache
def _condition_names(names: tuple[str, ...]) -> tuple[list[str], list[str], list[str]]:
    """Of the text; of what stands for it where there is none; of what else tells calls with the same text apart."""
    fitting = [name for name in names if not _NO_CONDITION.search(name) and name not in LATENTS]
    text = [name for name in fitting if _TEXT.search(name)]
    details = [name for name in fitting if name not in text and _DETAIL.search(name)]
    return text, [name for name in fitting if _OTHER.search(name)], details


def _tensors(values: Mapping[str, Any], names: list[str]) -> dict[str, torch.Tensor]:
    firsts = {name: values[name][0] if isinstance(values[name], list | tuple) else values[name] for name in names}
    return {name: first for name, first in firsts.items() if isinstance(first, torch.Tensor)}


def same_condition(kept: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor]) -> bool | None:
    """Whether both are of one branch; None if that would have to be read from a device.

    Details beside the text may be new tensors in every step: on a device they are taken to be the same, so that calls with
    the same text are then known by their order.
    """
    if kept.keys() != now.keys():
        return False
    others = [name for name in now if not _same_storage(kept[name], now[name])]
    if not others:
        return True
    if any(kept[name].shape != now[name].shape or kept[name].dtype != now[name].dtype for name in others):
        return False
    unread = [name for name in others if now[name].device.type != "cpu"]
    if any(not torch.equal(kept[name], now[name]) for name in others if name not in unread):
        return False
    return None if any(_is_main(name, tuple(now)) for name in unread) else True


def _is_main(name: str, names: tuple[str, ...]) -> bool:
    text, _, details = _condition_names(names)
    return name not in details or not text


def writes(conditions: Mapping[str, torch.Tensor]) -> list[int]:
    """How often each has been written in place, as far as PyTorch counts that: a buffer may hold another branch by now."""
    return [0 if tensor.is_inference() else tensor._version for tensor in conditions.values()]


def _same_storage(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one is other or (
        one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()
    )
