"""Schedules of the finalists, step by step: computed steps dark, reused ones light, the noise level above them."""

from __future__ import annotations

from mindie_cache.calibration.tuning.report.axes import every
from mindie_cache.calibration.tuning.report.data import Branch, Candidate, Results
from mindie_cache.calibration.tuning.report.html import Html, join, tag, times
from mindie_cache.calibration.tuning.report.scores import quality
from mindie_cache.calibration.tuning.report.tables import chosen_badge


def section(results: Results) -> Html:
    shown = [results.candidates[i] for i in results.finalists if results.candidates[i].schedule]
    if not shown:
        return tag("p", "No schedule of a finalist was written down.", class_="none")
    key = [tag("span", tag("i", class_=kind), kind) for kind in ("computed", "reused")]
    return join([tag("p", *key, class_="key"), *[_figure(one, results) for one in shown]])


def _figure(one: Candidate, results: Results) -> Html:
    by = quality(one.scores)
    facts = " · ".join([times(one.speedup), by.show(one.scores.get(by.name))])
    rows = [_row(branch, results.steps) for branch in one.schedule]
    noise = _noise(results.sigmas) if results.sigmas else None
    head = tag("h3", one.title, " ", chosen_badge(one, results), " ", tag("small", facts))
    return tag("div", head, tag("div", noise, *rows, _steps(results.steps), class_="schedule"), class_="finalist")


def _row(branch: Branch, steps: int) -> Html:
    cells = [
        tag("rect", x=step, y="0", width="1", height="1", class_="computed" if step in branch.computed else "reused")
        for step in range(steps)
    ]
    said = f"{branch.name}: computed steps {', '.join(map(str, sorted(branch.computed)))} of 0 to {steps - 1}"
    drawing = tag("svg", *cells, class_="cells", role="img", aria_label=said, **_stretched(steps, 1))
    return tag("span", tag("b", branch.name), f" {len(branch.computed)} of {steps} computed", class_="label") + drawing


def _noise(sigmas: tuple[float, ...]) -> Html:
    """A curve over the borders of the steps, with the area under it."""
    top = max(sigmas) or 1.0
    points = " L".join(f"{i} {round(1 - level / top, 4)}" for i, level in enumerate(sigmas))
    steps = len(sigmas) - 1
    area = tag("path", d=f"M0 1 L{points} L{steps} 1Z", class_="area")
    line = tag("path", d=f"M{points}", class_="curve", vector_effect="non-scaling-stroke")
    said = f"noise level, from {sigmas[0]:.3g} to {sigmas[-1]:.3g}"
    drawing = tag("svg", area, line, class_="noise", role="img", aria_label=said, **_stretched(steps, 1))
    label = tag("span", tag("b", "noise level"), f" {sigmas[0]:.3g} to {sigmas[-1]:.3g}", class_="label")
    return label + drawing


def _steps(steps: int) -> Html:
    ticks = [
        tag("text", str(step), x=f"{100 * (step + 0.5) / steps:.3f}%", y="1em", text_anchor="middle")
        for step in range(0, steps, every(steps))
    ]
    return tag("span", "step", class_="label axis-label") + tag("svg", *ticks, class_="steps", aria_hidden="true")


def _stretched(width: int, height: int) -> dict[str, str]:
    return {"viewBox": f"0 0 {width} {height}", "preserveAspectRatio": "none"}
