"""``amx plot``: what it draws of what was explained, what it says, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amx_jax.cli import parse
from amx_jax.config import preset
from amx_jax.data.explained import own_photo, read_pictures, read_records
from amx_jax.data.results import read_explanations
from tests.command import amx

BRIEF = ["--steps=6", "--trials=1", "--batch-size=2", "--candidates=8", "--controls=0"]
BRIEF += ["--generator=grid", "--grid=8", "--cell=8"]


@pytest.fixture(scope="module")
def made(tiny, explainers, photos, tmp_path_factory):
    """Three photos, one of them turned by EXIF and one large, explained by two methods."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("amx_jax.classifiers.registry.load_classifier", lambda *_: tiny)
        patch.setattr("amx_jax.explainer.Explainer", explainers)
        patch.setattr("amx_jax.lift.keep_compiled", lambda folder: None)
        image = Image.fromarray(photos[0]).resize((96, 64), Image.Resampling.BICUBIC)
        image.save("wide.png")
        exif = Image.Exif()
        exif[0x0112] = 6  # its top is at the right
        image.save("turned.png", exif=exif)
        Image.fromarray(photos[1]).resize((2000, 1500)).save("large.jpg", quality=90)
        names = ["wide.png", "turned.png", "large.jpg"]
        assert amx("explain", *names, "--output", "amx", "--curve", *BRIEF)[0] == 0
        asked = ["--output", "centre", "--method", "centre", "--no-prune", *BRIEF]
        assert amx("explain", *names[:2], *asked)[0] == 0
    return folder


@pytest.fixture
def folder(made, tiny, explainers, tmp_path, monkeypatch):
    """A copy of them, that may be spoilt."""
    monkeypatch.setattr("amx_jax.classifiers.registry.load_classifier", lambda *_: tiny)
    monkeypatch.setattr("amx_jax.explainer.Explainer", explainers)
    monkeypatch.setattr("amx_jax.lift.keep_compiled", lambda folder: None)
    monkeypatch.setenv("COLUMNS", "80")
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


HEADS = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}


@pytest.mark.parametrize("suffix", HEADS)
def test_a_grid_is_drawn_as_its_suffix_says(folder, suffix):
    assert amx("plot", "grid", "amx", "--output", f"new/grid.{suffix}") == (
        0,
        f"3 photos in new/grid.{suffix}\n",
        "",
    )
    assert Path(f"new/grid.{suffix}").read_bytes().startswith(HEADS[suffix])
    assert [path.name for path in Path("new").iterdir()] == [f"grid.{suffix}"]


def test_masks_are_drawn_over_the_photos_own_pixels_upright_and_no_finer_than_printed(folder):
    found = {place.name: read_pictures(place, record) for place, record in read_records("amx")}
    wide, turned = (own_photo(found[name], Path("amx"), 999) for name in ("wide", "turned"))
    assert wide[0].shape == (64, 96, 3) and turned[0].shape == (96, 64, 3)
    assert np.array_equal(np.rot90(wide[0], -1), turned[0])
    large, preprocess = own_photo(found["large"], Path("amx"), 500)
    assert large.shape == (375, 500, 3)
    mask = found["large"].mask
    laid = preprocess.uncrop(mask, (500, 375), False)
    # What the classifier would see of the kept pixels is what it saw of them.
    shown = preprocess.crop(Image.fromarray(np.where(laid[..., None], large, 0).astype(np.uint8)))
    inner = (
        mask & np.roll(mask, 2, 0) & np.roll(mask, -2, 0) & np.roll(mask, 2, 1) & np.roll(mask, -2, 1)
    )
    assert inner.any()
    assert np.abs(shown[inner].astype(int) - found["large"].pixels[inner]).mean() < 3


def test_single_photos_can_be_chosen_and_more_of_them_stand_side_by_side(folder):
    assert amx("plot", "grid", "amx/wide", "amx/large", "--output", "a.png")[1].startswith("2 photos")
    assert amx("plot", "grid", "amx/wide", "amx/large", "--output", "b.png", "--columns", 2)[0] == 0
    assert amx("plot", "grid", "amx/wide", "--output", "c.png", "--size", "input", "--dpi", 100)[0] == 0
    sizes = {}
    for name in "abc":
        with Image.open(f"{name}.png") as image:
            sizes[name] = image.size
    assert sizes["a"][0] == sizes["b"][0] == 2100 and sizes["c"][0] == 700
    assert sizes["a"][1] > 2 * sizes["b"][1]


