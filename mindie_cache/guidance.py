"""Guidance: the whole forward of one branch, predicted from another branch's output of the same step.

The feature is the difference of the two outputs, so this passage needs both: from two calls, or from the halves of one
batch. Decisions, counting and arithmetic are where they are for every method.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from mindie_cache.bands import is_real
from mindie_cache.errors import ConfigError, ModelExecError, ParametersInvalid
from mindie_cache.history import Features, own
from mindie_cache.lanes import Lane, Offer, Track, first_shape
from mindie_cache.policies import Reference
from mindie_cache.sites import Passage, Span
from mindie_cache.taps import model_input

if TYPE_CHECKING:
    from mindie_cache.engine import Engine

REFERENCE = "cond"  # the branch that is computed in every step
ALONE = Reference(0, 0)  # the policy of a batch without guidance
PARALLEL = (
    "With CFG-parallel each rank computes one branch only, so there is nothing to predict it from, and leaving a branch out "
    "would only make its rank wait. Use a cache inside the forward there, e.g. fastercache, attention_cache or teacache."
)


@dataclass(frozen=True)
class SequentialGuidance:
    """One call per branch and step, "cond" before the others. The other branches are predicted; of several calls in a step,
    each from the one of "cond" in its turn."""

    anchored = False

    def span(self, index: int) -> Span | None:
        return Span(index, index + 1)

    def passage(self, engine: Engine) -> Passage:
        _refuse_group(engine)
        return partial(_sequential, engine)


@dataclass(frozen=True)
class BatchGuidance:
    """One call a step whose tensors hold both branches, one after the other, along dim 0. The unconditional half is
    predicted: every tensor argument with the full batch size is cut to the conditional half.

    Args:
        uncond_first: the unconditional half comes first.
    """

    uncond_first: bool = False
    anchored = False

    def span(self, index: int) -> Span | None:
        return Span(index, index + 1)

    def passage(self, engine: Engine) -> Passage:
        _refuse_group(engine)
        return partial(_batch, engine, self.uncond_first)


def _refuse_group(engine: Engine) -> None:
    if engine.ranks.group is not None:
        raise ConfigError(
            "cfg_cache works on the whole output of both branches, but a process_group is given. Leave it out if every rank "
            f"has the whole output of both. {PARALLEL}"
        )


def _reuses(
    engine: Engine,
    track: Track,
    lane: Lane,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    offers: int = 0,
) -> bool:
    """The decision of this step, taken once, and whether what is kept fits this call, after so many of the reference."""
    if not track.decided:
        engine.decide(track, lane, function, args, kwargs)
    form = (*(first_shape(args, kwargs) or ()), offers)
    if form != lane.shape:  # another pass of this step, e.g. the next tile
        lane.history.clear()
        lane.shape = form
    return track.reuse and bool(lane.history.steps)


# ------------------------------------------------------------------------------------------------ one call a branch


def _sequential(
    engine: Engine,
    track: Track,
    index: int,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    lane = track.lanes[index]
    assert lane is not None
    if track.named == REFERENCE:
        _reuses(engine, track, lane, function, args, kwargs)
        return _offer(engine, track, engine.execute(track, index, function, args, kwargs))
    offer = track.common.offer
    if offer is None or (offer.step != track.step and track.named in offer.calls):
        raise ParametersInvalid(
            f"Branch {track.branch!r} is called in step {track.step}, in which branch {REFERENCE!r} was not: cfg_cache "
            f"predicts it from the output of {REFERENCE!r}. Call agent.apply first with agent.branch({REFERENCE!r}), then "
            f"with agent.branch({track.branch!r}). Under enable_cache the pipeline has to name its branches "
            f'(cache_context), and one that computes both in one call needs the option layout="batch". {PARALLEL}'
        )
    reference = None
    if offer.step == track.step:  # else somebody calls the model between two steps
        offer.calls[track.named] += 1
        reference = offer.features.get(track.turn) if offer.is_even else None
    if _reuses(engine, track, lane, function, args, kwargs, len(offer.features)) and reference is not None:
        assert reference, "the reference branch keeps its output in every step that can be reused"
        track.reused += 1
        items = tuple([item if is_real(item) else None for item in reference])
        return lane.rebuild(engine.predict(track, lane, items))
    result = engine.execute(track, index, function, args, kwargs)
    if reference is None:  # it is not known which call of the reference is of the same tile
        lane.history.clear()
    elif track.keep:
        outputs, lane.rebuild = engine.recipe.streams.split(result, ())
        lane.history.push(track.step, _differences(outputs, reference))
    return result


def _offer(engine: Engine, track: Track, result: Any) -> Any:
    """Leave the conditional output for the other branches of this step."""
    features: Features = ()
    if track.keep:
        outputs, _ = engine.recipe.streams.split(result, ())
        features = tuple([own(item) for item in outputs])
    common = track.common
    last = offer = common.offer
    if offer is None or offer.step != track.step:
        offer = common.offer = Offer(track.step, {}, Counter(), last is None or len({*last.calls.values()}) == 1)
    offer.calls[REFERENCE] += 1
    offer.features[track.turn] = None if track.turn in offer.features else features
    if track.step == engine.steps_count - 1 and all([other.named == REFERENCE for other in common.tracks]):
        common.warn(
            "no guidance",
            f"cfg_cache had nothing to do: only branch {REFERENCE!r} was called in this run. Put the unconditional call "
            'into `with agent.branch("uncond"):`, set layout="batch" if one call computes both branches, or leave cfg_cache '
            f"out for a model without guidance. {PARALLEL}",
        )
    return result


def _differences(outputs: Features, references: Features) -> Features:
    if len(outputs) != len(references):
        raise ModelExecError(
            f"The branches return {len(references)} and {len(outputs)} values. cfg_cache predicts one from the other, so "
            "both calls must return the same form."
        )
    return tuple([_difference(output, reference) for output, reference in zip(outputs, references, strict=True)])


def _difference(output: Any, reference: Any) -> Any:
    """What is kept of one output: its difference from the reference; of anything but real tensors the value itself."""
    if is_real(output) != is_real(reference) or (is_real(output) and output.shape != reference.shape):
        raise ModelExecError(
            f"The branches return {_described(reference)} and {_described(output)} in the same place. cfg_cache predicts "
            "one from the other, so they must be of one shape."
        )
    return output.detach() - reference.detach() if is_real(output) else own(output)


def _described(value: Any) -> str:
    return f"a tensor of {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"


# ------------------------------------------------------------------------------------------------ both in one batch


def _batch(
    engine: Engine,
    uncond_first: bool,
    track: Track,
    index: int,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    lane = track.lanes[index]
    assert lane is not None
    latents = model_input(args, kwargs)
    size = latents.shape[0] if latents.dim() else 1
    is_pair = track.common.is_pair(track, size)
    track.policy = engine.recipe.policy if is_pair else ALONE
    if is_pair and size % 2:
        raise ParametersInvalid(
            f'layout="batch" needs both branches in one batch, but the batch size is {size}. Use layout="sequential" for '
            "one call per branch, and leave cfg_cache out without guidance."
        )
    first, second = slice(0, size // 2), slice(size // 2, size)
    uncond, cond = (first, second) if uncond_first else (second, first)
    streams = engine.recipe.streams
    if not _reuses(engine, track, lane, function, args, kwargs):
        result = engine.execute(track, index, function, args, kwargs)
        if track.keep:
            outputs, _ = streams.split(result, ())
            lane.width = len(outputs)
            lane.history.push(track.step, tuple([_half_kept(item, size, cond, uncond) for item in outputs]))
        return result
    track.reused += 1
    args, kwargs = pytree.tree_map(lambda item: item[cond] if _is_batch(item, size) else item, (args, kwargs))
    outputs, rebuild = streams.split(engine.execute(track, index, function, args, kwargs), ())
    if len(outputs) != lane.width:
        raise ModelExecError(f"The model returned {lane.width} values for the batch, and {len(outputs)} for half of it.")
    halved = [_is_batch(item, size // 2) for item in outputs]  # a tensor whose first size is not halved is no batch
    references = tuple([item if half and is_real(item) else None for item, half in zip(outputs, halved, strict=True)])
    estimates = engine.predict(track, lane, references)
    both = [
        torch.cat((estimate, item) if uncond_first else (item, estimate)) if half and estimate is not None else item
        for item, estimate, half in zip(outputs, estimates, halved, strict=True)
    ]
    return rebuild(tuple(both))


def _is_batch(item: Any, size: int) -> bool:
    return isinstance(item, torch.Tensor) and item.dim() > 0 and item.shape[0] == size


def _half_kept(output: Any, size: int, cond: slice, uncond: slice) -> Any:
    """As `_difference`, of the halves; None for what is no batch: a reuse step returns it as the half batch gives it."""
    return _difference(output[uncond], output[cond]) if _is_batch(output, size) else None
