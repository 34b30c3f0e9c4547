"""Which calls of a model a recipe is about, in its own blocks: regions, streams, and the modules to patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mindie_cache.config import CacheConfig
from mindie_cache.errors import ConfigError
from mindie_cache.history import Features
from mindie_cache.hooks.discover import KINDS, BlockList, Part, attentions, feed_forwards, main_lists
from mindie_cache.hooks.families import INTERLEAVED, RESTARTS, TIME_EMBEDDINGS, known_as
from mindie_cache.hooks.signatures import Form, ModuleStreams, form_of
from mindie_cache.hooks.wish import Wish
from mindie_cache.methods.base import Recipe
from mindie_cache.methods.seacache import LATENTS
from mindie_cache.recipes import METHODS
from mindie_cache.sites import BlockRange, BlockSpans, EachBlock, EachCall, Span
from mindie_cache.streams import BlockStreams, Rebuild
from mindie_cache.taps import Argument, ModelInput, Probe, Tap, model_input
from mindie_cache.wrappers import unwrapped

ROOT, PARTS, BLOCKS = "forward", "parts", "blocks"


@dataclass(frozen=True)
class Scope:
    """What of a model a method works on.

    Args:
        kind: ROOT: the whole forward. PARTS: single modules. BLOCKS: ranges of blocks.
        parts: the modules, of PARTS.
        blocks: all blocks in order, also those that the parts are in.
        forms: of the blocks, of BLOCKS.
        spans: blocks that can be one region: lists whose streams go on in the next one are one.
    """

    kind: str
    parts: tuple[Part, ...] = ()
    blocks: tuple[nn.Module, ...] = ()
    forms: tuple[Form, ...] = ()
    spans: tuple[Span, ...] = ()
    named: str = ""

    @property
    def calls_count(self) -> int:
        return {ROOT: 1, PARTS: len(self.parts), BLOCKS: len(self.blocks)}[self.kind]


def scope_of(
    model: nn.Module,
    wish: Wish,
    blocks: tuple[str, ...] | None = None,
    streams: tuple[str, ...] | None = None,
    kinds: tuple[str, ...] = KINDS,
) -> Scope:
    """Find what the method works on.

    Raises:
        ConfigError: there is nothing of that kind in the model.
    """
    method, options = wish.method, wish.options
    streams = streams or wish.values.get("streams")
    if METHODS[method].whole_forward or _option(options, "signal") == LATENTS:
        return Scope(ROOT, named="forward")
    lists = main_lists(model, blocks)
    named = ", ".join(map(str, lists))
    found = tuple([block for entry in lists for block in entry.blocks])
    if METHODS[method].declares_streams and (method != "taylorseer" or _option(options, "lite")):
        forms = tuple([form_of(block, streams) for block in found])
        interleaved = known_as(type(model), INTERLEAVED)
        spans = [Span(i, i + 1) for i in range(len(found))] if interleaved else _joined(lists, forms)
        restarted = getattr(model, RESTARTS.get(known_as(type(model), RESTARTS), ""), 0)
        if restarted:
            last = spans.pop()
            spans += [Span(last.start, last.stop - restarted), Span(last.stop - restarted, last.stop)]
        return Scope(BLOCKS, blocks=found, forms=forms, spans=tuple(spans), named=named)
    wanted = _option(options, "kind")
    parts = feed_forwards(lists) if wanted == "mlp" else attentions(lists, kinds)
    if method == "taylorseer":
        parts = sorted([*parts, *feed_forwards(lists)], key=lambda part: part.name)
    if not parts:
        raise ConfigError(
            f"{method} works on {'feed-forward networks' if wanted == 'mlp' else 'attentions'}, but none was found in the "
            f"blocks of {type(model).__name__} ({named}). Use a method for whole blocks, e.g. dit_block_cache."
        )
    return Scope(PARTS, parts=tuple(parts), blocks=found, named=f"{len(parts)} modules in {named}")


def _option(options: Any, name: str) -> Any:
    return options.get(name) if isinstance(options, dict) else getattr(options, name, None)


def _joined(lists: Sequence[BlockList], forms: Sequence[Form]) -> list[Span]:
    """Lists as spans. Neighbours are one region if the first one always returns what the second one always takes on."""
    spans: list[Span] = []
    start = 0
    for entry in lists:
        stop = start + len(entry.blocks)
        goes_on = (
            spans and forms[start].fixed and forms[start - 1].fixed and forms[start].streams == forms[start - 1].streams
        )
        if goes_on and len(forms[start].streams) > 1 and forms[start].parameters[0] == forms[start - 1].parameters[0]:
            spans[-1] = Span(spans[-1].start, stop)
        else:
            spans.append(Span(start, stop))
        start = stop
    return spans


class RegionStreams(BlockStreams):
    """The streams of each region: those of the block at its end."""

    def __init__(self, by_call: Sequence[Form]):
        super().__init__()
        self._by_call = [ModuleStreams(form) for form in by_call]

    def of(self, index: int) -> BlockStreams:
        return self._by_call[index]

    def take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Features, tuple[Any, ...]]:
        return (), args

    def split(self, output: Any, inputs: Features) -> tuple[Features, Rebuild]:
        return (), lambda features: output


@dataclass(frozen=True)
class TimeEmbedding(Tap):
    """The time embedding, under the name that this kind of block has for it; else the block's input."""

    parameters: tuple[str, ...]

    def take(self, function: Any, args: Any, kwargs: Any, anchored: Any) -> torch.Tensor:
        for name in TIME_EMBEDDINGS:
            leaves = pytree.tree_leaves(kwargs.get(name)) if name in self.parameters else []
            found = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
            if found:
                return found[0]
        return model_input(args, kwargs)


