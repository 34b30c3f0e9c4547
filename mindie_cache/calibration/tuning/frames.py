"""Pictures of held-out prompts: uncached, cached, and what differs, as PNG files."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mindie_cache import CacheConfig
from mindie_cache.calibration import files
from mindie_cache.calibration.search.evaluator import key_of
from mindie_cache.calibration.search.made import Made

FOLDER, AMPLIFIED = "pictures", 8
_SHOWN, _LEAST, _MOST = 3, 96, 320  # frames of a video; pixels of a frame's longer side


class Album:
    """Keeps pictures of the first `prompts` prompts in a folder; a picture that is there is left alone."""

    def __init__(self, folder: Path, prompts: int):
        self.folder, self._prompts = folder, prompts

    def add(self, config: CacheConfig, prompt: int, made: Made, reference: Made) -> None:
        """The watcher of an evaluator."""
        if prompt >= self._prompts or made.frames is None or reference.frames is None:
            return
        difference = ((made.frames - reference.frames).abs() * AMPLIFIED).clamp(0, 1)
        found = self.names(config, prompt)
        for name, frames in zip(found.values(), (reference.frames, made.frames, difference), strict=True):
            path = self.folder / f"{name}.png"
            if not path.exists():
                files.write_with(path, partial(strip(frames[0]).save, format="png", optimize=True))

    @staticmethod
    def names(config: CacheConfig, prompt: int) -> dict[str, str]:
        key = key_of(config, prompt)
        return {"uncached": f"uncached-{prompt}", "cached": key, "difference": f"{key}-difference"}

    def of(self, config: CacheConfig, prompt: int) -> dict[str, str] | None:
        """The names of its pictures, if they are there."""
        found = self.names(config, prompt)
        return found if all((self.folder / f"{name}.png").exists() for name in found.values()) else None


def strip(frames: Tensor) -> Image.Image:
    """The first, the middle and the last frame of ``(frames, height, width, 3)`` in [0, 1], side by side; small ones are
    enlarged by whole pixels, large ones reduced."""
    count = len(frames)
    chosen = sorted({0, count // 2, count - 1})[:_SHOWN]
    pictures = [_picture(frames[index]) for index in chosen]
    width, height = pictures[0].size
    whole = Image.new("RGB", (len(pictures) * (width + 2) - 2, height), (255, 255, 255))
    for place, picture in enumerate(pictures):
        whole.paste(picture, (place * (width + 2), 0))
    return whole


def _picture(frame: Tensor) -> Image.Image:
    pixels = (frame.clamp(0, 1) * 255).round().to(torch.uint8).contiguous()
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels.numpy())
    longer = max(height, width)
    if longer < _LEAST:
        zoom = -(-_LEAST // longer)
        return image.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
    if longer > _MOST:
        return image.resize((round(width * _MOST / longer), round(height * _MOST / longer)), Image.Resampling.LANCZOS)
    return image
