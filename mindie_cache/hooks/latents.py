"""The call of a whole model as taps expect it: a tensor of latents first, whatever its parameter is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mindie_cache.hooks.families import LATENTS

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def latents_first(original: Callable[..., Any], names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The function, its arguments and keywords: `original` has the parameters `names`, and gets what it is given here.

    A list of latents of one shape, as Wan's own code and Z-Image take it, is a tensor here. Whatever else comes in place of
    the latents stays as it is.
    """
    name = next((one for one in LATENTS if one in names), names[0])
    values = {**dict(zip(names, args, strict=False)), **kwargs}
    given = values.pop(name, None)
    if len(args) > len(names) or (args and name == names[0] and isinstance(given, torch.Tensor)):
        return original, args, kwargs
    if isinstance(given, torch.Tensor):
        return _handing_on(original, name, lambda latents: latents), (given,), values
    kind = type(given)
    shapes = {getattr(one, "shape", None) for one in given} if kind in (list, tuple) else {None}
    if len(shapes) != 1 or None in shapes:
        return original, args, kwargs
    if len(given) == 1:
        return _handing_on(original, name, lambda latents: kind([latents])), (given[0],), values
    return _handing_on(original, name, lambda latents: kind(latents.unbind())), (torch.stack([*given]),), values


def _handing_on(original: Callable[..., Any], name: str, form: Callable[[torch.Tensor], Any]) -> Callable[..., Any]:
    def call(latents: torch.Tensor, **others: Any) -> Any:
        return original(**{name: form(latents), **others})

    return call
