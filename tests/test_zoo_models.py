"""The zoo of tiny transformers: each model runs, moves with the step, and hides nothing behind zeros."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import NOT_DENOISERS, ZOO, Entry

diffusers = pytest.importorskip("diffusers")

NOTICEABLE = 0.02  # least relative change that a block makes to one of its streams


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors inside nested outputs, inputs and diffusers' output classes."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The list of blocks with the most parameters in the model."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) >= 4]
    return max(lists, key=lambda blocks: sum(parameter.numel() for parameter in blocks.parameters()))


def changes(model: nn.Module, call: dict[str, Any]) -> tuple[Any, dict[int, list[float]]]:
    """The output of one call, and for each block the relative changes of those inputs that have an output's shape."""
    found: dict[int, list[float]] = {}

    def watch(index: int) -> Any:
        def hook(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = [part for part in tensors([args, kwargs]) if part.is_floating_point()]
            for after in tensors(output):
                same = [((after - part).norm() / part.norm()).item() for part in before if part.shape == after.shape]
                found.setdefault(index, []).extend([min(same)] if same else [])

        return hook

    hooks = [block.register_forward_hook(watch(i), with_kwargs=True) for i, block in enumerate(blocks_of(model))]
    output = model(**call)
    for hook in hooks:
        hook.remove()
    return output, found


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
@torch.no_grad()
def test_model_of_the_zoo(entry: Entry) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = entry.build()
    names = {name: parameter for name, parameter in model.named_parameters() if not parameter.any()}
    assert not names
    assert not model.training
    assert all(parameter.dtype == torch.float32 and not parameter.requires_grad for parameter in model.parameters())
    assert entry.denoised in entry.inputs()

    first, found = changes(model, entry.inputs())
    expected = list(tensors(first))
    assert len(found) == len(blocks_of(model))
    for index, moved in found.items():
        assert moved, f"block {index} has no output in the shape of an input"
        assert max(moved) > NOTICEABLE, f"block {index} hardly changes its input: {moved}"

    again = list(tensors(model(**entry.inputs())))
    assert all(torch.equal(*pair) for pair in zip(again, expected, strict=True))
    later = list(tensors(model(**entry.inputs(step=0.1))))
    assert any(not torch.equal(*pair) for pair in zip(later, expected, strict=True))

    shapes = set()
    for batch, size in ((1, 0), (2, 0), (1, 1), (2, 1)):
        outputs = list(tensors(model(**entry.inputs(batch=batch, size=size, seed=1, step=0.5))))
        assert all(output.isfinite().all() for output in outputs)
        shapes.add(tuple(tuple(output.shape) for output in outputs))
    assert len(shapes) == 4


def test_inputs_move_smoothly_and_conditions_stay() -> None:
    for entry in ZOO:
        start, near, far = (entry.inputs(step=step) for step in (0.0, 0.05, 1.0))
        latents = [
            torch.cat([part.flatten().float() for part in tensors(call[entry.denoised])]) for call in (start, near, far)
        ]
        assert latents[0].equal(torch.cat([part.flatten().float() for part in tensors(entry.inputs()[entry.denoised])]))
        assert (latents[0] - latents[2]).norm() > 2 * (latents[0] - latents[1]).norm() > 0, entry.name
        text = [key for key in start if "encoder" in key or "pooled" in key]
        for key in text:
            assert all(torch.equal(*pair) for pair in zip(tensors(start[key]), tensors(far[key]), strict=True)), entry.name


def test_every_transformer_class_is_in_the_zoo_or_left_out_with_a_reason() -> None:
    package = importlib.import_module("diffusers.models.transformers")
    classes = {
        name
        for found in pkgutil.iter_modules(package.__path__)
        for name, value in vars(importlib.import_module(f"{package.__name__}.{found.name}")).items()
        if inspect.isclass(value) and value.__module__.endswith(found.name) and issubclass(value, nn.Module)
        if issubclass(value, diffusers.ModelMixin) or name in NOT_DENOISERS
    }
    present = {entry.name.split("/")[0] for entry in ZOO}
    assert classes <= present | set(NOT_DENOISERS)
    assert present.isdisjoint(NOT_DENOISERS)
    assert set(NOT_DENOISERS) <= classes
    assert all(hasattr(diffusers, name) for name in present)
    assert len({entry.name for entry in ZOO}) == len(ZOO)
