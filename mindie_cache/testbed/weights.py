"""The shipped weights: where they are, how they are written and read. A file says how it was made in its metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mindie_cache.testbed.model import TestbedConfig, TestbedTransformer

WEIGHTS_PATH = Path(__file__).with_name("weights.safetensors")
PLAN_PATH = Path(__file__).with_name("plan.json")  # written by `python benchmarks/plans.py --save`
CALIBRATION_PATH = Path(__file__).with_name("calibration.json")  # written by `mindie-cache calibrate`


def save_testbed(model: TestbedTransformer, path: Path, provenance: Mapping[str, object]) -> None:
    """Writes the weights as float16 with the model's config and ``provenance`` as JSON metadata, in one move."""
    tensors = {name: tensor.detach().cpu().half().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {"config": json.dumps(asdict(model.config)), "provenance": json.dumps(dict(provenance), sort_keys=True)}
    part = Path(path).with_suffix(".part")
    save_file(tensors, part, metadata)
    part.chmod(0o644)  # save_file leaves it to its owner alone
    os.replace(part, path)


def load_testbed(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, path: Path = WEIGHTS_PATH
) -> TestbedTransformer:
    """The trained transformer in evaluation mode.

    Raises:
        FileNotFoundError: there is no weights file at ``path``.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no testbed weights at {path}. Train them with examples/train_testbed.py.")
    with safe_open(path, framework="pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    model = TestbedTransformer(TestbedConfig(**{**config, "patch": tuple(config["patch"])}))
    model.load_state_dict(tensors)
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)
