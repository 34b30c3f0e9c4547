"""`mindie-cache doctor`: what is installed, which devices work or why not, what each op runs by. Changes nothing."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from mindie_cache.device import KINDS, Availability, probe
from mindie_cache.ops import explain
from mindie_cache.version import __version__

PACKAGES = (
    *("torch", "torch_npu", "triton", "triton-ascend", "diffusers", "transformers"),
    *("numpy", "einops", "safetensors", "pillow", "pyyaml", "tqdm"),
)
VARIABLES = ("ASCEND_", "CUDA_", "MINDIE_", "NPU_", "OMP_", "PYTORCH_", "TORCH_", "TRITON_")  # what they start with
NOT_INSTALLED = "not installed"


@dataclass(frozen=True)
class Diagnosis:
    """What was found. `ops` lists, for each usable kind of device, op, implementation and reason."""

    versions: dict[str, str]
    machine: dict[str, Any]
    environment: dict[str, str]
    devices: list[dict[str, Any]]
    ops: list[dict[str, str]]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        devices = [(found["kind"], _devices_text(found)) for found in self.devices]
        ops = [(f"{op['op']} on {op['device']}", f"{op['implementation']}: {op['reason']}") for op in self.ops]
        return "\n\n".join(
            _section(title, rows)
            for title, rows in (
                ("versions", list(self.versions.items())),
                ("machine", list(self.machine.items())),
                ("environment", list(self.environment.items()) or [("-", "none of the variables that matter is set")]),
                ("devices", devices),
                ("ops", ops),
            )
        )


def diagnose() -> Diagnosis:
    """Look at everything once; imports torch_npu if it is installed."""
    found = [probe(kind) for kind in KINDS]
    return Diagnosis(
        versions=versions(),
        machine=machine(),
        environment={name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)},
        devices=[_device(availability) for availability in found],
        ops=[choice._asdict() for availability in found if availability.names for choice in explain(availability.kind)],
    )


def versions() -> dict[str, str]:
    """Versions of python, of this package and of those it works with, without importing them."""
    return {"python": platform.python_version(), "mindie_cache": __version__, **{name: _version(name) for name in PACKAGES}}


def machine() -> dict[str, Any]:
    """Operating system, processor, cores, PyTorch's threads and memory."""
    return {
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor()} ({platform.machine()})".strip()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, OSError, ValueError):  # not every system tells
        return None


def _device(found: Availability) -> dict[str, Any]:
    return {"kind": found.kind, "usable": bool(found.names), "names": list(found.names), "reason": found.reason}


def _devices_text(found: dict[str, Any]) -> str:
    if not found["usable"]:
        return f"not usable: {found['reason']}"
    if found["kind"] == "cpu":
        return "usable"
    return ", ".join(f"{found['kind']}:{index} {name}" for index, name in enumerate(found["names"]))


def _section(title: str, rows: list[tuple[str, Any]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:<{width}}  {'unknown' if value is None else value}" for name, value in rows)])
