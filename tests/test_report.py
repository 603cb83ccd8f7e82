"""A report holds what was found, of every photo, and nothing that a name can turn into code."""

import base64
import dataclasses
import json
import re
import shutil
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amx_jax import Config
from amx_jax.data import shards
from amx_jax.data.photos import find_photos
from amx_jax.data.report_files import ReportFiles
from amx_jax.data.results import read_explanations, write_index
from amx_jax.data.shown import Shown, of_explained
from amx_jax.errors import OutputError
from amx_jax.evaluate.curves import AREAS, levels, nested_masks
from amx_jax.report.page import card, page
from amx_jax.report.pictures import decode_png, encode_png, overlay
from tests.command import amx

BRIEF = ["--steps=2", "--trials=1", "--batch-size=2", "--candidates=8"]
BRIEF += ["--generator=grid", "--grid=8", "--cell=8", "--quiet"]
HOSTILE = "</script><script>alert(1)</script>.png"


@pytest.fixture
def small(tiny, explainers, monkeypatch, tmp_path):
    """The command with a classifier that costs nothing, in a folder of its own."""
    monkeypatch.setattr("amx_jax.classifiers.registry.load_classifier", lambda *_: tiny)
    monkeypatch.setattr("amx_jax.explainer.Explainer", explainers)
    monkeypatch.setattr("amx_jax.runner.Explainer", explainers)
    monkeypatch.setattr("amx_jax.lift.keep_compiled", lambda folder: None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def explained(small, photos):
    """The output folder of two photos with curves, one of a hostile name."""
    for photo, name in zip(photos, ("cat.png", HOSTILE), strict=False):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(name)
    assert amx("explain", "cat.png", HOSTILE, "--output", "out", "--curve", *BRIEF)[0] == 0
    return Path("out")


class Scripts(HTMLParser):
    """The text of each script of a page by its id, and the tags that the page consists of."""

    def __init__(self, text: str):
        super().__init__()
        self.found, self.tags, self._id = {}, [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._id = dict(attributes).get("id", "") if tag == "script" else None

    def handle_endtag(self, tag):
        self._id = None

    def handle_data(self, data):
        if self._id is not None:
            self.found[self._id] = self.found.get(self._id, "") + data


def cards_in(path: Path) -> list[dict]:
    return json.loads(Scripts(path.read_text()).found["cards"])


def unpacked(text: str, shape) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(shape)


# --- what is in it --------------------------------------------------------------------------------


def test_a_page_holds_each_photo_mask_curve_and_word(explained, photos):
    assert amx("report", explained) == (0, "report in out/report.html\n", "")
    text = (explained / "report.html").read_text()
    found = Scripts(text).found
    cards, records = json.loads(found["cards"]), read_explanations(explained)
    assert [one["name"] for one in cards] == [record["image"] for record in records]
    for index, (one, record) in enumerate(zip(cards, records, strict=True)):
        [mask] = one["masks"]
        folder = explained / record["folder"]
        saved = np.asarray(Image.open(folder / "mask.png")) == 255
        assert np.array_equal(unpacked(mask["mask"], saved.shape) == 1, saved)
        nested = np.asarray(Image.open(folder / "levels.png"))
        assert np.array_equal(unpacked(mask["levels"], saved.shape), nested)
        for name in ("target", "area", "probability", "words", "top", "curve"):
            assert mask[name] == record[name]
        kinds = record["robustness"].values()
        assert mask["retention"] == sum(k["kept"] for k in kinds) / sum(k["trials"] for k in kinds)
        photo = found[f"photo-{index}"].removeprefix("data:image/png;base64,")
        assert np.array_equal(decode_png(base64.b64decode(photo)), photos[index])


def test_levels_are_the_nested_masks(photos, rng):
    mask, ranking = rng.random((20, 30)) < 0.1, rng.normal(size=(20, 30))
    found = levels(mask, ranking)
    for index, nested in enumerate(nested_masks(mask, ranking)):
        assert np.array_equal(found <= index, nested)
    assert found.dtype == np.uint8 and found.max() == len(AREAS) - 1


def test_no_name_ends_a_script_or_begins_a_tag(explained):
    amx("report", explained)
    text = (explained / "report.html").read_text()
    assert HOSTILE not in text and "<script>alert" not in text
    ordinary = page([card(Shown("cat.png", failure="gone"))], [None], "tiny")
    assert set(Scripts(text).tags) == set(Scripts(ordinary).tags)
    assert Scripts(text).tags.count("script") == Scripts(ordinary).tags.count("script") + 2  # photos


@pytest.mark.parametrize("name", ["<!-- <script>", "]]>", "'\"&amp;", "\u2028", "caf\udce9", "{{ 1 }}"])
def test_every_name_comes_out_as_it_was(name, tmp_path):
    files = ReportFiles(tmp_path / "report.html")
    files.add(None)
    text = page([card(Shown(name, failure=name))], files.photos(), name.replace("\udce9", ""))
    files.write(text)
    [one] = cards_in(tmp_path / "report.html")
    assert (one["name"], one["failure"]) == (name, name)
    assert ("<!--" not in text and name != "{{ 1 }}") or "{{ 1 }}" in text


def test_its_own_policy_forbids_every_address(explained):
    amx("report", explained)
    text = (explained / "report.html").read_text()
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    rules = dict(rule.split(" ", 1) for rule in policy.replace("&#39;", "'").split("; "))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    assert set(rules) == {
        *("default-src", "img-src", "script-src", "style-src", "base-uri", "form-action")
    }
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)


# --- several masks of one photo -------------------------------------------------------------------


def second_mask(folder: Path, place: int = 0) -> dict:
    """Add another explanation of one photo, as of its second instance."""
    records = read_explanations(folder)
    first = records[place]
    (folder / first["folder"] / "2").mkdir()
    for picture in (folder / first["folder"]).glob("*.png"):
        shutil.copy(picture, folder / first["folder"] / "2")
    other = {**first, "folder": f"{first['folder']}/2", "instance": {"number": 2, "count": 2}}
    mask = np.zeros((32, 32), np.uint8)
    mask[:8, :8] = 255
    Image.fromarray(mask).save(folder / other["folder"] / "mask.png")
    write_index(folder, [*records, other])
    return other


def test_masks_of_one_photo_share_its_card(explained):
    other = second_mask(explained)
    cards = [card(photo) for photo in of_explained(explained)]
    assert [len(one["masks"]) for one in cards] == [2, 1]
    assert cards[0]["masks"][1]["instance"] == other["instance"]
    assert cards[0]["masks"][0]["instance"] is None
    assert unpacked(cards[0]["masks"][1]["mask"], (32, 32)).sum() == 64


# --- what is amiss --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("mask.png", None, "mask.png: cannot be read: No such file"),
        ("input.png", b"no picture", "input.png: cannot be read: found damaged data"),
        ("levels.png", None, "levels.png: cannot be read"),
        (
            "mask.png",
            encode_png(np.zeros((8, 8), np.uint8)),
            "found a picture (8, 8), expected (32, 32)",
        ),
    ],
)
def test_a_photo_whose_pictures_are_amiss_fails_alone(explained, name, content, told):
    path = explained / "cat" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert amx("report", explained)[0] == 0
    bad, good = cards_in(explained / "report.html")
    assert told in bad["failure"] and bad["masks"] == []
    assert good["failure"] is None


