"""HTML as text: what is escaped, elements, and how numbers are written. Knows nothing of a report."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any

MISSING, TIMES = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")  # not allowed in HTML
_VOID = frozenset({"br", "img", "input", "link", "meta"})


class Html(str):
    """Text that is markup already."""

    __slots__ = ()

    def __add__(self, other: str) -> Html:
        return Html(str(self).__add__(escaped(other)))


def escaped(value: Any) -> Html:
    """The text of a value, for a place between tags or in a quoted attribute. Markup stays as it is."""
    return value if isinstance(value, Html) else Html(html.escape(_NOT_TEXT.sub("\ufffd", str(value))))


def join(parts: Iterable[Any], between: str = "") -> Html:
    """All `parts` as markup; None is left out."""
    return Html(escaped(between).join(escaped(part) for part in parts if part is not None))


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element. Attributes: `_` stands for `-`, one at the end is dropped (`class_`); True is an attribute without a
    value; None and False leave it out."""
    shown = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None and value is not False)
    if name in _VOID:
        return Html(f"<{name}{shown}>")
    return Html(f"<{name}{shown}>{join(children)}</{name}>")


def _attribute(key: str, value: Any) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escaped(value)}"'


def times(value: float | None) -> str:
    """ "1.96×" """
    return MISSING if value is None else f"{value:.2f}{TIMES}"


def decibel(value: float | None) -> str:
    """ "58.1 dB" """
    return MISSING if value is None else f"{value:.1f} dB"


def small(value: float | None) -> str:
    """ "1.2e-5" """
    if value is None:
        return MISSING
    return re.sub(r"e([+-])0*(?=\d)", lambda found: "e" + found[1].strip("+"), f"{value:.1e}") if value else "0"


def seconds(value: float | None) -> str:
    """ "0.314 s", "12.1 s", "4 min 10 s" """
    if value is None:
        return MISSING
    if value < 99.95:
        return f"{value:#.3g} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def percent(value: float | None) -> str:
    """ "50 %" """
    return MISSING if value is None else f"{100 * value:.3g} %"


def ratio(value: float | None) -> str:
    """ "0.9990" """
    return MISSING if value is None else f"{value:.4f}"


def plain(value: float | None) -> str:
    """ "200", "0.25": at most four digits"""
    return MISSING if value is None else f"{value:.4g}"


def count(number: int, noun: str) -> str:
    """ "1 prompt", "2 prompts" """
    return f"{number} {noun}{'' if number == 1 else 's'}"
