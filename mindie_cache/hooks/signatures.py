"""The streams of a block, from the signature and the return statements of its `forward`. See also streams.py."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from torch import nn

from mindie_cache.errors import ModelExecError, ParametersInvalid
from mindie_cache.history import Features
from mindie_cache.hooks.families import STREAMS, known_as
from mindie_cache.streams import BlockStreams, Rebuild, bare
from mindie_cache.wrappers import unwrapped


class Form(NamedTuple):
    """How a kind of block is called and what it returns.

    `parameters`: names of its arguments, in order. `streams`: those that it returns, in the order of its outputs.
    `fixed`: it always returns all of them. `places`: how many of the parameters can be given by position. `nameable`: all of
    them can be given by name.
    """

    parameters: tuple[str, ...]
    streams: tuple[str, ...]
    fixed: bool
    places: int
    nameable: bool

    def bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name."""
        return {**dict(zip(self.parameters[: self.places], args, strict=False)), **kwargs} if args else kwargs


def form_of(block: nn.Module, streams: tuple[str, ...] | None = None) -> Form:
    """The form of a block, or of the block inside a wrapper; `streams` overrules what its `forward` shows.

    Raises:
        ParametersInvalid: `streams` names what is no argument of the block; or no argument has a name.
    """
    kind: Any = type(unwrapped(block))
    form = _form(kind)
    if not form.parameters:
        raise ParametersInvalid(
            f"{kind.__name__}.forward names none of its arguments, so that the streams of its blocks cannot be told apart. "
            "Write them out, e.g. forward(self, hidden_states, **others); or use a method for whole forwards: easycache."
        )
    if streams is None:
        return form
    missing = [name for name in streams if name not in form.parameters]
    if missing:
        raise ParametersInvalid(
            f"streams={streams!r}: {missing[0]!r} is no argument of {kind.__name__}.forward, which takes "
            f"{', '.join(form.parameters)}. Name the arguments that the block returns, in the order of its outputs."
        )
    return form._replace(streams=tuple(streams), fixed=True)


@cache
def _form(kind: Any) -> Form:
    forward: Callable[..., Any] = kind.forward
    all_of_them = [*inspect.signature(forward).parameters.values()][1:]  # without self
    named = [one for one in all_of_them if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    parameters = tuple([one.name for one in named])
    places = len([one for one in named if one.kind is not one.KEYWORD_ONLY])
    nameable = all([one.kind not in (one.VAR_POSITIONAL, one.POSITIONAL_ONLY) for one in all_of_them])
    known = STREAMS.get(known_as(kind, STREAMS))
    if known:
        return Form(parameters, known, False, places, nameable)
    returned = [names for names in _returned(forward) if set(names) <= set(parameters)]
    longest = max(returned, key=len, default=())
    fixed = all(names == longest for names in returned)
    return Form(parameters, longest or parameters[:1], fixed, places, nameable)


def _returned(forward: Callable[..., Any]) -> list[tuple[str, ...]]:
    """The names in every return statement of a function; nothing without source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(forward)))
    except (OSError, TypeError, SyntaxError):
        return []
    returns = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return) and node.value is not None]
    values = [value.elts if isinstance(value, ast.Tuple) else [value] for value in returns]
    return [tuple([item.id if isinstance(item, ast.Name) else "" for item in items]) for items in values]


class ModuleStreams(BlockStreams):
    """The streams of blocks that are called by their model: arguments by name; of blocks whose returns differ, those that
    are given."""

    def __init__(self, form: Form):
        super().__init__(form.streams)
        self._form = form

    @property
    def main(self) -> int:
        first = self._form.parameters[0]
        return self._form.streams.index(first) if first in self._form.streams else super().main

    def take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Features, tuple[Any, ...]]:
        first = self._form.parameters[0] if args else None
        named = self._form.bound(args, kwargs) if len(args) > 1 else kwargs
        streams = [args[0] if name == first else named.get(name) for name in self._form.streams]
        return tuple(streams if self._form.fixed else [item for item in streams if item is not None]), args

    def split(self, output: Any, inputs: Features) -> tuple[Features, Rebuild]:
        features: Features = tuple(output) if isinstance(output, tuple | list) else (output,)
        if len(inputs) != len(features):
            raise ModelExecError(
                f"A block returned {len(features)} outputs, but {len(inputs)} of its streams {self.names} were given. Name "
                "its streams in the order of its outputs: enable_cache(model, config, streams=(...)). If the last block "
                "alone returns fewer, leave it out of the range: block_end."
            )
        if not isinstance(output, tuple | list):
            return features, bare
        return features, getattr(type(output), "_make", type(output))  # _make: a named tuple
