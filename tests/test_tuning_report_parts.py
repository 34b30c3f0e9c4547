"""Schedules, pictures and tables in the report of a tuning: what is shown is what was given."""

import base64
import re

import pytest
import tuning_sample as sample
from tuning_sample import written

from mindie_cache.calibration.tuning.report import write_report
from mindie_cache.errors import ConfigError


def test_a_schedule_shows_each_step(tmp_path):
    results = sample.results()
    section = written(tmp_path, results).one("section", id="schedules")
    figures = section.all("div", class_="finalist")
    finalists = sample.held_out(results)
    assert len(figures) == len(finalists)
    for figure, one in zip(figures, finalists, strict=True):
        assert one["title"] in figure.one("h3").text
        rows = figure.all("svg", class_="cells")
        for row, branch in zip(rows, one["schedule"], strict=True):
            cells = {int(cell.attributes["x"]): cell.attributes["class"] for cell in row.all("rect")}
            assert sorted(cells) == list(range(30))
            assert sorted(step for step, kind in cells.items() if kind == "computed") == branch["computed"]
        labels = [label.text for label in figure.all(class_="label")]
        for branch in one["schedule"]:
            assert f"{branch['branch']} {len(branch['computed'])} of 30 computed" in labels


def test_the_curve_is_the_noise_level(tmp_path):
    results = sample.results()
    curve = written(tmp_path, results).one("section", id="schedules").all("path", class_="curve")[0]
    drawn = [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", curve.attributes["d"])]
    assert [x for x, _ in drawn] == list(range(31))
    assert [1 - y for _, y in drawn] == pytest.approx(results["uncached"]["sigmas"], abs=1e-4)


def test_pictures_are_in_the_file_once_each_with_a_text(tmp_path):
    results = sample.results()
    page = written(tmp_path, results)
    section = page.one("section", id="frames")
    images = {one.attributes["id"]: one.attributes for one in section.all("image")}
    data = {base64.b64decode(one["href"].removeprefix("data:image/png;base64,")) for one in images.values()}
    files = {path.read_bytes() for path in (tmp_path / "pictures").iterdir()}
    assert data == files
    assert {(one["width"], one["height"]) for one in images.values()} == {("96", "54")}
    assert len(images) == len(files) == 2 + 2 * 2 * 4  # two prompts; four finalists, each with a difference
    frames = section.all("svg", class_="frame")
    assert len(frames) == 3 * 2 * 4
    for frame in frames:
        assert frame.one("use").attributes["href"].removeprefix("#") in images
        assert frame.attributes["aria-label"]
    assert "difference, 8 times amplified" in [one.text for one in section.all("figcaption")]


def test_a_row_of_pictures_shows_the_three_it_names(tmp_path):
    results = sample.results()
    section = written(tmp_path, results).one("section", id="frames")
    images = {f"#{one.attributes['id']}": one.attributes["href"] for one in section.all("image")}
    shown = results["candidates"][results["chosen"]]["pictures"][1]
    row = section.all(class_="triple")[1]
    found = [images[one.attributes["href"]] for one in row.all("use")]
    for name, link in zip(("uncached", "cached", "difference"), found, strict=True):
        data = (tmp_path / f"pictures/{shown[name]}.png").read_bytes()
        assert link == f"data:image/png;base64,{base64.b64encode(data).decode()}"


def test_without_pictures_a_sentence_says_so(tmp_path):
    results = sample.results()
    for one in results["candidates"]:
        one["pictures"] = []
    section = written(tmp_path, results).one("section", id="frames")
    assert not section.all("svg")
    assert "No frames were kept" in section.text


def test_a_picture_that_cannot_be_shown_is_an_error(tmp_path):
    results = sample.results()
    paths = sample.save_pictures(tmp_path / "pictures", results)
    name = next(iter(paths))
    with pytest.raises(ConfigError, match=f"picture '{name}', but there is none"):
        write_report(results, {key: path for key, path in paths.items() if key != name}, tmp_path / "a.html")
    with pytest.raises(ConfigError, match=f"'{name}' cannot be read"):
        write_report(results, {**paths, name: tmp_path / "absent.png"}, tmp_path / "a.html")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ConfigError, match=f"'{name}' is no PNG"):
        write_report(results, {**paths, name: tmp_path / "text.png"}, tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()


COLUMNS = {"faster": "speedup", "by counted work": "estimate", "computed": "share", "time": "seconds"}
SCORES = {"PSNR": "psnr", "error": "latents", "SSIM": "ssim"}


def exact(cell):
    return float(cell.attributes["data-value"])


def test_all_candidates_are_in_the_table_with_their_numbers(tmp_path):
    results = sample.results()
    table = written(tmp_path, results).one("table", class_="candidates")
    heads = [one.text for one in table.one("thead").all("th")]
    rows = {int(row.attributes["data-index"]): row for row in table.one("tbody").all("tr")}
    assert sorted(rows) == list(range(len(results["candidates"])))
    for index, row in rows.items():
        one, cells = results["candidates"][index], [child for child in row.children if child.name in ("th", "td")]
        named = dict(zip(heads, cells, strict=True))
        given = {name: one[key] for name, key in COLUMNS.items()}
        given |= {name: one["scores"][key] for name, key in SCORES.items()}
        assert {name: exact(named[name]) for name in given} == given
        assert one["title"] in named["setting"].text
        assert [named[name].text for name in ("method", "notes")] == [one["method"], " ".join(one["notes"])]
        assert float(named["PSNR"].text.removesuffix(" dB")) == pytest.approx(one["scores"]["psnr"], abs=0.051)
        assert float(named["error"].text) == pytest.approx(one["scores"]["latents"], rel=0.051)
        assert float(named["faster"].text.removesuffix("\u00d7")) == pytest.approx(one["speedup"], abs=0.0051)
        predicted = named["predicted error"].attributes.get("data-value")
        assert (predicted and float(predicted)) == one["predicted"]


def test_prompts_of_finalists_with_mean_and_worst(tmp_path):
    results = sample.results()
    table = written(tmp_path, results).one("table", class_="prompts")
    finalists = sample.held_out(results)
    titles = [one.text for one in table.one("thead").all("th", scope="colgroup")]
    assert [title.partition(" chosen")[0].strip() for title in titles] == [one["title"] for one in finalists]
    rows = table.one("tbody").all("tr")
    assert [row.one("b").text for row in rows] == [f"#{index}" for index in range(4, 12)]
    mean, worst = table.one("tfoot").all("tr")
    for place, one in enumerate(finalists):
        columns = slice(3 * place, 3 * place + 3)
        for row, entry in zip(rows, one["prompts"], strict=True):
            values = [entry["scores"]["psnr"], entry["scores"]["latents"], entry["seconds"]]
            cells = row.all("td")[columns]
            assert [exact(cell) for cell in cells] == values
            least = min(each["scores"]["psnr"] for each in one["prompts"])
            assert ("worst" in cells[0].attributes["class"].split()) == (values[0] == least)
        means = [one["scores"]["psnr"], one["scores"]["latents"], one["seconds"]]
        assert [exact(cell) for cell in mean.all("td")[columns]] == means
        assert [exact(cell) for cell in worst.all("td")[columns]] == [
            min(each["scores"]["psnr"] for each in one["prompts"]),
            max(each["scores"]["latents"] for each in one["prompts"]),
            max(each["seconds"] for each in one["prompts"]),
        ]


def test_how_it_was_made(tmp_path):
    results = sample.results()
    section = written(tmp_path, results).one("section", id="making")
    assert section.one("code").text == results["command"]
    facts = {pair.one("dt").text: pair.one("dd").text for facts in section.all("dl") for pair in facts.all("div")}
    assert {**facts, "steps": "30"} == facts
    assert facts["torch"] == results["environment"]["torch"]
    stages = section.one("table", class_="stages")
    shown = [[exact(cell) for cell in row.all("td", class_="number")] for row in stages.one("tbody").all("tr")]
    assert shown == [[one["generations"], one["seconds"]] for one in results["stages"]]
    assert [exact(cell) for cell in stages.one("tfoot").all("td", class_="number")] == [200, pytest.approx(84.31)]
    prompts = section.one("table", class_="texts").one("tbody").all("tr")
    texts = [[cell.text for cell in row.all("td")] for row in prompts]
    assert texts == [[one["text"], one["use"], str(one["seed"])] for one in results["prompts"]]
