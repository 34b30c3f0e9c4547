"""The plot of the front: speed against quality, a point for each candidate. Places are percents, so it fits every width."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mindie_cache.calibration.search import pareto
from mindie_cache.calibration.tuning.report import marks
from mindie_cache.calibration.tuning.report.axes import Axis, decades, linear
from mindie_cache.calibration.tuning.report.data import Candidate, Results
from mindie_cache.calibration.tuning.report.html import TIMES, Html, join, percent, plain, seconds, tag, times
from mindie_cache.calibration.tuning.report.scores import ERROR, PSNR, Score, aim, score

Place = tuple[float, float]


@dataclass(frozen=True)
class Plot:
    """One plot: `y` in the unit of the score `by`; both axes have room for all that is drawn."""

    results: Results
    by: Score
    x: Axis
    y: Axis

    @classmethod
    def of(cls, results: Results, by: Score) -> Plot | None:
        """None if no candidate has this score and a measured speed."""
        there = [one for one in results.candidates if drawn(one, by)]
        if not there:
            return None
        speeds = [1.0, *[one.speedup for one in there if one.speedup is not None]]
        values = [one.scores[by.name] for one in there]
        wanted = results.goal and aim(results.goal)
        if results.goal and wanted and wanted.score is None:
            speeds.append(results.goal.value)
        elif results.goal and wanted and wanted.score is by:
            values.append(results.goal.value)
        x = linear(speeds)
        return cls(results, by, x, decades(values) if by is ERROR else linear(values, falling=by.more))

    def place(self, speed: float, value: float) -> Place:
        return self.x.place(speed), self.y.place(value)

    def svg(self) -> Html:
        """The drawing. Its points come one after another by speed, so that arrow keys go from left to right."""
        order = sorted(
            [i for i, one in enumerate(self.results.candidates) if drawn(one, self.by)],
            key=lambda i: self.results.candidates[i].speedup or 0.0,
        )
        names = f"speed-up and {self.by.label} of {len(order)} settings; the table of all settings has the numbers"
        return tag(
            "svg",
            *(self._grid(), self._goal(), self._predicted(), self._front(held_out=False), self._front(held_out=True)),
            tag("g", *[self._point(index) for index in order], class_="points", role="list"),
            self._label(),
            role="group",
            aria_label=names,
        )

    def _grid(self) -> Html:
        across = [
            tag("line", x1=at, x2=at, y1="0", y2="100%")
            + tag("text", f"{value:g}{TIMES}", x=at, y="100%", dy="1.6em", text_anchor="middle")
            for value, at in _ticks(self.x)
        ]
        up = [
            tag("line", x1="0", x2="100%", y1=at, y2=at)
            + tag("text", _tick(value, self.by), x="0", dx="-0.6em", y=at, dy="0.35em", text_anchor="end")
            for value, at in _ticks(self.y)
        ]
        return tag("g", *across, *up, class_="grid", aria_hidden="true")

    def _goal(self) -> Html | None:
        goal = self.results.goal
        wanted = goal and aim(goal)
        if not goal or not wanted:
            return None
        text = tag("tspan", f"goal: {wanted.words}")
        if wanted.score is None:
            at = self.x.place(goal.value)
            region = tag("rect", x=f"{at}%", y="0", width=f"{100 - at:.3f}%", height="100%")
            line = tag("line", x1=f"{at}%", x2=f"{at}%", y1="0", y2="100%")
            label = tag("text", text, x=f"{at}%", y="0", dy="-0.5em", text_anchor=_side(at))
        elif wanted.score is self.by:
            at = self.y.place(goal.value)
            region = tag("rect", x="0", y="0", width="100%", height=f"{at}%")
            line = tag("line", x1="0", x2="100%", y1=f"{at}%", y2=f"{at}%")
            label = tag("text", text, x="100%", y=f"{at}%", dy="-0.5em", text_anchor="end")
        else:
            return None
        return tag("g", region, line, label, class_="goal", aria_hidden="true")

    def _front(self, held_out: bool) -> Html | None:
        """The settings that are not beaten in what this plot shows, among those on the same prompts."""
        there = [one for one in self.results.candidates if one.held_out == held_out and drawn(one, self.by)]
        places = [self.place(one.speedup or 0.0, one.scores[self.by.name]) for one in there]
        best = pareto.front([(-left, top) for left, top in places])  # right and up is better in every plot
        return _line([places[i] for i in best], "front held-out" if held_out else "front search")

    def _predicted(self) -> Html | None:
        """Errors that the plan expects, over the speed by counted steps; where the plot has room for them."""
        if self.by is not ERROR or not self.results.steps:
            return None
        expected = [(self.results.steps / b.budget, b.predicted) for b in self.results.budgets if b.predicted is not None]
        inside = [self.place(x, y) for x, y in expected if self.x.low <= x <= self.x.high and self.y.low <= y <= self.y.high]
        return _line(inside, "predicted")

    def _point(self, index: int) -> Html:
        one = self.results.candidates[index]
        family = self.results.families.index(one.family)
        chosen = index == self.results.chosen
        left, top = self.place(one.speedup or 0.0, one.scores[self.by.name])
        ring = tag("circle", r="10.5", class_="ring") if chosen else None
        mark = tag(
            "g",
            *(tag("title", "\n".join(facts(one, chosen))), ring, marks.shape(family, hollow=not one.held_out)),
            class_=f"point {marks.series(family)}" + " chosen" * chosen,
            role="listitem",
            data_index=index,
        )
        kind = f"at f{family} {'held' if one.held_out else 'search'}"
        return tag("svg", mark, x=f"{left}%", y=f"{top}%", width="1", height="1", class_=kind)

    def _label(self) -> Html | None:
        chosen = self.results.choice
        if chosen is None or not drawn(chosen, self.by):
            return None
        left, top = self.place(chosen.speedup or 0.0, chosen.scores[self.by.name])
        side = _side(left)
        kind = f"name at f{self.results.families.index(chosen.family)} held"
        name = shorten(chosen.title, 40)
        names = tag("tspan", name, class_="long"), tag("tspan", name if len(name) <= 16 else "chosen", class_="short")
        away = {"start": "1.2em", "end": "-1.2em"}[side]
        below = "-0.8em" if side == "start" and top > 6 else "1.6em"  # off the front, which falls to the right
        return tag("text", *names, x=f"{left}%", y=f"{top}%", dx=away, dy=below, text_anchor=side, class_=kind)


def shorten(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def drawn(one: Candidate, by: Score) -> bool:
    """Whether a candidate has a place in a plot."""
    return one.speedup is not None and by.name in one.scores


def scores_to_plot(results: Results) -> list[Score]:
    """PSNR and the error of latents, of those that candidates have; the one that the goal is about first."""
    there = [by for by in (PSNR, ERROR) if any(drawn(one, by) for one in results.candidates)]
    wanted = results.goal and aim(results.goal)
    return sorted(there, key=lambda by: not (wanted and wanted.score is by))


def facts(one: Candidate, chosen: bool = False) -> list[str]:
    """Lines about a candidate: its title, then "name: value"."""
    found = [
        ("faster", times(one.speedup) if one.speedup is not None else None),
        ("by counted work", times(one.estimate) if one.estimate is not None else None),
        *[(score(name).label, score(name).show(value)) for name, value in one.scores.items()],
        ("predicted error", ERROR.show(one.predicted) if one.predicted is not None else None),
        ("computed", percent(one.share) if one.share is not None else None),
        ("one generation", seconds(one.seconds) if one.seconds is not None else None),
    ]
    where = "on held-out prompts" if one.held_out else "on searched prompts"
    head = [one.title + (" (chosen)" if chosen else ""), f"{one.method}, {where}"]
    return [*head, *[f"{name}: {value}" for name, value in found if value is not None], *one.notes]


def _ticks(axis: Axis) -> list[tuple[float, str]]:
    return [(value, f"{axis.place(value)}%") for value in axis.ticks]


def _tick(value: float, by: Score) -> str:
    if by is not ERROR:
        return plain(value)
    mark, _, power = f"{value:.0e}".partition("e")
    return f"{mark}e{int(power)}"


def _side(at: float) -> str:
    """Which end of a text is at a place, so that the text stays inside."""
    return "end" if at > 50 else "start"


def _line(points: Iterable[Place], kind: str) -> Html | None:
    """A line from left to right, in a drawing that is stretched to the whole plot."""
    ordered: Sequence[Place] = sorted(points)
    if len(ordered) < 2:
        return None
    path = join([f"{'L' if i else 'M'}{x} {y}" for i, (x, y) in enumerate(ordered)])
    line = tag("path", d=path, class_=kind, vector_effect="non-scaling-stroke")
    size = {"width": "100%", "height": "100%", "viewBox": "0 0 100 100", "preserveAspectRatio": "none"}
    return tag("svg", line, aria_hidden="true", **size)
