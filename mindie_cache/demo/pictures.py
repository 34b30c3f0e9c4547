"""The demo's pictures: a contact sheet of one frame per video beside its difference, and an animation. Pillow only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

AMPLIFIED = 8  # how much brighter differences are drawn
PAPER, INK, DIM, ACCENT = (38, 40, 48), (240, 241, 244), (158, 162, 173), (122, 211, 182)  # RGB
_MARGIN = 20  # pixels, like all sizes here
_LINE = 1.32  # line height, in font sizes


@dataclass(frozen=True)
class Row:
    """One setting: `name`, what was measured (`facts`), `caption`; `videos` ``(prompts, frames, height, width, 3)``."""

    name: str
    facts: str
    caption: str
    videos: Tensor


@dataclass(frozen=True)
class Grid:
    """Places of the cells: `label` wide on the left, `head` high on top, then cells with gaps."""

    label: int
    head: int
    cell: tuple[int, int]  # width, height
    gap: tuple[int, int]  # between columns, between rows

    def at(self, row: int, column: int) -> tuple[int, int]:
        """Left and top of a cell."""
        x = _MARGIN + self.label + column * (self.cell[0] + self.gap[0])
        return x, _MARGIN + self.head + row * (self.cell[1] + self.gap[1])

    def canvas(self, rows: int, columns: int, least_width: int = 0) -> Image.Image:
        right, bottom = self.at(rows, columns)
        return Image.new(
            "RGB", (max(right - self.gap[0], _MARGIN + least_width) + _MARGIN, bottom - self.gap[1] + _MARGIN), PAPER
        )


def contact_sheet(rows: Sequence[Row], prompts: Sequence[str], title: str, zoom: int = 4) -> Image.Image:
    """One row a setting, one column a prompt: the middle frame, and beside it its difference to the first row's.

    Args:
        rows: the first one is the reference of the differences.
        prompts: the titles of the columns.
        title: above everything.
        zoom: screen pixels per video pixel.
    """
    frames, height, width = rows[0].videos.shape[1:4]
    middle = frames // 2
    side, tall = width * zoom, height * zoom
    grid = Grid(label=230, head=116, cell=(2 * side + 2, tall), gap=(18, 12))
    sheet = grid.canvas(len(rows), len(prompts), least_width=round(_font(22).getlength(title)))
    draw = ImageDraw.Draw(sheet)
    _text(draw, (_MARGIN, _MARGIN - 2), title, 22, INK)
    explanation = (
        f"Each pair: frame {middle + 1} of {frames}, and its difference to the uncached one, {AMPLIFIED} times as bright."
    )
    _text(draw, (_MARGIN, _MARGIN + 30), explanation, 15, DIM)
    for column, prompt in enumerate(prompts):
        x, y = grid.at(0, column)
        for line, words in enumerate(_two_lines(prompt)):
            _text(draw, (x, y - 44 + line * 19), words, 15, INK)
    for index, row in enumerate(rows):
        _label(draw, grid.at(index, 0)[1] + (tall - 62) // 2, grid.label - 12, row)
        for column in range(len(prompts)):
            x, y = grid.at(index, column)
            frame = row.videos[column, middle]
            sheet.paste(_picture(frame, zoom), (x, y))
            if index:
                difference = (frame - rows[0].videos[column, middle]).abs() * AMPLIFIED
                sheet.paste(_picture(difference, zoom), (x + side + 2, y))
            else:
                _centred(draw, (x + side + 2, y, side, tall), ["difference", f"x {AMPLIFIED}"])
    return sheet


def animation(rows: Sequence[Row], prompts: Sequence[str], zoom: int = 3) -> list[Image.Image]:
    """All frames of all videos: one row a setting, one column a prompt."""
    frames, height, width = rows[0].videos.shape[1:4]
    grid = Grid(label=190, head=56, cell=(width * zoom, height * zoom), gap=(6, 6))
    empty = grid.canvas(len(rows), len(prompts))
    draw = ImageDraw.Draw(empty)
    for column, prompt in enumerate(prompts):
        x, y = grid.at(0, column)
        _, colour, shape, _, direction = prompt.split()
        for line, word in enumerate((colour, shape, direction)):
            _text(draw, (x, y - 50 + line * 15), word, 13, DIM)
    for index, row in enumerate(rows):
        _label(draw, grid.at(index, 0)[1] + (height * zoom - 44) // 2, grid.label - 12, row, with_caption=False)
    pictures = []
    for frame in range(frames):
        picture = empty.copy()
        for index, row in enumerate(rows):
            for column in range(len(prompts)):
                picture.paste(_picture(row.videos[column, frame], zoom), grid.at(index, column))
        pictures.append(picture)
    return pictures


def save_animation(pictures: Sequence[Image.Image], path: Path, milliseconds: int = 140) -> None:
    """Write an endless GIF. All frames share one palette, so nothing flickers."""
    palette = _stacked(pictures).quantize(colors=255, dither=Image.Dither.NONE)
    flat = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    flat[0].save(path, save_all=True, append_images=flat[1:], duration=milliseconds, loop=0, disposal=1, optimize=False)


def _stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    width, height = pictures[0].size
    stack = Image.new("RGB", (width, height * len(pictures)))
    for index, picture in enumerate(pictures):
        stack.paste(picture, (0, index * height))
    return stack


def _picture(frame: Tensor, zoom: int) -> Image.Image:
    """``(height, width, 3)`` in [0, 1] as an image with `zoom` screen pixels per pixel."""
    pixels = (frame.clamp(0, 1) * 255).round().to(torch.uint8).contiguous()
    height, width = pixels.shape[:2]
    image = Image.frombytes("RGB", (width, height), bytes(pixels.flatten().tolist()))
    return image.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))


def _text(draw: ImageDraw.ImageDraw, place: tuple[int, int], words: str, size: int, colour: tuple[int, int, int]) -> None:
    draw.text(place, words, fill=colour, font=_font(size))


def _label(draw: ImageDraw.ImageDraw, top: int, width: int, row: Row, with_caption: bool = True) -> None:
    lines = [(row.name, 18 if with_caption else 16, INK), (row.facts, 16 if with_caption else 14, ACCENT)]
    if with_caption:
        lines.append((row.caption, 13, DIM))
    for index, (words, size, colour) in enumerate(lines):
        _text(draw, (_MARGIN, top + (0, 23, 45)[index]), _fitted(draw, words, size, width), size, colour)


def _fitted(draw: ImageDraw.ImageDraw, words: str, size: int, width: int) -> str:
    """`words`, shortened to `width` pixels: file names can be long."""
    if draw.textlength(words, font=_font(size)) <= width:
        return words
    while words and draw.textlength(words + "...", font=_font(size)) > width:
        words = words[:-1]
    return words + "..."


def _centred(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], lines: Sequence[str], size: int = 13) -> None:
    left, top, width, height = box
    step = round(size * _LINE)
    y = top + (height - step * len(lines)) // 2
    for index, line in enumerate(lines):
        _text(draw, (left + int(width - draw.textlength(line, font=_font(size))) // 2, y + index * step), line, size, DIM)


def _two_lines(prompt: str) -> tuple[str, str]:
    """'a red square moving left' as 'a red square' and 'moving left'."""
    before, word, after = prompt.partition(" moving ")
    return before, f"{word}{after}".strip()
