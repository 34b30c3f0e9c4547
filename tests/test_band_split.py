"""ops.band_split and ops.low_pass against NumPy's FFT; the FFT and the matrix implementation against each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mindie_cache import ops
from mindie_cache.ops import band_split, low_pass
from mindie_cache.ops import fourier as fourier_module

SIZES = st.integers(1, 17)


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def numpy_bands(x: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """FasterCache's rule: transform, shift the mean to the centre, cut a disc out, transform both parts back."""
    height, width = x.shape[-2:]
    spectrum = np.fft.fftshift(np.fft.fft2(x), axes=(-2, -1))
    down, right = np.mgrid[:height, :width]
    disc = (right - width // 2) ** 2 + (down - height // 2) ** 2 <= radius**2
    parts = [np.fft.ifft2(np.fft.ifftshift(spectrum * mask, axes=(-2, -1))) for mask in (disc, ~disc)]
    assert max(np.abs(part.imag).max() for part in parts) < 1e-9  # the disc is symmetric, so real stays real
    return parts[0].real, parts[1].real


def numpy_low(x: np.ndarray, highest: int, axis: int) -> np.ndarray:
    frequency = np.fft.fftfreq(x.shape[axis]) * x.shape[axis]
    shape = [1] * x.ndim
    shape[axis] = -1
    mask = (np.abs(np.round(frequency)) <= highest).reshape(shape)
    return np.fft.ifft(np.fft.fft(x, axis=axis) * mask, axis=axis).real


@pytest.fixture(params=["fft", "matrices"])
def implementation(request, monkeypatch):
    if request.param == "matrices":
        monkeypatch.setattr(fourier_module, "FFT_DEVICES", ())
    return request.param


def both(call):
    """The results of `call` with and without an FFT."""
    with_fft = call()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fourier_module, "FFT_DEVICES", ())
        return with_fft, call()


@settings(deadline=None, max_examples=60)
@given(height=SIZES, width=SIZES, radius=st.integers(0, 20))
def test_band_split_is_the_published_one_and_needs_no_fft(height, width, radius):
    x = noise(2, 3, height, width, seed=height * 20 + width)
    wanted = numpy_bands(x.numpy(), radius)
    for got in both(lambda: band_split(x, radius)):
        for band, expected in zip(got, wanted, strict=True):
            np.testing.assert_allclose(band.numpy(), expected, atol=1e-10)


@settings(deadline=None, max_examples=60)
@given(tokens=st.integers(1, 33), highest=st.integers(0, 20), dim=st.sampled_from([0, 1, 2, -1, -2]))
def test_low_pass_is_that_of_numpy_and_needs_no_fft(tokens, highest, dim):
    shape = [2, 3, 4]
    shape[dim] = tokens
    x = noise(*shape, seed=tokens)
    for got in both(lambda: low_pass(x, highest, dim)):
        np.testing.assert_allclose(got.numpy(), numpy_low(x.numpy(), highest, dim), atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(8, 8), (1, 4, 9, 15), (2, 4, 3, 16, 10), (1, 90, 160)])
def test_the_bands_add_up_to_the_picture(dtype, shape, implementation):
    x = noise(*shape, dtype=dtype)
    kept = x.clone()
    low, high = band_split(x, min(shape[-2:]) // 5)
    assert (low.dtype, high.dtype, low.shape, high.shape) == (dtype, dtype, x.shape, x.shape)
    # one rounding of each band
    error = torch.finfo(dtype).eps * (low.abs() + high.abs()).double() + 1e-14
    assert ((low.double() + high.double() - x.double()).abs() <= error).all()
    assert torch.equal(x, kept)


def test_low_precision_is_transformed_in_fp32(implementation):
    x = noise(1, 2, 90, 160, dtype=torch.bfloat16)
    low, _ = band_split(x, 18)
    exact, _ = band_split(x.double(), 18)
    assert (low.double() - exact).abs().max() <= torch.finfo(torch.bfloat16).eps * exact.abs().max()


@pytest.mark.parametrize(("u", "v", "is_low"), [(0, 0, True), (3, 4, True), (5, 0, True), (4, 4, False), (0, 6, False)])
def test_a_wave_belongs_to_one_band(u, v, is_low, implementation):
    down, right = torch.meshgrid(torch.arange(16.0), torch.arange(20.0), indexing="ij")
    wave = torch.cos(2 * torch.pi * (u * down / 16 + v * right / 20))
    bands = band_split(wave.double(), 5)
    torch.testing.assert_close(bands[0 if is_low else 1], wave.double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(bands[1 if is_low else 0], torch.zeros_like(bands[0]), atol=1e-5, rtol=0)


def test_splitting_is_a_projection_and_linear(implementation):
    x, y = noise(3, 12, 14, seed=1), noise(3, 12, 14, seed=2)
    low, high = band_split(x, 4)
    torch.testing.assert_close(band_split(low, 4)[0], low)
    torch.testing.assert_close(band_split(high, 4)[0], torch.zeros_like(low), atol=1e-12, rtol=0)
    torch.testing.assert_close(band_split(2 * x - y, 4)[0], 2 * low - band_split(y, 4)[0])


def test_strided_pictures_and_large_radii(implementation):
    x = noise(14, 12, 3).permute(2, 1, 0)
    torch.testing.assert_close(band_split(x, 3)[0], band_split(x.contiguous(), 3)[0])
    low, high = band_split(x, 99)
    torch.testing.assert_close(low, x)
    torch.testing.assert_close(high, torch.zeros_like(x), atol=1e-12, rtol=0)
    torch.testing.assert_close(low_pass(x, 99, 1), x)


def test_bands_share_no_memory_with_the_picture(implementation):
    x = noise(6, 6)
    for result in (*band_split(x, 1), *band_split(x, 9), low_pass(x, 1, 0), low_pass(x, 9, 0)):
        result.fill_(7.0)
    assert torch.equal(x, noise(6, 6))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: band_split(torch.ones(4), 1), "pictures"),
        (lambda: band_split(torch.ones(4, 4, dtype=torch.int64), 1), "int64"),
        (lambda: band_split(torch.ones(4, 4), -1), "radius=-1"),
        (lambda: low_pass(torch.ones(4), 1, 1), "dimension 1"),
        (lambda: low_pass(torch.ones(4, dtype=torch.int32), 1, 0), "int32"),
        (lambda: low_pass(torch.ones(4), -1, 0), "highest=-1"),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_explain_says_which_implementation_runs():
    chosen = {device: {choice.op: choice.implementation for choice in ops.explain(device)} for device in ("cpu", "npu")}
    assert chosen["cpu"]["band_split"] == chosen["cpu"]["low_pass"] == "fft"
    assert chosen["npu"]["band_split"] == chosen["npu"]["low_pass"] == "matrix products"
