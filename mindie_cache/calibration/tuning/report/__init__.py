"""The report of a tuning: one HTML file that needs nothing else. Reads results, runs and chooses nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from mindie_cache.calibration import files
from mindie_cache.calibration.tuning.report import answer, frames, front, making, schedule, tables
from mindie_cache.calibration.tuning.report.data import Results, read
from mindie_cache.calibration.tuning.report.html import Html, count, tag

__all__ = ["write_report"]


def write_report(results: Mapping[str, Any], pictures: Mapping[str, Path], path: Path) -> None:
    """Write what was found as one HTML file: no network, no other files, and readable without scripts.

    Args:
        results: plain JSON of `mindie-cache tune`.
        pictures: name -> PNG file, for the names that candidates give in their "pictures".
        path: the HTML file, written whole or not at all.

    Raises:
        ConfigError: the results or a picture are damaged, or the file cannot be written; says what and where.
    """
    files.write_text(path, _document(read(results), pictures))


def _document(results: Results, pictures: Mapping[str, Path]) -> Html:
    style, script = _asset("style.css") + front.style(results), _asset("script.js")
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{answer.headline(results)} | mindie-cache tune"),
        tag("link", rel="icon", href="data:,"),
        tag("style", Html(style)),
    )
    body = tag(
        "body", tag("main", answer.section(results), _contents(), *_sections(results, pictures)), tag("script", Html(script))
    )
    return Html("<!doctype html>\n") + tag("html", head, body, lang="en") + Html("\n")


_TITLES = {
    "front": "Speed and quality",
    "schedules": "What is computed",
    "frames": "Frames side by side",
    "prompts": "Finalists, prompt by prompt",
    "settings": "All settings",
    "making": "How it was made",
}


def _contents() -> Html:
    links = [tag("a", title, href=f"#{name}") for name, title in _TITLES.items()]
    return tag("nav", *links, aria_label="Sections")


def _sections(results: Results, pictures: Mapping[str, Path]) -> list[Html]:
    return [
        _section(
            "front",
            "Every mark is a setting: further right is faster, further up is closer to the uncached result.",
            front.section(results),
        ),
        _section(
            "schedules",
            "A cell is a denoising step, in sampling order: dark ones run the model, light ones reuse what was kept.",
            schedule.section(results),
        ),
        _section(
            "frames",
            "The same prompt and seed without a cache and with the setting; differences are amplified as said below them.",
            frames.section(results, pictures),
        ),
        _section(
            "prompts",
            "Prompts that were neither recorded nor searched; the worst one of each finalist is marked.",
            tables.prompts_section(results),
        ),
        _section(
            "settings",
            f"{count(len(results.candidates), 'setting')}, with means over the prompts that each was measured on; "
            "a heading sorts by its column.",
            tables.candidates_section(results),
        ),
        _section("making", "What it takes to run the same again.", making.section(results)),
    ]


def _section(name: str, caption: str, body: Html) -> Html:
    heading = tag("h2", _TITLES[name], id=f"{name}-title")
    return tag("section", heading, tag("p", caption, class_="caption"), body, id=name, aria_labelledby=f"{name}-title")


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What the policy allows: this very text and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
