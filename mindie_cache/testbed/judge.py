"""Reads colour, shape and direction from the pixels of a video, knowing nothing about the model that made it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mindie_cache.errors import ParametersInvalid
from mindie_cache.testbed import data

_MIN_AREA = 6.0  # pixels; less than that is no shape
_MIN_TRAVEL = 2.0  # pixels between the first and the last frame; less than that is no direction
_MIN_IOU = 0.5  # overlap with the best template; less than that is no shape


@dataclass(frozen=True)
class Reading:
    """What one video shows; ``None`` where nothing could be read. ``confidence`` in [0, 1] is the weakest reading's."""

    colour: str | None
    shape: str | None
    direction: str | None
    confidence: float

    def agrees(self, prompt: str) -> bool:
        """True when all three readings are what the prompt says."""
        return (self.colour, self.shape, self.direction) == data.parse_prompt(prompt)


@dataclass(frozen=True)
class Accuracy:
    """Fractions in [0, 1] of videos whose reading is what the prompt says; ``overall`` needs all three."""

    overall: float
    colour: float
    shape: float
    direction: float
    videos: int


def read(videos: Tensor) -> list[Reading]:
    """Reads each video.

    Args:
        videos: ``(batch, frames, height, width, 3)`` in [0, 1].
    """
    if videos.ndim != 5 or videos.shape[-1] != 3:
        raise ParametersInvalid(
            f"videos has shape {tuple(videos.shape)}, expected (batch, frames, height, width, 3) with values in "
            "[0, 1]. Use to_video(latents) for latents."
        )
    videos = videos.detach().float().cpu()
    colour_index, colour_margin, alpha = _segment(videos)
    centre_x, centre_y, area = _moments(alpha)
    visible = area.amin(dim=1) > _MIN_AREA
    overlap = torch.stack([_overlap(shape, alpha, centre_x, centre_y, area) for shape in data.SHAPES], dim=1)
    best = overlap.topk(2, dim=1)
    travel = torch.stack([centre_x[:, -1] - centre_x[:, 0], centre_y[:, -1] - centre_y[:, 0]], dim=1)
    headings = torch.tensor(list(data.DIRECTIONS.values()), dtype=torch.float32)
    along = travel @ headings.T  # pixels travelled towards each direction
    purity = along.amax(dim=1) / travel.abs().sum(dim=1).clamp_min(1e-6)
    shape_margin = ((best.values[:, 0] - best.values[:, 1]) / 0.1).clamp(0, 1)
    confidence = torch.stack([colour_margin, shape_margin, purity], dim=1).amin(dim=1).clamp(0, 1)
    readings = []
    for row in range(len(videos)):
        seen = bool(visible[row])
        has_shape = seen and best.values[row, 0] > _MIN_IOU
        moves = seen and along[row].amax() > _MIN_TRAVEL
        readings.append(
            Reading(
                colour=list(data.COLOURS)[int(colour_index[row])] if seen else None,
                shape=data.SHAPES[int(best.indices[row, 0])] if has_shape else None,
                direction=list(data.DIRECTIONS)[int(along[row].argmax())] if moves else None,
                confidence=float(confidence[row]) if has_shape and moves else 0.0,
            )
        )
    return readings


def accuracy(videos: Tensor, prompts: Sequence[str]) -> Accuracy:
    """How many of ``videos`` ``(batch, frames, height, width, 3)`` show what their prompt says."""
    if len(videos) != len(prompts) or not prompts:
        raise ParametersInvalid(
            f"got {len(videos)} videos and {len(prompts)} prompts. Pass one prompt per video, at least one."
        )
    rows = [
        ((reading.colour, reading.shape, reading.direction), data.parse_prompt(prompt))
        for reading, prompt in zip(read(videos), prompts, strict=True)
    ]
    overall = sum(seen == wanted for seen, wanted in rows) / len(rows)
    colour, shape, direction = (sum(seen[part] == wanted[part] for seen, wanted in rows) / len(rows) for part in range(3))
    return Accuracy(overall, colour, shape, direction, videos=len(rows))


def _segment(videos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Colour index and margin ``(batch,)``, and the foreground's opacity ``(batch, frames, height, width)``."""
    background = torch.tensor(data.BACKGROUND)
    palette = torch.tensor(list(data.COLOURS.values()))
    lit = (videos - background).norm(dim=-1)
    inside = (lit > 0.6 * lit.flatten(1).quantile(0.99, dim=1)[:, None, None, None]).float()[..., None]
    mean = (videos * inside).sum(dim=(1, 2, 3)) / inside.sum(dim=(1, 2, 3)).clamp_min(1)
    near = torch.cdist(mean, palette).topk(2, dim=1, largest=False)
    index = near.indices[:, 0]
    margin = 1 - near.values[:, 0] / near.values[:, 1].clamp_min(1e-6)
    axis = palette[index] - background  # opacity = projection on the way from background to colour
    opacity = torch.einsum("bthwc,bc->bthw", videos - background, axis) / axis.square().sum(1)[:, None, None, None]
    opacity = opacity.clamp(0, 1)
    return index, margin, torch.where(opacity > 0.25, opacity, torch.zeros_like(opacity))


def _moments(alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centroid x, centroid y and area of every frame, each ``(batch, frames)``, in pixels."""
    area = alpha.sum(dim=(2, 3))
    weight = area.clamp_min(1e-6)
    x = (alpha.sum(dim=2) * (torch.arange(alpha.shape[3]) + 0.5)).sum(dim=2) / weight
    y = (alpha.sum(dim=3) * (torch.arange(alpha.shape[2]) + 0.5)).sum(dim=2) / weight
    return x, y, area


def _overlap(shape: str, alpha: Tensor, centre_x: Tensor, centre_y: Tensor, area: Tensor) -> Tensor:
    """Best soft intersection over union over the frames with a template of the same centre and area, ``(batch,)``."""
    radius = (area / data.unit_area(shape)).sqrt()
    template = data.coverage(shape, centre_x, centre_y, radius, *alpha.shape[2:])
    shared = torch.minimum(alpha, template).sum(dim=(2, 3))
    either = torch.maximum(alpha, template).sum(dim=(2, 3)).clamp_min(1e-6)
    return (shared / either).amax(dim=1)
