"""The plot of the front in the report of a tuning: every mark is where the ticks say, and colours have contrast."""

import math
import re

import pytest
import tuning_sample as sample
from tuning_sample import written

from mindie_cache.calibration.tuning.report.axes import decades, linear


def spots(figure):
    """Candidate -> (percent from the left, percent from the top)."""
    found = {}
    for at in figure.all("svg", class_="at"):
        place = [float(at.attributes[axis].removesuffix("%")) for axis in "xy"]
        found[int(at.one(class_="point").attributes["data-index"])] = place
    return found


def corners(line):
    return [tuple(map(float, pair)) for pair in re.findall(r"[ML]([\d.]+) ([\d.]+)", line.attributes["d"])]


def scale(figure, axis, transform):
    """From percent to the value, by two ticks."""
    other = {"x": "y", "y": "x"}[axis]
    labels = [one for one in figure.one(class_="grid").all("text") if one.attributes[other] in ("0", "100%")]
    ticks = [(float(one.attributes[axis].removesuffix("%")), float(one.text.removesuffix("\u00d7"))) for one in labels]
    (a, low), (b, high) = [(place, transform(value)) for place, value in (ticks[0], ticks[-1])]
    return lambda place: low + (high - low) * (place - a) / (b - a)


@pytest.mark.parametrize(("score", "transform"), [("psnr", float), ("latents", math.log10)])
def test_marks_are_where_the_ticks_say(tmp_path, score, transform):
    results = sample.results()
    figure = written(tmp_path, results).one("figure", id=f"plot-{score}")
    across, up = scale(figure, "x", float), scale(figure, "y", transform)
    found = spots(figure)
    assert len(found) == len(results["candidates"])
    for index, (left, top) in found.items():
        one = results["candidates"][index]
        assert across(left) == pytest.approx(one["speedup"], abs=1e-3)
        assert up(top) == pytest.approx(transform(one["scores"][score]), abs=1e-3)


@pytest.mark.parametrize("score", ["psnr", "latents"])
def test_better_is_further_up(tmp_path, score):
    results = sample.results()
    found = spots(written(tmp_path, results).one("figure", id=f"plot-{score}"))
    best = max(results["candidates"], key=lambda one: one["scores"]["psnr"])
    assert min(found, key=lambda index: found[index][1]) == results["candidates"].index(best)


def test_the_goal_is_a_line_at_its_value(tmp_path):
    page = written(tmp_path, sample.results(goal={"kind": "min_psnr", "value": 47.5}))
    figure = page.one("figure", id="plot-psnr")
    line = figure.one(class_="goal").one("line")
    assert line.attributes["y1"] == line.attributes["y2"]
    place = float(line.attributes["y1"].removesuffix("%"))
    assert scale(figure, "y", float)(place) == pytest.approx(47.5, abs=1e-3)
    assert not page.one("figure", id="plot-latents").all(class_="goal")  # a PSNR has no place among errors


def test_the_axis_of_the_goal_is_shown_first(tmp_path):
    for kind, first in (("max_error", "by-latents"), ("min_psnr", "by-psnr"), ("speedup", "by-psnr")):
        page = written(tmp_path, sample.results(goal={"kind": kind, "value": 3.0}))
        (checked,) = [one for one in page.all("input", type="radio") if "checked" in one.attributes]
        assert checked.attributes["id"] == first


def unbeaten(candidates, score, more):
    """By comparing each with each."""

    def worth(one):
        return one["speedup"], one["scores"][score] * (1 if more else -1)

    def beats(one, other):
        return worth(one) != worth(other) and all(a >= b for a, b in zip(worth(one), worth(other), strict=True))

    return [one for one in candidates if not any(beats(other, one) for other in candidates)]


@pytest.mark.parametrize(("score", "more"), [("psnr", True), ("latents", False)])
def test_the_front_joins_what_is_unbeaten_on_the_same_prompts(tmp_path, score, more):
    results = sample.results()
    first, second = [i for i, one in enumerate(results["candidates"]) if one["stage"] == "held out"][:2]
    results["candidates"][second]["scores"]["psnr"] = results["candidates"][first]["scores"]["psnr"] + 1  # but not its error
    figure = written(tmp_path, results).one("figure", id=f"plot-{score}")
    found = spots(figure)
    for stage, kind in (("search", "search"), ("held out", "held-out")):
        best = unbeaten([one for one in results["candidates"] if one["stage"] == stage], score, more)
        lines = [one for one in figure.all("path", class_="front") if kind in one.attributes["class"].split()]
        wanted = sorted(tuple(found[results["candidates"].index(one)]) for one in best)
        assert [corners(line) for line in lines] == ([wanted] if len(wanted) > 1 else [])


def test_predictions_are_errors_over_counted_steps(tmp_path):
    results = sample.results()
    page = written(tmp_path, results)
    figure = page.one("figure", id="plot-psnr")
    assert not figure.all(class_="predicted")
    errors = page.one("figure", id="plot-latents")
    (line,) = errors.all("path", class_="predicted")
    across, up = scale(errors, "x", float), scale(errors, "y", math.log10)
    predicted = {round(30 / one["budget"], 3): one["predicted"] for one in results["plan"]["front"]}
    for left, top in corners(line):
        speed = min(predicted, key=lambda known: abs(known - across(left)))
        assert up(top) == pytest.approx(math.log10(predicted[speed]), abs=1e-3)


