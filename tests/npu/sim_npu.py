"""The real torch_npu over the stand-ins of cann_sim: importing this module makes device 'npu' usable on the host.

Device, allocator, copies, streams, events, pinned memory, graph capture and operator schemas are torch_npu's own; ATen's
operators run on the CPU, npu:: operators by the references below, or they raise by name. cann_sim/README.md says what is
simulated and what is not.

    import sim_npu  # before torch_npu, and before torch where torch_npu is installed: PyTorch would load it by itself

    waits = sim_npu.HostWaits()
    ...
    assert waits.count == 0
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"  # the stand-ins have to be loaded first
os.environ["TASK_QUEUE_ENABLE"] = "0"  # an operator that fails, fails where it is called

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/ has the toy models

import torch
from cann_sim import build

LIBRARIES = build.build()
# Loaded by path; whoever asks for a library of the same name afterwards gets this one, so no LD_LIBRARY_PATH is needed.
_runtime = ctypes.CDLL(str(LIBRARIES / build.RUNTIME_LIBRARY), ctypes.RTLD_GLOBAL)
for _path in sorted(LIBRARIES.glob("*.so")):
    if _path.name not in (build.RUNTIME_LIBRARY, build.OPERATORS_LIBRARY):
        ctypes.CDLL(str(_path), ctypes.RTLD_GLOBAL)
_runtime.cann_sim_pending.restype = ctypes.c_uint64

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    importlib.import_module("torch_npu")

_operators = ctypes.CDLL(str(LIBRARIES / build.OPERATORS_LIBRARY))
_operators.cann_sim_replace_operators.restype = ctypes.c_char_p

COUNTERS = (
    "stream_syncs",
    "device_syncs",
    "event_syncs",
    "blocking_copies",
    "bytes_to_device",
    "bytes_to_host",
    "bytes_on_device",
    "refused_in_capture",
)
TORCH_NPUS_OWN = {  # not replaced: allocation, storage, and what needs no kernel; nor are views
    *("empty.memory_format", "empty_strided", "empty_like", "new_empty_strided", "_lazy_clone"),
    *("empty_with_format", "empty_with_swapped_memory", "resize_", "resize_as_", "_copy_from_and_resize"),
    *("set_", "set_.source_Storage", "set_.source_Storage_storage_offset", "set_.source_Tensor", "is_set_to"),
    *("record_stream", "_pin_memory", "is_pinned", "_local_scalar_dense", "_has_compatible_shallow_copy_type"),
}


def _views() -> set[str]:
    """Operators that return a view of an argument. On the CPU each would be copied, and writes to it lost."""
    views = set()
    for schema in torch._C._jit_get_all_schemas():
        alias = [result.alias_info for result in schema.returns]
        if any(info is not None and not info.is_write for info in alias):
            views.add(".".join(filter(None, (schema.name.removeprefix("aten::"), schema.overload_name))))
    return views


def _replace_operators() -> frozenset[str]:
    """Send the operators that torch_npu registers to the CPU. Returns all that it registers, by full name."""
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("PrivateUse1")
    names = [name.removeprefix("aten::") for name in registered if name.startswith("aten::")]
    kept = TORCH_NPUS_OWN | _views() - {"contiguous"}  # which copies, or returns what it is given
    names = [name for name in names if name not in kept and not name.startswith(("npu_", "_npu_"))]
    sys.stderr.flush()
    terminal, silence = os.dup(2), os.open(os.devnull, os.O_WRONLY)  # PyTorch warns of each one that is replaced
    os.dup2(silence, 2)
    try:
        problem = _operators.cann_sim_replace_operators("\n".join(names).encode())
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(silence)
    if problem:
        raise RuntimeError(f"cann_sim: {problem.decode()}")
    return frozenset(registered)


REGISTERED = _replace_operators()


# ------------------------------------------------------------------------------------------------------ for the tests


def lazy(on: bool = True) -> None:
    """Run asynchronous copies as late as the API allows, or at once."""
    _runtime.cann_sim_lazy(int(on))


def pending() -> int:
    """Copies that are queued and have not run."""
    return _runtime.cann_sim_pending()


def counters(reset: bool = False) -> dict[str, int]:
    """What the host asked of the device since the last reset."""
    values = (ctypes.c_uint64 * len(COUNTERS))()
    _runtime.cann_sim_counters(values, int(reset))
    return dict(zip(COUNTERS, values, strict=True))


class HostWaits:
    """`count` is how often the host has waited for the device since this object was made."""

    def __init__(self) -> None:
        self._before = counters()

    @property
    def count(self) -> int:
        now = counters()
        since = {name: now[name] - self._before[name] for name in COUNTERS}
        # To read one value torch_npu synchronises the stream, then copies: one wait, not two.
        return since["device_syncs"] + since["event_syncs"] + max(since["stream_syncs"], since["blocking_copies"])


@contextmanager
def not_counted() -> Iterator[None]:
    """What the tests themselves ask of the device, to look at a result in the middle of a run."""
    _runtime.cann_sim_inside_bridge(1)
    try:
        yield
    finally:
        _runtime.cann_sim_inside_bridge(-1)


# ------------------------------------------------------------------------------------------ references of npu:: operators

_library = torch.library.Library("npu", "IMPL")


def _reference(name: str, *keys: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for key in ("PrivateUse1", *keys):
                _library.impl(name, function, key, allow_override=True)
        return function

    return register


@_reference(
    "npu_rms_norm", "CPU"
)  # where torch_npu is installed, diffusers calls it on the CPU too, where a device has none
def _rms_norm(x, gamma, epsilon=1e-6):
    scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + epsilon)
    return (x.float() * scale * gamma.float()).to(x.dtype), scale


_TO_HEADS_FIRST = {  # to (batch, heads, tokens, channels)
    "BNSD": lambda x, heads: x,
    "BSND": lambda x, heads: x.transpose(1, 2),
    "BSH": lambda x, heads: x.unflatten(-1, (heads, -1)).transpose(1, 2),
    "SBH": lambda x, heads: x.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3),
}
_FROM_HEADS_FIRST = {
    "BNSD": lambda x: x,
    "BSND": lambda x: x.transpose(1, 2),
    "BSH": lambda x: x.transpose(1, 2).flatten(2),
    "SBH": lambda x: x.permute(2, 0, 1, 3).flatten(2),
}
_MASKED = -40000.0
_CAUSAL = 2  # sparse_mode


def _attention(
    q, k, v, heads, layout, pse=None, padding_mask=None, atten_mask=None, scale=1.0, keep_prob=1.0, sparse_mode=0
):  # fmt: skip
    if pse is not None or padding_mask is not None or keep_prob != 1.0 or sparse_mode not in (0, 1, _CAUSAL):
        raise NotImplementedError("cann_sim: this reference of npu_fusion_attention has no pse, padding or dropout")
    to_heads_first = _TO_HEADS_FIRST[layout]
    query = to_heads_first(q, heads).float()
    kv_heads = heads if layout in ("BNSD", "BSND") else k.shape[-1] // query.shape[-1]
    key, value = to_heads_first(k, kv_heads).float(), to_heads_first(v, kv_heads).float()
    if key.shape[1] != query.shape[1]:  # grouped queries
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * scale
    if atten_mask is not None:
        if sparse_mode == _CAUSAL:  # one triangle that is large enough for all
            atten_mask = atten_mask[: scores.shape[-2], : scores.shape[-1]]
        scores = scores.masked_fill(atten_mask.bool(), _MASKED)  # true is masked out, unlike in PyTorch
    largest = scores.amax(-1, keepdim=True)
    exponentials = (scores - largest).exp()
    total = exponentials.sum(-1, keepdim=True)
    out = _FROM_HEADS_FIRST[layout]((exponentials / total @ value).to(q.dtype)).contiguous()
    statistics = [x.expand(*x.shape[:-1], 8).contiguous() for x in (largest, total)]  # eight times, as on the device
    return out, *statistics, q.new_empty(0)


@_reference("npu_fusion_attention")
def _fusion_attention(
    q, k, v, head_num, input_layout, pse=None, padding_mask=None, atten_mask=None, scale=1.0, keep_prob=1.0,
    pre_tockens=2147483647, next_tockens=2147483647, inner_precise=0, prefix=None, actual_seq_qlen=None,
    actual_seq_kvlen=None, sparse_mode=0, gen_mask_parallel=True, sync=False, softmax_layout="", sink=None,
    dropout_mask=None, seed=0, offset=0,
):  # fmt: skip
    found = _attention(q, k, v, head_num, input_layout, pse, padding_mask, atten_mask, scale, keep_prob, sparse_mode)
    return *found, 0, 0, 0


@_reference("npu_fusion_attention_v3")
def _fusion_attention_v3(
    q, k, v, head_num, input_layout, pse=None, padding_mask=None, atten_mask=None, scale=1.0, keep_prob=1.0,
    pre_tockens=2147483647, next_tockens=2147483647, inner_precise=0, prefix=None, actual_seq_qlen=None,
    actual_seq_kvlen=None, sparse_mode=0, gen_mask_parallel=True, sync=False, softmax_layout="", sink=None,
):  # fmt: skip
    found = _attention(q, k, v, head_num, input_layout, pse, padding_mask, atten_mask, scale, keep_prob, sparse_mode)
    nothing = torch.zeros(1, dtype=torch.int64)
    return *found, nothing, nothing


_INT8 = (None, 1, torch.int8)  # dst_type


@_reference("npu_dynamic_quant")
def _dynamic_quant(
    x, *, smooth_scales=None, group_index=None, dst_type=None, quant_mode="pertoken", dst_type_max=0.0
):  # fmt: skip
    if smooth_scales is not None or group_index is not None or dst_type not in _INT8 or quant_mode != "pertoken":
        raise NotImplementedError("cann_sim: this reference of npu_dynamic_quant makes int8 codes with a scale a row")
    scales = x.float().abs().amax(-1) / 127
    return torch.round(x.float() / scales.clamp_min(torch.finfo(torch.float32).tiny)[..., None]).to(torch.int8), scales
