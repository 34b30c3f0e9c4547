"""Prompts and the videos they describe, made by a program: a coloured shape that moves over a plain dark background.

Owns the vocabulary, the tokeniser and the renderer. Owns no model and reads nothing from pixels (see ``judge.py``).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from mindie_cache.errors import ParametersInvalid

FRAMES, HEIGHT, WIDTH = 8, 24, 24  # frames, pixels, pixels
BACKGROUND = (0.07, 0.07, 0.09)  # RGB in [0, 1]
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.92, 0.16, 0.16),
    "green": (0.16, 0.80, 0.22),
    "blue": (0.18, 0.32, 0.98),
    "yellow": (0.96, 0.86, 0.16),
    "magenta": (0.90, 0.18, 0.86),
    "cyan": (0.16, 0.86, 0.92),
}
SHAPES = ("square", "circle", "triangle", "cross")
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # (x, y)

NULL_WORD = "<null>"  # stands in every position of the unconditional prompt
VOCABULARY = (NULL_WORD, "a", "moving", *COLOURS, *SHAPES, *DIRECTIONS)
TOKENS = 5  # "a <colour> <shape> moving <direction>"
EXAMPLE_PROMPT = "a red square moving left"

MIN_RADIUS, MAX_RADIUS = 3.5, 5.0  # nominal size of a shape, pixels
MIN_TRAVEL = 6.0  # distance between the first and the last frame, pixels
_EXTENT = {"square": 0.85, "circle": 1.0, "triangle": 1.25, "cross": 1.1}  # reach from the centroid, in radii
_ARM = 0.36  # half width of a cross's arm, in radii
_MARGIN = 0.5  # clear pixels at the frame's border


def make_prompt(colour: str, shape: str, direction: str) -> str:
    """The one sentence pattern of the testbed."""
    return f"a {colour} {shape} moving {direction}"


def all_prompts() -> list[str]:
    """Every valid prompt, in a fixed order."""
    return [make_prompt(*words) for words in itertools.product(COLOURS, SHAPES, DIRECTIONS)]


def parse_prompt(prompt: str) -> tuple[str, str, str]:
    """``(colour, shape, direction)`` of a prompt.

    Raises:
        ParametersInvalid: (a ``ValueError``) a word is unknown, or the words do not follow the sentence pattern.
    """
    words = prompt.lower().split()
    unknown = [word for word in words if word not in VOCABULARY[1:]]
    well_formed = (
        len(words) == TOKENS
        and words[0] == "a"
        and words[1] in COLOURS
        and words[2] in SHAPES
        and words[3] == "moving"
        and words[4] in DIRECTIONS
    )
    if unknown or not well_formed:
        problem = f"unknown words {unknown}" if unknown else "the words do not follow the pattern"
        raise ParametersInvalid(
            f"prompt {prompt!r} is not valid: {problem}. Write 'a <colour> <shape> moving <direction>' with "
            f"colour in {list(COLOURS)}, shape in {list(SHAPES)}, direction in {list(DIRECTIONS)}, "
            f"for example {EXAMPLE_PROMPT!r}."
        )
    return words[1], words[2], words[4]


def tokenize(prompts: Sequence[str]) -> Tensor:
    """Token ids, shape ``(batch, TOKENS)``, int64. Raises as ``parse_prompt`` does."""
    rows = [parse_prompt(prompt) for prompt in prompts]
    return torch.tensor([[VOCABULARY.index(w) for w in ("a", c, s, "moving", d)] for c, s, d in rows])


def null_tokens(batch: int) -> Tensor:
    """Token ids of the unconditional prompt, shape ``(batch, TOKENS)``, int64."""
    return torch.zeros(batch, TOKENS, dtype=torch.int64)


def signed_distance(shape: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Signed distance in pixels (negative inside) to a shape whose centroid is the origin; ``y`` points down."""
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - _EXTENT[shape] * radius
    if shape == "circle":
        return torch.hypot(x, y) - radius
    if shape == "triangle":  # equilateral, apex up: three half planes at half the circumradius
        sides = torch.maximum(y, 0.75**0.5 * x.abs() - 0.5 * y)
        return sides - 0.5 * _EXTENT[shape] * radius
    length, arm = _EXTENT[shape] * radius, _ARM * radius
    lying = torch.maximum(x.abs() - length, y.abs() - arm)
    standing = torch.maximum(x.abs() - arm, y.abs() - length)
    return torch.minimum(lying, standing)


