"""Results out: what is on the disk is whole, strict, and what was given."""

import contextlib
import csv
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from amx_jax.data.results import (
    check_output,
    read_evaluation,
    read_explanations,
    write_evaluation,
    write_explanation,
    write_index,
)
from amx_jax.errors import OutputError

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


@contextlib.contextmanager
def small_files_only(limit: int = 2000):
    """A disk that is full after ``limit`` bytes of any one file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def message_of(action, *arguments) -> str:
    with pytest.raises(OutputError) as caught:
        action(*arguments)
    message = str(caught.value)
    assert "\n" not in message and message.isprintable()
    return message


# --- the output folder ----------------------------------------------------------------------------


def test_the_output_folder_is_made_with_its_parents_and_left_empty(tmp_path):
    assert check_output(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []
    assert check_output(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"


def test_what_is_in_the_output_folder_stays(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    check_output(tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_an_output_folder_that_is_a_file_or_below_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below" / "deep"):
        message = message_of(check_output, path)
        assert message.startswith(f"{tmp_path}/file: found a file, expected a folder")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("path", ["/proc", "/proc/amx", "/proc/two\nlines"])
def test_an_output_folder_that_takes_no_files_even_from_root_is_refused(path):
    assert ": cannot be written: " in message_of(check_output, path)


def test_an_output_folder_without_permission_is_refused(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        message = message_of(check_output, tmp_path / "locked")
    finally:
        if root:
            os.seteuid(0)
    assert "locked: cannot be written: Permission denied" in message


def test_output_paths_no_folder_can_have_are_refused(tmp_path):
    assert "cannot be written" in message_of(check_output, "a\0b")
    assert "found an empty path" in message_of(check_output, "")
    assert "cannot be written" in message_of(check_output, tmp_path / ("x" * 300))
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "far")
    assert "found a file" in message_of(check_output, tmp_path / "link")


# --- one explanation ------------------------------------------------------------------------------


def test_an_explanation_is_its_pictures_and_its_record(tmp_path):
    mask = np.where(NOISE[..., 0] > 127, 255, 0).astype(np.uint8)
    record = {"image": "photos/猫.png", "area": 0.25, "label": "tabby cat", "target": None}
    target = write_explanation(tmp_path, "cat", {"overlay": NOISE, "mask": mask}, record)
    assert target == tmp_path / "cat"
    assert set(contents(tmp_path)) == {"cat/overlay.png", "cat/mask.png", "cat/explanation.json"}
    with Image.open(target / "overlay.png") as image:
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), NOISE)
    with Image.open(target / "mask.png") as image:
        assert image.mode == "L" and np.array_equal(np.asarray(image), mask)
    text = (target / "explanation.json").read_text(encoding="utf-8")
    assert json.loads(text) == record
    assert text.startswith('{\n  "image": "photos/猫.png",\n  "area": 0.25,')
    assert text.endswith("}\n")


def test_the_same_explanation_gives_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        write_explanation(tmp_path / folder, "cat", {"overlay": NOISE}, {"b": 1, "a": [1.5, None]})
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_results_are_readable_by_whom_the_user_lets_read(tmp_path):
    before = os.umask(0o022)
    try:
        target = write_explanation(tmp_path, "cat", {"mask": NOISE}, {})
        index = write_index(tmp_path, [])
    finally:
        os.umask(before)
    assert target.stat().st_mode & 0o777 == 0o755
    for file in (*target.iterdir(), index):
        assert file.stat().st_mode & 0o777 == 0o644


def test_an_older_result_is_replaced_and_foreign_files_stay(tmp_path):
    write_explanation(tmp_path, "cat", {"mask": NOISE}, {"run": 1})
    (tmp_path / "cat" / "notes.txt").write_text("mine")
    (tmp_path / "cat" / "sub").mkdir()
    (tmp_path / "cat" / "sub" / "more.txt").write_text("mine too")
    write_explanation(tmp_path, "cat", {"mask": 255 - NOISE}, {"run": 2})
    found = contents(tmp_path)
    assert found.pop("cat/notes.txt") == b"mine" and found.pop("cat/sub/more.txt") == b"mine too"
    write_explanation(tmp_path / "fresh", "cat", {"mask": 255 - NOISE}, {"run": 2})
    assert found == contents(tmp_path / "fresh")


def test_a_folder_the_user_made_receives_the_result(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "dog").symlink_to(tmp_path / "elsewhere")
    for stem in ("cat", "dog"):
        write_explanation(tmp_path, stem, {"mask": NOISE}, {})
    assert (tmp_path / "cat" / "mask.png").is_file()
    assert (tmp_path / "elsewhere" / "mask.png").is_file()


def test_a_full_disk_leaves_nothing_of_a_new_result_and_all_of_an_old_one(tmp_path):
    small = np.zeros((2, 2), np.uint8)
    write_explanation(tmp_path, "old", {"mask": small}, {"run": 1})
    before = contents(tmp_path)
    for stem in ("old", "new"):
        with small_files_only():
            message = message_of(
                write_explanation, tmp_path, stem, {"mask": small, "overlay": NOISE}, {"run": 2}
            )
        assert message.startswith(f"{tmp_path}/{stem}: cannot be written: ")
        assert "choose another output folder" in message
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_file_in_the_place_of_the_result_is_refused_and_kept(tmp_path):
    (tmp_path / "cat").write_text("mine")
    assert f"{tmp_path}/cat" in message_of(write_explanation, tmp_path, "cat", {"mask": NOISE}, {})
    assert contents(tmp_path) == {"cat": b"mine"}


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../cat", "/tmp/cat"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    folder = tmp_path / "out"
    folder.mkdir()
    assert repr(name) in message_of(write_explanation, folder, name, {}, {})
    assert repr(name) in message_of(write_explanation, folder, "cat", {name: NOISE}, {})
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((4, 4)),
        np.zeros((4, 4), bool),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_pictures_of_another_kind_are_refused_before_anything_is_written(tmp_path, picture):
    with pytest.raises(ValueError, match="picture 'mask' is"):
        write_explanation(tmp_path, "cat", {"fine": NOISE, "mask": picture}, {})
    assert contents(tmp_path) == {}


WRITER = """
import sys
import numpy as np
from amx_jax.data.results import write_explanation, write_index
while True:
    for run in (0, 1):
        picture = np.full((300, 300, 3), 255 * run, np.uint8)
        pictures = {"mask": picture, "overlay": picture}
        write_explanation(sys.argv[1], "cat", pictures, {"run": run})
        write_index(sys.argv[1], [{"run": run}] * 500)
