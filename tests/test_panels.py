"""Figures for papers: the right pixels at the right places, captions that fit and tell the truth."""

import io

import numpy as np
import pytest
from PIL import Image

from amx_jax import Preprocess
from amx_jax.report.encode import encode_figure
from amx_jax.report.panels import (
    BLANK,
    Panel,
    Step,
    evolution_gif,
    evolution_strip,
    explanation_grid,
    fitted,
    method_strip,
    selected,
    sheet,
    shown,
)
from amx_jax.report.pictures import CONTOUR, PALEST

GEOMETRY = Preprocess(size=32, resize=32, mean=127.0, scale=128.0)


def record(name="espresso", area=0.0123, holds=True):
    return {
        "target": {"index": 1, "name": name},
        "probability": {"image": 0.95, "explanation": 0.07},
        "area": area,
        "notion": {"holds": holds},
        "background": {"rgb": [10, 20, 30]},
    }


@pytest.fixture
def photo(rng):
    """60 × 40 pixels, in colours that no background has."""
    return rng.integers(60, 200, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def one(photo):
    mask = np.zeros((32, 32), bool)
    mask[4:8, 12:20] = True
    pixels = GEOMETRY.crop(Image.fromarray(photo))
    return shown(record(), pixels, mask, photo, GEOMETRY)


def texts(figure):
    titles = [axes.get_title() for axes in figure.axes]
    return titles, [text.get_text() for text in figure.texts]


def test_the_pictures_are_of_the_photos_own_pixels(one, photo):
    whole, over, kept = one.pictures()
    assert one.photo.shape == whole.shape == over.shape == kept.shape == photo.shape
    assert one.mask.sum() / one.seen.sum() == pytest.approx(32 / 32**2, rel=0.1)
    for picture in (whole, over, kept):
        assert np.array_equal(picture[one.mask], photo[one.mask])
        assert (picture[~one.seen] >= 150).all()
        assert (picture[~one.seen] == picture[~one.seen][:, :1]).all()  # gray
    assert np.array_equal(whole[one.seen], photo[one.seen])
    assert (kept[one.seen & ~one.mask] == (10, 20, 30)).all()
    assert (over[one.seen & ~one.mask] == CONTOUR).all(axis=-1).any()
    assert np.array_equal(np.flatnonzero(one.seen.any(axis=0)), np.arange(10, 50))


def test_most_of_what_is_not_seen_is_paler_than_what_is_removed(one):
    outside = one.overlay()[~one.seen]
    assert (outside >= PALEST).mean() > 0.8


def test_without_the_photo_the_classifiers_input_is_drawn(one, photo):
    pixels = GEOMETRY.crop(Image.fromarray(photo))
    plain = shown(record(), pixels, np.eye(32, dtype=bool))
    assert plain.seen.all() and np.array_equal(plain.pictures()[0], pixels)
    gray = shown(record(), pixels[..., :1], np.eye(32, dtype=bool))
    assert gray.photo.shape == (32, 32, 3)


def test_a_grid_has_three_pictures_a_photo_with_what_was_found_below(one):
    figure = explanation_grid([one, one._replace(record=record(holds=False))])
    titles, captions = texts(figure)
    assert titles == ["photo", "overlay", "kept pixels", "", "", ""]
    first = ["espresso", "p(x) 0.95", "1.2 % of the pixels", "p(e) 0.07"]
    assert captions == [*first, *first[:3], "not enough", first[3]]
    for axes, picture in zip(figure.axes, 2 * one.pictures(), strict=True):
        assert np.array_equal(axes.images[0].get_array(), picture)
    assert len(explanation_grid([one] * 5, columns=2).axes) == 15


def test_pictures_and_captions_never_overlap_and_nothing_is_cut(one):
    wide = one._replace(photo=one.photo[:20], mask=one.mask[:20], seen=one.seen[:20])
    tall = one._replace(photo=one.photo[:, :20], mask=one.mask[:, :20], seen=one.seen[:, :20])
    long = one._replace(record=record("a name of a class that nobody would want to read " * 3))
    figure = explanation_grid([wide, tall, long, one], columns=2, dpi=100)
    renderer = figure.canvas.get_renderer() if hasattr(figure.canvas, "get_renderer") else None
    encode_figure(figure)
    boxes = [axes.get_window_extent(renderer) for axes in figure.axes]
    boxes += [text.get_window_extent(renderer) for text in figure.texts]
    boxes += [axes.title.get_window_extent(renderer) for axes in figure.axes if axes.get_title()]
    for index, box in enumerate(boxes):
        assert box.x0 >= -0.5 and box.y0 >= -0.5
        assert box.x1 <= figure.bbox.x1 + 0.5 and box.y1 <= figure.bbox.y1 + 0.5
        for other in boxes[:index]:
            apart = min(box.x1, other.x1) - max(box.x0, other.x0)
            below = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert apart <= 1 or below <= 1


@pytest.mark.parametrize("suffix", ["pdf", "svg"])
def test_vector_files_hold_the_photos_pixels_as_they_are(one, suffix):
    content = encode_figure(explanation_grid([one]), suffix)
    if suffix == "pdf":
        assert content.count(b"/Width 60") == content.count(b"/Height 40") >= 3
        assert b"/FontFile2" in content and b"/Type3" not in content
    else:
        import base64
        import re

        found = re.findall(rb"data:image/png;base64,([^\"]+)", content)
        pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) for png in found]
        assert len(pictures) == 3
        for picture, expected in zip(pictures, one.pictures(), strict=True):
            assert any(np.array_equal(way[..., :3], expected) for way in (picture, picture[::-1]))


