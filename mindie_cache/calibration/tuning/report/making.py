"""How the results were made: command, versions, model, prompts, stages, and what the plan has at other budgets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mindie_cache.calibration.tuning.report.data import Budget, Results
from mindie_cache.calibration.tuning.report.html import Html, plain, seconds, tag, times
from mindie_cache.calibration.tuning.report.scores import ERROR
from mindie_cache.calibration.tuning.report.tables import head, number, scrolling


def section(results: Results) -> Html:
    parts = [
        ("Command", tag("pre", tag("code", results.command)) if results.command else None),
        ("Model", _facts(results.model)),
        ("Environment", _facts(results.environment)),
        ("Stages", _stages(results)),
        ("The plan at other budgets", _budgets(results)),
        ("Prompts", _prompts(results)),
    ]
    there = [tag("div", tag("h3", title), body, class_="part") for title, body in parts if body is not None]
    if not there:
        return tag("p", "Nothing was written down about it.", class_="none")
    return tag("div", *there, class_="making")


def _facts(values: Mapping[str, Any]) -> Html | None:
    shown = {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items() if value is not None
    }
    pairs = [tag("div", tag("dt", str(name)), tag("dd", text)) for name, text in shown.items()]
    return tag("dl", *pairs, class_="facts") if pairs else None


def _stages(results: Results) -> Html | None:
    if not results.stages:
        return None
    longest = max([one.seconds or 0.0 for one in results.stages]) or 1.0
    rows = [
        tag(
            "tr",
            *(tag("th", one.title, scope="row"), number(one.generations, plain), number(one.seconds, seconds)),
            tag("td", _bar((one.seconds or 0.0) / longest), class_="bar"),
        )
        for one in results.stages
    ]
    generations = [one.generations for one in results.stages if one.generations is not None]
    spent = [one.seconds for one in results.stages if one.seconds is not None]
    total = [number(sum(generations), plain), number(sum(spent), seconds), tag("td")]
    top = tag("thead", tag("tr", tag("th", "stage", scope="col"), head("generations"), head("time"), tag("td")))
    last = tag("tfoot", tag("tr", tag("th", "all", scope="row"), *total))
    return scrolling(tag("table", top, tag("tbody", *rows), last, class_="stages"), "Stages")


def _bar(share: float) -> Html:
    return tag("svg", tag("rect", width=f"{100 * share:.2f}%", height="100%", rx="2"), aria_hidden="true")


def _prompts(results: Results) -> Html | None:
    if not results.prompts:
        return None
    rows = [
        tag(
            "tr",
            *(tag("th", f"#{index}", scope="row"), tag("td", one.text, dir="auto", class_="text")),
            *(tag("td", one.use), number(one.seed, plain)),
        )
        for index, one in enumerate(results.prompts)
    ]
    named = [tag("th", name, scope="col") for name in ("#", "prompt", "used as")]
    top = tag("thead", tag("tr", *named, head("seed")))
    return scrolling(tag("table", top, tag("tbody", *rows), class_="texts"), "Prompts")


def _budgets(results: Results) -> Html | None:
    """A row for each number of computed steps; errors on other prompts only if any were measured."""
    if not results.budgets:
        return None
    verified = any(one.verified is not None for one in results.budgets)
    names = ["times fewer", "predicted error", *["verified error"] * verified]
    top = tag("thead", tag("tr", tag("th", "computed steps", scope="col"), *map(head, names)))
    rows = [_budget(one, results.steps, verified) for one in results.budgets]
    return scrolling(tag("table", top, tag("tbody", *rows), class_="budgets"), "The plan at other budgets")


def _budget(one: Budget, steps: int, verified: bool) -> Html:
    errors = [one.predicted, *[one.verified] * verified]
    fewer = number(steps / one.budget if steps else None, times)
    return tag("tr", tag("th", str(one.budget), scope="row"), fewer, *[number(value, ERROR.show) for value in errors])