@pytest.mark.parametrize("how", ["moved", "changed", "damaged", "unknown"])
def test_a_photo_that_is_not_what_it_was_is_drawn_from_the_input_and_that_is_said(folder, how, photos):
    index = Path("amx/explanations.json")
    if how == "moved":
        Path("wide.png").unlink()
    elif how == "changed":
        Image.fromarray(photos[3]).save("wide.png")
    elif how == "damaged":
        Path("wide.png").write_text("no image")
    else:
        records = json.loads(index.read_text())
        del records[0]["preprocess"]
        index.write_text(json.dumps(records))
    status, out, err = amx("plot", "grid", "amx", "--output", "grid.png")
    assert (status, out) == (0, "3 photos in grid.png\n")
    assert err.startswith("amx: wide.png: ") and err.count("\n") == 1
    assert err.endswith("; drawn from input.png, 32 × 32 pixels\n")
    assert amx("plot", "grid", "amx", "--output", "grid.png", "--size", "input")[2] == ""


def test_photos_are_found_from_another_folder_as_well(folder, monkeypatch):
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert amx("plot", "grid", "../amx", "--output", "grid.png") == (0, "3 photos in grid.png\n", "")


def test_methods_are_compared_on_the_photos_that_all_of_them_explained(folder):
    status, out, err = amx("plot", "methods", "amx", "centre", "--output", "methods.pdf")
    assert (status, out) == (1, "2 photos by 2 methods in methods.pdf\n")
    assert err == "amx: large.jpg: not explained in every folder; left out\n"
    asked = ["plot", "methods", "amx/wide", "centre/wide", "--output"]
    assert amx(*asked, "one.png") == (0, "1 photo by 2 methods in one.png\n", "")
    svg = [*asked, "one.svg", "--columns", "1"]
    assert amx(*svg)[0] == 0


def test_several_explanations_of_one_photo_are_not_dropped_silently(folder):
    several = ["--classes", "top2", "--sure", "0", "--output", "several"]
    assert amx("explain", "wide.png", *several, *BRIEF)[0] == 0
    assert len(read_explanations("several")) > 1
    status, _, err = amx("plot", "methods", "amx/wide", "several", "--output", "x.png")
    assert status == 2 and err.count("\n") == 1 and not Path("x.png").exists()
    assert "several: found several explanations of wide.png, expected one" in err


def test_explanations_of_different_decisions_are_not_compared(folder):
    label = read_explanations("amx")[0]["target"]["name"]
    other = "dog" if label != "dog" else "cat"
    assert amx("explain", "wide.png", "--target", other, "--output", "other", *BRIEF)[0] == 0
    status, _, err = amx("plot", "methods", "amx/wide", "other/wide", "--output", "x.png")
    assert status == 2 and err.count("\n") == 1
    assert "different decisions" in err and f"{other} (amx (other/wide))" in err
    assert not Path("x.png").exists()


def test_curves_of_photos_and_of_an_evaluation_are_drawn(folder):
    assert amx("plot", "curves", "amx", "--output", "all.svg")[:2] == (0, "3 photos in all.svg\n")
    assert amx("plot", "curves", "amx/wide", "--output", "one.pdf")[:2] == (0, "1 photo in one.pdf\n")
    curve = {"area": [0.1, 1.0], "retention": [0.5, 1.0]}
    records = [{"image": "cat", "method": method, "curve": curve} for method in ("amx", "rise")]
    Path("evaluated").mkdir()
    Path("evaluated/evaluation.json").write_text(json.dumps({"records": records, "summaries": []}))
    drawn = amx("plot", "curves", "evaluated", "--output", "methods.png", "--delta", "0.1")
    assert drawn == (0, "1 photo in methods.png\n", "")
    status, _, err = amx("plot", "curves", "centre", "--output", "none.png")
    assert status == 2 and "explain the photos with --curve" in err
    status, _, err = amx("plot", "curves", "evaluated", "amx", "--output", "none.png")
    assert status == 2 and "expected that alone" in err


def test_an_evolution_ends_with_the_mask_that_explain_finds(folder):
    arguments = ["plot", "evolution", "wide.png", *BRIEF, "--output"]
    assert amx(*arguments, "new/wide.gif") == (0, "4 masks of 6 steps in new/wide.gif\n", "")
    with Image.open("new/wide.gif") as gif:
        assert gif.n_frames == 4 and gif.height > 64
        gif.seek(3)
        last = np.asarray(gif.convert("RGB")).astype(int)
    found = read_pictures(Path("amx/wide"), read_explanations("amx")[0])
    photo, preprocess = own_photo(found, Path("amx"), 999)
    mask = preprocess.uncrop(found.mask, (96, 64), False)
    left = (last.shape[1] - 96) // 2
    drawn = last[:64, left : left + 96]
    assert np.abs(drawn - photo)[mask].mean() < 12  # of 256 colours
    assert np.abs(drawn - photo)[~mask].mean() > 40
    assert amx(*arguments, "row.png", "--columns", 3)[1].startswith("4 masks of 6 steps")


