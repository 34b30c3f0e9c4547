"""How close two videos are: PSNR and SSIM, for values in [0, 1]. Knows nothing of caching."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOW, _SIGMA = 11, 1.5  # pixels
_C1, _C2 = 0.01**2, 0.03**2  # for a data range of 1


def psnr(videos: Tensor, reference: Tensor) -> list[float]:
    """Peak signal-to-noise ratio of each video in dB: 10 log10(1 / mean squared error); infinite for equal videos.

    Args:
        videos, reference: ``(batch, frames, height, width, channels)`` in [0, 1].
    """
    error = (videos.double() - reference.double()).square().flatten(1).mean(1)
    return (-10 * error.log10()).tolist()


def ssim(videos: Tensor, reference: Tensor) -> list[float]:
    """Structural similarity of each video, at most 1: the mean over frames and channels, each frame on its own.

    Gaussian window of 11 pixels and sigma 1.5, positions where it fits (Wang et al., IEEE TIP 2004).

    Args:
        videos, reference: ``(batch, frames, height, width, channels)`` in [0, 1], frames of at least 11 by 11 pixels.
    """
    offset = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    line = torch.exp(-offset.square() / (2 * _SIGMA**2))
    line = line / line.sum()
    window = torch.outer(line, line)[None, None]

    def blur(planes: Tensor) -> Tensor:
        return F.conv2d(planes, window)

    x, y = (v.double().cpu().movedim(-1, 2).flatten(0, 2).unsqueeze(1) for v in (videos, reference))
    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return (luminance * structure).reshape(len(videos), -1).mean(1).tolist()
