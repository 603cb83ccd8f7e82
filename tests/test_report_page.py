"""A report in a real browser: seen, filtered, moved and read without a mouse and without a network."""

import os
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from amx_jax.data.report_files import ReportFiles
from amx_jax.data.shown import Masked, Shown
from amx_jax.evaluate.curves import AREAS, levels
from amx_jax.report.page import card, page
from amx_jax.report.pictures import encode_png

sync_api = pytest.importorskip("playwright.sync_api")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

HOSTILE = "<img src=x onerror=alert(1)>\"'.png"
SIDE = 64
# The share of a canvas that has another colour than its lower right corner, which no mask keeps.
SHARE = """(canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let other = 0;
  for (let at = 0; at < data.length; at += 4)
    other += [0, 1, 2].some((c) => data[at + c] !== data[data.length - 4 + c]);
  return 4 * other / data.length;
}"""
CORNER = """(canvas) => [...canvas.getContext("2d")
  .getImageData(canvas.width - 1, canvas.height - 1, 1, 1).data.slice(0, 3)]"""


def record(name: str, label: str, mask: np.ndarray, **changes):
    top = [
        {"index": 0, "name": label, "probability": 0.9},
        {"index": 1, "name": "x", "probability": 0.1},
    ]
    return {
        "image": name,
        "classifier": "tiny",
        "target": {"index": 0, "name": label},
        "decision": {"kind": "top"},
        "area": float(mask.mean()),
        "probability": {"image": 0.9, "explanation": 0.5, "complement": 0.1},
        "sufficient": True,
        "necessary": False,
        "words": [f"Words of {name}."],
        "background": {"name": "#7f7f7f", "rgb": [127, 127, 127]},
        "robustness": {"noise": {"kept": 8, "trials": 32}},
        "controls": {"flags": []},
        "top": {"image": top, "explanation": top[::-1]},
        **changes,
    }


def corner(share: float) -> np.ndarray:
    """A square in the upper left corner that takes so much of the image."""
    mask = np.zeros((SIDE, SIDE), bool)
    side = round(SIDE * share**0.5)
    mask[:side, :side] = True
    return mask