def fitted(recipe: Recipe, scope: Scope) -> Recipe:
    """The recipe on the model's own calls."""
    site = recipe.site
    if scope.kind != BLOCKS:
        return recipe
    if isinstance(site, BlockRange):
        cut = [Span(max(site.start, span.start), min(site.stop, span.stop)) for span in scope.spans]
        site = BlockSpans(tuple([span for span in cut if span.start < span.stop]))
    assert isinstance(site, BlockSpans | EachBlock | EachCall)
    first = site.spans[0].start if isinstance(site, BlockSpans) and site.spans else 0
    signal = recipe.signal
    if isinstance(signal, Argument) and signal.name == scope.forms[first].parameters[0]:
        signal = ModelInput()  # patches give it as the first positional argument
    elif isinstance(signal, Argument) and (signal.name == "temb" or signal.name not in scope.forms[first].parameters):
        signal = TimeEmbedding(scope.forms[first].parameters)
    return replace(recipe, site=site, streams=RegionStreams(scope.forms), signal=signal, probe=_probe(recipe.probe, scope))


def _probe(probe: Probe | None, scope: Scope) -> Probe | None:
    """The probe at the block nearest to the wanted one that can be looked into."""
    if probe is None or not probe.path:
        return probe
    path = probe.path.removesuffix(".output")
    fitting = [index for index, block in enumerate(scope.blocks) if _has(block, path)]
    if not fitting:
        block = unwrapped(scope.blocks[0])
        names = ", ".join(name for name, _ in block.named_children())
        raise ConfigError(
            f"probe={probe.path!r}: no block has a submodule {path!r}. {type(block).__name__} has {names}: set "
            "the option probe to the norm after the attention, or to '<attention>.output'."
        )
    return Probe(min(fitting, key=lambda index: abs(index - probe.index)), probe.path)


def _has(block: nn.Module, path: str) -> bool:
    try:
        unwrapped(block).get_submodule(path)
    except AttributeError:
        return False
    return True


def built(config: CacheConfig, scope: Scope) -> Recipe:
    return fitted(METHODS[config.method].build(config), scope)
