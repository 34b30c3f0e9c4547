"""The report of a tuning in headless Chromium: on a phone and a desktop, light and dark, with and without scripts."""

import io
import re

import browser as chromium
import pytest
import tuning_sample as sample
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
PHONE, DESKTOP = (360, 800), (1280, 900)
LIGHT_AND_DARK = pytest.mark.parametrize("scheme", ["light", "dark"])
BOTH_SIZES = pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
WIDTHS = "[document.scrollingElement.scrollWidth, innerWidth]"


@pytest.fixture(scope="module")
def browser():
    path = chromium.find()
    if path is None:
        pytest.skip("no Chromium: `make browser` installs one where it can")
    with playwright.sync_playwright() as started:
        one = started.chromium.launch(executable_path=path, args=chromium.options())
        yield one
        one.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    sample.written(folder, sample.results())
    return folder / "report.html"


@pytest.fixture
def show(browser):
    """Opens a file. What the page asks for, complains about or pops up is an error at the end."""
    contexts, requests, complaints = [], [], []

    def opened(path, size=DESKTOP, scheme="light", **settings):
        viewport = {"width": size[0], "height": size[1]}
        contexts.append(browser.new_context(viewport=viewport, color_scheme=scheme, **settings))
        page = contexts[-1].new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith("file:")] == []
    assert len(requests) == len(contexts)


def marks(page, plot="psnr"):
    return page.locator(f"#plot-{plot} .point")


def color(page, selector, kind="color"):
    """As three numbers."""
    text = page.locator(selector).first.evaluate(f"element => getComputedStyle(element).{kind}")
    return tuple(map(int, re.findall(r"\d+", text)[:3]))


def pixels(page, selector):
    picture = Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB")
    return {color: count for count, color in picture.getcolors(picture.width * picture.height)}


@BOTH_SIZES
@LIGHT_AND_DARK
def test_the_page_fits_and_the_plot_is_drawn(show, report, size, scheme):
    page = show(report, size, scheme)
    width, room = page.evaluate(WIDTHS)
    assert width <= room == size[0]
    points = marks(page)
    assert points.count() == len(sample.results()["candidates"])
    assert all(points.nth(index).is_visible() for index in range(points.count()))
    ground = color(page, "body", "backgroundColor")
    assert (sum(ground) > 600) == (scheme == "light")
    assert (sum(color(page, "body")) < 200) == (scheme == "light")
    found = pixels(page, "#plot-psnr")
    assert found[ground] > 1000
    for method in ("s0", "s1", "s2"):  # those with filled marks
        assert found.get(color(page, f".swatch.{method}"), 0) > 25, method


@BOTH_SIZES
def test_long_and_hostile_texts_stay_in_the_page(show, tmp_path, size):
    results = sample.results()
    for one in results["candidates"]:
        one.update(title="<b>" + "x" * 150, method=one["method"] + "y" * 60, notes=["z" * 200])
    for one in results["prompts"]:
        one["text"] = "</script><script>alert(1)</script>" + "w" * 300
    results.update(why=["v" * 200], warnings=["u" * 200], command="t" * 200)
    sample.written(tmp_path, results)
    page = show(tmp_path / "report.html", size)
    width, room = page.evaluate(WIDTHS)
    assert width <= room
    assert page.locator("h1").inner_text() == results["candidates"][0]["title"]


def test_a_tip_follows_the_pointer(show, report):
    page = show(report)
    tip, chosen = page.locator(".tip"), marks(page).and_(page.locator(".chosen"))
    assert not tip.is_visible()
    chosen.scroll_into_view_if_needed()
    chosen.hover(force=True)
    one = sample.results()["candidates"][sample.results()["chosen"]]
    lines = tip.inner_text().split("\n")
    assert lines[0] == "plan, 15 of 30 (chosen)"
    assert f"faster: {one['speedup']:.2f}\u00d7" in lines
    assert f"PSNR: {one['scores']['psnr']:.1f} dB" in lines
    page.mouse.move(5, 5)
    assert not tip.is_visible()


def test_keys_go_from_mark_to_mark_by_speed(show, report):
    page = show(report)
    candidates = sample.results()["candidates"]
    order = sorted(range(len(candidates)), key=lambda index: candidates[index]["speedup"])
    marks(page).and_(page.locator("[tabindex='0']")).focus()
    focused = "document.activeElement.dataset.index"
    assert int(page.evaluate(focused)) == sample.results()["chosen"]
    at = order.index(sample.results()["chosen"])
    for key, place in (("ArrowRight", at + 1), ("ArrowRight", at + 2), ("ArrowLeft", at + 1)):
        page.keyboard.press(key)
        assert int(page.evaluate(focused)) == order[place]
        assert candidates[order[place]]["title"] in page.locator(".tip").inner_text()
    assert page.locator("#plot-psnr .point[tabindex='0']").count() == 1
    page.keyboard.press("Escape")
    assert not page.locator(".tip").is_visible()