@pytest.fixture(scope="module")
def shown():
    """Seven photos: plain ones of several areas, one flagged, one with two masks, one that failed."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(130, 250, (7, SIDE, SIDE, 3), np.uint8)
    rows, columns = np.indices((SIDE, SIDE))
    ranking = -np.maximum(rows, columns) + 0.001 * rng.random((SIDE, SIDE))
    found = []
    for number, (label, area) in enumerate((("beagle", 0.25), ("ant", 0.04), ("cat", 0.09))):
        mask, name = corner(area), f"photos/{number}.png"
        curve = {"area": list(AREAS), "retention": [min(1.0, 2 * one) for one in AREAS]}
        one = record(name, label, mask, curve=curve)
        one["robustness"] = {"noise": {"kept": 8 * number, "trials": 32}}
        found.append(Shown(name, pixels[number], (Masked(one, mask, levels(mask, ranking)),)))
    mask = corner(0.16)
    flags = {"flags": ["the shape leaks"]}
    words = ["Kept.", "Flag: the shape leaks."]
    flagged = record(HOSTILE, "<b>bold</b>", mask, controls=flags, words=words, sufficient=False)
    found.append(Shown(HOSTILE, pixels[3], (Masked(flagged, mask),)))
    second = np.zeros((SIDE, SIDE), bool)
    second[:16, 32:48] = True
    two = [
        Masked(record("two.png", "dog", each, instance={"number": n, "count": 2}), each)
        for n, each in enumerate((corner(0.0625), second), 1)
    ]
    found.append(Shown("two.png", pixels[4], tuple(two)))
    found.append(Shown("broken.png", failure="broken.png: found no image"))
    return found


def write(folder: Path, shown, limit: int = 2**30) -> Path:
    files = ReportFiles(folder / "report.html", limit)
    for photo in shown:
        files.add(None if photo.pixels is None else encode_png(photo.pixels))
    return files.write(page([card(photo) for photo in shown], files.photos(), "tiny"))


@pytest.fixture(scope="module")
def report(shown, tmp_path_factory):
    return write(tmp_path_factory.mktemp("report"), shown)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if root else []
        )
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, report):
    """Opens a report; whatever is said on the console, asked of a network or popped up is an error."""
    amiss, contexts = [], []

    def say(said):
        if "willReadFrequently" not in said.text:  # that is of the tests, which read pixels back
            amiss.append(said.text)

    def open_(path=report, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(60_000)
        tab.on("console", say)
        tab.on("pageerror", lambda error: amiss.append(str(error)))
        tab.on("dialog", lambda popped: (amiss.append(popped.message), popped.dismiss()))
        tab.on("requestfailed", lambda request: amiss.append(request.url[:80]))
        tab.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "data:")) else amiss.append(request.url[:80])
            ),
        )
        tab.goto(path.as_uri())
        tab.wait_for_selector("canvas[data-drawn]")
        return tab

    yield open_
    for context in contexts:
        context.close()
    assert amiss == []


def labels(tab) -> list[str]:
    return tab.locator(".gallery strong").all_inner_texts()


def drawn(tab, selector: str, share: float) -> None:
    """Wait until the kept pixels take that share of a canvas."""
    tab.wait_for_function(
        f"([selector, share]) => Math.abs(({SHARE})(document.querySelector(selector)) - share) < 0.01",
        arg=[selector, share],
    )


KEPT = "dialog .kept canvas"


@pytest.mark.parametrize("limit", [2**30, 0], ids=["in the page", "beside it"])
def test_every_photo_is_drawn_without_a_network(opened, shown, tmp_path, limit):
    tab = opened(write(tmp_path, shown, limit))
    assert (tmp_path / "report-files").exists() == (limit == 0)
    tab.wait_for_function("() => document.querySelectorAll('canvas[data-drawn]').length === 5")
    assert labels(tab) == ["beagle", "ant", "cat", "<b>bold</b>", "dog", "broken.png"]
    assert tab.locator("#count").inner_text() == "6 photos"
    tab.locator(".open").first.click()
    tab.wait_for_function("() => document.querySelectorAll('dialog canvas[data-drawn]').length === 3")
    if limit:  # of a photo from a file no pixel can be read
        drawn(tab, KEPT, 0.25)
    assert not any(tab.locator(".picture").evaluate_all("all => all.map((one) => one.width < 100)"))


def test_an_address_on_a_network_is_refused(browser, report):
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(report.as_uri())
    refused = tab.evaluate(
        """() => new Promise((told) => {
          const found = [];
          addEventListener("securitypolicyviolation", (event) => {
            if (found.push(event.effectiveDirective) === 3) told(found.sort());
          });
          new Image().src = "http://127.0.0.1:9/x.png";
          fetch("http://127.0.0.1:9/x").catch(() => {});
          document.body.append(Object.assign(document.createElement("script"), {textContent: "x = 1"}));
        })"""
    )
    assert refused == ["connect-src", "img-src", "script-src-elem"]
    context.close()


def test_photos_that_did_not_come_along_are_told(browser, shown, tmp_path):
    path = write(tmp_path, shown, 0)
    (tmp_path / "report-files").rename(tmp_path / "elsewhere")
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(path.as_uri())
    tab.get_by_role("alert").wait_for()
    assert "must lie beside this file" in tab.get_by_role("alert").inner_text()
    context.close()


def test_filters_by_text_flag_failure_area_and_retention(opened):
    tab = opened()
    tab.get_by_label("Search").fill("photos/ A")
    assert labels(tab) == ["beagle", "ant", "cat"]
    tab.get_by_label("Search").fill("CAT")
    assert labels(tab) == ["cat"]
    assert tab.locator("#count").inner_text() == "1 of 6 photos"
    tab.get_by_label("Search").fill("nothing")
    assert labels(tab) == []
    tab.get_by_label("Search").fill("")
    for show, expected in (
        ("flagged", ["<b>bold</b>"]),
        ("not sufficient", ["<b>bold</b>"]),
        ("failed", ["broken.png"]),
    ):
        tab.get_by_label("Show", exact=True).select_option(label=show)
        assert labels(tab) == expected
    tab.get_by_label("Show", exact=True).select_option(label="all")
    tab.get_by_label("Area, at most").fill("7")
    assert labels(tab) == ["ant", "dog"]
    tab.get_by_label("Area, at most").fill("")
    tab.get_by_label("Kept, at least").fill("50")
    assert labels(tab) == ["cat"]


def test_sorts_and_keeps_what_failed_at_the_end(opened):
    tab = opened()
    sort = tab.get_by_label("Sort by")
    sort.select_option("area-up")
    assert labels(tab) == ["ant", "dog", "cat", "<b>bold</b>", "beagle", "broken.png"]
    sort.select_option("area-down")
    assert labels(tab) == ["beagle", "<b>bold</b>", "cat", "dog", "ant", "broken.png"]
    sort.select_option("retention-down")
    assert labels(tab) == ["cat", "ant", "<b>bold</b>", "dog", "beagle", "broken.png"]
    sort.select_option("label-up")
    assert labels(tab)[1:] == ["ant", "beagle", "cat", "dog", "broken.png"]


def test_kept_pixels_lie_on_the_background_that_is_chosen(opened):
    tab = opened()
    tab.get_by_role("radio", name="Kept pixels").check()
    tab.locator(".open").first.click()
    for name, colour in (("Black", [0, 0, 0]), ("White", [255] * 3), ("Gray", [127] * 3)):
        tab.locator("dialog").get_by_role("radio", name=name).check()
        for canvas in (KEPT, ".gallery canvas"):
            tab.wait_for_function(
                f"([canvas, colour]) => ({CORNER})(document.querySelector(canvas)).join() === colour",
                arg=[canvas, ",".join(map(str, colour))],
            )
        drawn(tab, KEPT, 0.25)
    tab.locator("dialog").get_by_role("radio", name="Photo, blurred").check()
    tab.wait_for_function(f"() => ({SHARE})(document.querySelector('{KEPT}')) > 0.9")  # of many colours
    tab.locator("dialog").get_by_label("Colour of the background").fill("#ff00ff")
    drawn(tab, KEPT, 0.25)
    assert tab.locator(KEPT).evaluate(CORNER) == [255, 0, 255]
    assert tab.locator("dialog").get_by_role("radio", name="Colour").is_checked()


def test_a_slider_moves_the_mask_along_its_curve(opened):
    tab = opened()
    tab.locator(".open").first.click()
    drawn(tab, KEPT, 0.25)
    slider = tab.get_by_role("slider", name="Move the mask")
    told = tab.locator("dialog output")
    assert told.inner_text().replace("\xa0", " ") == (
        "25 % of the pixels, the explanation: kept on 0 % of unseen backgrounds"
    )
    slider.focus()
    tab.keyboard.press("ArrowRight")
    drawn(tab, KEPT, 0.35)
    assert told.inner_text() == slider.get_attribute("aria-valuetext")
    assert "35" in told.inner_text() and "kept on 70" in told.inner_text()
    for _ in range(3):
        tab.keyboard.press("ArrowLeft")
    drawn(tab, KEPT, 0.1)
    tab.keyboard.press("Home")
    drawn(tab, KEPT, 0.01)
    tab.keyboard.press("Escape")
    tab.locator(".open").nth(3).click()
    assert tab.get_by_role("slider").count() == 0  # this one has no curve


def test_instances_are_switched_on_and_off(opened):
    tab = opened()
    tab.locator(".open").nth(4).click()
    assert tab.locator("dialog h3").all_inner_texts() == ["1 · dog", "2 · dog"]
    tab.locator("dialog").get_by_role("radio", name="Black").check()
    both = tab.locator("dialog .switches input")
    masks = "dialog .overlay canvas"
    before = tab.locator(masks).evaluate("(canvas) => canvas.toDataURL()")
    both.nth(1).uncheck()
    tab.wait_for_function(
        f"(before) => document.querySelector('{masks}').toDataURL() !== before", arg=before
    )
    halves = """() => {  // whether either half has bright pixels
      const canvas = document.querySelector("dialog .kept canvas"), { width } = canvas;
      const { data } = canvas.getContext("2d").getImageData(0, 0, width, canvas.height);
      const found = [0, 0];
      for (let at = 0; at < data.length; at += 4)
        if (data[at] > 125) found[+(at / 4 % width >= width / 2)]++;
      return found.map(Boolean).join(); }"""
    tab.wait_for_function(f"() => ({halves})() === 'true,false'")
    tab.keyboard.press("Escape")
    on_card = tab.locator(".gallery .switches input")
    assert [on_card.nth(i).is_checked() for i in range(2)] == [True, False]
    on_card.nth(0).uncheck()
    on_card.nth(1).check()
    tab.locator(".open").nth(4).click()
    assert [both.nth(i).is_checked() for i in range(2)] == [False, True]
    tab.wait_for_function(f"() => ({halves})() === 'false,true'")


def test_all_can_be_done_with_the_keyboard(opened):
    tab = opened()
    tab.get_by_label("Search").focus()
    for _ in range(40):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.className") == "open":
            break
    assert tab.evaluate("document.activeElement.matches('.open:focus-visible')")
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.querySelector('dialog').contains(document.activeElement)")
    assert tab.locator("#detail-title").inner_text() == "beagle"
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#detail-title").inner_text() == "ant"
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")  # nothing comes before the first
    assert tab.locator("#detail-title").inner_text() == "beagle"
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Escape")
    assert not tab.evaluate("document.querySelector('dialog').open")
    # The browser gives the focus back to the first card, and the page then moves it to this one.
    tab.wait_for_function("() => document.activeElement.innerText.includes('ant')")


def test_a_photo_opened_as_soon_as_another_is_closed_is_shown(opened):
    """The browser tells that a dialog is closed only later: then the next photo is already open."""
    tab = opened()
    tab.locator(".open").nth(1).click()
    tab.evaluate(
        """async () => {
          document.getElementById("close").click();
          document.querySelectorAll(".open")[4].click();
          await new Promise((done) => setTimeout(done, 100)); }"""
    )
    assert tab.locator("#detail-title").inner_text() == "dog"
    assert tab.locator("dialog h3").all_inner_texts() == ["1 · dog", "2 · dog"]


def test_everything_has_a_name_to_be_read_aloud(opened):
    tab = opened()
    tab.locator(".open").nth(4).click()
    unnamed = tab.evaluate(
        """() => [...document.querySelectorAll("input, select, button, fieldset, dialog, [role=img]")]
          .filter((one) => !(one.getAttribute("aria-label") || one.labels?.length
            || one.innerText?.trim() || one.querySelector("legend")
            || one.getAttribute("aria-labelledby")))
          .map((one) => one.outerHTML)"""
    )
    assert unnamed == []
    pictures = tab.evaluate(
        "[...document.querySelectorAll('canvas')]"
        ".every((one) => one.matches('[role=img], [aria-hidden]'))"
    )
    assert pictures
    depths = tab.evaluate(
        "[...document.querySelectorAll('dialog :is(h2, h3, h4)')].map((one) => +one.tagName[1])"
    )
    assert depths[0] == 2 and all(b - a <= 1 for a, b in pairwise(depths))
    assert tab.locator("html").get_attribute("lang") == "en"
    tab.keyboard.press("Escape")
    assert tab.get_by_role("button", name="dog").count() == 1
    assert tab.locator("#count").get_attribute("role") == "status"


def test_a_name_is_text_wherever_it_stands(opened):
    tab = opened()
    tab.get_by_label("Search").fill("onerror")
    assert labels(tab) == ["<b>bold</b>"]
    tab.locator(".open").click()
    assert tab.locator("#detail-name").inner_text() == HOSTILE
    assert tab.locator("#detail-title").inner_text() == "<b>bold</b>"
    assert tab.locator("img, b").count() == 0
    assert tab.locator("dialog .words .flag").inner_text() == "Flag: the shape leaks."


def test_the_top_classes_stand_side_by_side(opened):
    tab = opened()
    tab.locator(".open").first.click()
    tables = tab.locator("dialog table")
    assert tables.locator("caption").all_inner_texts() == [
        "Top classes of the photo",
        "Top classes of the kept pixels",
    ]
    assert tables.nth(0).locator("th").all_inner_texts() == ["beagle", "x"]
    assert tables.nth(1).locator("th").all_inner_texts() == ["x", "beagle"]
    assert tables.nth(1).locator(".target th").inner_text() == "beagle"


@pytest.mark.parametrize("width", [360, 390, 768])
def test_a_narrow_screen_needs_no_sideways_scrolling(opened, width):
    tab = opened(viewport={"width": width, "height": 800}, has_touch=True)
    wide = "(one) => one.scrollWidth - one.clientWidth"
    if width < 760:
        assert not tab.get_by_label("Sort by").is_visible()
        tab.get_by_role("button", name="Filter and sort").click()
    assert tab.get_by_label("Sort by").is_visible()
    assert tab.locator("html").evaluate(wide) == 0
    for place in (0, 3, 4):
        tab.locator(".open").nth(place).click()
        assert tab.locator("dialog").evaluate(wide) == 0
        tab.get_by_role("button", name="Close").click()


def test_it_is_dark_where_the_reader_wants_it_dark(opened):
    colours = [
        opened(color_scheme=scheme).evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        for scheme in ("light", "dark")
    ]
    assert colours == [
        ["rgb(255, 255, 255)", "rgb(23, 24, 26)"],
        ["rgb(18, 19, 20)", "rgb(236, 236, 238)"],
    ]


def test_of_many_photos_those_out_of_sight_cost_nothing(opened, shown, tmp_path):
    many = [replace(shown[0], name=f"{number}.png") for number in range(300)]
    tab = opened(write(tmp_path, many))
    tab.wait_for_timeout(200)
    assert tab.locator(".card").count() < 300
    assert tab.locator("canvas[data-drawn]").count() < 60
    tab.keyboard.press("End")
    tab.wait_for_function("() => document.querySelectorAll('.card').length > 60")
    tab.wait_for_function("() => document.querySelector('.gallery canvas').width === 1")
    assert tab.locator("#count").inner_text() == "300 photos"