@pytest.mark.parametrize("folder", ["../secret", "/etc", "a/../../b", "", None, 7, "a\0b"])
def test_a_record_points_nowhere_but_into_its_own_folder(explained, folder):
    records = read_explanations(explained)
    records[0]["folder"] = folder
    write_index(explained, records)
    status, out, err = amx("report", explained)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1 and "found a record without its folder" in err


@pytest.mark.parametrize("name", ["image", "words", "target", "robustness", "controls", "area"])
def test_a_record_of_another_form_is_told(explained, name):
    records = read_explanations(explained)
    records[1][name] = None
    write_index(explained, records)
    status, out, err = amx("report", explained)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1 and f"found a record without its {name}," in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "nowhere: found neither explanations.json nor a run"),
        (["photos"], "photos: found neither explanations.json nor a run"),
        (["out", "--output", "."], ".: found a folder, expected a file"),
        (["out", "--output", "missing/report.html"], "missing/report.html: cannot be written"),
        (["out", "--first", "-1"], "first: found -1, expected at least 0"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(explained, arguments, told):
    status, out, err = amx("report", *arguments)
    assert (status, out) == (2, "")
    assert told in err and len(err.splitlines()) == 1


def test_explain_writes_the_report_of_what_it_explained(small, photos):
    Image.fromarray(photos[0]).save("cat.png")
    assert amx("explain", "cat.png", "--report", *BRIEF) == (0, "", "")
    [one] = cards_in(Path("amx-explanations/report.html"))
    assert one["name"] == "cat.png" and one["masks"][0]["levels"] is None
    Path("amx-explanations/report.html").unlink()
    Path("amx-explanations/report.html").mkdir()
    status, _, err = amx("explain", "cat.png", "--report", *BRIEF)
    assert status == 1
    assert err.startswith("amx: amx-explanations/report.html: cannot be written")


# --- many photos ----------------------------------------------------------------------------------


def test_photos_lie_beside_the_page_where_they_are_too_many(explained, photos, monkeypatch):
    output = Path("a page #1.html")
    monkeypatch.setattr(
        "amx_jax.report_command.ReportFiles", lambda path: ReportFiles(path, limit=3000)
    )
    assert amx("report", explained, "--output", output)[0] == 0
    found = Scripts(output.read_text()).found
    names = sorted(path.name for path in Path("a page #1-files").iterdir())
    addresses = [found[f"photo-{index}"] for index in range(2)]
    assert sorted(address.removeprefix("a%20page%20%231-files/") for address in addresses) == names
    for address, photo in zip(addresses, photos, strict=False):
        saved = Path("a page #1-files", address.rpartition("/")[2])
        assert np.array_equal(decode_png(saved.read_bytes()), photo)
    assert not {path.parent.name for path in find_photos(["."])[0]} & {"a page #1-files"}

    Path("a page #1-files/notes.txt").write_text("mine")
    assert amx("report", explained, "--output", output, "--first", "1")[0] == 0
    assert [path.name for path in Path("a page #1-files").iterdir()] == ["notes.txt"]


def test_a_photo_that_comes_twice_has_one_file(tmp_path):
    files = ReportFiles(tmp_path / "report.html", limit=0)
    for photo in (b"cat", b"cat", None, b"dog"):
        files.add(photo)
    first, second, nothing, other = files.photos()
    assert first == second != other and nothing is None
    assert len(list((tmp_path / "report-files").iterdir())) == 2


def test_an_older_page_keeps_its_photos_until_the_new_one_is_there(tmp_path):
    old = ReportFiles(tmp_path / "report.html", limit=0)
    old.add(b"cat")
    old.write("old")
    new = ReportFiles(tmp_path / "report.html", limit=0)
    new.add(b"dog")
    assert len(list((tmp_path / "report-files").iterdir())) == 2
    new.write("new")
    [left] = (tmp_path / "report-files").iterdir()
    assert left.read_bytes() == b"dog"


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "report-files").write_text("in the way")
    files = ReportFiles(tmp_path / "report.html", limit=0)
    with pytest.raises(OutputError, match="report-files: cannot be made"):
        files.add(b"cat")


