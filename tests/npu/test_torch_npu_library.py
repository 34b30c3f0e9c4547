"""What the library asks of torch_npu beside running models: devices, memory, numbers on their way to the host, commands; and
what happens to kernels where there is no compiler for them. Copies are lazy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import sim_npu
import torch
from hooked import LITE, TINY, latents
from toy import JointModel, joint_inputs, marks

from mindie_cache import CacheAgent, CacheConfig, ConfigError, device, enable_cache
from mindie_cache.cli import main
from mindie_cache.device import Reading
from mindie_cache.ops.dispatch import use
from mindie_cache.placement import PLACEMENTS, OnDevice

pytestmark = pytest.mark.filterwarnings("ignore:Cannot create tensor with internal format")
NPU = torch.device("npu:0")


@pytest.fixture(autouse=True)
def lazy_copies():
    sim_npu.lazy()
    with use("reference"):
        yield
    torch.npu.synchronize()
    sim_npu.lazy(False)


# ------------------------------------------------------------------------------------------------ device.py


def test_names_of_devices():
    assert device.resolve("npu") == device.resolve("npu:0") == device.resolve("auto") == NPU
    assert device.probe("npu").names == ("Ascend910B2",)
    assert device.available_devices() == [NPU, torch.device("cpu")]
    assert device.of_rank(3, "npu") == NPU
    with pytest.raises(ConfigError, match=r"'npu:1' is not usable here.*npu devices here: 1"):
        device.resolve("npu:1")


def test_synchronize_waits_once():
    waits = sim_npu.HostWaits()
    device.synchronize(NPU)
    assert waits.count == 1


def test_memory():
    before = device.memory(NPU)
    kept = torch.zeros(1 << 20, device=NPU)
    after = device.memory(NPU)
    assert after.held - before.held >= kept.numel() * 4
    assert after.held <= after.peak
    assert after.held <= after.reserved <= after.total
    assert 0 < after.free <= after.total


class TooEarly(Reading):
    """Planted: it does not wait."""

    __slots__ = ()

    def read(self):
        return self._host.tolist()


def test_numbers_on_their_way_to_the_host():
    numbers = torch.arange(4.0).pin_memory().to(NPU, non_blocking=True)
    waits = sim_npu.HostWaits()
    reading = Reading(numbers)
    assert waits.count == 0
    assert sim_npu.pending() > 0  # nothing has arrived
    assert reading.read() == [0.0, 1.0, 2.0, 3.0]
    assert waits.count == 1  # read at once, it has to wait
    reading = Reading(numbers)
    numbers.add_(1)  # comes after the copy
    assert reading.read() == [0.0, 1.0, 2.0, 3.0]
    assert waits.count == 1  # it is there already
    early = TooEarly(numbers)
    assert early.read() != [1.0, 2.0, 3.0, 4.0]


# ------------------------------------------------------------------------------------------------ commands


def test_doctor(capsys):
    assert main(["doctor"]) in (0, None)
    printed = capsys.readouterr().out
    assert "Ascend910B2" in printed
    assert "torch_npu" in printed


def test_demo(tmp_path):
    setting = tmp_path / "cache.yaml"
    setting.write_text("{method: dit_block_cache, blocks_count: 12, steps_count: 6, step_interval: 2, step_end: 5}")
    only = ["--quick", "--steps", "6", "--config", str(setting), "--only-config"]
    assert main(["demo", *only, "--device", "npu", "--out", str(tmp_path)]) in (0, None)
    assert "npu" in json.dumps(json.loads((tmp_path / "results.json").read_text()))


# ------------------------------------------------------------------------------------------------ offloading


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("config", [{"method": "dit_block_cache", "step_interval": 2}, LITE], ids=["held", "taylorseer"])
def test_weights_that_come_by_a_stream_of_their_own(kind, config):
    """Group offloading of diffusers with a stream that fetches ahead: skipped blocks leave its order as it was."""
    pipe = TINY["flux"].build().to(NPU)
    bare = latents("flux", pipe, steps=6)
    with enable_cache(pipe, config):
        wanted = latents("flux", pipe, steps=6)
    pipe.transformer.to("cpu")
    options = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    pipe.transformer.enable_group_offload(
        onload_device=NPU,
        offload_device=torch.device("cpu"),
        offload_type=kind,
        use_stream=True,
        non_blocking=True,
        **options,
    )
    assert torch.equal(latents("flux", pipe, steps=6).cpu(), bare.cpu())
    with enable_cache(pipe, config):
        for _ in range(2):
            assert torch.equal(latents("flux", pipe, steps=6).cpu(), wanted.cpu())


class Parked(NamedTuple):
    """A tensor on its way to pinned memory, where it is after `arrived`."""

    host: torch.Tensor
    arrived: torch.npu.Event

    @property
    def dtype(self):
        return self.host.dtype


class OnHost(OnDevice):
    """A placement in pinned memory, by a stream of its own: the interface lets a placement do that without a wait."""

    def __init__(self):
        self.stream = torch.npu.Stream()

    def keep(self, feature):
        host = torch.empty(feature.shape, dtype=feature.dtype, pin_memory=True)
        self.stream.wait_stream(torch.npu.current_stream())
        with torch.npu.stream(self.stream):
            host.copy_(feature, non_blocking=True)
        feature.record_stream(self.stream)
        return Parked(host, self.stream.record_event())

    def fetch(self, kept):
        torch.npu.current_stream().wait_event(kept.arrived)
        return kept.host.to(NPU, non_blocking=True)

    def combine(self, kept, weights, reference):
        return super().combine([self.fetch(item) for item in kept], weights, reference)

    def nbytes(self, kept):
        return super().nbytes(kept.host)


class OnHostTooEarly(OnHost):
    """Planted: it brings back what may not have left yet."""

    def fetch(self, kept):
        return kept.host.to(NPU, non_blocking=True)


@torch.no_grad()
def test_features_in_host_memory(monkeypatch):
    monkeypatch.setitem(PLACEMENTS, "host", OnHost)
    monkeypatch.setitem(PLACEMENTS, "host, too early", OnHostTooEarly)
    rows = [{name: value.npu() for name, value in row.items()} for row in joint_inputs(9)]
    outputs = {}
    for placement in ("device", "host", "host, too early"):
        agent = CacheAgent(CacheConfig("dit_block_cache", 4, 9, 1, 3, options={"order": 1}, placement=placement))
        model = JointModel(block_agent=agent).eval().to(NPU)
        waits = sim_npu.HostWaits()
        found = [model(**row) for row in rows]
        assert waits.count == 0
        assert marks(agent) == "##..#..#."
        outputs[placement] = torch.stack(found).cpu()
    assert torch.equal(outputs["host"], outputs["device"])
    assert not torch.equal(outputs["host, too early"], outputs["device"])


# ------------------------------------------------------------------------------------------------ no compiler

WITHOUT_A_COMPILER = """
import warnings
import sim_npu, torch
from mindie_cache import CacheWarning
from mindie_cache.ops import combine

snapshots = [torch.full((4096,), 2.0, device="npu") for _ in range(2)]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", CacheWarning)
    for _ in range(3):
        total = combine(snapshots, (0.5, 2.0), snapshots[0])
    said = [str(one.message) for one in caught if issubclass(one.category, CacheWarning)]
assert total.tolist() == [7.0] * 4096
assert len(said) == 1, said
print(said[0])
"""


def test_without_the_vendors_compiler_the_reference_runs_and_it_is_said_once():
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(here), "MINDIE_CACHE_OPS": "auto"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_COMPILER], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "combine by triton failed on npu, so the PyTorch reference runs instead" in done.stdout
