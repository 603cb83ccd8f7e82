"""Plots: files that can be read, lines that can be told apart, and a pixel where a value is."""

import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from amx_jax.report.encode import encode_figure
from amx_jax.report.plots import COLOURS, DASHES, area_plot, retention_plot, sufficiency_plot

AREAS = np.geomspace(0.01, 1, 9)
FULL = np.ones(9)


def pixels(figure):
    with Image.open(io.BytesIO(encode_figure(figure))) as image:
        assert image.format == "PNG"
        return np.array(image.convert("RGB")).astype(int)


def where(picture, colour):
    """Rows and columns of the pixels of a colour."""
    rgb = np.round(255 * np.array(to_rgb(colour)))
    return np.nonzero(np.abs(picture - rgb).max(axis=-1) <= 3)


def test_a_picture_has_one_size_whatever_it_shows():
    many = {f"a rather long name of a method {i}": (AREAS, FULL * i / 20) for i in range(16)}
    for figure in (
        retention_plot({"amx": (AREAS, FULL)}, "title"),
        retention_plot(many, "title", delta=0.1),
        sufficiency_plot(AREAS, FULL, FULL / 2, (0.1, 1.0), 0.1, "title"),
        sufficiency_plot(AREAS, FULL),
    ):
        assert pixels(figure).shape == (630, 1125, 3)


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_the_same_curves_give_the_same_bytes(suffix):
    def draw():
        plot = retention_plot({"amx": (AREAS, AREAS), "rise": (AREAS, FULL)}, "title", 0.1)
        return encode_figure(plot, suffix)

    assert draw() == draw()


def test_a_higher_curve_is_drawn_higher_by_as_much():
    def height(level):
        rows, columns = where(
            pixels(retention_plot({"amx": (AREAS, level * FULL)}, "title")), COLOURS[0]
        )
        return np.median(rows[columns < 700])  # the key lies to the right

    zero, half, one = height(0), height(0.5), height(1)
    assert zero - half == pytest.approx(half - one, abs=1.5)
    assert zero - one > 400


def test_twice_the_area_is_always_as_far_to_the_right():
    def column(area):
        picture = pixels(sufficiency_plot(AREAS, FULL, certified=(area, 0.3)))
        rows, columns = where(picture, COLOURS[1])
        return np.median(columns[rows > 200])  # the key lies above

    steps = np.diff([column(area) for area in (0.1, 0.2, 0.4, 0.8)])
    assert steps == pytest.approx(np.full(3, steps.mean()), abs=1.5) and steps.mean() > 50


def test_the_dashed_line_is_at_one_minus_delta():
    curves = {"amx": (AREAS, 0.9 * FULL)}
    plain, dashed = (
        pixels(retention_plot(curves, "", delta))[:540, 100:700]  # without axes and key
        for delta in (None, 0.4)
    )
    rows = np.flatnonzero((np.abs(plain - dashed).max(axis=-1) > 60).mean(axis=1) > 0.3)
    level, _ = where(pixels(retention_plot({"amx": (AREAS, 0.6 * FULL)}, ""))[:, 100:700], COLOURS[0])
    assert rows.size and np.abs(rows - np.median(level)).max() <= 2


def test_what_is_between_the_bound_and_the_retention_is_shaded():
    tint = 1 - 0.2 * (1 - np.array(to_rgb(COLOURS[0])))

    def height(bounds):
        rows, _ = where(pixels(sufficiency_plot(AREAS, FULL * 0.8, bounds))[:, :700], tint)
        return np.sum(np.bincount(rows) > 300)

    assert height(None) == 0 and height(FULL * 0.6) > 80
    assert height(FULL * 0.4) == pytest.approx(2 * height(FULL * 0.6), abs=12)


def test_no_two_of_the_first_35_lines_look_the_same():
    looks = {(COLOURS[i % len(COLOURS)], str(DASHES[i % len(DASHES)])) for i in range(35)}
    assert len(looks) == 35