def test_an_evolution_takes_the_options_of_explain_and_its_presets():
    command = parse(["plot", "evolution", "a.png", "--output", "a.gif", "--preset", "paper"])
    assert command.config == preset("paper")
    command = parse(["plot", "evolution", "a.png", "--output", "a.gif", "--target", "dog", "--steps=9"])
    assert (command.target, command.config.steps) == ("dog", 9)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["grid", "amx", "--output", "x.jpg"], "x.jpg: found the suffix '.jpg', expected .png, .pdf"),
        (["grid", "amx", "--output", "x"], "x: found no suffix"),
        (["grid", "amx", "--output", "x.gif"], "found the suffix '.gif'"),
        (["grid", "--output", "x.png"], "found no folder, expected one that amx explain wrote"),
        (["grid", "nowhere", "--output", "x.png"], "nowhere/explanations.json: does not exist"),
        (["grid", ".", "--output", "x.png"], "found neither explanations.json nor explanation.json"),
        (
            ["grid", "amx", "--output", "x.png", "--columns", "0"],
            "columns: found 0, expected at least 1",
        ),
        (["grid", "amx", "--output", "x.png", "--dpi", "0"], "dpi: found 0"),
        (
            ["grid", "amx", "--output", "x.png", "--dpi", "99999"],
            "give more --columns or a lower --dpi",
        ),
        (["methods", "amx", "amx", "--output", "x.png"], "found the same folder twice"),
        (["methods", "amx", "centre", "--output", "x.png", "--columns", "2"], "expected at least 3"),
        (["methods", "amx/wide", "centre/turned", "--output", "x.png"], "no photo that all folders"),
        (["curves", "amx", "--output", "x.png", "--delta", "2"], "delta: found 2.0"),
        (["evolution", "gone.png", "--output", "x.gif"], "gone.png: does not exist"),
        (["evolution", "wide.png", "--output", "x.gif", "--every", "0"], "every: found 0"),
        (["evolution", "wide.png", "--output", "x.gif", "--method", "centre"], "expected amx"),
        (["evolution", "wide.png", "--output", "x.txt"], "expected .png, .pdf, .svg, .gif"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folder, arguments, told):
    status, out, err = amx("plot", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("amx: ") and told in err
    assert not [path for path in folder.iterdir() if path.stem == "x"]


@pytest.mark.parametrize("name", ["..", "../..", "/etc", "", 3])
def test_a_record_cannot_name_a_folder_elsewhere(folder, name):
    index = Path("amx/explanations.json")
    records = json.loads(index.read_text())
    records[1]["folder"] = name
    index.write_text(json.dumps(records))
    status, _, err = amx("plot", "grid", "amx", "--output", "x.png")
    assert status == 2 and "expected a plain name" in err


def test_an_instance_is_drawn_from_its_folder_within_its_photos(folder):
    index = Path("amx/explanations.json")
    records = json.loads(index.read_text())
    shutil.copytree("amx/wide", "second")
    Path("second").rename("amx/wide/2")
    records.append({**records[0], "folder": "wide/2"})
    index.write_text(json.dumps(records))
    status, _, err = amx("plot", "grid", "amx", "--output", "x.png")
    assert (status, err) == (0, "") and Path("x.png").exists()


@pytest.mark.parametrize("spoil", ["target", "area", "background", "notion"])
def test_damaged_records_and_pictures_are_told(folder, spoil):
    index = Path("amx/explanations.json")
    records = json.loads(index.read_text())
    records[0][spoil] = None
    index.write_text(json.dumps(records))
    status, _, err = amx("plot", "grid", "amx", "--output", "x.png")
    assert status == 2 and "amx/wide: found a record that lacks" in err and err.count("\n") == 1
    Path("centre/wide/mask.png").unlink()
    status, _, err = amx("plot", "grid", "centre", "--output", "x.png")
    assert status == 2 and "centre/wide/mask.png: cannot be read: No such file" in err


def test_every_help_fits_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for kind in ([], ["grid"], ["methods"], ["evolution"], ["curves"]):
        status, out, _ = amx("plot", *kind, "--help")
        assert status == 0 and max(map(len, out.splitlines())) <= 80
