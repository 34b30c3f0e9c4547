"""Every method with settings that reuse something in twelve steps of the testbed. Imports nothing of torch_npu."""

from __future__ import annotations

from typing import Any, NamedTuple

from mindie_cache import CacheConfig
from mindie_cache.recipes import METHODS

STEPS = 12
BLOCKS = 12  # of the testbed
RATIOS = (1.0, *[0.98] * (STEPS - 1))
CODEBOOK = [[0.08, 4], [0.2, 3]]
EVERY_THIRD = dict(step_start=1, step_interval=3)
SETTINGS: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {  # step window, options
    "dit_block_cache": [(EVERY_THIRD, {}), (EVERY_THIRD, {"order": 1})],
    "attention_cache": [(EVERY_THIRD, {}), (EVERY_THIRD, {"order": 1})],
    "adastep": [({}, {"skip_thr": 0.5})],
    "teacache": [({}, {"threshold": 0.2}), ({}, {"threshold": 0.4, "signal": "modulated"})],
    "custom": [({}, {"threshold": 0.2})],
    "seacache": [({}, {"threshold": 0.2, "grid": (4, 6, 6)})],
    "adacache": [
        ({}, {"codebook": CODEBOOK, "otherwise": 2}),
        ({}, {"codebook": CODEBOOK, "otherwise": 2, "motion": True, "frame_tokens": 36}),
    ],
    "easycache": [({}, {"threshold": 0.2, "warmup_steps": 3})],
    "magcache": [({}, {"cond_ratios": RATIOS, "retention_ratio": 0.1, "max_skip_steps": 2})],
    "ada_taylor": [({}, {"cond_ratios": RATIOS, "retention_ratio": 0.1, "max_skip_steps": 2, "order": 2})],
    "taylorseer": [
        ({}, {"interval": 3, "order": 2, "warmup_steps": 2}),
        ({}, {"interval": 3, "order": 2, "warmup_steps": 2, "lite": True}),
        ({}, {"interval": 3, "low_order": 0, "high_order": 1, "lite": True}),
    ],
    "first_block": [({}, {"threshold": 0.3}), ({}, {"threshold": 0.15, "compare": "previous"})],
    "dual_block": [({}, {"threshold": 0.3})],
    "dynamic_block": [({}, {"threshold": 0.4})],
    "fastercache": [({}, {"reuse_from": 2, "interval": 2, "phase": 0})],
    "cfg_cache": [({}, {"refresh_from": 2, "skip_from": 3, "interval": 3, "phase": 0})],
    "pab": [({}, {"broadcast": 3})],
    "calibrator": [({}, {"model_name": "testbed"})],
}


class Case(NamedTuple):
    """A method with settings; `config` is for the testbed."""

    method: str
    fields: dict[str, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return " ".join([self.method, *[f"{key}={value}" for key, value in self.options.items() if key in SHOWN]])

    @property
    def config(self) -> CacheConfig:
        blocks = 1 if METHODS[self.method].whole_forward else BLOCKS
        return CacheConfig(self.method, blocks, STEPS, **self.fields, options=self.options or None)

    @property
    def mapping(self) -> dict[str, Any]:
        """For enable_cache, which counts the blocks by itself."""
        return {"method": self.method, **self.fields, "options": self.options}

    @property
    def waits_allowed(self) -> int:
        """How often the host may wait in a step, over both branches: not at all where a schedule decides, once where data
        does; where each block decides by itself, once for each branch."""
        recipe = METHODS[self.method].build(self.config.validated())
        if recipe.policy.per_call:
            return 2
        return int(recipe.signal is not None or recipe.probe is not None)


SHOWN = ("order", "signal", "motion", "lite", "low_order", "compare")
# From the table of methods, so that a new one is tested here: with its defaults, until it has settings above.
CASES = [Case(method, fields, options) for method in METHODS for fields, options in SETTINGS.get(method, [({}, {})])]
