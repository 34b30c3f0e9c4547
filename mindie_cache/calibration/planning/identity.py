"""What a plan was made on, to be compared with what it is used on: classes, configurations, scheduler. No weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from mindie_cache.calibration.facts import sigma_shift


def checksum(model: Any) -> str | None:
    """Of a model's class and `config`: the same for every checkpoint of an architecture; None without a configuration."""
    config = getattr(model, "config", None)
    if not isinstance(config, Mapping):
        return None
    values = {name: value for name, value in config.items() if not name.startswith("_")}  # those are about files, versions
    text = json.dumps([type(model).__name__, values], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def identity(pipe: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """For the provenance of a plan.

    Args:
        names: under which the pipeline may have models.
    """
    models = {name: getattr(pipe, name, None) for name in names}
    found = {name: model for name, model in models.items() if isinstance(model, torch.nn.Module)}
    return {
        "pipeline": type(pipe).__name__,
        "model": next((type(model).__name__ for model in found.values()), "none"),
        "config": {name: checksum(model) for name, model in found.items()},
        "scheduler": type(pipe.scheduler).__name__,
        "sigma_shift": sigma_shift(pipe),
    }


def differences(provenance: Mapping[str, Any], models: Mapping[str, Any], pipe: Any = None) -> list[str]:
    """What is not as it was; facts that the provenance does not tell are not compared."""
    found = []
    known = [value for value in provenance.get("config", {}).values() if value]
    for model in models.values():
        if known and checksum(model) not in known:
            name, made = type(model).__name__, provenance.get("model")
            found.append(f"it was made on {made}, not {name}" if made != name else f"{name} has another configuration")
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None or "scheduler" not in provenance:
        return list(dict.fromkeys(found))
    if type(scheduler).__name__ != provenance["scheduler"]:
        found.append(f"it was made with {provenance['scheduler']}, not {type(scheduler).__name__}")
    elif "sigma_shift" in provenance and sigma_shift(pipe) != provenance["sigma_shift"]:
        found.append(f"the scheduler's shift was {provenance['sigma_shift']}, and is {sigma_shift(pipe)}")
    return list(dict.fromkeys(found))
