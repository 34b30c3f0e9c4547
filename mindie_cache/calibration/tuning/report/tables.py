"""Tables: the finalists prompt by prompt, and every candidate."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from mindie_cache.calibration.tuning.report import marks
from mindie_cache.calibration.tuning.report.data import Candidate, Results
from mindie_cache.calibration.tuning.report.html import Html, join, percent, seconds, tag, times
from mindie_cache.calibration.tuning.report.scores import ERROR, PSNR, Score, quality, score, worst_prompt

Show = Callable[[float | None], str]
Column = tuple[str, Callable[[Candidate], float | None], Show]


def scrolling(table: Html, name: str) -> Html:
    """A box of its own, so that a wide table does not make the page wide; keys can scroll it."""
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=name)


def number(value: float | None, show: Show, *classes: str) -> Html:
    """A cell; it keeps the exact number."""
    return tag("td", show(value), data_value=None if value is None else repr(value), class_=" ".join(["number", *classes]))


def head(name: str, *classes: str) -> Html:
    """The head of a column of numbers."""
    return tag("th", name, scope="col", class_=" ".join(["number", *classes]))


def chosen_badge(one: Candidate, results: Results) -> Html | None:
    return tag("b", "chosen", class_="badge") if one is results.choice else None


def prompts_section(results: Results) -> Html:
    """A row for each prompt, mean and worst; a group of columns for each finalist."""
    shown = [results.candidates[i] for i in results.finalists if results.candidates[i].prompts]
    if not shown:
        return tag("p", "No numbers of single prompts were written down.", class_="none")
    there = [name for name in results.scores if any(name in one.scores for one in shown)]
    scores = [score(name) for name in there if name in (PSNR.name, ERROR.name)] or [score(name) for name in there]
    used = sorted({each.prompt for one in shown for each in one.prompts})
    names = [*[each.label for each in scores], "time"]
    groups = [
        tag("th", one.title, " ", chosen_badge(one, results), colspan=len(names), scope="colgroup", class_="first")
        for one in shown
    ]
    heads = [head(name, *_first(i)) for _ in shown for i, name in enumerate(names)]
    rows = [_prompt_row(index, results, shown, scores) for index in used]
    last = [_row_of(name, [cell for one in shown for cell in cells(one, scores)]) for name, cells in _SUMMARIES]
    table = tag(
        "table",
        tag("thead", tag("tr", tag("th", "held-out prompt", rowspan="2", scope="col"), *groups), tag("tr", *heads)),
        *(tag("tbody", *rows), tag("tfoot", *last)),
        class_="prompts",
    )
    return scrolling(table, "Finalists on every held-out prompt")


def _prompt_row(index: int, results: Results, shown: Sequence[Candidate], scores: Sequence[Score]) -> Html:
    cells: list[Html] = []
    for one in shown:
        found = next((each for each in one.prompts if each.prompt == index), None)
        worst = found is not None and found is worst_prompt(one, quality(one.scores))
        cells += _cells(found.scores if found else {}, found.seconds if found else None, scores, *["worst"] * worst)
    text = results.prompts[index].text
    short = tag("span", text, dir="auto", class_="clip", title=text)
    return _row_of(tag("span", tag("b", f"#{index}"), " ", short, class_="pair"), cells)


def _cells(values: Mapping[str, float], time: float | None, scores: Sequence[Score], *classes: str) -> list[Html]:
    """One group of columns: the scores, and the seconds of a generation."""
    found = [number(values.get(by.name), by.show, *_first(i), *classes) for i, by in enumerate(scores)]
    return [*found, number(time, seconds)]


def _mean(one: Candidate, scores: Sequence[Score]) -> list[Html]:
    return _cells(one.scores, one.seconds, scores)


def _worst(one: Candidate, scores: Sequence[Score]) -> list[Html]:
    found = {by.name: by.worst(each.scores[by.name] for each in one.prompts if by.name in each.scores) for by in scores}
    slowest = max([each.seconds for each in one.prompts if each.seconds is not None], default=None)
    return _cells({name: value for name, value in found.items() if value is not None}, slowest, scores)


_SUMMARIES = ("mean", _mean), ("worst", _worst)


def _row_of(name: str, cells: Sequence[Html]) -> Html:
    return tag("tr", tag("th", name, scope="row"), *cells)


def _first(index: int) -> list[str]:
    """The class of the first column of a group."""
    return [] if index else ["first"]


def candidates_section(results: Results) -> Html:
    """A row for each candidate, finalists first; script makes the heads sort it."""
    columns = _columns(results)
    named = [tag("th", name, scope="col", data_sort="text") for name in ("setting", "method", "prompts")]
    heads = [tag("th", name, scope="col", data_sort="number", class_="number") for name, _, _ in columns]
    order = [*results.finalists, *[i for i, one in enumerate(results.candidates) if not one.held_out]]
    rows = [_row(index, results, columns) for index in order]
    last = [tag("th", name, scope="col") for name in ("fields", "notes")]
    top = tag("thead", tag("tr", *named, *heads, *last))
    return scrolling(tag("table", top, tag("tbody", *rows), class_="candidates sortable"), "All settings")


def _columns(results: Results) -> list[Column]:
    """Of speed, work and every score, those that a candidate has."""
    columns: list[Column] = [
        ("faster", lambda one: one.speedup, times),
        *[_score_column(score(name)) for name in results.scores],
        ("time", lambda one: one.seconds, seconds),
        ("computed", lambda one: one.share, percent),
        ("by counted work", lambda one: one.estimate, times),
        ("predicted error", lambda one: one.predicted, ERROR.show),
    ]
    return [column for column in columns if any(column[1](one) is not None for one in results.candidates)]


def _score_column(by: Score) -> Column:
    return by.label, lambda one: one.scores.get(by.name), by.show


def _row(index: int, results: Results, columns: Sequence[Column]) -> Html:
    one = results.candidates[index]
    mark = marks.swatch(results.families.index(one.family), hollow=not one.held_out)
    front = tag("i", "front", class_="badge quiet") if one.on_front else None
    badges = [badge for badge in (chosen_badge(one, results), front) if badge]
    title = tag("th", mark, " ", one.title, " ", join(badges, " "), scope="row")
    texts = [tag("td", one.method), tag("td", "held out" if one.held_out else "searched")]
    numbers = [number(value(one), show) for _, value, show in columns]
    last = [tag("td", _config(one)), tag("td", join(one.notes, " "), class_="notes")]
    kind = "chosen" if index == results.chosen else None
    return tag("tr", title, *texts, *numbers, *last, data_index=index, data_sort=one.title, class_=kind)


def _config(one: Candidate) -> Html | None:
    """The fields of the setting, folded."""
    if not one.config:
        return None
    lines = [f"{name}: {value if isinstance(value, str) else json.dumps(value)}" for name, value in one.config.items()]
    return tag("details", tag("summary", "show"), tag("pre", "\n".join(lines)))
