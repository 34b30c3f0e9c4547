"""The simulated runtime sees faults: without that, the other tests of torch_npu would prove nothing."""

from __future__ import annotations

import pytest
import sim_npu
import torch
from cann_sim import build
from npu_operators import Operators

SHAPE = (512, 512)


@pytest.fixture
def side():
    torch.npu.synchronize()
    stream = torch.npu.Stream()
    yield stream
    torch.npu.synchronize()
    sim_npu.lazy(False)


def pinned(data: torch.Tensor) -> torch.Tensor:
    host = torch.empty(data.shape, pin_memory=True)
    host.copy_(data)
    return host


# Each of these moves a tensor between host and device, and returns whether the data is right. `careful` makes it correct.


def read_what_was_copied_to_the_host(side, careful):
    data, host = torch.randn(SHAPE), torch.zeros(SHAPE, pin_memory=True)
    on_device = data.npu()
    side.wait_stream(torch.npu.current_stream())
    with torch.npu.stream(side):
        host.copy_(on_device, non_blocking=True)
        copied = side.record_event()
    if careful:
        copied.synchronize()
    return torch.equal(host, data)


def use_what_another_stream_copies(side, careful):
    data = torch.randn(SHAPE)
    host = pinned(data)
    with torch.npu.stream(side):
        on_device = host.to("npu", non_blocking=True)
    if careful:
        torch.npu.current_stream().wait_stream(side)
    return torch.equal((on_device + 0).cpu(), data)


def overwrite_the_host_buffer(side, careful):
    data = torch.randn(SHAPE)
    host = pinned(data)
    on_device = host.to("npu", non_blocking=True)
    if careful:
        torch.npu.current_stream().synchronize()
    host.zero_()
    return torch.equal(on_device.cpu(), data)


def free_what_another_stream_reads(side, careful):
    data, host = torch.randn(SHAPE), torch.empty(SHAPE, pin_memory=True)
    on_device = data.npu()
    side.wait_stream(torch.npu.current_stream())
    with torch.npu.stream(side):
        host.copy_(on_device, non_blocking=True)
    if careful:
        on_device.record_stream(side)
    del on_device
    torch.zeros(SHAPE, device="npu")  # gets the memory
    torch.npu.synchronize()
    return torch.equal(host, data)


TRANSFERS = (
    read_what_was_copied_to_the_host,
    use_what_another_stream_copies,
    overwrite_the_host_buffer,
    free_what_another_stream_reads,
)


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_a_missing_wait_shows_as_wrong_data_where_copies_are_lazy(transfer, side):
    sim_npu.lazy()
    assert transfer(side, careful=True)
    torch.npu.synchronize()
    assert not transfer(side, careful=False)


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_a_missing_wait_does_not_show_where_they_are_not(transfer, side):
    sim_npu.lazy(False)
    assert transfer(side, careful=False)


WAITS = {
    "item": (1, lambda x: x.sum().item()),
    "tolist": (1, lambda x: x.tolist()),
    "two items": (2, lambda x: (x.sum().item(), x.mean().item())),
    "bool": (1, lambda x: bool((x > 0).any())),
    "equal": (1, lambda x: torch.equal(x, x.clone())),
    "mask": (1, lambda x: x[x > 0]),
    "nonzero": (1, lambda x: x.nonzero()),
    "cpu": (1, lambda x: x.cpu()),
    "strided cpu": (1, lambda x: x.t().cpu()),
    "from pageable memory": (1, lambda x: torch.zeros(4).to("npu", non_blocking=True)),
    "torch.tensor": (1, lambda x: torch.tensor([1.0, 2.0], device="npu")),
    "synchronize": (1, lambda x: torch.npu.synchronize()),
    "arithmetic": (0, lambda x: torch.where((x - 1).abs().mean() < 1, x, -x)),
    "full": (0, lambda x: torch.full((4,), 2.0, device="npu")),
    "index": (0, lambda x: x[:, torch.arange(3, device="npu")]),
    "event": (0, lambda x: torch.npu.current_stream().record_event().query()),
    "to pinned memory": (0, lambda x: torch.empty(x.shape, pin_memory=True).copy_(x, non_blocking=True)),
}


@pytest.mark.parametrize(("count", "action"), WAITS.values(), ids=WAITS)
def test_waits_of_the_host_are_counted(count, action):
    x = torch.randn(8, 8, device="npu")
    waits = sim_npu.HostWaits()
    action(x)
    assert waits.count == count


def test_a_capture_refuses_to_wait():
    x = torch.randn(8, device="npu")
    with torch.npu.graph(torch.npu.NPUGraph()):
        torch.where(x.mean() > 0, x, -x)
    for wait in (lambda: x.mean().item(), lambda: torch.equal(x, x)):
        with pytest.raises(RuntimeError, match="107027"), torch.npu.graph(torch.npu.NPUGraph()):
            wait()


def test_an_operator_without_a_kernel_on_the_npu_is_seen():
    square = torch.eye(4, device="npu")
    with Operators() as operators:
        square.topk(2)
        (square @ square).softmax(-1).flip(0).cumsum(0)
        torch.nn.functional.layer_norm(square, (4,))
    assert "aten::topk" in operators.names
    assert not operators.on_cpu
    with Operators() as operators:
        torch.linalg.inv(square)
        square.lgamma()
        square.logcumsumexp(0)
    assert operators.on_cpu == {"aten::linalg_inv_ex.inverse", "aten::lgamma.out", "aten::_logcumsumexp"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_double_precision_is_refused_and_seen(dtype):
    with Operators() as operators:
        x = torch.ones(2, device="npu").to(dtype)
    assert operators.doubles
    with pytest.raises(RuntimeError, match="float64 has no kernel"):
        x + 1


def test_an_operator_that_nothing_stands_in_for_fails_by_name():
    x = torch.ones(2, 4, device="npu")
    with pytest.raises(RuntimeError, match="SwiGlu"):
        torch.ops.npu.npu_swiglu(x)


def test_a_missing_tool_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(build.BuildError, match="apt-get install binutils g"):
        build.build()
    assert not list(tmp_path.rglob("*"))


def test_a_build_that_fails_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "RUNTIME", ("README.md",))
    with pytest.raises(build.BuildError, match=r"cann_sim: nm .*README"):
        build.build()
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]
