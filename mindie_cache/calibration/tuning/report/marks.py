"""Marks of families: a colour (a class of the style sheet) and a shape each, the same in plots, legends and tables."""

from __future__ import annotations

from mindie_cache.calibration.tuning.report.html import Html, tag

COLOURS = 8
SHAPES = (  # around (0, 0), with areas that look alike
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z",
    "M-4.6 -4.6H4.6V4.6H-4.6Z",
    "M0 -5.8L5.6 4.2H-5.6Z",
    "M0 -6.2L6.2 0L0 6.2L-6.2 0Z",
    "M0 5.8L5.6 -4.2H-5.6Z",
    "M-1.9 -5.5H1.9V-1.9H5.5V1.9H1.9V5.5H-1.9V1.9H-5.5V-1.9H-1.9Z",
    "M0 -5.8L5 -2.9V2.9L0 5.8L-5 2.9V-2.9Z",
)


def series(index: int) -> str:
    """The class of the colour. Colours and shapes have no common factor, so 56 families look different."""
    return f"s{index % COLOURS}"


def shape(index: int, hollow: bool = False) -> Html:
    """The mark of the family with this index."""
    return tag("path", d=SHAPES[index % len(SHAPES)], class_="hollow" if hollow else "filled")


def swatch(index: int, hollow: bool = False) -> Html:
    """The mark by itself, for a legend or a table."""
    return tag("svg", shape(index, hollow), class_=f"swatch {series(index)}", viewBox="-7 -7 14 14", aria_hidden="true")
