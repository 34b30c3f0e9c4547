"""A device 'npu' in pure Python, for PyTorch without torch_npu: `install()` once, in a process that is for this alone.

Tensors wrap CPU tensors, with their sizes, strides, dtypes and aliasing; every operator runs on the CPU. It shows where
tensors are, not what an NPU computes: tensors of two devices in one operator raise, as on a device; so does float64; what
makes the host wait is counted in `host_waits`. Inference only, without the order of streams. tests/npu has the real
torch_npu, on a simulated runtime.
"""

from __future__ import annotations

import contextlib
import sys
import time
import types
from typing import Any

import torch
from torch.utils import _pytree as pytree

aten = torch.ops.aten
DOUBLES = (torch.float64, torch.complex128)
MOVES = (aten.copy_.default, aten._to_copy.default)  # whose arguments may be on two devices
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
MASKS = (torch.bool, torch.uint8)
FACTORIES = (
    *("arange", "arange.start", "arange.start_step", "linspace", "scalar_tensor", "full", "zeros", "ones", "eye", "eye.m"),
    *("rand", "randn", "randint", "randint.low", "randperm", "normal.float_float", "tril_indices", "triu_indices"),
)

host_waits = 0
_device: torch.device | None = None
_libraries: list[torch.library.Library] = []


def _wait() -> None:
    global host_waits
    host_waits += 1


class NpuTensor(torch.Tensor):
    """A tensor on 'npu:0', in host memory as `raw`."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> NpuTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device=_device
        )
        made.raw = raw
        return made

    def __init__(self, raw: torch.Tensor):
        pass

    def __repr__(self) -> str:
        return f"NpuTensor({self.raw!r})"

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def is_pinned(self, device: Any = None) -> bool:
        return False

    def tolist(self) -> Any:
        _wait()
        return self.raw.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert npu:0 device type tensor to numpy. Use Tensor.cpu() to copy it to host memory first.")

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def _run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator on the tensors in host memory, and wrap what comes out."""
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, NpuTensor)]
    asked = kwargs.get("device")
    to_host = asked is not None and torch.device(asked).type != "npu"
    _check(function, tensors, ours)
    if _waits(function, args, ours, to_host):
        _wait()
    if asked is not None:
        kwargs = {**kwargs, "device": "cpu", **({"pin_memory": False} if "pin_memory" in kwargs else {})}
    owners = {id(tensor.raw): tensor for tensor in ours}
    unwrap = lambda leaf: leaf.raw if isinstance(leaf, NpuTensor) else leaf  # noqa: E731
    result = function(*pytree.tree_map(unwrap, args), **pytree.tree_map(unwrap, kwargs))
    if function is aten.copy_.default:
        return args[0]
    on_npu = not to_host if asked is not None else bool(ours)

    def wrap(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return owners.get(id(leaf)) if id(leaf) in owners else NpuTensor(leaf) if on_npu else leaf

    return pytree.tree_map(wrap, result)


def _check(function: Any, tensors: list[torch.Tensor], ours: list[NpuTensor]) -> None:
    others = [tensor.device for tensor in tensors if not isinstance(tensor, NpuTensor) and tensor.dim()]
    if ours and others and function not in (*MOVES, *INDEXING):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"npu:0 and {others[0]}! ({function})"
        )
    if function not in MOVES and any(tensor.dtype in DOUBLES for tensor in ours):
        raise RuntimeError(f"{function} on float64: there is no kernel for it on the NPU")


def _waits(function: Any, args: tuple[Any, ...], ours: list[NpuTensor], to_host: bool) -> bool:
    """Whether the host has to wait: it gets data, copies from memory that is not pinned, or has to know a shape."""
    if function is aten._to_copy.default:
        return to_host == bool(ours)
    if function is aten.copy_.default:
        return _copy_waits(args[0], args[1], non_blocking=len(args) > 2 and args[2])
    if function in INDEXING:
        return any(isinstance(index, torch.Tensor) and index.dtype in MASKS for index in args[1])
    return torch.Tag.data_dependent_output in function.tags or torch.Tag.dynamic_output_shape in function.tags


