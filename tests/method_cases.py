"""Every method with settings that reuse something in twelve steps of the testbed."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, NamedTuple

from mindie_cache import CacheConfig
from mindie_cache.recipes import METHODS

STEPS = 12
BLOCKS = 12  # of the testbed
RATIOS = (1.0, *[0.98] * (STEPS - 1))
CODEBOOK = [[0.08, 4], [0.2, 3]]
PLANNED = (0, 1, 4, 7, 11)
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
    "plan": [
        ({}, {"compute_steps": PLANNED}),
        ({}, {"compute_steps": PLANNED, "gain": 0.5, "sigmas": tuple(1 - step / STEPS for step in range(STEPS + 1))}),
    ],
    "plan_blocks": [
        ({}, {"compute_steps": PLANNED}),
        ({}, {"compute_steps": PLANNED, "gain": 1.0, "sigmas": tuple(1 - step / STEPS for step in range(STEPS + 1))}),
    ],
    "calibrator": [({}, {"model_name": "testbed"})],
}


class Case(NamedTuple):
    """A method with settings; `config` is for the testbed."""

    method: str
    fields: dict[str, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        shown = {key: value for key, value in {**self.fields, **self.options}.items() if key in SHOWN}
        return " ".join([self.method, *[f"{key}={value}" for key, value in shown.items()]])

    @property
    def config(self) -> CacheConfig:
        blocks = 1 if METHODS[self.method].whole_forward else BLOCKS
        return CacheConfig(self.method, blocks, STEPS, **self.fields, options=self.options or None)

    @property
    def mapping(self) -> dict[str, Any]:
        """For enable_cache, which counts the blocks by itself."""
        return {"method": self.method, **self.fields, "options": self.options}

    @property
    def is_exact(self) -> bool:
        """Whether rounding stays rounding: a code of int8 may become the next one."""
        return self.fields.get("placement", "device") == "device"

    @property
    def waits_allowed(self) -> int:
        """How often the host may wait in a step, over both branches: not at all where a schedule decides, or data of the
        step before; once where data of this step does."""
        if self.options.get("sync") == "lagged":
            return 0
        recipe = METHODS[self.method].build(self.config.validated())
        return int(recipe.signal is not None or recipe.probe is not None)


def lagged(case: Case) -> Case:
    return case._replace(options={**case.options, "sync": "lagged"})


def can_lag(method: str) -> bool:
    return any(field.name == "sync" for field in fields(METHODS[method].options))


SHOWN = ("order", "signal", "motion", "lite", "low_order", "compare", "gain", "sync", "placement")
INT8 = [
    Case("dit_block_cache", {**EVERY_THIRD, "placement": "int8"}, {}),
    Case("taylorseer", {"placement": "int8"}, {"interval": 3, "order": 2, "warmup_steps": 2, "lite": True}),
    Case("attention_cache", {**EVERY_THIRD, "placement": "int8"}, {}),
]
# From the table of methods, so that a new one is tested here: with its defaults, until it has settings above.
PLAIN = [Case(method, *settings) for method in METHODS for settings in SETTINGS.get(method, [({}, {})])]
CASES = [*PLAIN, *[lagged(case) for case in PLAIN if can_lag(case.method)], *INT8]