# --- of a run -------------------------------------------------------------------------------------

EXPERIMENT = """
from amx_jax import Config
from amx_jax.experiment import Experiment

experiment = Experiment(
    data="photos",
    config=Config(generator="grid", grid=8, stages=(), steps=6, cell=8, trials=2, batch_size=2,
                  controls=0),
)
"""


@pytest.fixture
def run(small, photos):
    """The output folder of a run over three photos, one of them broken."""
    Path("photos").mkdir()
    for index in range(2):
        Image.fromarray(photos[index]).save(f"photos/{index}.png")
    Path("photos/broken.png").write_bytes(b"no image")
    Path("experiment.py").write_text(EXPERIMENT)
    assert amx("run", "experiment.py", "--output", "out", "--quiet")[0] == 1
    return Path("out")


def test_a_run_has_a_page_of_its_photos_read_again(run, photos):
    assert amx("report", run)[0] == 0
    found = Scripts((run / "report.html").read_text()).found
    first, second, broken = sorted(json.loads(found["cards"]), key=lambda one: one["name"])
    assert (first["name"], second["name"], broken["name"]) == ("0.png", "1.png", "broken.png")
    assert "found no image" in broken["failure"]
    rows = {row["id"]: row for path in run.glob("*.parquet") for row in shards.read_rows(path)}
    for index, one in enumerate((first, second)):
        row, [mask] = rows[one["name"]], one["masks"]
        assert np.array_equal(unpacked(mask["mask"], (32, 32)) == 1, shards.mask_of(row["mask"]))
        assert " ".join(mask["words"]) == row["words"]
        place = next(i for i, c in enumerate(json.loads(found["cards"])) if c["name"] == one["name"])
        photo = found[f"photo-{place}"].removeprefix("data:image/png;base64,")
        assert np.array_equal(decode_png(base64.b64decode(photo)), photos[index])


def test_photos_of_a_run_that_are_elsewhere_or_gone_are_told(run):
    Path("photos").rename("moved")
    status, _, err = amx("report", run)
    assert status == 2 and "photos: does not exist" in err
    Path("moved/1.png").unlink()
    assert amx("report", run, "--data", "moved")[0] == 0
    by_name = {one["name"]: one for one in cards_in(run / "report.html")}
    assert by_name["0.png"]["failure"] is None
    assert by_name["1.png"]["failure"] == "found no photo of this name any more; say where with --data"


def test_another_classifier_than_the_run_had_is_refused(run, tiny, monkeypatch):
    params = {**tiny.params, "bias": tiny.params["bias"] + 1}
    other = dataclasses.replace(tiny, params=params)
    monkeypatch.setattr("amx_jax.classifiers.registry.load_classifier", lambda *_: other)
    status, _, err = amx("report", run)
    assert status == 2
    assert "weights: found sha256:" in err and "give their file with --weights" in err


# --- in a notebook --------------------------------------------------------------------------------


def test_a_notebook_shows_pictures_and_words(explainers, tiny, photos):
    config = Config(
        generator="grid", grid=8, stages=(), steps=2, cell=8, trials=1, batch_size=2, candidates=8
    )
    [found] = explainers(tiny, config)([photos[0]])
    text = found._repr_html_()
    pictures = [decode_png(base64.b64decode(data)) for data in re.findall(r'base64,([^"]*)"', text)]
    assert np.array_equal(pictures[0], overlay(photos[0], found.mask))
    assert np.array_equal(pictures[1][found.mask], photos[0][found.mask])
    for said in found.record("")["words"]:
        assert said in text
    hostile = dataclasses.replace(found, label="<script>alert(1)</script>\"'")
    assert "<script" not in hostile._repr_html_()
    assert "&lt;script&gt;" in hostile._repr_html_()
