"""Applies one cache of diffusers or cache-dit to the testbed, through their public interfaces. Runs in the side venv only.

Where the two leave a choice that matters, the better one for them is taken: state starts anew with every generation, the
branches of guidance are told apart, factors are kept in float32 like the model.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mindie_cache.testbed import TestbedTransformer
from mindie_cache.testbed.weights import CALIBRATION_PATH

ATTENTION_CACHES = ("PyramidAttentionBroadcast", "FasterCache")  # one state a module: made for both branches in one batch
Options = dict[str, Any]


@dataclass
class Place:
    """Where the sampler is: `branch` "cond" or "uncond", `step` of `steps`, `timestep` = 1000 sigma."""

    steps: int
    step: int = -1
    branch: str = "cond"
    timestep: float = 1000.0


@dataclass(frozen=True)
class Peer:
    """An applied cache. `begin` is called before each generation; a model call happens inside `around()`; `joint`: both
    branches are computed in one call, as a batch of twice the size."""

    begin: Callable[[], object] = lambda: None
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    joint: bool = False


def uncached(model: TestbedTransformer, options: Options, place: Place) -> Peer:
    """No cache."""
    return Peer()


def diffusers_cache(model: TestbedTransformer, options: Options, place: Place) -> Peer:
    """Any `<name>Config` of diffusers.hooks by `CacheMixin.enable_cache`, the model being made a `CacheMixin`.

    Blocks are announced in diffusers' registry of block classes; for the methods that only know diffusers' attention
    classes, the attention is made one of them (`AttentionModuleMixin`).
    """
    hooks = importlib.import_module("diffusers.hooks")
    helpers = importlib.import_module("diffusers.hooks._helpers")
    mixin = importlib.import_module("diffusers").CacheMixin
    options = dict(options)
    name = options.pop("config")
    block_class = type(model.transformer_blocks[0])
    helpers.TransformerBlockRegistry.register(
        block_class, helpers.TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=1)
    )
    mix_in(model, mixin)
    if name in ATTENTION_CACHES:
        attention = importlib.import_module("diffusers.models.attention").AttentionModuleMixin
        for block in model.transformer_blocks:
            mix_in(block.attn, attention)
        options["current_timestep_callback"] = lambda: place.timestep
    if name == "FasterCache":
        options |= {"spatial_attention_block_identifiers": ("transformer_blocks",), "tensor_format": "BCFHW"}
    if name == "MagCache":
        ratios = json.loads(Path(CALIBRATION_PATH).read_text())["cond_mag_ratios"]  # it has one list for both branches
        options |= {"num_inference_steps": place.steps, "mag_ratios": ratios}
    if name == "SeaCache":
        options["raw_vision_callback"] = lambda module, args, kwargs: list(kwargs["hidden_states"].unbind(0))
    if name == "TaylorSeerCache":
        options["taylor_factors_dtype"] = torch.float32
    model.enable_cache(getattr(hooks, f"{name}Config")(**options))
    if not any(hasattr(module, "_diffusers_hook") for module in model.modules() if module is not model):
        raise RuntimeError(f"{name} found no module of the testbed that it can hook.")

    def around() -> AbstractContextManager[Any]:
        return model.cache_context(
            place.branch,
            step_index=place.step,
            num_inference_steps=place.steps,
            timestep=place.timestep,
            sigma=place.timestep / 1000,
        )

    registry = hooks.HookRegistry.check_if_exists_or_initialize(model)
    return Peer(registry.reset_stateful_hooks, around, joint=name in ATTENTION_CACHES)


def mix_in(module: nn.Module, mixin: type) -> None:
    """Make this one module an instance of `mixin`, too."""
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind, mixin), {})


def cache_dit_cache(model: TestbedTransformer, options: Options, place: Place) -> Peer:
    """cache-dit by a `BlockAdapter` for blocks that take and return both streams; a step is two calls (separate CFG).

    `calibrator` names a calibrator's class and its options; `mask` is a policy of `steps_mask`, then followed statically.
    """
    cache_dit = importlib.import_module("cache_dit")
    options = dict(options)
    kind = getattr(cache_dit, options.pop("config", "DBCacheConfig"))
    calibrator = options.pop("calibrator", None)
    if calibrator is not None:
        calibrator = getattr(cache_dit, f"{calibrator['name']}CalibratorConfig")(**calibrator["options"])
    if mask := options.pop("mask", None):
        options["steps_computation_mask"] = cache_dit.steps_mask(total_steps=place.steps, mask_policy=mask)
        options["steps_computation_policy"] = "static"
    adapter = cache_dit.BlockAdapter(
        transformer=model,
        blocks=model.transformer_blocks,
        forward_pattern=cache_dit.ForwardPattern.Pattern_0,
        has_separate_cfg=True,
    )
    config = kind(num_inference_steps=place.steps, enable_separate_cfg=True, **options)
    cache_dit.enable_cache(adapter, cache_config=config, calibrator_config=calibrator)
    return Peer(lambda: cache_dit.refresh_context(model, num_inference_steps=place.steps))


METHODS: dict[str, Callable[[TestbedTransformer, Options, Place], Peer]] = {
    "uncached": uncached,
    "diffusers": diffusers_cache,
    "cache-dit": cache_dit_cache,
}
