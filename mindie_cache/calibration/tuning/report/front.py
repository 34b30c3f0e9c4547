"""The section with the plot: switch between scores, legend. Works without scripts: check boxes and the style sheet hide."""

from __future__ import annotations

from mindie_cache.calibration.tuning.report import marks
from mindie_cache.calibration.tuning.report.data import Results
from mindie_cache.calibration.tuning.report.html import Html, count, join, tag
from mindie_cache.calibration.tuning.report.plot import Plot, scores_to_plot
from mindie_cache.calibration.tuning.report.scores import ERROR, PSNR, Score, aim

_AXIS = {PSNR.name: "PSNR in dB, more is better", ERROR.name: "relative error of the latents, less is better"}


def section(results: Results) -> Html:
    plots = [(by, plot) for by in scores_to_plot(results) if (plot := Plot.of(results, by))]
    if not plots:
        return tag("p", "No candidate has a measured speed and a score, so there is nothing to plot.", class_="none")
    return tag(
        "div",
        *(_switch([by for by, _ in plots]), _legend(results)),
        *[_figure(by, plot) for by, plot in plots],
        *(_explained(results), _missing(results, [by for by, _ in plots])),
        class_="front-plots",
    )


def style(results: Results) -> str:
    """What the check boxes of the legend hide: a rule for each family."""
    hidden = [(f"family-{i}", f"f{i}") for i in range(len(results.families))]
    hidden += [("stage-search", "search"), ("stage-held", "held")]
    return "\n".join(f".front-plots:has(#{box}:not(:checked)) .at.{kind}{{display:none}}" for box, kind in hidden)


def _switch(scores: list[Score]) -> Html | None:
    """Which score goes up the plot; without a choice nothing."""
    if len(scores) < 2:
        return None
    choices = [
        tag("label", tag("input", type="radio", name="score", id=f"by-{by.name}", checked=not i), tag("span", by.label))
        for i, by in enumerate(scores)
    ]
    return tag("fieldset", tag("legend", "Quality as"), tag("div", *choices), class_="switch")


def _legend(results: Results) -> Html:
    families = [
        _box(f"family-{i}", marks.swatch(i), name, sum(one.family == name for one in results.candidates))
        for i, name in enumerate(results.families)
    ]
    held = sum(one.held_out for one in results.candidates)
    stages = [
        _box("stage-held", marks.swatch(0), "held-out prompts", held),
        _box("stage-search", marks.swatch(0, hollow=True), "searched prompts", len(results.candidates) - held),
    ]
    groups = [("Methods", families), ("Measured on", stages)]
    return tag("div", *[tag("fieldset", tag("legend", name), tag("div", *boxes)) for name, boxes in groups], class_="legend")


def _box(name: str, swatch: Html, label: str, number: int) -> Html | None:
    if not number:
        return None
    text = tag("span", label, " ", tag("small", str(number)))
    return tag("label", tag("input", type="checkbox", id=name, checked=True), swatch, text)


def _figure(by: Score, plot: Plot) -> Html:
    return tag(
        "figure",
        tag("p", _AXIS[by.name], class_="axis"),
        tag("div", plot.svg(), class_="plot"),
        tag("p", "times faster than uncached", class_="axis below"),
        class_="plot-box",
        id=f"plot-{by.name}",
    )


def _explained(results: Results) -> Html:
    """What lines and marks mean, of those that are there."""
    wanted = results.goal and aim(results.goal)
    lines = [("ring", "the chosen setting")] if results.choice else []
    if len(results.candidates) > 1:
        lines.append(("front", "settings that no other one on the same prompts beats in both"))
    if wanted:
        axis = f" (with {wanted.score.label} up the plot)" if wanted.score else ""
        lines.append(("goal", f"the goal, met on the shaded side{axis}"))
    if any(one.predicted is not None for one in results.budgets):
        lines.append(("predicted", "errors the plan predicts, by counted steps (with error up the plot)"))
    return tag("ul", *[tag("li", _sample(kind), text) for kind, text in lines], class_="explained")


def _sample(kind: str) -> Html:
    if kind == "ring":
        drawing = tag("circle", cx="14", cy="7", r="6", class_="ring")
    else:
        name = {"front": "front held-out", "goal": "goal-line"}.get(kind, kind)
        drawing = tag("line", x1="1", x2="27", y1="7", y2="7", class_=name)
    return tag("svg", drawing, viewBox="0 0 28 14", class_="sample", aria_hidden="true")


def _missing(results: Results, scores: list[Score]) -> Html | None:
    """How many candidates are not in a plot."""
    absent = {by.label: sum(by.name not in one.scores or one.speedup is None for one in results.candidates) for by in scores}
    lines = [f"{count(number, 'setting')} without a measured speed or {label}" for label, number in absent.items() if number]
    if not lines:
        return None
    return tag("p", "Only in the table below: ", join(lines, "; "), ".", class_="note")
