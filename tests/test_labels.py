"""Names of classes, from the files that people keep them in."""

import json

import pytest

from amx_jax.classifiers.labels import read_labels
from amx_jax.errors import LabelsError

NAMES = ("cat", "hot dog", "Käse")


@pytest.mark.parametrize(
    "text",
    [
        "cat\nhot dog\nKäse\n",
        "\ufeffcat\r\n  hot dog  \r\n\r\nKäse",
        json.dumps(NAMES),
        json.dumps({"0": "cat", "1": "hot dog", "2": "Käse"}),
        json.dumps({"2": "Käse", "0": "cat", "1": "hot dog"}),
        json.dumps({"cat": 0, "Käse": 2, "hot dog": 1}),
        json.dumps({"0": ["n1", "cat"], "1": ["n2", "hot dog"], "2": ["n3", "Käse"]}),
    ],
)
def test_lines_and_json_are_read(tmp_path, text):
    path = tmp_path / "labels"
    path.write_text(text, encoding="utf-8")
    assert read_labels(path, 3) == NAMES
    assert read_labels(str(path), 3) == NAMES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat\n", "found 1 names, expected one for each of 3 classes"),
        ('["cat", 3, "dog"]', "found 3, expected a name"),
        ('{"0": "cat", "2": "dog", "3": "x"}', "found no name for class 1"),
        ('{"0": "cat", "00": "dog", "1": "x"}', "found the index 0 twice"),
        ('{"zero": "cat"}', "found the index 'zero', expected a number from 0"),
        ('["cat"', "found broken JSON"),
    ],
)
def test_what_does_not_fit_is_named_with_its_file(tmp_path, text, expected):
    path = tmp_path / "labels.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LabelsError, match=expected) as caught:
        read_labels(path, 3)
    assert "labels.txt" in str(caught.value) and str(caught.value).isprintable()


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(LabelsError, match=r"missing\.txt: cannot be read"):
        read_labels(tmp_path / "missing.txt", 3)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LabelsError, match="no UTF-8"):
        read_labels(tmp_path / "binary", 3)
