"""One small interface over npu, cuda and cpu: what is there, which one a name means, and waiting for it. No work at import.

torch_npu is imported when somebody asks for npu or for a diagnosis; "auto" imports it only where it can be of use.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from glob import glob
from typing import Any, NamedTuple

import torch

from mindie_cache.errors import ConfigError, did_you_mean

KINDS = ("npu", "cuda", "cpu")  # in the order in which "auto" takes them
ALIASES = {"gpu": "cuda"}
_NAME = re.compile(r"([a-z]+)(?::(\d+))?")


class Availability(NamedTuple):
    """The usable devices of `kind`, by their makers' names; without any, `reason` says why."""

    kind: str
    names: tuple[str, ...] = ()
    reason: str = ""


def probe(kind: str) -> Availability:
    """Look for devices of one kind, without raising. For "npu" this imports torch_npu, if it is installed."""
    assert kind in KINDS
    if kind == "cpu":
        return Availability("cpu", ("cpu",))
    try:
        return _probe_npu() if kind == "npu" else _probe_cuda()
    except Exception as error:  # a broken driver or a broken torch_npu may raise anything: it is a finding here
        return Availability(kind, reason=f"{type(error).__name__}: {_first_line(error)}")


def available_devices() -> list[torch.device]:
    """Every usable device, best first: npu, cuda, cpu. Imports torch_npu only if it is installed and an NPU is attached."""
    kinds = [kind for kind in KINDS if kind != "npu" or _npu_attached()]
    return [device for kind in kinds for device in _devices(probe(kind))]


def resolve(name: str = "auto") -> torch.device:
    """Return the device that `name` means: "auto" (the best one there is), "cpu", "cuda", "cuda:1", "npu", "npu:0".

    "gpu" is another word for "cuda".

    Raises:
        ConfigError: the name is not known, or there is no such device here; says what was found and what to do.
    """
    if name == "auto":
        return available_devices()[0]
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    kind = ALIASES.get(match[1], match[1]) if match else ""
    if match is None or kind not in KINDS or (kind == "cpu" and match[2]):
        hint = did_you_mean(name, ("auto", *KINDS))
        raise ConfigError(f"device={name!r} is not known. {hint} An index may follow, e.g. 'cuda:1'.")
    index, found = int(match[2] or 0), probe(kind)
    if index >= len(found.names):
        raise ConfigError(f"device={name!r} is not usable here. {_next_action(found)}")
    return torch.device(kind if kind == "cpu" else f"{kind}:{index}")


def synchronize(device: torch.device) -> None:
    """Wait until everything queued on `device` is done; nothing to wait for on the CPU. Call before reading a clock."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize(device)


class Memory(NamedTuple):
    """Bytes on a device: `held` by tensors, the `peak` of it, `reserved` by PyTorch, `free` and `total` of the device."""

    held: int
    peak: int
    reserved: int
    free: int
    total: int


def memory(device: torch.device) -> Memory | None:
    """What the allocator of `device` holds; None on the CPU, where PyTorch does not count."""
    if device.type == "cpu":
        return None
    module = getattr(torch, device.type)
    free, total = module.mem_get_info(device)
    held, peak = module.memory_allocated(device), module.max_memory_allocated(device)
    return Memory(held, peak, module.memory_reserved(device), free, total)


def of_rank(local_rank: int, kind: str = "auto") -> torch.device:
    """The device of one process of several on this machine: the ranks take the devices of a kind in turn.

    Raises:
        ConfigError: there is no device of this kind.
    """
    first = resolve(kind)
    if first.type == "cpu":
        return first
    return torch.device(first.type, local_rank % len(probe(first.type).names))


class Reading:
    """A few numbers of a device on their way to the host: sent at once, without waiting, and read when they are there.

    Read a step later they cost no wait: the copy has its place in the queue before the step's work. If the device is
    further behind, `read` waits for that place only, and the work that was queued after it keeps the device busy.
    """

    __slots__ = ("_arrived", "_host")

    def __init__(self, numbers: torch.Tensor):
        self._arrived: Any = None
        if numbers.device.type == "cpu":
            self._host = numbers.clone()
            return
        module = getattr(torch, numbers.device.type)
        self._host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        self._host.copy_(numbers, non_blocking=True)
        self._arrived = module.Event()
        self._arrived.record(module.current_stream(numbers.device))

    def read(self) -> list[Any]:
        if self._arrived is not None and not self._arrived.query():
            self._arrived.synchronize()
        return self._host.tolist()


def _probe_cuda() -> Availability:
    if not torch.backends.cuda.is_built():
        return Availability("cuda", reason=f"PyTorch {torch.__version__} is built without CUDA")
    if not torch.cuda.is_available():
        torch.cuda.init()  # raises with the driver's own words
        return Availability("cuda", reason="PyTorch has CUDA, but finds no device")
    return Availability("cuda", tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())))


def _probe_npu() -> Availability:
    if importlib.util.find_spec("torch_npu") is None:
        return Availability("npu", reason="torch_npu is not installed")
    npu = importlib.import_module("torch_npu").npu  # importing it also makes "npu" a device type of PyTorch
    if not npu.is_available():
        torch.empty(1, device="npu")  # raises with the driver's own words
        return Availability("npu", reason="torch_npu is installed, but finds no device")
    return Availability("npu", tuple(npu.get_device_name(index) for index in range(npu.device_count())))


def _npu_attached() -> bool:
    """Whether importing torch_npu can be of use: it is there already, or it is installed beside an Ascend driver."""
    if "torch_npu" in sys.modules:
        return True
    return importlib.util.find_spec("torch_npu") is not None and bool(glob("/dev/davinci[0-9]*"))


def _devices(found: Availability) -> list[torch.device]:
    return [torch.device("cpu" if found.kind == "cpu" else f"{found.kind}:{index}") for index in range(len(found.names))]


def _next_action(found: Availability) -> str:
    usable = [str(device) for device in available_devices()]
    why = f"{found.kind} devices here: {len(found.names)}" if found.names else f"{found.kind}: {found.reason}"
    return f"{why}. Found: {', '.join(usable)}. Use one of these or 'auto'; `mindie-cache doctor` tells more."


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
