"""The report of a tuning: one file that needs nothing else, its answer, and what is missing, hostile or damaged."""

import base64
import functools
import hashlib
import math
import operator
import re

import pytest
import tuning_sample as sample
from tuning_sample import written

import mindie_cache
from mindie_cache.calibration.tuning.report import write_report
from mindie_cache.errors import ConfigError


def test_nothing_is_loaded_from_anywhere(tmp_path):
    page = written(tmp_path, sample.results())
    ids = {one.attributes["id"] for one in page.all() if "id" in one.attributes}
    for one in page.all():
        for name in ("src", "href", "xlink:href", "action", "poster", "srcset"):
            link = one.attributes.get(name, "data:")
            assert link.startswith("data:") or link.removeprefix("#") in ids, (one.name, name, link)
    style, script = page.one("style").text, page.one("script").text
    assert not re.search(r"url\(|@import|//", style)
    assert not re.search(r"fetch|XMLHttpRequest|import\(|https?:|eval|innerHTML", script)


def test_the_policy_lets_this_style_and_this_script_run_and_nothing_else(tmp_path):
    page = written(tmp_path, sample.results())
    (policy,) = [one.attributes["content"] for one in page.all("meta", http_equiv="Content-Security-Policy")]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for kind in ("style", "script"):
        digest = hashlib.sha256(page.one(kind).text.encode()).digest()
        assert rules[f"{kind}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")
    assert not [name for one in page.all() for name in one.attributes if name == "style" or name.startswith("on")]


