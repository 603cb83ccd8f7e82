"""The comparison of masks of single instances: its measures, and a run over a folder."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from amx_jax import Config
from benchmarks import instances
from benchmarks.instances import Case, Options, covered, purities, run

BRIEF = Config(generator="grid", grid=8, stages=(), steps=4, cell=8, trials=2, controls=0, batch_size=2)


def test_purity_is_the_share_of_a_mask_in_an_object():
    rng = np.random.default_rng(0)
    masks, objects = rng.random((3, 6, 5)) < 0.5, rng.random((2, 6, 5)) < 0.5
    found = purities(list(masks), list(objects))
    for (i, mask), (j, thing) in itertools.product(enumerate(masks), enumerate(objects)):
        inside = sum(thing[place] for place in zip(*np.nonzero(mask), strict=True))
        assert found[i, j] == pytest.approx(inside / mask.sum())
    assert purities([], list(objects)).shape == (0, 2)


def test_objects_are_covered_by_the_best_assignment_of_masks():
    """Against all assignments, each mask to one object or none."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        purity = rng.random((3, 4))
        best = max(
            sum(purity[mask, thing] >= 0.5 for mask, thing in enumerate(order))
            for order in itertools.permutations(range(4), 3)
        )
        assert covered(purity, 0.5) == best
    assert covered(np.zeros((0, 2))) == 0


@pytest.fixture
def folder(tmp_path, photos, explainers, tiny):
    """Three photos: the first shows two objects of its class, the second one, the third two others."""
    explainer = explainers(tiny, BRIEF)
    (tmp_path / "data" / "images").mkdir(parents=True)
    boxes = [[0, 0, 16, 32], [16, 0, 32, 32]]
    records = []
    for name, pixels in zip("abc", photos, strict=False):
        Image.fromarray(pixels).save(tmp_path / "data" / "images" / f"{name}.png")
        target = int(explainer.decision(pixels).target)
        label, count = (target + 1 if name == "c" else target), (1 if name == "b" else 2)
        records.append({"id": name, "size": [32, 32], "boxes_xyxy": boxes[:count], "label": label})
    (tmp_path / "data" / "annotations.json").write_text(json.dumps(records))
    return tmp_path / "data"


def test_every_method_is_measured_on_photos_with_several_objects(
    folder, tmp_path, explainers, tiny, monkeypatch
):
    monkeypatch.setattr(instances, "STEPS", 3)
    methods = ("windows", "exclude", "joint", "gradcam")
    options = Options((folder,), methods=methods, output=tmp_path / "out")
    explainer = explainers(tiny, BRIEF)
    text = run(options, explainer)
    rows = [line.split("|")[1].strip() for line in text.splitlines()]
    assert rows[2:] == list(methods)
    records = json.loads((tmp_path / "out" / "instances.json").read_text())["records"]
    assert [(record["image"], record["method"]) for record in records] == [("a", m) for m in methods]
    for record in records:
        with np.load(tmp_path / "out" / "a" / f"{record['method']}.npz") as file:
            masks = file["masks"]
        assert len(masks) == record["masks"] == len(record["sufficient"]) > 0
        assert masks.sum(axis=0).max() == 1  # none overlap
        assert max(record["purity"]) >= 0.5
        if record["method"] != "gradcam":
            assert all(record["sufficient"])


def test_what_was_found_before_is_not_searched_again(folder, tmp_path, explainers, tiny, monkeypatch):
    calls = []

    def method(explainer, case: Case):
        calls.append(case.name)
        return [case.objects[0]]

    monkeypatch.setitem(instances.BY, "windows", method)
    options = Options((folder,), methods=("windows",), output=tmp_path / "out")
    first = run(options, explainers(tiny, BRIEF))
    assert run(options, explainers(tiny, BRIEF)) == first
    assert calls == ["a"]
    run(options, explainers(tiny, replace(BRIEF, steps=5)))
    assert calls == ["a", "a"]  # that is another question
    assert "| 100% | 1.00 (1.00 to 1.00) | 2.0 |" in first


def test_an_unknown_method_or_a_folder_without_several_objects_is_said(tmp_path, explainers, tiny):
    explainer = explainers(tiny, BRIEF)
    with pytest.raises(SystemExit, match="lime: unknown"):
        run(Options((tmp_path,), methods=("lime",), output=tmp_path / "out"), explainer)
    with pytest.raises(SystemExit, match="no photo"):
        run(Options((tmp_path,), output=tmp_path / "out"), explainer)