def _copy_waits(to: torch.Tensor, source: torch.Tensor, non_blocking: bool) -> bool:
    if isinstance(to, NpuTensor) == isinstance(source, NpuTensor):
        return False
    host = source if isinstance(to, NpuTensor) else to
    return not (non_blocking and getattr(host, "is_page_locked", False))


_torch_empty = torch.empty


def _empty_or_pinned(*size: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
    """torch.empty: a build for the CPU has no pinned memory, so it is ordinary memory that says so."""
    made = _torch_empty(*size, **kwargs)
    if pin_memory:
        made.is_page_locked = True
    return made


class Stream:
    """Remembers what it was asked for; everything runs at once."""

    def __init__(self, device: Any = None, priority: int = 0):
        self.device, self.waited_for = _device, []

    def wait_stream(self, stream: Stream) -> None:
        self.waited_for.append(stream)

    def wait_event(self, event: Event) -> None:
        self.waited_for.append(event)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        _wait()

    def __enter__(self) -> Stream:
        _entered.append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        _entered.pop()


class Event:
    def __init__(self, enable_timing: bool = False, blocking: bool = False):
        self.time = 0.0

    def record(self, stream: Stream | None = None) -> None:
        self.time = time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None:
        (stream or _entered[-1]).wait_event(self)

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        _wait()

    def elapsed_time(self, other: Event) -> float:
        return 1e3 * (other.time - self.time)


_entered: list[Stream] = []


def _module() -> types.ModuleType:
    """torch.npu."""
    module = types.ModuleType("torch.npu")
    module.is_available = module.is_initialized = lambda: True
    module._is_in_bad_fork = module.is_current_stream_capturing = lambda: False
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.set_device = lambda device: None
    module.get_device_name = lambda device=None: "Ascend910B2 (in Python)"
    module.synchronize = lambda device=None: _wait()
    module.Stream, module.Event = Stream, Event
    module.current_stream = lambda device=None: _entered[-1]
    module.default_stream = lambda device=None: _entered[0]
    module.stream = lambda stream: stream if stream is not None else contextlib.nullcontext()
    module.empty_cache = module.reset_peak_memory_stats = lambda *_: None
    module.memory_allocated = module.max_memory_allocated = module.memory_reserved = lambda device=None: 0
    module.manual_seed = module.manual_seed_all = torch.default_generator.manual_seed
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    return module


def install() -> None:
    """Make "npu" a device of this process. Needs PyTorch 2.13."""
    global _device
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    module = sys.modules["torch.npu"] = _module()
    _setup_privateuseone_for_python_backend("npu", backend_module=module)
    _device = torch.device("npu:0")
    _entered.append(Stream())
    library = torch.library.Library("aten", "IMPL")
    _libraries.append(library)  # it takes its operators with it when it goes
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    library.impl("empty.memory_format", _empty, "PrivateUse1")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    torch.empty = _empty_or_pinned
    for name in FACTORIES:
        library.impl(name, _factory(name), "PrivateUse1")


def _empty(
    size: Any,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: Any = None,
    memory_format: Any = None,
) -> NpuTensor:
    return NpuTensor(_torch_empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _empty_strided(
    size: Any, stride: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
) -> NpuTensor:
    return NpuTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: torch.Tensor, to: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    raw = [tensor.raw if isinstance(tensor, NpuTensor) else tensor for tensor in (to, source)]
    if _copy_waits(to, source, non_blocking):
        _wait()
    raw[0].copy_(raw[1])
    return to


def _factory(name: str) -> Any:
    base, _, overload = name.partition(".")
    operator = getattr(getattr(aten, base), overload or "default")

    def make(*args: Any, device: Any = None, pin_memory: Any = None, **kwargs: Any) -> NpuTensor:
        return NpuTensor(operator(*args, device="cpu", **kwargs))

    return make
