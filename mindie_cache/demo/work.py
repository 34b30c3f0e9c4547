"""How much of the uncached work was done: floating-point operations of matrix products, from what the agents report."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mindie_cache import Report
from mindie_cache.demo.attach import ATTENTION, BLOCK, FORWARD, MODULE
from mindie_cache.testbed import TestbedConfig, TestbedTransformer
from mindie_cache.testbed.data import TOKENS

CALLS_A_STEP = 2  # model calls of guidance: cond and uncond


def operations(config: TestbedConfig) -> dict[str, int]:
    """Operations of matrix products in one forward, in one block and in one attention call, for one video.

    Counted on a model without storage ("meta"), so it costs nothing and does not depend on the device.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports a good part of PyTorch's compiler

    with torch.device("meta"):
        model = TestbedTransformer(config)
        latents = torch.empty(1, config.channels, config.frames, config.height, config.width)
        timestep, text = torch.empty(1), torch.empty(1, TOKENS, config.dim)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(latents, timestep, text)
    counts = {name: sum(operators.values()) for name, operators in counter.get_flop_counts().items()}
    block = f"{type(model).__name__}.transformer_blocks.0"
    attention = counts[f"{block}.attn"]  # the only module of the blocks that is called through a cache
    return {FORWARD: counts[type(model).__name__], BLOCK: counts[block], ATTENTION: attention, MODULE: attention}


def share_computed(cost: dict[str, int], reports: Sequence[Report], steps: int, steps_uncached: int) -> float:
    """Operations done over those of the uncached generation; 1.0 is all of them.

    Args:
        cost: operations of one call of each unit.
        reports: what the agents saved in one generation of `steps` steps; a nested agent counts what reached it.
    """
    saved = sum(report.calls_reused * cost.get(report.unit, 0) for report in reports)  # 0: a cache that is off
    return (CALLS_A_STEP * steps * cost[FORWARD] - saved) / (CALLS_A_STEP * steps_uncached * cost[FORWARD])