"""


def test_a_reader_or_a_killed_writer_never_finds_half_a_file(tmp_path):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
    index = tmp_path / "explanations.json"

    def everything_is_whole():
        records = read_explanations(tmp_path)
        assert len(records) == 500 and len({record["run"] for record in records}) == 1
        assert json.loads((tmp_path / "cat" / "explanation.json").read_bytes())["run"] in (0, 1)
        for name in ("mask", "overlay"):
            with Image.open(tmp_path / "cat" / f"{name}.png") as image:
                assert image.getextrema() in [((0, 0),) * 3, ((255, 255),) * 3]

    try:
        deadline = time.monotonic() + 30
        while not index.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        for _ in range(100):
            everything_is_whole()
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    everything_is_whole()
    write_explanation(tmp_path, "cat", {"mask": NOISE}, {"run": 0})


# --- the index ------------------------------------------------------------------------------------


def test_the_index_reads_back_in_order(tmp_path):
    records = [{"image": "b.png", "area": 0.5}, {"image": "a.png", "area": 1}, {"failed": True}]
    assert write_index(tmp_path, records) == tmp_path / "explanations.json"
    assert read_explanations(tmp_path) == records
    assert [list(record) for record in read_explanations(tmp_path)] == [list(r) for r in records]
    write_index(tmp_path, [])
    assert read_explanations(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["explanations.json"]


def test_numbers_of_numpy_and_jax_become_numbers_and_not_finite_ones_null(tmp_path):
    record = {
        "nan": float("nan"),
        "inf": np.float32("-inf"),
        "half": np.float32(0.5),
        "count": np.int64(7),
        "yes": np.bool_(True),
        "list": (np.array([1.0, np.nan]), jnp.ones((1, 2))),
        "scalar": jnp.float32(0.25),
        "nested": {3: {"path": Path("a/b.png"), "inf": float("inf")}},
    }
    path = write_index(tmp_path, [record])

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(path.read_bytes(), parse_constant=refuse) == [
        {
            "nan": None,
            "inf": None,
            "half": 0.5,
            "count": 7,
            "yes": True,
            "list": [[1.0, None], [[1.0, 1.0]]],
            "scalar": 0.25,
            "nested": {"3": {"path": "a/b.png", "inf": None}},
        }
    ]
    assert read_explanations(tmp_path)[0]["yes"] is True


def test_any_file_name_survives_in_strict_utf_8(tmp_path):
    names = ["猫.png", 'quote".png', "line\nbreak.png", os.fsdecode(b"\xff.png"), "😀", "\u2028"]
    path = write_index(tmp_path, [{"image": name} for name in names])
    path.read_bytes().decode("utf-8")
    assert [record["image"] for record in read_explanations(tmp_path)] == names


def test_what_json_cannot_hold_is_an_error_and_the_old_index_stays(tmp_path):
    path = write_index(tmp_path, [{"run": 1}])
    with pytest.raises(TypeError):
        write_index(tmp_path, [{"run": object()}])
    with small_files_only():
        message = message_of(write_index, tmp_path, [{"text": "x" * 10_000}])
    assert message.startswith(f"{path}: cannot be written")
    assert contents(tmp_path) == {"explanations.json": b'[\n  {\n    "run": 1\n  }\n]\n'}


def test_an_index_that_is_missing_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "no"):
        message = message_of(read_explanations, folder)
        assert message.startswith(f"{folder}/explanations.json: does not exist")
    (tmp_path / "explanations.json").mkdir()
    assert "cannot be read" in message_of(read_explanations, tmp_path)


@pytest.mark.parametrize(
    "damage", [b"", b'[{"a": 1}', b"\xff\xfe", b"{}", b"[1]", b"null", b"[" * 100_000]
)
def test_an_index_that_is_damaged_is_named(tmp_path, damage):
    (tmp_path / "explanations.json").write_bytes(damage)
    message = message_of(read_explanations, tmp_path)
    assert message.startswith(f"{tmp_path}/explanations.json: found ")
    assert "expected a list of records" in message


# --- an evaluation --------------------------------------------------------------------------------


def png(side: int = 2) -> bytes:
    file = io.BytesIO()
    Image.fromarray(NOISE[:side, :side]).save(file, "PNG")
    return file.getvalue()


def test_an_evaluation_reads_back_and_lies_in_one_folder(tmp_path):
    records = [{"image": "b.png", "method": "amx", "energy": None}, {"image": "猫", "method": "amx"}]
    summaries = [{"method": "amx", "area": {"value": 0.5}}]
    folder = tmp_path / "new" / "out"
    assert write_evaluation(folder, records, summaries, {"curve": png()}) == folder / "evaluation.json"
    assert set(contents(folder)) == {"evaluation.json", "evaluation.csv", "curve.png"}
    assert (folder / "curve.png").read_bytes() == png()
    assert read_evaluation(folder) == (records, summaries)
    write_evaluation(folder, [], [], {})
    assert read_evaluation(folder) == ([], [])
    assert set(contents(folder)) == {"evaluation.json", "evaluation.csv", "curve.png"}


def test_the_csv_has_a_line_for_each_record_and_its_nested_numbers_in_columns(tmp_path):
    records = [
        {
            "image": 'a, "b"\nc.png',
            "holds": True,
            "retention": {"noise": {"kept": np.int64(3), "trials": 4}},
            "energy": float("nan"),
            "curve": {"area": [0.1, 0.2]},
        },
        {
            "image": os.fsdecode(b"\xff"),
            "holds": False,
            "retention": None,
            "energy": 1 / 3,
            "curve": None,
        },
    ]
    write_evaluation(tmp_path, records, [], {})
    text = (tmp_path / "evaluation.csv").read_text(encoding="utf-8")
    assert list(csv.reader(io.StringIO(text, newline=""))) == [
        ["image", "holds", "retention.noise.kept", "retention.noise.trials", "energy"],
        ['a, "b"\nc.png', "True", "3", "4", ""],
        ["\\udcff", "False", "", "", repr(1 / 3)],
    ]
    assert read_evaluation(tmp_path)[0][1]["image"] == records[1]["image"]


def test_a_full_disk_leaves_all_of_an_older_evaluation(tmp_path):
    write_evaluation(tmp_path, [{"run": 1}], [], {"curve": png()})
    before = contents(tmp_path)
    with small_files_only():
        message = message_of(write_evaluation, tmp_path, [{"run": 2}], [], {"curve": png(60)})
    assert message.startswith(f"{tmp_path}/evaluation.json: cannot be written: ")
    assert contents(tmp_path) == before and len(list(tmp_path.iterdir())) == 3


def test_what_is_no_evaluation_is_refused_before_anything_is_written(tmp_path):
    for name in ("", "..", "a/b"):
        assert repr(name) in message_of(write_evaluation, tmp_path, [], [], {name: png()})
    with pytest.raises(ValueError, match="picture 'curve' begins with b'GIF89a'"):
        write_evaluation(tmp_path, [], [], {"curve": b"GIF89a"})
    with pytest.raises(TypeError):
        write_evaluation(tmp_path, [{"run": object()}], [], {"curve": png()})
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "damage", [b"", b'{"records": []', b"[]", b'{"records": []}', b'{"records": [1], "summaries": []}']
)
def test_an_evaluation_that_is_missing_or_damaged_is_named(tmp_path, damage):
    path = tmp_path / "evaluation.json"
    assert message_of(read_evaluation, tmp_path).startswith(f"{path}: does not exist")
    path.write_bytes(damage)
    message = message_of(read_evaluation, tmp_path)
    assert message.startswith(f"{path}: found ")
    assert message.endswith("expected records and summaries; run the evaluation again")