def test_marks_tell_methods_and_stages_apart(tmp_path):
    results = sample.results()
    figure = written(tmp_path, results).one("figure", id="plot-psnr")
    looks = {}
    for at in figure.all("svg", class_="at"):
        point = at.one(class_="point")
        one = results["candidates"][int(point.attributes["data-index"])]
        shape = point.one("path")
        assert shape.attributes["class"] == {"search": "hollow", "held out": "filled"}[one["stage"]]
        looks.setdefault(one["method"], set()).add((point.attributes["class"].split()[1], shape.attributes["d"]))
    assert all(len(found) == 1 for found in looks.values())
    assert len(set.union(*looks.values())) == len(looks) == 7


def test_a_family_of_settings_has_its_own_look(tmp_path):
    results = sample.results()
    results["candidates"][2]["family"] = "uniform"  # of the same method
    page = written(tmp_path, results)
    figure = page.one("figure", id="plot-psnr")
    looks = [figure.one(data_index=str(index)).one("path").attributes["d"] for index in (1, 2, 3)]
    assert looks[0] == looks[2] != looks[1]
    names = [one.text for one in page.one(class_="legend").all("label")]
    assert "uniform 1" in names
    assert "plan 7" in names


def test_each_box_of_the_legend_hides_what_it_names(tmp_path):
    page = written(tmp_path, sample.results())
    boxes = {one.attributes["id"] for one in page.all("input", type="checkbox")}
    rules = re.findall(r":has\(#([\w-]+):not\(:checked\)\) \.at\.(\w+)", page.one("style").text)
    assert {box for box, _ in rules} == boxes
    kinds = {kind for one in page.all("svg", class_="at") for kind in one.attributes["class"].split()} - {"at"}
    assert {kind for _, kind in rules} == kinds


@pytest.mark.parametrize("values", [[1e-4 * 1.1**power] for power in range(25)] + [[3e-9, 2e-9], [1e-12, 5.0], [0.0], [7e4]])
def test_decades_always_have_ticks(values):
    axis = decades(values)
    assert 2 <= len(axis.ticks) <= 9
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    assert all(0 < axis.place(value) < 100 for value in values if value)


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.001], [0.93, 4.46], [30.0, 65.2], [0.0, 120.0]])
def test_a_linear_axis_always_has_ticks(values):
    axis = linear(values)
    assert 2 <= len(axis.ticks) <= 7
    assert all(0 < axis.place(value) < 100 for value in values)


def test_a_tip_has_the_numbers(tmp_path):
    results = sample.results()
    point = written(tmp_path, results).one("figure", id="plot-psnr").one(data_index=str(results["chosen"]))
    one = results["candidates"][results["chosen"]]
    lines = point.one("title").text.split("\n")
    assert lines[0] == "plan, 15 of 30 (chosen)"
    assert f"faster: {one['speedup']:.2f}\u00d7" in lines
    assert f"PSNR: {one['scores']['psnr']:.1f} dB" in lines


def test_candidates_without_a_place_are_counted(tmp_path):
    results = sample.results()
    for one in results["candidates"][:3]:
        del one["scores"]["psnr"]
    results["candidates"][5]["speedup"] = None
    page = written(tmp_path, results)
    note = page.one("section", id="front").one(class_="note").text
    assert "4 settings without a measured speed or PSNR" in note
    assert "1 setting without a measured speed or error" in note
    assert len(spots(page.one("figure", id="plot-psnr"))) == len(results["candidates"]) - 4


def test_no_error_at_all_is_drawn_at_the_better_end(tmp_path):
    results = sample.results()
    results["candidates"][0]["scores"] = {"latents": 0.0}
    found = spots(written(tmp_path, results).one("figure", id="plot-latents"))
    assert found[0][1] == 0 == min(top for _, top in found.values())


def colours(style, dark):
    """Variables of the style sheet; the dark ones are those of the second :root."""
    found = {}
    for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)[: 2 if dark else 1]:
        found.update(re.findall(r"--([\w-]+): (#\w+);", block))
    return found


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """WCAG 2: (L1 + 0.05) / (L2 + 0.05)."""
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


TEXTS = [("ink", "ground"), ("soft", "ground"), ("soft", "raised"), ("soft", "faint"), ("accent", "ground")]
TEXTS += [("accent", "accent-soft"), ("good", "good-soft"), ("good", "ground"), ("bad", "bad-soft"), ("bad", "raised")]
TEXTS += [("mind", "mind-soft"), ("ink", "accent-soft")]
MARKS = [(f"c{index}", "ground") for index in range(8)] + [("accent", "reused")]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_texts_and_marks_have_contrast(tmp_path, dark):
    found = colours(written(tmp_path, sample.bare()).one("style").text, dark)
    ratios = {pair: contrast(found[pair[0]], found[pair[1]]) for pair in TEXTS + MARKS}
    assert {pair: ratio for pair, ratio in ratios.items() if ratio < (4.5 if pair in TEXTS else 3)} == {}
