"""The ablation: every row runs, rows can be picked, the table and its last line say what was found."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from amx_jax import Config, preset
from benchmarks import ablation
from benchmarks.ablation import DEFAULT, WHOLE, Options, picked, run, variants, verdict

ROWS = [
    "default",
    "full image",
    "gradcam+prune",
    "rise+prune",
    "occlusion+prune",
    "centre+prune",
    "random+prune",
    "no activation",
    "no kl",
    "no cross entropy",
    "no total variation",
    "pixel logits",
    "no free logits",
    "first stage",
    "last stage",
    "annealed",
    "dual",
    "paper",
]
STAGES = ("stage1", "stage2")
BRIEF = Config(steps=3, grid=4, trials=2, controls=0, batch_size=2, candidates=8)


@pytest.fixture
def folder(tmp_path, photos):
    """Two photos, the first with a box."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    for name, pixels in zip("ab", photos, strict=False):
        Image.fromarray(pixels).save(tmp_path / "data" / "images" / f"{name}.png")
    box = {"id": "a", "size": [32, 32], "boxes_xyxy": [[0, 0, 16, 32]], "label": None}
    (tmp_path / "data" / "annotations.json").write_text(json.dumps([box]))
    return tmp_path / "data"


def cells(text: str) -> list[list[str]]:
    return [[c.strip() for c in line[1:-1].split("|")] for line in text.splitlines() if "|" in line]


def check(text: str, output: Path, expected: list[str]) -> dict:
    """The table and the file, of the rows expected; returns the records."""
    heading, _, *rows = cells(text)
    assert [row[0] for row in rows] == expected
    assert {len(row) for row in rows} == {len(heading)}
    assert {row[1] for row in rows} == {"2"} and {row[2] for row in rows} == {"100"}
    assert rows[0][4] == "1" and "[" in rows[1][4]
    assert text.splitlines()[-1].startswith("pruning alone")
    [path] = output.iterdir()
    written = json.loads(path.read_text())
    assert path.name == "ablation.json" and written["classifier"] == "tiny"
    assert [summary["method"] for summary in written["summaries"]] == expected
    records = {(r["method"], r["image"]): r for r in written["records"]}
    assert set(records) == {(row, image) for row in expected for image in ("a.png", "b.png")}
    assert all(r["holds"] and r["sufficient"] for r in records.values())
    for name in expected:
        first, second = (records[name, image] for image in ("a.png", "b.png"))
        assert first["seconds"] == second["seconds"] > 0
    return records


def test_some_rows_are_measured_on_every_photo(tiny, folder, tmp_path):
    """With a ranking that says nothing, and a prefix of it that is not where pruning begins."""
    some = ["default", "full image", "centre+prune"]
    options = Options(folder, photos=2, rows=tuple(some[:0:-1]), output=tmp_path / "out")
    records = check(run(options, tiny, BRIEF), tmp_path / "out", some)
    assert records[DEFAULT, "a.png"]["energy"] is not None
    assert records[DEFAULT, "b.png"]["energy"] is None
    assert records[WHOLE, "a.png"]["start"] == WHOLE and records[WHOLE, "a.png"]["minimal"]
    assert records[WHOLE, "a.png"]["pointing"] == records[WHOLE, "a.png"]["pointing_chance"]


def test_every_row_comes_into_the_table(tiny, photos, folder, tmp_path, monkeypatch):
    fast = {"centre+prune": replace(BRIEF, method="centre")}
    [record] = ablation.measure(tiny, photos[:1], ["a.png"], [lambda target: None], fast)
    retention = {"noise": {"kept": 1, "trials": 4}, "blur": {"kept": 2, "trials": 4}}
    known = {"components": 2, "seconds": 1.5, "passes": 9, "energy": 0.5, "energy_chance": 0.25}
    record |= {"retention": retention, **known}

    def fake(classifier, photos, names, regions, rows):
        for number, method in enumerate(rows, start=1):
            for name in names:
                yield record | {"image": name, "method": method, "area": number / 100}

    monkeypatch.setattr(ablation, "measure", fake)
    text = run(Options(folder, photos=2, output=tmp_path / "out"), tiny, BRIEF)
    check(text, tmp_path / "out", ROWS)
    assert text.splitlines()[3] == (
        "| full image | 2 | 100 | 2.0 [2.0 2.0] | 2.00 [2.00 2.00] | 37.5 | 2.0 | 2.0 | 1.5 | 9 |"
    )


@pytest.mark.slow
def test_rows_with_steps_of_their_own_are_measured_on_every_photo(tiny, folder, tmp_path):
    some = ["default", "annealed", "paper"]
    text = run(Options(folder, photos=2, rows=tuple(some), output=tmp_path / "out"), tiny, BRIEF)
    check(text, tmp_path / "out", some)


def test_rows_are_picked_in_the_tables_order_and_the_default_always_is():
    rows = variants(Config(), STAGES)
    assert list(rows) == ROWS == list(picked(rows, ()))
    assert list(picked(rows, ("paper", "no kl"))) == [DEFAULT, "no kl", "paper"]


def test_an_unknown_row_is_refused_by_name_with_the_list(tiny, folder, tmp_path):
    options = Options(folder, rows=("dual", "dull"), output=tmp_path / "out")
    with pytest.raises(
        SystemExit, match=r"^dull: unknown rows; there are default, full image, .*paper$"
    ):
        run(options, tiny, BRIEF)
    assert not (tmp_path / "out").exists()


def test_each_row_changes_what_its_name_says_and_nothing_else():
    config = Config()
    rows = variants(config, STAGES)
    assert rows[DEFAULT] == config
    without = {name: row.objective for name, row in rows.items() if name.startswith("no ")}
    assert without.pop("no free logits") == config.objective
    assert without == {
        f"no {term.replace('_', ' ')}": replace(config.objective, **{term: 0.0})
        for term in ("activation", "kl", "cross_entropy", "total_variation")
    }
    assert rows["paper"] == preset("paper")
    assert rows["gradcam+prune"] == Config(method="gradcam") and rows["gradcam+prune"].prune
    assert rows["first stage"] == Config(stages=("stage1",))
    assert rows["last stage"] == Config(stages=("stage2",))
    assert "first stage" not in variants(config, STAGES[:1])


def test_a_robust_ablation_has_the_same_rows():
    rows = variants(Config(notion="robust"), STAGES)
    assert set(rows) == set(ROWS)
    assert {row.notion for row in rows.values()} == {"robust"}


def test_the_last_line_names_the_smallest_of_the_prunings_that_hold_most_often():
    def row(method, holds, area, ratio):
        values = {"holds": holds, "area": area, "ratio": ratio}
        known = {key: {"value": v, "lower": v, "upper": v} for key, v in values.items()}
        return {"method": method, "reference": DEFAULT, **known}

    default = row(DEFAULT, 1.0, 0.016, 1.0)
    some = [row("rise+prune", 1.0, 0.02, 1.25), row(WHOLE, 1.0, 0.05, 3.1)]
    few = row("gradcam+prune", 0.5, 0.01, 0.6)
    told = "pruning alone, best start rise: 2.0 % against 1.6 % (ratio 1.25 [1.25 1.25])"
    assert verdict([default, *some, few]) == told
    assert verdict([default, few, some[1]]).startswith("pruning alone, best start full image: 5.0 %")
    assert verdict([default]) == "pruning alone: not measured"
