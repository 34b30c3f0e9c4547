"""The ops: their references against float64, the rules that choose an implementation, and what a broken kernel does."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import types
import warnings

import pytest
import torch

from mindie_cache import CacheWarning, ConfigError, ModelExecError, ops
from mindie_cache.ops import cases as cases_module
from mindie_cache.ops import dispatch, memory

CASES = list(cases_module.cases())
X, Y = torch.randn(3, 5, 64), torch.randn(3, 5, 64)
CALLS = {
    "combine": lambda: ops.combine((X, Y), (2.0, -1.0), X),
    "relative_l1": lambda: ops.relative_l1(X, Y),
    "magnitude_ratio": lambda: ops.magnitude_ratio(X, Y),
    "quantize_rows": lambda: ops.quantize_rows(X),
    "quantized_delta": lambda: ops.quantized_delta(X, Y),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference(case):
    assert case.error() == ""


@pytest.mark.parametrize("op", sorted({case.op for case in CASES}))
def test_a_wrong_result_is_seen(op):
    """The cases themselves: a relative error of a hundredth, one wrong element, or a lost NaN must not pass."""
    for case in [case for case in CASES if case.op == op]:
        arguments = case.arguments("cpu")
        expected, allowed = case.expected(*arguments), case.allowed(*arguments)
        finite = expected.isfinite() & (expected.abs() > 4 * allowed)
        if finite.any():
            scaled = torch.where(finite, expected + 2 * allowed + 0.02 * expected.abs(), expected)
            assert cases_module.difference(scaled, expected, allowed)
        if not expected.isfinite().all():
            assert cases_module.difference(expected.nan_to_num(0.0, 0.0, 0.0), expected, allowed)


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("combine", ([X, Y], [2.0, -1.0], X, None, torch.float32)),
        ("combine", ([X], [1.5], None, None, torch.bfloat16)),
        ("combine", ([*ops.quantize_rows(X)[:1]], [1.5], Y, [ops.quantize_rows(X)[1]], torch.float32)),
        ("relative_l1", (X, Y)),
        ("quantize_rows", (X, Y)),
        ("quantize_rows", (X, None)),
        ("magnitude_ratio", (X.bfloat16(), Y.bfloat16())),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_compilers_see_a_custom_operator(op, arguments):
    """Schema, fake kernel and tracing, by PyTorch's own check."""
    operator = getattr(torch.ops.mindie_cache, op).default
    assert set(torch.library.opcheck(operator, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("elements", [64, 1000])
def test_portions(monkeypatch, elements):
    """Large tensors are worked on in portions: the same results, whether or not the sizes divide."""
    monkeypatch.setattr(memory, "CACHED", elements)
    for case in CASES:
        assert case.error() == "", case


def test_empty_tensors():
    none = torch.empty(0, 8)
    assert ops.combine((none, none), (2.0, 1.0), none).shape == (0, 8)
    assert ops.relative_l1(none, none).tolist() == [0.0, 0.0]
    codes, scales = ops.quantize_rows(none)
    assert (codes.shape, scales.shape) == ((0, 8), (0,))
    assert ops.dequantize_rows(codes, scales).shape == (0, 8)
    assert ops.magnitude_ratio(none, none).isnan().tolist() == [True, False, True]


def test_snapshots_of_weight_zero_are_not_read():
    spoilt = torch.full_like(X, math.nan)
    assert torch.equal(ops.combine((spoilt, Y), (0.0, 2.0), X), X + 2 * Y)


def test_more_snapshots_than_a_kernel_takes():
    snapshots = [torch.randn(4, 6) for _ in range(6)]
    expected = sum(weight * snapshot.double() for weight, snapshot in enumerate(snapshots, 1))
    assert torch.allclose(ops.combine(snapshots, range(1, 7)).double(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.combine((X,), (1.0, 2.0)), "1 snapshots but 2 weights"),
        (lambda: ops.combine((X,), (2.0,), X[:1]), "shapes differ"),
        (lambda: ops.combine((X,), (2.0,), None, ()), "1 snapshots but 0 scales"),
        (lambda: ops.combine((X,), (2.0,), None, (X[..., 0],)), "do not fit torch.float32"),
        (lambda: ops.combine((X.to(torch.int8),), (2.0,), None, (X,)), "do not fit torch.int8"),
        (lambda: ops.quantize_rows(torch.ones(3, dtype=torch.int64)), "floating-point rows"),
        (lambda: ops.quantize_rows(torch.tensor(1.0)), "floating-point rows"),
        (lambda: ops.residual_delta(X, X[:1]), "shapes differ"),
        (lambda: ops.quantized_delta(X, X[:1]), "shapes differ"),
        (lambda: ops.magnitude_ratio(X, X[:1]), "shapes differ"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_one_token_has_no_deviation():
    mean, deviation, cosine = ops.magnitude_ratio(2 * X[:1, :1], X[:1, :1]).tolist()
    assert (mean, deviation) == (pytest.approx(2.0), 0.0)
    assert cosine == pytest.approx(0.0, abs=1e-6)


# ------------------------------------------------------------------------------------------------------------- the choice


@pytest.fixture
def kernels(monkeypatch):
    """Kernels on the CPU: where Triton would be, functions of one's own, by the name of their op."""
    monkeypatch.setattr(dispatch, "KERNEL_DEVICES", ("cpu",))
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: object())
    for state in ("_settled", "_failed"):
        monkeypatch.setattr(dispatch, state, {})
    monkeypatch.setattr(dispatch, "_warn", dispatch.WarnOnce())

    def install(op, function):
        module = types.ModuleType(op)
        setattr(module, op, function)
        monkeypatch.setitem(sys.modules, f"mindie_cache.ops.triton.{op}", module)
        monkeypatch.setitem(sys.modules, "mindie_cache.ops.triton", types.ModuleType("triton"))
        setattr(sys.modules["mindie_cache.ops.triton"], op, module)

    return install


def chosen(device: str = "cpu") -> dict[str, str]:
    return {choice.op: choice.implementation for choice in ops.explain(device)}


def test_the_device_chooses(kernels):
    assert chosen()["combine"] == chosen()["quantize_rows"] == "triton"
    assert chosen()["residual_delta"] == "reference"  # one operator is one pass already
    assert chosen("meta")["combine"] == "reference"


def test_the_kernel_runs(kernels):
    seen = []
    kernels("combine", lambda snapshots, weights, reference, scales, out: seen.append(weights) or out.fill_(7))
    assert (ops.combine((X, Y, X), (2.0, 0.0, -1.0), X) == 7).all()
    assert seen == [[2.0, -1.0]]
    ops.combine((X, Y), (0.0, 1.0), X)  # to hold is one operator
    ops.combine((X.double(),), (2.0,))  # no kernel reads float64
    ops.combine((X[:0],), (2.0,))
    ops.combine([X] * 5, [2.0] * 5)
    ops.combine((X,), (2.0,), X.clone().requires_grad_()).sum().backward()  # kernels have no gradient
    assert len(seen) == 1


@pytest.mark.parametrize("op", CALLS)
def test_a_kernel_that_fails_is_announced_once_and_replaced(kernels, op):
    calls = []
    with ops.use("reference"):
        expected = CALLS[op]()

    def broken(*_):
        calls.append(op)
        raise RuntimeError("ub overflow\nand much more")

    kernels("quantize_rows" if op == "quantized_delta" else op, broken)
    with pytest.warns(CacheWarning, match=rf"{op} by triton failed on cpu.*RuntimeError: ub overflow\. .*doctor") as seen:
        first = CALLS[op]()
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = CALLS[op]()
    assert len(calls) == 1  # not tried again
    for got in (first, second):
        for one, other in zip(*[value if isinstance(value, tuple) else (value,) for value in (got, expected)], strict=True):
            assert torch.equal(one, other)
    reason = next(choice.reason for choice in ops.explain("cpu") if choice.op == op)
    assert reason == "the kernel failed: RuntimeError: ub overflow"


def test_a_kernel_that_fails_is_an_error_if_it_was_asked_for(kernels):
    kernels("relative_l1", lambda *_: 1 / 0)
    with ops.use("triton"), pytest.raises(ModelExecError, match="relative_l1 by triton failed on cpu: ZeroDivisionError"):
        ops.relative_l1(X, Y)


def test_out_of_memory_is_no_broken_kernel(kernels):
    def exhausted(*_):
        raise torch.OutOfMemoryError("of 1 GiB")

    kernels("relative_l1", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        ops.relative_l1(X, Y)
    assert chosen()["relative_l1"] == "triton"


def test_small_tensors_take_the_reference(kernels, monkeypatch):
    rule = dispatch.RULES["relative_l1"]._replace(smallest={"cpu": X.numel() + 1})
    monkeypatch.setitem(dispatch.RULES, "relative_l1", rule)
    kernels("relative_l1", lambda current, previous, out: out.fill_(-1))
    assert (ops.relative_l1(X, Y) > 0).all()
    assert (ops.relative_l1(torch.cat((X, X)), torch.cat((Y, Y))) == -1).all()
    assert f"from {X.numel() + 1} elements" in next(c.reason for c in ops.explain() if c.op == "relative_l1")


def test_the_mode_can_be_set(kernels):
    with ops.use("reference"):
        assert set(chosen().values()) == {"reference", "fft", "matrix products"}
        with ops.use("triton"):
            assert chosen()["combine"] == "triton"
    assert chosen()["combine"] == "triton"
    with pytest.raises(ConfigError, match=r"MINDIE_CACHE_OPS='tritan' is not known\. Did you mean 'triton'"):
        ops.use("tritan").__enter__()


def test_triton_is_asked_for_but_not_installed(monkeypatch):
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    with ops.use("triton"), pytest.raises(ConfigError, match=r"Triton is not installed\. pip install triton-ascend"):
        ops.explain("npu")
    assert chosen("cuda")["combine"] == "reference"


def run_with(mode: str) -> subprocess.CompletedProcess:
    code = "from mindie_cache import ops; print({choice.implementation for choice in ops.explain('npu')})"
    environment = dict(os.environ, MINDIE_CACHE_OPS=mode)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)


def test_the_environment_sets_the_mode():
    assert "reference" in run_with("reference").stdout
    failed = run_with("tensorrt")
    assert failed.returncode
    assert "MINDIE_CACHE_OPS='tensorrt' is not known" in failed.stderr
