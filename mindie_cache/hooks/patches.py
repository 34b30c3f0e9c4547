"""Replaces methods of single modules, and puts them back. Nothing is changed on a class; copies and pickles stay whole."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import nn

from mindie_cache.hooks.compiling import runs_eagerly, stay_eager
from mindie_cache.hooks.sight import telling

COMPILED = "_compiled_call_impl"  # where `torch.nn.Module.compile` keeps the compiled call, which comes before `forward`


class Patch:
    """Stands in for one method of one module, as an attribute of that instance.

    Args:
        module: that is patched by `install`.
        owner: the attachment that it works for; `owner.model` is the model around the module.
        name: of the method.
    """

    def __init__(self, module: nn.Module, owner: Any, name: str = "forward"):
        self.module = module
        self.owner = owner
        self.name = name
        self.active = False
        self.own: Any = None  # what was in its place before
        self.original: Callable[..., Any] = self._plain()

    def _plain(self) -> Callable[..., Any]:
        return self.own or MethodType(getattr(type(self.module), self.name), self.module)

    @property
    def __wrapped__(self) -> Callable[..., Any]:  # for inspect.signature
        return self.original

    def install(self) -> None:
        holder, key = _innermost(self.module, self.name)
        self.own = holder.get(key)
        self.original = self._plain()
        holder[key] = self
        self.active = True

    def remove(self) -> None:
        """Put back what was there; if another library has wrapped this since, only forward from now on."""
        self.active = False
        for holder, key in _places(self.module, self.name):
            if holder[key] is self:
                if self.own is None and key == self.name and holder is vars(self.module):
                    del holder[key]
                else:
                    holder[key] = self.original

    @property
    def is_misplaced(self) -> bool:
        """Whether the module has been compiled, or copied without its compiled call, since this was installed."""
        return (self.name == COMPILED) is (vars(self.module).get(COMPILED) is None) or not self.active

    def follow(self) -> None:
        """Stand before the compiled call, so that a block is compiled as it is and a skipped one is not entered."""
        if self.is_misplaced:
            self.remove()
            self.name = "forward" if vars(self.module).get(COMPILED) is None else COMPILED
            self.install()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """In a copy of the whole model, its patch; in a copy of a part, the plain method of that copy."""
        module = copy.deepcopy(self.module, memo)
        if id(self.owner.model) not in memo or not self.active:
            own = copy.deepcopy(self.own, memo)
            return own or MethodType(getattr(type(module), self.name), module)
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__({name: copy.deepcopy(value, memo) for name, value in self.__getstate__().items()})
        return twin

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name not in _DERIVED}
        if self.name == COMPILED:  # copies of a module are not compiled
            state.update(name="forward", own=None, active=False)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.original = self._plain()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


_DERIVED = {"original"}


def _places(module: nn.Module, name: str) -> list[tuple[dict[str, Any], str]]:
    """Where a method of an instance is kept: by itself, or by the hooks of accelerate and diffusers around it."""
    found = [(vars(module), name)]
    if name == "forward":
        found.append((vars(module), "_old_forward"))
        references = getattr(vars(module).get("_diffusers_hook"), "_fn_refs", ())
        found += [(vars(reference), key) for reference in references for key in ("forward", "original_forward")]
    return [(holder, key) for holder, key in found if holder.get(key) is not None]


def _innermost(module: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """Where a patch belongs: in the place of the module's own method, below hooks that move its weights. They remove and
    renew themselves after a generation or when an adapter is loaded, and put back what they found below."""
    if name == COMPILED:
        return vars(module), name
    own = MethodType(getattr(type(module), name), module)
    return next(((holder, key) for holder, key in _places(module, name) if holder[key] == own), (vars(module), name))


class ContextPatch(Patch):
    """In the place of `cache_context`: passes on what a pipeline tells."""

    def __call__(self, name: str, **fields: Any) -> Any:
        return _Both(telling(name, **fields), self.original(name, **fields))


class _Both:
    """Two context managers as one."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, outer: Any, inner: Any):
        self._outer, self._inner = outer, inner

    def __enter__(self) -> Any:
        self._outer.__enter__()
        try:
            return self._inner.__enter__()
        except BaseException as error:
            self._outer.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(self, *error: Any) -> Any:
        try:
            return self._inner.__exit__(*error)
        finally:
            self._outer.__exit__(*error)


class ModelPatch(Patch):
    """In the place of the model's `forward`: a forward begins and ends here."""

    @runs_eagerly
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.active:
            return self.original(*args, **kwargs)
        stay_eager()
        return self.owner.forward(self.original, args, kwargs)
