"""Replaces methods of single modules, and puts them back. Nothing is changed on a class; copies and pickles stay whole."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import nn

from mindie_cache.hooks.compiling import runs_eagerly
from mindie_cache.hooks.sight import telling


class Patch:
    """Stands in for one method of one module, as an attribute of that instance.

    Args:
        module: that is patched by `install`.
        owner: the attachment that it works for; `owner.model` is the model around the module.
        name: of the method.
    """

    derived = frozenset({"attributes", "original"})  # attributes that are made anew in a copy

    def __init__(self, module: nn.Module, owner: Any, name: str = "forward"):
        self.module = module
        self.attributes = vars(module)
        self.owner = owner
        self.name = name
        self.active = False
        self.own: Any = None  # what was in its place before
        self.original: Callable[..., Any] = self._plain()

    def _plain(self) -> Callable[..., Any]:
        return self.own or self._method(self.module)

    def _method(self, module: nn.Module) -> Callable[..., Any]:
        return MethodType(getattr(type(module), self.name), module)

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

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """In a copy of the whole model, its patch; in a copy of a part, the plain method of that copy."""
        module = copy.deepcopy(self.module, memo)
        if id(self) in memo:  # the module has brought its patch
            return memo[id(self)]
        if id(self.owner.model) not in memo or not self.active:
            own = copy.deepcopy(self.own, memo)
            return own or self._method(module)
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__({name: copy.deepcopy(value, memo) for name, value in self.__getstate__().items()})
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in self.derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.attributes = vars(self.module)
        self.original = self._plain()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


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
    own = MethodType(getattr(type(module), name), module)
    return next(((holder, key) for holder, key in _places(module, name) if holder[key] == own), (vars(module), name))


class CallPatch(Patch):
    """Stands before the call of a module, where `torch.nn.Module.compile` puts the compiled one; or, inside a model that is
    compiled as a whole, which does not look there, in the place of `forward`.

    A call that is skipped there costs neither the hooks of other libraries, which would bring weights to the device, nor
    those of PyTorch; and a compiled module stays whole behind it.
    """

    derived = Patch.derived | {"entry"}

    def __init__(self, module: nn.Module, owner: Any):
        super().__init__(module, owner, CALL)
        self.entry = self.__call__  # bound once: calling an object looks its method up each time

    def _plain(self) -> Callable[..., Any]:
        return super()._plain() if self.name != CALL else self.own or self.module._call_impl

    def install(self) -> None:
        if self.name != CALL:
            return super().install()
        if vars(self.module).get(CALL) is self.entry:  # another module was compiled since, not this one
            return None
        self.own = vars(self.module).get(CALL)
        self.original = self._plain()
        vars(self.module)[CALL] = self.entry
        self.active = True
        return None

    def remove(self) -> None:
        if self.name != CALL:
            return super().remove()
        self.active = False
        if vars(self.module).get(CALL) is self.entry:
            vars(self.module)[CALL] = self.own
            if self.own is None:
                del vars(self.module)[CALL]
        return None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.entry = self.__call__

    def move(self, name: str) -> None:
        if self.name != name:
            self.remove()
            self.name = name
        self.install()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {**state, "own": None} if self.name == CALL else state  # PyTorch leaves this call out of copies of a module


CALL, FORWARD = "_compiled_call_impl", "forward"


class ContextPatch(Patch):
    """In the place of `cache_context`: passes on what a pipeline tells."""

    def __call__(self, name: str, **fields: Any) -> Any:
        return telling(self.original(name, **fields), name, fields)


class ModelPatch(Patch):
    """In the place of the model's `forward`: a forward begins and ends here."""

    @runs_eagerly
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.active:
            return self.original(*args, **kwargs)
        return self.owner.forward(self.original, args, kwargs)