def unit_area(shape: str) -> float:
    """Area of a shape of radius 1."""
    reach = _EXTENT[shape]
    return {
        "square": 4 * reach**2,
        "circle": torch.pi,
        "triangle": 0.75 * 3**0.5 * reach**2,
        "cross": 8 * reach * _ARM - 4 * _ARM**2,
    }[shape]


def coverage(shape: str, centre_x: Tensor, centre_y: Tensor, radius: Tensor, height: int, width: int) -> Tensor:
    """Anti-aliased mask in [0, 1]; centres and radius of shape ``(...)`` in pixels give ``(..., height, width)``."""
    device = centre_x.device
    x = torch.arange(width, device=device) + 0.5 - centre_x[..., None, None]
    y = torch.arange(height, device=device)[:, None] + 0.5 - centre_y[..., None, None]
    return (0.5 - signed_distance(shape, x, y, radius[..., None, None])).clamp(0, 1)


def render(prompts: Sequence[str], generator: torch.Generator | None = None) -> Tensor:
    """One video per prompt with random size, start and speed.

    Returns:
        float32 in [-1, 1], shape ``(batch, 3, FRAMES, HEIGHT, WIDTH)``.
    """
    parsed = [parse_prompt(prompt) for prompt in prompts]
    batch = len(parsed)
    size, travel_draw, start_draw, lane_draw = torch.rand(4, batch, generator=generator)
    radius = MIN_RADIUS + (MAX_RADIUS - MIN_RADIUS) * size
    reach = radius * torch.tensor([_EXTENT[shape] for _, shape, _ in parsed]) + _MARGIN
    heading = torch.tensor([DIRECTIONS[direction] for _, _, direction in parsed], dtype=torch.float32)
    room = WIDTH - 2 * reach  # the frame is square: as much room along the motion as across it
    travel = MIN_TRAVEL + (room - MIN_TRAVEL) * travel_draw
    middle = reach + travel / 2 + (room - travel) * start_draw  # along the motion
    lane = reach + room * lane_draw  # across the motion
    along = (torch.linspace(-0.5, 0.5, FRAMES) * travel[:, None])[..., None] * heading[:, None]  # (batch, FRAMES, 2)
    centre = torch.where(heading.abs() > 0, middle[:, None], lane[:, None])[:, None] + along

    mask = torch.empty(batch, FRAMES, HEIGHT, WIDTH)
    for shape in SHAPES:
        rows = torch.tensor([index for index, words in enumerate(parsed) if words[1] == shape], dtype=torch.int64)
        radii = radius[rows, None].expand(-1, FRAMES)
        mask[rows] = coverage(shape, centre[rows, :, 0], centre[rows, :, 1], radii, HEIGHT, WIDTH)
    paint = torch.tensor([COLOURS[colour] for colour, _, _ in parsed])[:, :, None, None, None]
    background = torch.tensor(BACKGROUND)[:, None, None, None]
    return 2 * torch.lerp(background.expand_as(paint), paint, mask[:, None]) - 1


def sample_prompts(batch: int, generator: torch.Generator | None = None) -> list[str]:
    """Prompts drawn evenly, with repetition."""
    prompts = all_prompts()
    return [prompts[index] for index in torch.randint(len(prompts), (batch,), generator=generator).tolist()]


def to_video(latents: Tensor) -> Tensor:
    """Latents ``(batch, 3, frames, height, width)`` in [-1, 1] to ``(batch, frames, height, width, 3)`` in [0, 1]."""
    return (latents.float().permute(0, 2, 3, 4, 1) / 2 + 0.5).clamp(0, 1)


def contact_sheet(videos: Tensor, zoom: int = 4) -> Tensor:
    """One row of frames per video ``(batch, frames, height, width, 3)`` in [0, 1]; uint8 ``(height, width, 3)``."""
    framed = torch.nn.functional.pad(videos.cpu(), (0, 0, 0, 1, 0, 1), value=0.3)
    rows = framed.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)
    return (rows * 255).round().to(torch.uint8).repeat_interleave(zoom, dim=0).repeat_interleave(zoom, dim=1)