def test_a_tap_shows_a_tip_inside_of_a_phone(show, report):
    page = show(report, PHONE, has_touch=True)
    tip = page.locator(".tip")
    for index in range(marks(page).count()):
        marks(page).nth(index).evaluate("mark => mark.focus()")
        box = tip.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE[0]
    width, room = page.evaluate(WIDTHS)
    assert width <= room
    page.keyboard.press("Escape")
    box = page.locator("#plot-psnr .point.chosen path").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2)
    assert tip.is_visible()
    page.touchscreen.tap(20, 20)
    assert not tip.is_visible()


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_the_legend_hides_and_shows(show, report, scripts):
    page = show(report, java_script_enabled=scripts)
    candidates = sample.results()["candidates"]

    def visible():
        found = marks(page)
        return {int(found.nth(i).get_attribute("data-index")) for i in range(found.count()) if found.nth(i).is_visible()}

    everything = set(range(len(candidates)))
    page.locator("label", has_text="seacache").click()
    assert visible() == {i for i in everything if candidates[i]["method"] != "seacache"}
    page.locator("label", has_text="searched prompts").click()
    kept = {i for i in everything if candidates[i]["method"] != "seacache" and candidates[i]["stage"] == "held out"}
    assert visible() == kept
    page.locator("#family-1").press("Space")
    page.locator("#stage-search").press("Space")
    assert visible() == everything


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_the_switch_changes_the_axis(show, report, scripts):
    page = show(report, java_script_enabled=scripts)
    psnr, error = page.locator("#plot-psnr"), page.locator("#plot-latents")
    assert (psnr.is_visible(), error.is_visible()) == (True, False)
    page.locator("label:has(#by-latents)").click()
    assert (psnr.is_visible(), error.is_visible()) == (False, True)
    assert page.locator("#plot-latents path.predicted").is_visible()
    page.locator("#by-latents").press("ArrowLeft")
    assert (psnr.is_visible(), error.is_visible()) == (True, False)


def test_without_scripts_everything_can_be_read(show, report):
    page = show(report, PHONE, java_script_enabled=False)
    for section in ("front", "schedules", "frames", "prompts", "settings", "making"):
        assert page.locator(f"#{section}").is_visible()
    assert page.locator("table.candidates tbody tr").count() == len(sample.results()["candidates"])
    assert page.locator("button").count() == 0
    assert "plan, 15 of 30" in marks(page).and_(page.locator(".chosen")).locator("title").text_content()


def test_a_heading_sorts_and_what_is_missing_stays_last(show, tmp_path):
    results = sample.results()
    del results["candidates"][3]["scores"]["psnr"]
    sample.written(tmp_path, results)
    page = show(tmp_path / "report.html")
    table = page.locator("table.candidates")
    values = [one["scores"].get("psnr") for one in results["candidates"]]
    known = sorted([index for index, value in enumerate(values) if value is not None], key=values.__getitem__)

    def order():
        return [int(index) for index in table.locator("tbody tr").evaluate_all("rows => rows.map(r => r.dataset.index)")]

    head = table.get_by_role("button", name="PSNR")
    head.click()
    assert order() == [*known, 3]
    assert table.locator("[aria-sort]").evaluate_all("heads => heads.map(h => h.ariaSort)") == ["ascending"]
    head.press("Enter")
    assert order() == [*reversed(known), 3]
    assert table.locator("[aria-sort]").evaluate_all("heads => heads.map(h => h.ariaSort)") == ["descending"]
    table.get_by_role("button", name="method").click()
    methods = [results["candidates"][index]["method"] for index in order()]
    assert methods == sorted(methods)


def test_frames_are_shown_and_switch_in_place(show, report):
    page = show(report)
    assert len(pixels(page, "#frames .triple >> nth=0")) > 3
    disc = (230, 150, 60)
    shown = [pixels(page, f"#frames .triple >> nth=0 >> .frame >> nth={index}").get(disc, 0) > 500 for index in range(3)]
    assert shown == [True, True, False]
    viewer = page.locator("dialog.viewer")
    page.locator("#frames .frame").first.press("Enter")
    pictures = []
    for _ in range(4):
        pictures.append(viewer.locator("use").get_attribute("href"))
        assert viewer.locator("[aria-pressed=true]").count() == 1
        page.keyboard.press("ArrowRight")
    assert len(set(pictures)) == 3
    assert pictures[3] == pictures[0]
    page.keyboard.press("Escape")
    assert not viewer.is_visible()


def test_print_shows_whole_tables_and_no_controls(show, report):
    page = show(report, scheme="dark")
    page.emulate_media(media="print")
    cut = "boxes => boxes.filter(b => b.scrollHeight > b.clientHeight + 1 && getComputedStyle(b).overflowY !== 'visible')"
    assert page.locator(".scroll").count() == 5
    assert page.locator(".scroll").evaluate_all(f"boxes => ({cut})(boxes).length") == 0
    assert not page.locator("nav").is_visible()
    assert not page.locator(".switch").is_visible()
    assert sum(color(page, "body")) < 200


def test_the_chosen_mark_has_a_name_that_fits(show, tmp_path):
    results = sample.results()
    results["candidates"][results["chosen"]]["title"] = "plan without correction, 15 of 30"
    sample.written(tmp_path, results)
    for size, name in ((DESKTOP, "plan without correction, 15 of 30"), (PHONE, "chosen")):
        page = show(tmp_path / "report.html", size)
        label = page.locator("#plot-psnr text.name")
        assert [one.text_content() for one in label.locator("tspan").all() if one.is_visible()] == [name]
        box = label.bounding_box()
        assert box["x"] + box["width"] <= size[0]