def test_methods_stand_side_by_side_and_a_missing_one_leaves_a_gap(one):
    figure = method_strip([{"amx": one, "rise": one._replace(record=record(area=0.2))}])
    titles, captions = texts(figure)
    assert titles == ["photo", "amx", "rise"]
    assert captions[2:] == ["1.2 % of the pixels", "p(e) 0.07", "20.0 % of the pixels", "p(e) 0.07"]
    rows = method_strip([{"amx": one, "rise": one}, {"amx": one}])
    assert len(rows.axes) == 5
    wrapped = method_strip([{"amx": one, "rise": one, "ig": one}], columns=2)
    tops = [round(axes.get_position().y0, 3) for axes in wrapped.axes]
    assert tops[0] == tops[1] > tops[2] == tops[3]
    with pytest.raises(ValueError, match="columns: found 2 and 2 photos, expected at least 3"):
        method_strip([{"amx": one, "rise": one}] * 2, columns=2)


def steps(one, areas):
    found = []
    for number, kept in enumerate(areas):
        mask = np.zeros(one.mask.size, bool)
        mask[np.flatnonzero(one.seen)[: round(kept * one.seen.sum())]] = True
        found.append(Step(f"step {number}", one._replace(mask=mask.reshape(one.mask.shape))))
    return [*found[:-1], Step("pruned", found[-1].shown)]


def test_an_evolution_shows_the_first_the_last_two_and_falling_areas_between(one):
    run = steps(one, (1, 0.9, 0.9, 0.8, 0.5, 0.5, 0.35, 0.2, 0.2, 0.05))
    titles, captions = texts(evolution_strip(run, columns=5))
    assert titles[0] == "step 0" and titles[-2:] == ["step 8", "pruned"]
    assert captions[0] == "100 %" and captions[-1] == "5.0 %"
    areas = [float(caption.split()[0]) for caption in captions]
    assert areas == sorted(set(areas), reverse=True)
    assert [len(selected(run, count)) for count in (1, 2, 3, 9, 99)] == [1, 2, 3, 9, 10]


def test_a_gif_has_a_frame_a_step_and_the_last_two_stay(one):
    run = steps(one, (1, 0.5, 0.2, 0.05))
    with Image.open(io.BytesIO(evolution_gif(run))) as gif:
        assert gif.n_frames == 4 and gif.info["loop"] == 0
        times, frames = [], []
        for index in range(4):
            gif.seek(index)
            times.append(gif.info["duration"])
            frames.append(np.asarray(gif.convert("RGB")).astype(int))
    assert times[0] == times[1] < times[2] == times[3]
    # Pillow finds the nearest of 256 colours by six of their eight bits.
    assert (np.abs(frames[3] - CONTOUR).max(axis=-1) < 4).sum() > 10
    assert (frames[0][-1, 0] > 251).all()
    left = (frames[0].shape[1] - 60) // 2  # a caption may be wider than its picture
    for frame, step in zip(frames, run, strict=True):
        drawn = frame[:40, left : left + 60]
        assert np.abs(drawn - step.shown.overlay()).mean() < 12  # of 256 colours


def test_text_that_is_too_long_is_cut_to_its_width_and_never_read_as_markup(one):
    assert fitted("espresso", 2.0, 8.0) == "espresso"
    cut = fitted("x" * 500, 1.0, 8.0)
    assert cut.endswith("…") and 8 < len(cut) < 30
    assert fitted("two\nlines", 3.0, 8.0) == "'two\\nlines'"
    for name in ("$\\frac$", "100$", "a_b^c", "猫", "\x00", "<b>&amp;"):
        figure = explanation_grid([one._replace(record=record(name))])
        for suffix in ("png", "pdf", "svg"):
            assert encode_figure(figure, suffix)


@pytest.mark.parametrize("columns", [0, -1])
def test_nothing_to_draw_and_no_columns_are_refused(one, columns):
    with pytest.raises(ValueError, match="expected at least 1"):
        explanation_grid([one], columns)
    with pytest.raises(ValueError, match="expected at least 1"):
        evolution_strip(steps(one, (1, 0.5)), columns)
    for draw in (explanation_grid, method_strip, evolution_strip, evolution_gif):
        with pytest.raises(ValueError, match="expected at least"):
            draw([])


def test_a_sheet_is_seven_inches_wide_and_as_high_as_it_must_be(one):
    panel = Panel(one.photo, ("below",))
    low, high = sheet([panel] * 3, 3), sheet([panel] * 6, 3)
    assert low.get_size_inches()[0] == high.get_size_inches()[0] == 7
    assert high.get_size_inches()[1] == pytest.approx(2 * low.get_size_inches()[1], rel=0.05)
    assert len(sheet([panel, BLANK, panel], 3).axes) == 2
