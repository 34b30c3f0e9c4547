"""The answer at the top: which setting, whether the goal is met, what it gives, how to use it, and why."""

from __future__ import annotations

from collections.abc import Sequence

from mindie_cache.calibration.tuning.report.data import Candidate, Results
from mindie_cache.calibration.tuning.report.html import Html, count, join, percent, plain, seconds, tag, times
from mindie_cache.calibration.tuning.report.scores import ERROR, Score, aim, nearest, quality, score, worst_prompt

CODE = """\
from mindie_cache import enable_cache
enable_cache(pipe, "best.yaml")
result = pipe(prompt)"""


def headline(results: Results) -> str:
    """One sentence that says it all."""
    one = results.choice
    return "No setting is chosen" if one is None else f"{one.title}: {_summary(one)}"


def section(results: Results) -> Html:
    one = results.choice
    return tag(
        "header",
        tag("p", join([tag("span", text) for text in _origin(results)], " · "), class_="eyebrow"),
        tag("h1", one.title if one else "No setting is chosen"),
        tag("p", _summary(one), class_="lead") if one else None,
        _goal(results),
        *(_tiles(one, results), _worst(one, results)) if one else (),
        tag("div", _use() if one else None, _sentences(results), class_="more"),
        class_="answer",
    )


def _origin(results: Results) -> list[str]:
    named = [results.model.get("target"), f"{results.steps} steps" if results.steps else None, results.date]
    return ["mindie-cache tune", *[str(part) for part in named if part]]


def _summary(one: Candidate) -> str:
    """ "1.96× faster, 58.1 dB on 8 held-out prompts" """
    by = quality(one.scores)
    shown = by.show(one.scores.get(by.name))
    where = f" on {count(len(one.prompts), 'held-out prompt')}" if one.prompts else ""
    speed = times(one.speedup if one.speedup is not None else one.estimate)
    return f"{speed} faster, {'' if by.name == 'psnr' else 'error '}{shown}{where}"


def _goal(results: Results) -> Html | None:
    """Whether it is met; if not, by how much the nearest setting misses it."""
    goal = results.goal
    if goal is None:
        return None
    wanted = aim(goal)
    words = wanted.words if wanted else f"{goal.kind} {goal.value:g}"
    if results.met:
        return tag("p", tag("b", "✓ Goal met"), f" {words}", class_="goal-state met")
    if results.met is None:
        return tag("p", tag("b", "Goal"), f" {words}", class_="goal-state")
    state = tag("p", tag("b", "✕ Goal not met"), f" {words}", class_="goal-state missed")
    closest = results.choice or nearest(results)
    if closest is None or wanted is None:
        return state
    reached = f" reaches {wanted.show(wanted.reached(closest))} on {'held-out' if closest.held_out else 'searched'} prompts."
    if closest is results.choice:
        return state + tag("p", "This setting is the nearest: it", reached, class_="nearest")
    return state + tag("p", "Nearest is ", tag("b", closest.title), f", {_summary(closest)}: it", reached, class_="nearest")


def _tiles(one: Candidate, results: Results) -> Html:
    """Large numbers, each with a line of what it is made of."""
    before = results.uncached_seconds
    change = f"{seconds(before)} → {seconds(one.seconds)}" if before is not None and one.seconds is not None else None
    counted = f"{times(one.estimate)} by counted work" if one.estimate is not None else None
    tiles = [_tile("faster", times(one.speedup), [change, counted])]
    for by in [score(name) for name in results.scores if name in one.scores]:
        predicted = f"{by.show(one.predicted)} predicted" if by is ERROR and one.predicted is not None else None
        label = "relative error of the latents" if by is ERROR else by.label
        tiles.append(_tile(label, by.show(one.scores[by.name]), [_range(one, by), predicted]))
    if one.share is not None:
        tiles.append(_tile("computed", percent(one.share), ["of the model's work; the rest is reused"]))
    return tag("dl", *tiles, class_="tiles")


def _tile(label: str, value: str, lines: list[str | None]) -> Html:
    return tag("div", tag("dt", label), tag("dd", value, class_="value"), *[tag("dd", line) for line in lines if line])


def _range(one: Candidate, by: Score) -> str | None:
    worst = worst_prompt(one, by)
    return None if worst is None else f"{by.show(worst.scores[by.name])} at worst"


def _worst(one: Candidate, results: Results) -> Html | None:
    by = quality(one.scores)
    worst = worst_prompt(one, by)
    if worst is None:
        return None
    shown = [f"{score(name).label} {score(name).show(value)}" for name, value in worst.scores.items()]
    numbers = join([tag("span", text, class_="whole") for text in shown], ", ")
    prompt = results.prompts[worst.prompt]
    seed = f", seed {plain(prompt.seed)}" if prompt.seed is not None else ""
    text = tag("q", prompt.text, dir="auto")
    return tag(
        "p", tag("b", f"Worst held-out prompt, #{worst.prompt}"), ": ", numbers, ". ", text, seed, class_="worst-prompt"
    )


def _sentences(results: Results) -> Html:
    notes = results.choice.notes if results.choice else ()
    return tag("div", _said("warnings", "Note", [*results.warnings, *notes]), _said("why", "Why", results.why))


def _said(kind: str, title: str, sentences: Sequence[str]) -> Html | None:
    if not sentences:
        return None
    items = [tag("li", sentence, dir="auto") for sentence in sentences]
    return tag("div", tag("h2", title, class_="small"), tag("ul", *items), class_=f"said {kind}")


def _use() -> Html:
    return tag("div", tag("h2", "Use it", class_="small"), tag("pre", tag("code", CODE)), class_="said use")
