"""PSNR and SSIM by their formulas."""

import itertools
import math

import pytest
import torch

from mindie_cache.demo import psnr, ssim


def test_psnr_of_a_constant_error():
    reference = torch.full((2, 3, 4, 5, 3), 0.5)
    shifted = reference + torch.tensor([0.1, 0.01])[:, None, None, None, None]
    assert psnr(shifted, reference) == pytest.approx([20.0, 40.0], abs=1e-4)
    assert psnr(reference, reference) == [math.inf, math.inf]


def test_ssim_of_flat_pictures_is_their_luminance_term():
    dark, bright = torch.full((1, 2, 16, 16, 3), 0.2), torch.full((1, 2, 16, 16, 3), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert ssim(dark, bright) == pytest.approx([expected], abs=1e-6)
    assert ssim(dark, dark) == pytest.approx([1.0])


def test_ssim_of_one_window_by_the_formula():
    """Frames of 11 by 11 pixels have one window: weighted moments, summed in plain Python."""
    generator = torch.Generator().manual_seed(3)
    x, y = torch.rand(2, 1, 2, 11, 11, 3, generator=generator)
    bell = [math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)]
    weights = {(i, k): bell[i] * bell[k] / sum(bell) ** 2 for i in range(11) for k in range(11)}
    values = []
    for frame, channel in itertools.product(range(2), range(3)):
        p, q = x[0, frame, :, :, channel].tolist(), y[0, frame, :, :, channel].tolist()
        mean_p = sum(w * p[i][k] for (i, k), w in weights.items())
        mean_q = sum(w * q[i][k] for (i, k), w in weights.items())
        variance_p = sum(w * (p[i][k] - mean_p) ** 2 for (i, k), w in weights.items())
        variance_q = sum(w * (q[i][k] - mean_q) ** 2 for (i, k), w in weights.items())
        shared = sum(w * (p[i][k] - mean_p) * (q[i][k] - mean_q) for (i, k), w in weights.items())
        luminance = (2 * mean_p * mean_q + 1e-4) / (mean_p**2 + mean_q**2 + 1e-4)
        values.append(luminance * (2 * shared + 9e-4) / (variance_p + variance_q + 9e-4))
    assert ssim(x, y) == pytest.approx([sum(values) / 6], abs=1e-9)
