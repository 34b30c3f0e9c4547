"""Streams: find the tensors that flow through a block in its arguments, and put outputs back into the block's own form."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from enum import Enum
from operator import itemgetter
from typing import Any

import torch
from torch.utils import _pytree as pytree

from mindie_cache.errors import ModelExecError, ParametersInvalid
from mindie_cache.history import Features

HIDDEN, ENCODER = "hidden_states", "encoder_hidden_states"
_LEAVES = (torch.Tensor, numbers.Number, str, bytes, type(None), Enum, torch.Size, torch.dtype, torch.device)
Rebuild = Callable[[Features], Any]


bare: Rebuild = itemgetter(0)  # of a single stream


class WholeOutput:
    """The call is forwarded as it was made, and every tensor of its output is a stream, whatever the nesting."""

    main = 0

    def of(self, index: int) -> WholeOutput:
        return self

    def take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Features, tuple[Any, ...]]:
        return (), args

    def split(self, output: Any, inputs: Features) -> tuple[Features, Rebuild]:
        """Return the output's leaves and the function that builds an output of the same form from new leaves."""
        if isinstance(output, torch.Tensor):
            return (output,), bare
        if type(output) is tuple and all([isinstance(item, torch.Tensor) for item in output]):
            return output, tuple  # what flattening would give, at a tenth of its cost
        leaves, form = pytree.tree_flatten(output)
        for leaf in leaves:
            if not isinstance(leaf, _LEAVES):
                raise ModelExecError(
                    f"The call returned a {type(leaf).__name__}, which cannot be kept: tensors in it would be handed out "
                    "and could be changed. Return tensors, numbers, strings or None in tuples, lists or dictionaries, or "
                    "register the class with torch.utils._pytree.register_pytree_node."
                )
        return tuple(leaves), lambda features: pytree.tree_unflatten(list(features), form)


class BlockStreams:
    """The calling convention of MindIE-SD's dit_block_cache, or a declared order of streams.

    Without `names`: `hidden_states` and, if given, `encoder_hidden_states` come as keywords, go to the block as its first
    positional arguments, and come back in this order (one output: hidden states only).
    With `names`: the block is called as it is; its outputs are the named streams, in this order, and each name is a
    keyword of the call. For encoder-first blocks and blocks of more than two streams.
    """

    def __init__(self, names: tuple[str, ...] | None = None):
        self.names = names

    def of(self, index: int) -> BlockStreams:
        """The streams of call `index`, where calls differ."""
        return self

    @property
    def main(self) -> int:
        """Place of the hidden states among the streams."""
        return self.names.index(HIDDEN) if self.names and HIDDEN in self.names else 0

    def take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Features, tuple[Any, ...]]:
        """Return the input streams and the positional arguments for the block; may take names out of `kwargs`."""
        if self.names is not None:
            return self._take_declared(kwargs), args
        hidden = kwargs.pop(HIDDEN, None)
        if hidden is None:
            raise ParametersInvalid(
                "hidden_states is missing or None: dit_block_cache needs it as a keyword. "
                "Call agent.apply(block, hidden_states=..., encoder_hidden_states=...)."
            )
        if ENCODER in kwargs:
            inputs = (hidden, kwargs.pop(ENCODER))
            return inputs, inputs + args
        return (hidden,), (hidden, *args)

    def _take_declared(self, kwargs: dict[str, Any]) -> Features:
        assert self.names is not None
        try:
            return tuple([kwargs[name] for name in self.names])
        except KeyError as missing:
            raise ParametersInvalid(
                f"The declared stream {missing} is not among the keywords of this call ({', '.join(kwargs) or 'none'}). "
                f"Pass every one of streams={self.names} by keyword, or correct the declaration."
            ) from None

    def split(self, output: Any, inputs: Features) -> tuple[Features, Rebuild]:
        """Return the output's streams, checked, and the function that builds an output of the same form."""
        features: Features = tuple(output) if isinstance(output, tuple | list) else (output,)
        if len(features) != len(inputs) or any([feature is None for feature in features]):
            self._refuse(features, inputs)
        if not isinstance(output, tuple | list):
            return features, bare
        return features, getattr(type(output), "_make", type(output))  # _make: a named tuple

    def _refuse(self, features: Features, inputs: Features) -> None:
        """Raise unless the output is legal: the default convention allows fewer outputs than inputs."""
        if not features:
            raise ModelExecError("The block returned an empty tuple. A cached block returns its streams; check the block.")
        if any(feature is None for feature in features):
            raise ModelExecError(
                "The block returned None. A cached block returns its streams, e.g. (hidden_states, encoder_hidden_states); "
                "check the block, or leave it out of the cached range."
            )
        if self.names is not None:
            raise ModelExecError(
                f"The block returned {len(features)} outputs, but streams={self.names} declares {len(self.names)}. "
                "Declare one name per output, in the order of the outputs."
            )
        if len(features) > 2:
            raise ModelExecError(
                f"The block returned {len(features)} outputs; without a declaration 1 or 2 are allowed. "
                'Declare them: CacheConfig(..., streams=("hidden_states", "encoder_hidden_states", ...)).'
            )
        if len(features) > len(inputs):
            raise ParametersInvalid(
                "The block returned two outputs but was called without encoder_hidden_states. "
                "Pass encoder_hidden_states= by keyword, or declare the streams: CacheConfig(..., streams=(...))."
            )
