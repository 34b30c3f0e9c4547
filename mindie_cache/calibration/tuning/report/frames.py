"""Frames side by side: uncached, with the setting, and their difference. Each picture is in the file once."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mindie_cache.calibration.tuning.report.data import Candidate, Frames, Results
from mindie_cache.calibration.tuning.report.html import Html, join, plain, tag, times
from mindie_cache.calibration.tuning.report.scores import quality
from mindie_cache.calibration.tuning.report.tables import chosen_badge
from mindie_cache.errors import ConfigError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TINY = 128  # pixels: pictures no higher than this are enlarged without smoothing
_OPEN = 2  # finalists whose pictures are unfolded
_WIDE = 1.7  # width in heights: pictures wider than this get a row of their own on small screens


@dataclass(frozen=True)
class Picture:
    """A PNG, and its size in pixels."""

    data: bytes
    width: int
    height: int


class Album:
    """Pictures under ids of the document, read once each.

    Args:
        paths: name -> PNG.
    """

    def __init__(self, paths: Mapping[str, Path]):
        self._paths, self._read = paths, dict[str, Picture]()

    def show(self, name: str, alt: str) -> Html:
        """A drawing that uses the picture.

        Raises:
            ConfigError: there is no such picture.
        """
        if name not in self._read:
            self._read[name] = _load(name, self._paths)
        one, place = self._read[name], list(self._read).index(name)
        kind = "frame" + " tiny" * (one.height <= _TINY) + " wide" * (one.width > _WIDE * one.height)
        use = tag("use", href=f"#picture-{place}")
        return tag("svg", use, viewBox=f"0 0 {one.width} {one.height}", class_=kind, role="img", aria_label=alt)

    def embedded(self) -> Html | None:
        """What the drawings use: every picture that was shown."""
        images = [
            tag(
                "image",
                id=f"picture-{place}",
                width=one.width,
                height=one.height,
                href=f"data:image/png;base64,{base64.b64encode(one.data).decode()}",
            )
            for place, one in enumerate(self._read.values())
        ]
        return (
            tag("svg", tag("defs", *images), class_="album", width="0", height="0", aria_hidden="true") if images else None
        )


def section(results: Results, paths: Mapping[str, Path]) -> Html:
    album = Album(paths)
    shown = [results.candidates[i] for i in results.finalists if results.candidates[i].frames]
    if not shown:
        return tag("p", "No frames were kept, so none are shown. Scores are those of the tables.", class_="none")
    finalists = [_finalist(one, results, album, opened=i < _OPEN) for i, one in enumerate(shown)]
    return join([album.embedded(), *finalists])


def _finalist(one: Candidate, results: Results, album: Album, opened: bool) -> Html:
    head = tag("h3", one.title, " ", chosen_badge(one, results), " ", tag("small", times(one.speedup)))
    prompts = [_prompt(one, frames, results, album) for frames in one.frames]
    return tag("details", tag("summary", head), *prompts, class_="finalist", open=opened)


def _prompt(one: Candidate, frames: Frames, results: Results, album: Album) -> Html:
    text = results.prompts[frames.prompt].text
    by = quality(one.scores)
    scores = next((each.scores for each in one.prompts if each.prompt == frames.prompt), {})
    factor = f", {plain(frames.amplified)} times amplified" if frames.amplified else ""
    columns = [
        (frames.uncached, "uncached", f"uncached frame of: {text}"),
        (frames.cached, one.title, f"{one.title}, frame of: {text}"),
        (frames.difference, f"difference{factor}", f"difference of the two{factor}"),
    ]
    pictures = [
        tag("figure", album.show(name, alt), tag("figcaption", caption))
        for name, caption, alt in columns
        if name is not None
    ]
    score = f" {by.show(scores[by.name])}" if by.name in scores else None
    label = tag("p", tag("b", f"#{frames.prompt} "), tag("q", text, dir="auto"), score, class_="prompt")
    return tag("div", label, tag("div", *pictures, class_="triple"), class_="comparison")


def _load(name: str, paths: Mapping[str, Path]) -> Picture:
    if name not in paths:
        raise ConfigError(f"The results show the picture {name!r}, but there is none of this name. Give its path.")
    try:
        data = Path(paths[name]).read_bytes()
    except OSError as error:
        raise ConfigError(f"picture {name!r} cannot be read: {error.strerror}: {paths[name]}. Tune again.") from None
    if not data.startswith(_SIGNATURE) or data[12:16] != b"IHDR" or len(data) < 24:
        raise ConfigError(f"picture {name!r} is no PNG: {paths[name]}. Save it as one.")
    width, height = struct.unpack(">II", data[16:24])
    return Picture(data, width, height)
