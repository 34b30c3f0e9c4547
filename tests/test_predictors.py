"""Predictors against exact arithmetic and the published ladder; the operations they are applied with against float64."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mindie_cache import ops
from mindie_cache.ops.cases import cases
from mindie_cache.predictors import Hold, Taylor

POINTS = st.lists(st.integers(1, 6), min_size=1, max_size=6).map(lambda gaps: [sum(gaps[: i + 1]) for i in range(len(gaps))])
REALS = st.floats(-1e3, 1e3)
COEFFICIENTS = st.lists(st.integers(-9, 9), min_size=1, max_size=5)


def polynomial(coefficients: list[int], at: int) -> Fraction:
    return sum((Fraction(c) * Fraction(at) ** power for power, c in enumerate(coefficients)), Fraction(0))


def applied(weights, values) -> float:
    return math.fsum(weight * float(value) for weight, value in zip(weights, values, strict=True))


def close(got: float, wanted: Fraction | float, weights=(1.0,), values=(1.0,)) -> bool:
    scale = sum(abs(w * float(v)) for w, v in zip(weights, values, strict=True))
    return abs(got - float(wanted)) <= 1e-11 * max(1.0, scale)


# --- Newton


@settings(deadline=None)
@given(points=POINTS, coefficients=COEFFICIENTS, ahead=st.integers(0, 8))
def test_newton_is_exact_on_polynomials_of_its_order_whatever_the_gaps(points, coefficients, ahead):
    order = len(coefficients) - 1
    if len(points) <= order:
        points = [*points, *range(points[-1] + 1, points[-1] + 1 + order)]
    values, at = [polynomial(coefficients, p) for p in points], points[-1] + ahead
    weights = Taylor(order).weights(points, at)
    assert close(applied(weights, values), polynomial(coefficients, at), weights, values)


@settings(deadline=None)
@given(points=POINTS, order=st.integers(0, 4), ahead=st.integers(0, 8))
def test_with_fewer_snapshots_the_degree_is_what_they_allow(points, order, ahead):
    at = points[-1] + ahead
    used = points[-(order + 1) :]
    weights = Taylor(order).weights(points, at)
    assert len(weights) == len(points)
    assert not any(weights[: len(points) - len(used)])
    values = [Fraction(p) ** (len(used) - 1) for p in points]
    assert close(applied(weights, values), Fraction(at) ** (len(used) - 1), weights, values)


@settings(deadline=None)
@given(
    first=st.integers(0, 50),
    gap=st.integers(1, 9),
    ahead=st.integers(0, 9),
    old=st.floats(-1e3, 1e3),
    new=st.floats(-1e3, 1e3),
)
def test_order_1_is_the_line_through_two_snapshots(first, gap, ahead, old, new):
    for ladder in ("newton", "published"):
        weights = Taylor(1, None, ladder).weights((first, first + gap), first + gap + ahead)
        line = new + (new - old) * ahead / gap
        assert applied(weights, (old, new)) == pytest.approx(line, rel=1e-12, abs=1e-9)


@settings(deadline=None)
@given(points=POINTS, order=st.integers(0, 4), ahead=st.integers(0, 8), far=st.none() | st.integers(0, 4))
def test_weights_sum_to_one(points, order, ahead, far):
    """A constant is predicted as itself: the identity property."""
    for ladder in ("newton", "published"):
        weights = Taylor(order, far, ladder).weights(points, points[-1] + ahead)
        assert math.fsum(weights) == pytest.approx(1.0, abs=1e-9 * sum(map(abs, weights)))
    assert Hold().weights(points, points[-1] + ahead) == (0.0,) * (len(points) - 1) + (1.0,)


@settings(deadline=None)
@given(points=POINTS, order=st.integers(1, 4))
def test_at_a_snapshot_the_prediction_is_the_snapshot(points, order):
    weights = Taylor(order).weights(points, points[-1])
    assert weights[-1] == pytest.approx(1.0)
    assert not any(weights[:-1])


def test_points_may_be_sigmas_that_fall():
    weights = Taylor(2).weights((1.0, 0.8, 0.5), 0.3)
    assert applied(weights, [s * s for s in (1.0, 0.8, 0.5)]) == pytest.approx(0.09)


@pytest.mark.parametrize("ladder", ["newton", "published"])
@pytest.mark.parametrize("distance", [0, 1, 2])
def test_beyond_max_distance_the_newest_snapshot_is_held(ladder, distance):
    predictor = Taylor(2, distance, ladder)
    for ahead in range(1, 5):
        weights = predictor.weights((0, 2, 5), 5 + ahead)
        assert (tuple(weights) == (0.0, 0.0, 1.0)) == (ahead > distance)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_depth_is_the_number_of_snapshots_that_can_matter(order):
    predictor = Taylor(order)
    assert (predictor.depth, predictor.warmup) == (order + 1, 1)
    assert all(predictor.weights(range(predictor.depth), 9))
    assert (Hold().depth, Hold().warmup) == (1, 1)


# --- the published ladder


class Ladder:
    """Divided backward differences as TaylorSeer and TeleFuser keep them: tensors, updated at each computed step."""

    def __init__(self, order: int):
        self.order = order
        self.derivatives: list[Tensor] = []
        self.newest = 0

    def update(self, step: int, feature: Tensor) -> None:
        before, self.derivatives = self.derivatives, [feature]
        for i in range(min(self.order, len(before))):
            self.derivatives.append((self.derivatives[i] - before[i]) / (step - self.newest))
        self.newest = step

    def approximate(self, step: int) -> Tensor:
        ahead = step - self.newest
        return sum(d * ahead**i / math.factorial(i) for i, d in enumerate(self.derivatives))


@settings(deadline=None)
@given(points=POINTS, order=st.integers(0, 4), ahead=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_published_ladder_as_weights(points, order, ahead, seed):
    """All of the history counts in the recursion, but order + 1 snapshots are enough to repeat it."""
    features = torch.randn(len(points), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ladder = Ladder(order)
    for step, feature in zip(points, features, strict=True):
        ladder.update(step, feature)
    kept = points[-(order + 1) :]
    weights = Taylor(order, None, "published").weights(kept, points[-1] + ahead)
    got = sum(w * f for w, f in zip(weights, features[-len(kept) :], strict=True))
    torch.testing.assert_close(got, ladder.approximate(points[-1] + ahead), rtol=1e-9, atol=1e-9)


def test_the_published_ladder_is_biased_at_order_2_and_newton_is_not():
    values = [Fraction(p) ** 2 for p in (0, 1, 4)]
    newton, published = (
        applied(Taylor(2, None, ladder).weights((0, 1, 4), 6), values) for ladder in ("newton", "published")
    )
    assert newton == pytest.approx(36.0)
    assert abs(published - 36.0) > 1.0


# --- ops.combine

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def noise(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def expected(snapshots: list[Tensor], weights: list[float], reference: Tensor | None) -> Tensor:
    total = sum(w * s.double() for w, s in zip(weights, snapshots, strict=True))
    return total if reference is None else reference.double() + total


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", [[1.0], [0.0, 1.0], [-0.5, 1.5], [0.25, -1.0, 1.75], [0.0, -2.0, 3.0], [2.0]])
@pytest.mark.parametrize("with_reference", [False, True])
def test_combine_against_float64(dtype, weights, with_reference):
    snapshots = [noise(5, 7, dtype=dtype, seed=seed) for seed in range(len(weights))]
    reference = noise(5, 7, dtype=dtype, seed=99) if with_reference else None
    kept = [tensor.clone() for tensor in snapshots]
    got, wanted = ops.combine(snapshots, weights, reference), expected(snapshots, weights, reference)
    assert got.dtype == dtype
    # one rounding to the result's type, and those of fp32 sums before
    error = (
        torch.finfo(dtype).eps / 2 * wanted.abs() + 8 * torch.finfo(torch.float32 if dtype != torch.float64 else dtype).eps
    )
    assert ((got.double() - wanted).abs() <= error).all()
    assert all(torch.equal(a, b) for a, b in zip(snapshots, kept, strict=True))


def test_combine_sums_low_precision_in_fp32():
    """Large opposite terms: in bf16 the small one would be lost."""
    snapshots = [torch.tensor([v], dtype=torch.bfloat16) for v in (256.0, 1.0, -256.0)]
    assert ops.combine(snapshots, [2.0, 0.5, 2.0]).item() == 0.5


@pytest.mark.parametrize("reference_dtype", DTYPES)
@pytest.mark.parametrize("weights", [[1.0], [-1.0, 2.0]])
def test_combine_returns_the_references_dtype(reference_dtype, weights):
    snapshots = [noise(4, dtype=torch.bfloat16, seed=seed) for seed in range(len(weights))]
    reference = noise(4, dtype=reference_dtype, seed=9)
    got = ops.combine(snapshots, weights, reference)
    assert got.dtype == reference_dtype
    torch.testing.assert_close(got.double(), expected(snapshots, weights, reference), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("weights", [[1.0], [0.0, 1.0], [-1.0, 2.0], [0.0, 0.0]])
@pytest.mark.parametrize("with_reference", [False, True])
def test_combine_shares_no_memory_with_its_inputs(weights, with_reference):
    snapshots = [noise(3, 4, seed=seed) for seed in range(len(weights))]
    reference = noise(3, 4, seed=9) if with_reference else None
    inputs = [*snapshots, *([reference] if with_reference else [])]
    before = [tensor.clone() for tensor in inputs]
    got = ops.combine(snapshots, weights, reference)
    assert got.untyped_storage().data_ptr() not in [tensor.untyped_storage().data_ptr() for tensor in inputs]
    got.fill_(7.0)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_combine_does_not_read_snapshots_of_weight_zero():
    poison = torch.full((3,), float("nan"))
    assert ops.combine([poison, torch.ones(3)], [0.0, 1.0]).tolist() == [1.0] * 3
    assert ops.combine([poison, torch.ones(3), torch.ones(3)], [0.0, -1.0, 3.0], torch.ones(3)).tolist() == [3.0] * 3


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (3, 0, 2), (1,)])
@pytest.mark.parametrize("weights", [[1.0], [-1.0, 2.0]])
def test_combine_of_empty_and_tiny_tensors(shape, weights):
    snapshots = [torch.ones(shape) for _ in weights]
    assert torch.equal(ops.combine(snapshots, weights), torch.ones(shape))
    assert torch.equal(ops.combine(snapshots, weights, torch.ones(shape)), torch.full(shape, 2.0))


@pytest.mark.parametrize("weights", [[1.0], [-0.5, 1.5]])
def test_combine_of_non_contiguous_tensors(weights):
    snapshots = [noise(6, 8, seed=seed).t()[::2] for seed in range(len(weights))]
    reference = noise(4, 12, seed=9)[:, ::2]
    assert not any(tensor.is_contiguous() for tensor in (*snapshots, reference))
    got = ops.combine(snapshots, weights, reference)
    torch.testing.assert_close(got, expected(snapshots, weights, reference).float())
    wide = noise(1, 6, seed=3).expand(4, 6)  # one row in memory
    torch.testing.assert_close(ops.combine([wide], [1.0]), wide.contiguous())
    ops.combine([wide], [1.0])[0].zero_()
    assert wide.any()


@pytest.mark.parametrize(
    ("snapshots", "weights"),
    [(1, [1.0, 0.0]), (2, [1.0]), (0, []), (0, [1.0])],
    ids=["more", "fewer", "none", "no snapshot"],
)
def test_combine_needs_a_weight_for_each_snapshot(snapshots, weights):
    with pytest.raises(ValueError, match=f"{snapshots} snapshots"):
        ops.combine([torch.ones(2)] * snapshots, weights)


@pytest.mark.parametrize("weights", [[1.0], [0.5]])
def test_combine_never_broadcasts(weights):
    with pytest.raises(ValueError, match="shape"):
        ops.combine([torch.ones(1)], weights, torch.ones(4))
    with pytest.raises(ValueError, match="shape"):
        ops.combine([torch.ones(4)], weights, torch.ones(1))


@settings(deadline=None)
@given(points=POINTS, order=st.integers(0, 3), ahead=st.integers(1, 3))
def test_predictors_and_combine_together(points, order, ahead):
    """A feature that moves along a polynomial is predicted exactly, as a tensor."""
    predictor = Taylor(order)
    kept = points[-predictor.depth :]
    at = points[-1] + ahead
    degree = len(kept) - 1
    snapshots = [torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64) * p**degree for p in kept]
    got = ops.combine(snapshots, predictor.weights(kept, at), torch.ones(3, dtype=torch.float64))
    wanted = 1 + torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64) * at**degree
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)


# --- ops.relative_l1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 3, 65)])
def test_relative_l1_against_float64(dtype, shape):
    current, previous = noise(*shape, dtype=dtype, seed=1), noise(*shape, dtype=dtype, seed=2)
    got = ops.relative_l1(current, previous)
    assert (got.shape, got.dtype) == ((2,), torch.float32)
    wanted = torch.stack([(current.double() - previous.double()).abs().sum(), previous.double().abs().sum()])
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)


def test_relative_l1_of_many_small_low_precision_numbers_does_not_saturate():
    """In bf16 a sum of ones stops at 256, in fp16 it overflows at 65504."""
    for dtype in (torch.bfloat16, torch.float16):
        ones = torch.ones(100_000, dtype=dtype)
        assert ops.relative_l1(2 * ones, ones).tolist() == [100_000.0, 100_000.0]


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_relative_l1_lets_nan_and_inf_through(poison):
    current = torch.tensor([1.0, poison])
    assert not math.isfinite(ops.relative_l1(current, torch.ones(2))[0])
    assert not torch.isfinite(ops.relative_l1(torch.ones(2), current)).any()


def test_relative_l1_of_equal_empty_and_strided_tensors():
    x = noise(4, 6)
    assert ops.relative_l1(x, x)[0] == 0
    assert ops.relative_l1(torch.empty(0), torch.empty(0)).tolist() == [0.0, 0.0]
    torch.testing.assert_close(ops.relative_l1(x.t(), x.t() + 1), ops.relative_l1(x, x + 1))


@pytest.mark.parametrize(("left", "right"), [((3,), (1,)), ((2, 3), (3,)), ((4,), (5,))])
def test_relative_l1_never_broadcasts(left, right):
    with pytest.raises(ValueError, match="shapes differ"):
        ops.relative_l1(torch.ones(left), torch.ones(right))


def test_explain_names_every_operation():
    for device in ("cpu", "cuda", "npu"):
        choices = ops.explain(device)
        frequencies = ["axis_filter", "band_split", "low_pass"]
        assert [choice.op for choice in choices] == sorted({case.op for case in cases()} | {"residual_delta", *frequencies})
        assert all(choice.device == device and choice.implementation and choice.reason for choice in choices)
