"""device.py: which device a name means, why one is not usable, and that nothing is imported needlessly."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from mindie_cache import ConfigError, device

WORKING_NPU = """
import types, torch
torch.utils.rename_privateuse1_backend("npu")
npu = torch.npu = types.SimpleNamespace(
    is_available=lambda: True, device_count=lambda: 2, get_device_name=lambda index: f"Ascend{index}",
    synchronize=lambda device: print("waited for", device),
)
"""
USE_NPU = """
import sys, torch
from mindie_cache import device
device.glob = lambda pattern: [] if sys.argv[1] == "detached" else ["/dev/davinci0"]
print([str(found) for found in device.available_devices()], "torch_npu" in sys.modules, "triton" in sys.modules)
print(device.resolve("npu:1"), device.resolve("auto"), device.probe("npu").names)
device.synchronize(torch.device("npu:1"))
"""


@pytest.fixture
def no_npu(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch_npu" else find(name))
    monkeypatch.delitem(sys.modules, "torch_npu", raising=False)


@pytest.fixture
def two_gpus(monkeypatch, no_npu):
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")


def test_cpu_is_always_there():
    assert device.resolve("cpu") == torch.device("cpu")
    assert device.available_devices()[-1] == torch.device("cpu")
    assert device.resolve("auto") == device.available_devices()[0]
    device.synchronize(torch.device("cpu"))


def test_auto_prefers_the_accelerator(two_gpus, monkeypatch):
    assert [str(found) for found in device.available_devices()] == ["cuda:0", "cuda:1", "cpu"]
    assert device.resolve("auto") == device.resolve("cuda") == torch.device("cuda:0")
    assert device.resolve("cuda:1") == device.resolve("gpu:1") == torch.device("cuda:1")
    assert device.resolve("gpu") == torch.device("cuda:0")
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    device.synchronize(torch.device("cuda:1"))
    assert waited == [torch.device("cuda:1")]


def test_an_index_past_the_last_device_says_what_there_is(two_gpus):
    with pytest.raises(ConfigError, match=r"'cuda:2' is not usable.*devices here: 2.*cuda:0, cuda:1, cpu.*doctor"):
        device.resolve("cuda:2")


def test_without_cuda_the_error_says_why_and_what_to_use(monkeypatch, no_npu):
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    with pytest.raises(ConfigError, match=r"built without CUDA\. Found: cpu\. Use one of these"):
        device.resolve("cuda")
    assert device.resolve("auto") == torch.device("cpu")


def test_the_drivers_words_are_kept(monkeypatch):
    def init():
        raise RuntimeError("\nFound no NVIDIA driver on your system.\nmore text")

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    assert device.probe("cuda").reason == "RuntimeError: Found no NVIDIA driver on your system."


@pytest.mark.parametrize("name", ["gpus", "cuda:", "cuda:-1", "cpu:0", "CUDA", "", "mps", 3, None])
def test_unknown_names(name):
    with pytest.raises(ConfigError, match=r"is not known\. .*Allowed: auto, cpu, cuda, npu"):
        device.resolve(name)


def test_npu_without_torch_npu(no_npu):
    with pytest.raises(ConfigError, match="torch_npu is not installed"):
        device.resolve("npu")


def test_a_broken_torch_npu_is_reported_with_its_error(monkeypatch, tmp_path):
    (tmp_path / "torch_npu.py").write_text("raise OSError('libascendcl.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    assert device.probe("npu").reason == "OSError: libascendcl.so: cannot open shared object file"
    with pytest.raises(ConfigError, match="libascendcl"):
        device.resolve("npu:0")


@pytest.mark.parametrize(
    ("attached", "first_line"),
    [("detached", "['cpu'] False False"), ("attached", "['npu:0', 'npu:1', 'cpu'] True False")],
)
def test_torch_npu_is_imported_only_on_demand(tmp_path, attached, first_line):
    """In a process of its own: naming a backend "npu" cannot be taken back."""
    (tmp_path / "torch_npu.py").write_text(WORKING_NPU)
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", USE_NPU, attached], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [first_line, "npu:1 npu:0 ('Ascend0', 'Ascend1')", "waited for npu:1"]


def test_the_ranks_of_a_machine_take_its_devices_in_turn(two_gpus):
    assert [str(device.of_rank(rank, "cuda")) for rank in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert str(device.of_rank(3, "cpu")) == "cpu"
    with pytest.raises(ConfigError, match="npu"):
        device.of_rank(0, "npu")


def test_memory(two_gpus, monkeypatch):
    found = {"memory_allocated": 3, "max_memory_allocated": 5, "memory_reserved": 8}
    for name, value in found.items():
        monkeypatch.setattr(torch.cuda, name, lambda at, value=value: value if at == torch.device("cuda:1") else -1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda at: (60, 80))
    assert device.memory(torch.device("cuda:1")) == device.Memory(held=3, peak=5, reserved=8, free=60, total=80)
    assert device.memory(torch.device("cpu")) is None