def test_lines_differ_in_lightness_from_the_white_below_them():
    for colour in COLOURS:
        linear = np.array(to_rgb(colour)) ** 2.2
        assert 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05) > 2  # yellow: 1.3


def test_gaps_single_points_empty_masks_and_odd_names_are_drawn():
    nan = np.where(np.arange(9) < 4, np.nan, 0.5)
    curves = {
        "gap": (AREAS, nan),
        "none": (np.array([]), np.array([])),
        "all nan": (AREAS, np.full(9, np.nan)),
        "point": (np.array([0.2]), np.array([0.25])),
        "empty mask": (np.array([0.0, 0.2]), np.array([0.0, 1.0])),
        "$\\frac$": (AREAS, FULL),
        "猫": (AREAS, FULL),
    }
    picture = pixels(retention_plot(curves, "a $ and \\frac{ and 猫"))
    assert where(picture[:, :600], COLOURS[3])[0].size > 20  # a point has a marker
    only_empty = sufficiency_plot(np.zeros(2), np.zeros(2), np.zeros(2), (0.0, 0.0))
    assert pixels(only_empty).shape == (630, 1125, 3)


@pytest.mark.parametrize(
    ("areas", "retention", "complaint"),
    [
        ([0.1, 0.2], [0.5], "expected two"),
        ([[0.1]], [[0.5]], "expected two"),
        ([10.0], [0.5], "outside"),
        ([0.1], [-0.5], "outside"),
    ],
)
def test_curves_that_are_none_are_refused(areas, retention, complaint):
    with pytest.raises(ValueError, match=f"amx: .*{complaint}"):
        retention_plot({"amx": (areas, retention)}, "title")
    with pytest.raises(ValueError, match=complaint):
        sufficiency_plot(areas, retention)


def test_no_curves_and_bounds_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="found none"):
        retention_plot({}, "title")
    with pytest.raises(ValueError, match="bounds"):
        sufficiency_plot(AREAS, FULL, FULL[1:])
    with pytest.raises(ValueError, match="certified"):
        sufficiency_plot(AREAS, FULL, certified=(0.1, 97.0))


def test_pyplot_stays_unloaded_and_matplotlib_until_it_is_needed():
    script = """
import sys
from amx_jax.report.encode import encode_figure
from amx_jax.report.plots import retention_plot
assert "matplotlib" not in sys.modules
for suffix in ("png", "pdf", "svg"):
    encode_figure(retention_plot({"amx": ([0.1, 0.2], [0.5, 1.0])}, "title"), suffix)
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_pdf_has_its_fonts_in_it_as_truetype_and_an_svg_needs_none():
    plot = retention_plot({"amx": (AREAS, FULL)}, "δ and a title")
    pdf = encode_figure(plot, "pdf")
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf
    svg = encode_figure(plot, "svg")
    assert b"<text" not in svg and b"font-family" not in svg


def test_another_kind_of_file_is_refused():
    with pytest.raises(ValueError, match="suffix: found 'jpg', expected png, pdf, svg"):
        encode_figure(retention_plot({"amx": (AREAS, FULL)}, ""), "jpg")


def test_a_histogram_of_areas_has_bars_as_high_as_their_counts():
    areas = np.r_[np.full(30, 0.01), np.full(10, 0.1), np.full(25, 0.5)]
    _, columns = where(pixels(area_plot(areas, "$a_b$")), COLOURS[0])
    heights, widths = np.unique(np.bincount(columns), return_counts=True)
    bars = heights[(heights > 0) & (widths > 8)]  # not a bar's edge, nor where the median crosses it
    assert bars / bars.max() * 30 == pytest.approx([10, 25, 30], abs=0.3)


def test_photos_are_counted_in_whole_numbers():
    [axes] = area_plot(np.array([0.04, 0.1, 0.1, 0.3]), "four photos").axes
    ticks = axes.get_yticks()
    assert len(ticks) > 1 and (ticks == np.round(ticks)).all()


def test_a_histogram_of_nothing_is_refused():
    with pytest.raises(ValueError, match="areas: found none"):
        area_plot(np.array([]), "none")
