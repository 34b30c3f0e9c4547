"""Taps and probes: take the tensor that a policy looks at from the arguments or the inside of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mindie_cache.errors import ModelExecError, ParametersInvalid
from mindie_cache.history import own
from mindie_cache.wrappers import unwrapped

HIDDEN = "hidden_states"
Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]


class Tap:
    """Takes the signal of a step from the call that the step is decided at. With `anchor` >= 0 the engine passes a copy of
    the hidden states that entered call `anchor` of the same pass."""

    anchor = -1

    def take(self, function: Callable[..., Any], args: Args, kwargs: Kwargs, anchored: Any) -> torch.Tensor:
        """Return the tensor to look at; it still belongs to the model."""
        raise NotImplementedError


def model_input(args: Args, kwargs: Kwargs) -> torch.Tensor:
    """The latents that a transformer is called with, or a block's hidden states."""
    latents = kwargs.get(HIDDEN, args[0] if args else None)
    if not isinstance(latents, torch.Tensor):
        raise ParametersInvalid(
            f"This method watches the latents, but hidden_states is {type(latents).__name__}. Call "
            "agent.apply(transformer, hidden_states=latents, ...) or pass the latents as the first argument."
        )
    return latents


def _owner(function: Callable[..., Any]) -> Any:
    """The module that a call is of, inside its wrappers."""
    owner = getattr(function, "__self__", function)
    return unwrapped(owner) if isinstance(owner, torch.nn.Module) else owner


@dataclass(frozen=True)
class ModelInput(Tap):
    """The latents, or the input of the block that the step is decided at."""

    def take(self, function: Callable[..., Any], args: Args, kwargs: Kwargs, anchored: Any) -> torch.Tensor:
        return model_input(args, kwargs)


@dataclass(frozen=True)
class Argument(Tap):
    """A keyword of the block's call by name, such as the time embedding."""

    name: str

    def take(self, function: Callable[..., Any], args: Args, kwargs: Kwargs, anchored: Any) -> torch.Tensor:
        value = kwargs.get(self.name)
        if not isinstance(value, torch.Tensor):
            tensors = [name for name, other in kwargs.items() if isinstance(other, torch.Tensor)]
            raise ParametersInvalid(
                f"signal={self.name!r} is {type(value).__name__} in the call of the first block. Its tensor keywords are "
                f"{', '.join(tensors) or 'none'}: set signal to one of them, or to 'modulated'."
            )
        return value


@dataclass(frozen=True)
class ModulatedInput(Tap):
    """The first block's input after its first norm and modulation: what TeaCache looks at in FLUX and HunyuanVideo.

    Taken from the block's own `modulated_input`, if it has one, with the arguments of the block; else from
    `norm1(hidden_states, emb=temb)`, the convention of adaptive layer norms in diffusers, whose first output it is.
    """

    def take(self, function: Callable[..., Any], args: Args, kwargs: Kwargs, anchored: Any) -> torch.Tensor:
        block = _owner(function)
        with torch.no_grad():
            if hasattr(block, "modulated_input"):
                return block.modulated_input(*args, **kwargs)
            norm, temb = getattr(block, "norm1", None), kwargs.get("temb")
            if norm is None or temb is None:
                raise self._refused(block, "has neither")
            try:
                modulated = norm(model_input(args, kwargs), emb=temb)
            except (TypeError, RuntimeError) as error:
                raise self._refused(block, f"modulates in another way ({error})") from error
        return modulated[0] if isinstance(modulated, tuple) else modulated

    @staticmethod
    def _refused(block: Any, why: str) -> ParametersInvalid:
        return ParametersInvalid(
            "signal='modulated' needs a block with modulated_input(*args, **kwargs), or with norm1(hidden_states, emb=temb) "
            f"and a keyword temb; {type(block).__name__} {why}. Give the block that method, or use signal='temb'."
        )


@dataclass(frozen=True)
class FrontResidual(Tap):
    """What the blocks before the cached range have added to the hidden states."""

    anchor = 0

    def take(self, function: Callable[..., Any], args: Args, kwargs: Kwargs, anchored: Any) -> torch.Tensor:
        hidden = model_input(args, kwargs)
        if not isinstance(anchored, torch.Tensor) or anchored.shape != hidden.shape:
            raise ModelExecError(
                "The hidden states change their shape before the cached range, so their residual is not defined. "
                "Use a smaller block_start, or another method."
            )
        return hidden.detach() - anchored


@dataclass(frozen=True)
class Probe:
    """Executes call `index` and takes a tensor from inside of it, through a hook that lives for this call only.

    Args:
        index: of the call.
        path: "norm2": what arrives at the submodule `norm2` of the block, minus the block's input; that is the gated
            residual of all before it, e.g. of the attention. "attn.output": the output of the submodule `attn`. Empty: the
            output of the call itself.
    """

    index: int
    path: str = ""

    def run(self, function: Callable[..., Any], args: Args, kwargs: Kwargs) -> tuple[Any, torch.Tensor]:
        """Return the call's result and the tensor."""
        if not self.path:
            result = function(*args, **kwargs)
            return result, _first_tensor(result, "the call's output")
        seen: list[torch.Tensor] = []
        path, is_output = self.path.removesuffix(".output"), self.path.endswith(".output")
        module = self._submodule(function, path)
        if is_output:
            handle = module.register_forward_hook(lambda m, given, out: _note(seen, out))
            entered = None
        else:
            handle = module.register_forward_pre_hook(lambda m, given: _note(seen, given))
            entered = own(model_input(args, kwargs))
        try:
            result = function(*args, **kwargs)
        finally:
            handle.remove()
        if not seen:
            raise ModelExecError(f"probe={self.path!r}: the block did not call its submodule {path!r} with a tensor.")
        return result, seen[0] if entered is None else seen[0].to(entered.dtype) - entered

    def _submodule(self, function: Callable[..., Any], path: str) -> torch.nn.Module:
        owner = _owner(function)
        if not isinstance(owner, torch.nn.Module):
            raise ParametersInvalid(f"probe={self.path!r} needs a module to look into, but got {type(owner).__name__}.")
        try:
            return owner.get_submodule(path)
        except AttributeError:
            names = ", ".join(name for name, _ in owner.named_children())
            raise ParametersInvalid(
                f"probe={self.path!r}: {type(owner).__name__} has no submodule {path!r}. It has {names or 'none'}: set the "
                "option probe to the norm after the attention, e.g. 'norm2', or to 'attn.output'."
            ) from None


def _note(seen: list[torch.Tensor], values: Any) -> None:
    if not seen:
        seen.append(_first_tensor(values, "the submodule's input or output").detach().clone())


def _first_tensor(values: Any, what: str) -> torch.Tensor:
    leaves, _ = torch.utils._pytree.tree_flatten(values)
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            return leaf
    raise ModelExecError(f"This method watches {what}, but there is no tensor in it.")
