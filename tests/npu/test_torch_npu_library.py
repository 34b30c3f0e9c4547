"""What the library asks of torch_npu beside running models: devices, memory, numbers on their way to the host, commands; and
what happens to kernels where there is no compiler for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sim_npu
import torch
from hooked import LITE, TINY, latents

from mindie_cache import ConfigError, device, enable_cache
from mindie_cache.cli import main
from mindie_cache.device import Reading
from mindie_cache.ops.dispatch import use

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