def test_ids_are_different_and_references_reach_something(tmp_path):
    page = written(tmp_path, sample.results())
    ids = [one.attributes["id"] for one in page.all() if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    assert {one.attributes["aria-labelledby"] for one in page.all("section")} <= set(ids)
    assert len(page.all("h1")) == 1
    assert page.one("html").attributes["lang"] == "en"


def test_every_drawing_is_named_or_hidden(tmp_path):
    page = written(tmp_path, sample.results())

    def drawings(element, hidden=False):
        hidden = hidden or element.attributes.get("aria-hidden") == "true"
        if element.name == "svg" and not hidden:
            yield element
            return
        for child in element.children:
            if not isinstance(child, str):
                yield from drawings(child, hidden)

    shown = list(drawings(page))
    assert len(shown) > 20
    assert all(one.attributes.get("aria-label") and one.attributes.get("role") in ("img", "group") for one in shown)


def test_the_answer_says_which_how_fast_how_good_and_on_what(tmp_path):
    results = sample.results()
    chosen = results["candidates"][results["chosen"]]
    head = written(tmp_path, results).one("header")
    assert head.one("h1").text == chosen["title"] == "plan, 15 of 30"
    lead = f"{chosen['speedup']:.2f}\u00d7 faster, {chosen['scores']['psnr']:.1f} dB on 8 held-out prompts"
    assert head.one(class_="lead").text == lead
    assert head.one(class_="goal-state").text == "✓ Goal met at least 2\u00d7 faster"
    worst = min(chosen["prompts"], key=lambda one: one["scores"]["psnr"])
    said = head.one(class_="worst-prompt").text
    assert f"#{worst['prompt']}" in said
    assert f"PSNR {worst['scores']['psnr']:.1f} dB" in said
    assert results["prompts"][worst["prompt"]]["text"] in said
    for sentence in results["why"] + results["warnings"]:
        assert sentence in [one.text for one in head.all("li")]


def test_the_lines_of_code_run(tmp_path, monkeypatch):
    code = written(tmp_path, sample.results()).one("header").one("code").text
    calls = []
    monkeypatch.setattr(mindie_cache, "enable_cache", lambda *given: calls.append(given))
    exec(code, {"pipe": calls.append, "prompt": "a fox"})
    assert calls == [(calls.append, "best.yaml"), "a fox"]
    assert len(code.splitlines()) == 3


@pytest.mark.parametrize(
    ("goal", "best", "words"),
    [
        ({"kind": "speedup", "value": 9.0}, lambda one: one["speedup"], "at least 9\u00d7 faster"),
        ({"kind": "max_error", "value": 1e-7}, lambda one: -one["scores"]["latents"], "an error of at most 1.0e-7"),
        ({"kind": "min_psnr", "value": 80.0}, lambda one: one["scores"]["psnr"], "a PSNR of at least 80 dB"),
    ],
)
def test_a_goal_that_nothing_meets_is_said_with_the_nearest_setting(tmp_path, goal, best, words):
    results = sample.results(goal=goal, met=False, chosen=None)
    nearest = max(sample.held_out(results), key=best)
    head = written(tmp_path, results).one("header")
    assert head.one("h1").text == "No setting is chosen"
    assert head.one(class_="goal-state").text == f"✕ Goal not met {words}"
    assert head.one(class_="nearest").one("b").text == nearest["title"]
    assert not head.all("code")
    assert not head.all("dl")


def test_a_chosen_setting_that_misses_the_goal_is_called_the_nearest(tmp_path):
    results = sample.results(goal={"kind": "max_error", "value": 1e-6}, met=False)
    error = results["candidates"][results["chosen"]]["scores"]["latents"]
    mantissa, exponent = f"{error:.1e}".split("e")
    head = written(tmp_path, results).one("header")
    assert "met" not in head.one(class_="goal-state").attributes["class"].split()
    assert f"nearest: it reaches {mantissa}e{int(exponent)} on held-out prompts" in head.one(class_="nearest").text


HOSTILE = ('</script><script>alert("1")</script>', '"><img src=x onerror=alert(1)>', "<!-- ", "&lt;b&amp;", "]]>{}\\u0022'`")


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_are_texts(tmp_path, text):
    results = sample.results(command=text, date=text, why=[text], warnings=[text])
    for one in results["candidates"]:
        one.update(title=text, method=text, notes=[text], config={text: text})
    for one in [*results["prompts"], *results["stages"]]:
        one.update({key: text for key in ("text", "use", "title") if key in one})
    results["environment"][text] = results["model"]["target"] = text
    for one in results["candidates"]:
        for branch in one["schedule"] or []:
            branch["branch"] = text
    page = written(tmp_path, results)
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert not page.all("img")
    assert page.one("h1").text == text
    assert page.one("section", id="making").one("code").text == text
    assert text in page.one("head").one("title").text
    assert [row.all("td")[0].text for row in page.one("table", class_="texts").one("tbody").all("tr")] == [text] * 12
    assert all(text in one.attributes["aria-label"] for one in page.all("svg", class_="cells"))


def test_what_html_cannot_hold_is_replaced(tmp_path):
    page = written(tmp_path, {**sample.bare(title="a\x00b\ud800c"), "chosen": 0})
    assert page.one("h1").text == "a\ufffdb\ufffdc"


def changed(path, value=None):
    """The sample with a value at the end of a path of keys; None: without that key."""
    place = results = sample.results()
    *way, last = path
    for step in way:
        place = place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return results


CHOSEN = 42  # place of the sample's choice
REQUIRED = ("kind", "candidates", "prompts", "title", "method", "stage", "prompt")  # prompts: others refer to them
PLACES = [(), ("uncached",), ("goal",), ("plan",), ("prompts", 4), ("stages", 0), ("candidates", CHOSEN)]
PLACES += [("candidates", CHOSEN, *more) for more in (("scores",), ("prompts", 0), ("schedule", 0), ("pictures", 0))]


def optional():
    """The paths of keys that need not be there."""
    for place in PLACES:
        mapping = functools.reduce(operator.getitem, place, sample.results())
        yield from [(*place, key) for key in mapping if key not in REQUIRED]


@pytest.mark.parametrize("path", list(optional()), ids=lambda path: ".".join(map(str, path)))
def test_what_is_optional_may_be_missing(tmp_path, path):
    table = written(tmp_path, changed(path)).one("table", class_="candidates")
    assert len(table.one("tbody").all("tr")) == 46


def test_everything_optional_may_be_missing(tmp_path):
    page = written(tmp_path, sample.bare())
    assert len(page.one("tbody").all("tr")) == 1
    for section in ("front", "schedules", "frames", "prompts", "making"):
        assert page.one("section", id=section).one(class_="none").text
    assert not written(tmp_path, {"kind": "mindie_cache tuning", "candidates": []}).all("td")


def test_numbers_that_are_none_or_not_finite_are_shown_as_missing(tmp_path):
    for value in (None, math.nan, math.inf):
        results = sample.results()
        results["candidates"][CHOSEN].update(speedup=value, seconds=value, scores={"latents": value, "psnr": value})
        row = written(tmp_path, results).one("table", class_="candidates").one("tbody").one(data_index=str(CHOSEN))
        shown = [cell.text for cell in row.all("td", class_="number")]
        assert shown[:7] == ["\u2013"] * 5 + ["50 %", "2.00\u00d7"]
        assert not re.search("nan|inf", row.text)


def test_keys_that_are_not_known_change_nothing(tmp_path):
    results, more = sample.results(), sample.results(new={"a": 1})
    pictures = sample.save_pictures(tmp_path / "pictures", results)
    for one in [more["goal"], *more["candidates"], *more["prompts"], *more["stages"], *more["plan"]["front"]]:
        one["new"] = [1, 2]
    for name, given in (("a", results), ("b", more)):
        write_report(given, pictures, tmp_path / f"{name}.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("kind",), "mindie_cache plan", "no results of a tuning"),
        (("version",), 2, "version 2"),
        (("candidates",), None, "results.candidates=None is not a list"),
        (("candidates",), "many", "results.candidates='many' is not a list"),
        (("candidates", 2), 3, "results.candidates=.* is not a list of mappings"),
        (("candidates", 2, "speedup"), "fast", r"results.candidates\[2\].speedup='fast' is not a number"),
        (("candidates", 2, "speedup"), True, "is not a number"),
        (("candidates", 2, "title"), None, r"candidates\[2\].title=None is not a text"),
        (("candidates", 2, "stage"), "both", "stage='both' is not known"),
        (("candidates", 2, "scores"), [1], "is not a mapping"),
        (("candidates", 2, "on_front"), 1, "is not true or false"),
        (("candidates", 2, "notes"), [1], "is not a list of texts"),
        (("candidates", CHOSEN, "prompts", 0, "prompt"), 12, "is not an index into a list of 12"),
        (("candidates", CHOSEN, "schedule", 0, "computed"), [0, 30], "must be steps from 0 to 29"),
        (("candidates", CHOSEN, "schedule", 0, "computed"), [0.5], "must be steps"),
        (("chosen",), 99, "results.chosen=99 is not an index into a list of 46"),
        (("chosen",), -1, "is not an index"),
        (("chosen",), 0, 'no candidate of the stage "held out"'),
        (("uncached", "sigmas"), [1.0, 0.0], "2 noise levels. 30 steps have 31"),
        (("uncached", "sigmas", 3), math.nan, "is not a list of finite numbers"),
        (("plan", "front", 0, "budget"), 0, "budget is missing"),
        (("prompts",), None, "is not an index into a list of 0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_damaged_results_are_an_error_that_says_where_and_leave_the_old_file(tmp_path, path, value, message):
    target = tmp_path / "report.html"
    target.write_text("old")
    results = changed(path, value)
    pictures = sample.save_pictures(tmp_path / "pictures", sample.results())
    with pytest.raises(ConfigError, match=message):
        write_report(results, pictures, target)
    assert target.read_text() == "old"


def test_results_must_be_a_mapping(tmp_path):
    with pytest.raises(ConfigError, match="no results of a tuning"):
        write_report([], {}, tmp_path / "report.html")
