"""How far a generation is from the uncached one. Every score is an error: less is better, 0 is equal."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mindie_cache.calibration.search.made import Made
from mindie_cache.demo.metrics import psnr, ssim
from mindie_cache.errors import ConfigError, did_you_mean

LATENTS, SSIM_WINDOW = "latents", 11


class Score(NamedTuple):
    """`error(candidate, uncached)`; `frames`: whether it looks at decoded frames."""

    name: str
    error: Callable[[Made, Made], float]
    frames: bool


def relative_mse(made: Made, reference: Made) -> float:
    """sum |x - x*|^2 / sum |x*|^2 over the final latents, in float64."""
    if made.latents is None or reference.latents is None:
        raise ConfigError(
            "this pipeline gives no latents beside frames: it has no callback_on_step_end. Use scores on frames only, e.g. "
            "--score psnr, or scores on latents only."
        )
    x, y = made.latents.double(), reference.latents.double()
    return float((x - y).square().sum() / y.square().sum())


def frame_mse(made: Made, reference: Made) -> float:
    """Mean squared difference of 8-bit frames, on the scale 0 to 255: the score of the published search, without a codec."""
    x, y = ((255 * _frames(one)).round().clamp(0, 255) for one in (made, reference))
    return float((x - y).square().mean())


def negative_psnr(made: Made, reference: Made) -> float:
    values = psnr(_frames(made), _frames(reference))
    return -sum(min(value, 200.0) for value in values) / len(values)  # equal frames have an infinite one


def one_minus_ssim(made: Made, reference: Made) -> float:
    if min(_frames(made).shape[2:4]) < SSIM_WINDOW:
        raise ConfigError(f"--score ssim needs frames of at least {SSIM_WINDOW} by {SSIM_WINDOW} pixels. Use psnr.")
    values = ssim(_frames(made), _frames(reference))
    return 1 - sum(values) / len(values)


def _frames(made: Made) -> torch.Tensor:
    assert made.frames is not None, "scores on frames say so"
    return made.frames


def _lpips() -> Callable[[Made, Made], float]:
    """LPIPS (Zhang et al., 2018) with AlexNet, if the package and the network's weights are on this machine."""
    if find_spec("lpips") is None:
        raise ConfigError("--score lpips needs the package lpips, which is not installed: pip install lpips. Or use ssim.")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not list(folder.glob("alexnet-*.pth")):
        raise ConfigError(
            f"--score lpips needs AlexNet's weights, and {folder} has no alexnet-*.pth; nothing is downloaded by this "
            "search. Put them there (python -c 'import lpips; lpips.LPIPS(net=\"alex\")' does), or use ssim."
        )
    network: list[Any] = []

    def error(made: Made, reference: Made) -> float:
        if not network:
            network.append(importlib.import_module("lpips").LPIPS(net="alex", verbose=False).eval())
        x, y = (2 * _frames(one).flatten(0, 1).movedim(-1, 1) - 1 for one in (made, reference))
        with torch.no_grad():
            return float(network[0](x, y).mean())

    return error


_FRAME_SCORES: dict[str, Callable[[], Callable[[Made, Made], float]]] = {
    "frames": lambda: frame_mse,
    "psnr": lambda: negative_psnr,
    "ssim": lambda: one_minus_ssim,
    "lpips": _lpips,
}


def find(name: str) -> Score:
    """The score of that name, or a user's `package.module:function`.

    A user's function is called with two `Made` (latents, frames): of the candidate, and uncached. It returns an error. With
    an attribute `frames = True` frames are decoded for it.

    Raises:
        ConfigError: there is none, or what it needs is not installed.
    """
    if name == LATENTS:
        return Score(name, relative_mse, frames=False)
    if name in _FRAME_SCORES:
        return Score(name, _FRAME_SCORES[name](), frames=True)
    module, sign, function = name.partition(":")
    if not sign:
        hint = did_you_mean(name, (LATENTS, *_FRAME_SCORES))
        raise ConfigError(f"--score {name} is not known. {hint} Or a function of yours: package.module:function.")
    sys.path.insert(0, os.getcwd())  # a script's own folder is there, not that of its user
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise ConfigError(f"--score {name}: {module} cannot be imported: {error}. Check its name and PYTHONPATH.") from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise ConfigError(f"--score {name}: {module} has no function {function!r}. Check its name.")
    return Score(name, found, frames=bool(getattr(found, "frames", False)))


def mean(name: str, values: Sequence[float | None]) -> float:
    """Over prompts; infinite if one is no number. PSNR is averaged as what it is the logarithm of, so that one bad prompt
    is not made up for by good ones."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return math.inf
    if name == "psnr":
        return 10 * math.log10(sum([10 ** (value / 10) for value in known]) / len(known))
    return sum(known) / len(known)


def measured(score: Score, made: Made, reference: Made) -> float | None:
    """The error as a number; None for NaN and infinity, which a broken generation gives.

    Raises:
        ConfigError: a user's function returned no number.
    """
    value = score.error(made, reference)
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"--score {score.name} returned {type(value).__name__}. Return one number, less is better."
        ) from error
    return number if math.isfinite(number) else None
