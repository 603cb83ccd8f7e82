"""Rows in Parquet: each image once, whoever reads them and whenever the writer is killed."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from amx_jax import Config, Explainer
from amx_jax.data import shards
from amx_jax.errors import ConfigError, OutputError

CONFIG = Config(generator="grid", grid=8, stages=(), steps=12, cell=4, trials=3, controls=2)
IDS = ["a/ä, b.jpg", 'quo"te\n.png', "c", "d", "e", "f"]


@pytest.fixture(scope="module")
def explanations(tiny, photos):
    return Explainer(tiny, CONFIG)(list(photos))


@pytest.fixture(scope="module")
def rows(explanations):
    """Five explanations and a failure."""
    found = [
        shards.row(name, one.record(name), one.mask)
        for name, one in zip(IDS, explanations, strict=True)
    ]
    found[3] = shards.failed("d", "d: found damaged data")
    return found


def of_folder(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in shards.read_rows(path)]


def in_pieces(folder, rows, sizes):
    begin = 0
    for number, size in enumerate(sizes):
        path = shards.pieces(folder) / f"{number}.parquet"
        shards.write_shard(path, rows[begin : begin + size])
        begin += size


def test_a_row_is_its_explanation(tmp_path, rows, explanations):
    shards.write_shard(tmp_path / "rows.parquet", rows, {"run": {"seed": 0}})
    found = shards.read_rows(tmp_path / "rows.parquet")
    assert [row["id"] for row in found] == IDS
    for row, one in zip(found, explanations, strict=True):
        if row["id"] == "d":
            assert row["failure"] == "d: found damaged data"
            assert {value for name, value in row.items() if name not in ("id", "failure")} == {None}
            continue
        assert row["failure"] is None
        assert np.array_equal(shards.mask_of(row["mask"]), one.mask)
        assert row["area"] == one.certificate.area == one.mask.mean()
        kept = {kind["kind"]: (kind["kept"], kind["trials"]) for kind in row["robustness"]}
        assert kept == one.certificate.robustness
        record = json.loads(row["record"])
        assert record["target"] == {"index": row["target"], "name": row["label"]}
        assert not {"seconds", "config", "versions"} & record.keys()


def test_every_column_is_of_the_schema(rows):
    assert set(rows[0]) == set(shards.schema().names)


def test_pandas_duckdb_and_datasets_read_them(tmp_path, rows):
    pandas, duckdb = pytest.importorskip("pandas"), pytest.importorskip("duckdb")
    shards.write_shard(tmp_path / "part-00000-of-00001.parquet", rows)
    frame = pandas.read_parquet(tmp_path / "part-00000-of-00001.parquet")
    assert list(frame["id"]) == IDS
    assert frame["mask"][0] == rows[0]["mask"]
    assert frame["robustness"][0][0]["trials"] == 3
    query = f"select id, area, mask from '{tmp_path}/*.parquet' where failure is null order by area"
    found = duckdb.sql(query).fetchall()
    assert found == sorted(
        ((r["id"], r["area"], r["mask"]) for r in rows if not r["failure"]), key=lambda r: r[1]
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_hugging_face_reads_them(tmp_path, rows, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / "part-00000-of-00001.parquet"
    shards.write_shard(path, rows)
    found = datasets.load_dataset(
        "parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"), split="train"
    )
    assert found["id"] == IDS or list(found["id"]) == IDS
    assert found[0]["mask"] == rows[0]["mask"]
    assert found[0]["robustness"] == rows[0]["robustness"]


def test_the_same_rows_give_the_same_bytes(tmp_path, rows):
    for name in ("one", "two"):
        shards.write_shard(tmp_path / name, rows, {"run": {"b": 1, "a": [2.5]}})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_an_id_that_is_no_unicode_is_written_as_it_can_be(tmp_path):
    shards.write_shard(tmp_path / "rows", [shards.failed("caf\udce9", "no\udce9")])
    [row] = shards.read_rows(tmp_path / "rows")
    assert (row["id"], row["failure"]) == ("caf\\udce9", "no\\udce9")


@pytest.mark.parametrize("sizes", [(6,), (1, 2, 3), (1, 1, 1, 1, 1, 1)])
def test_pieces_become_files_in_the_order_of_the_ids(tmp_path, rows, sizes):
    in_pieces(tmp_path, rows[::-1], sizes)
    assert shards.finished(tmp_path) == (set(IDS), [])
    merged = shards.merge(tmp_path, IDS, 4, {"run": 1})
    assert [path.name for path in merged] == [f"part-0000{i}-of-00002.parquet" for i in range(2)]
    assert [row["id"] for row in of_folder(tmp_path)] == IDS
    assert not list(shards.pieces(tmp_path).iterdir())
    assert shards.finished(tmp_path) == (set(IDS), [])


def test_how_the_pieces_were_cut_changes_no_byte(tmp_path, rows):
    for name, order, sizes in (("one", 1, (6,)), ("two", -1, (2, 4))):
        in_pieces(tmp_path / name, rows[::order], sizes)
        shards.merge(tmp_path / name, IDS, 4, {"run": 1})
    ones, twos = (sorted((tmp_path / name).glob("*.parquet")) for name in ("one", "two"))
    assert [path.read_bytes() for path in ones] == [path.read_bytes() for path in twos]


def test_an_image_explained_by_two_processes_is_one_row(tmp_path, rows):
    in_pieces(tmp_path, [*rows, *rows[2:4]], (4, 4))
    shards.merge(tmp_path, IDS, 10)
    assert [row["id"] for row in of_folder(tmp_path)] == IDS


def test_a_run_that_grew_leaves_no_old_file(tmp_path, rows):
    in_pieces(tmp_path, rows[:3], (3,))
    shards.merge(tmp_path, IDS[:3], 2)
    in_pieces(tmp_path, rows[3:], (3,))
    shards.merge(tmp_path, IDS, 2)
    assert [row["id"] for row in of_folder(tmp_path)] == IDS
    assert len(list(tmp_path.glob("*.parquet"))) == 3


def test_a_run_of_fewer_images_drops_no_other(tmp_path, rows):
    in_pieces(tmp_path, rows, (6,))
    shards.merge(tmp_path, IDS, 4)
    shards.merge(tmp_path, IDS[4:], 4)
    assert sorted(row["id"] for row in of_folder(tmp_path)) == sorted(IDS)


class Killed(BaseException):
    """No error that anybody catches."""


def changes(monkeypatch, at):
    """Let the ``at``-th change of the disk's names be the last thing that happens; counts them."""
    seen = 0

    def counted(real):
        def change(*args, **options):
            nonlocal seen
            seen += 1
            if seen == at:
                raise Killed
            return real(*args, **options)

        return change

    monkeypatch.setattr(os, "replace", counted(os.replace))
    for name in ("unlink", "rmdir", "mkdir"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    return lambda: seen


def test_a_merge_killed_at_any_moment_loses_and_repeats_nothing(tmp_path, rows, monkeypatch):
    moment = 0
    while True:
        moment += 1
        folder = tmp_path / str(moment)
        in_pieces(folder, rows[:4], (2, 2))
        shards.merge(folder, IDS[:4], 2)
        in_pieces(folder, rows[4:], (1, 1))
        with monkeypatch.context() as patch:
            changes(patch, moment)
            try:
                shards.merge(folder, IDS, 3)
                break
            except Killed:
                pass
        seen = [row["id"] for row in of_folder(folder)]
        assert len(seen) == len(set(seen))  # whoever reads it now
        assert shards.finished(folder) == (set(IDS), [])
        shards.merge(folder, IDS, 3)
        assert [row["id"] for row in of_folder(folder)] == IDS
        assert len(list(folder.glob("*.parquet"))) == 2
        assert not list(shards.pieces(folder).iterdir())
    assert moment > 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: whole[: len(whole) // 2], "damaged Parquet file"),
        (lambda whole: b"", "damaged Parquet file"),
        (lambda whole: b"PNG" * 100, "damaged Parquet file"),
        (lambda whole: whole[:200] + bytes(100) + whole[300:], "damaged Parquet file"),
    ],
    ids=["cut off", "empty", "of another kind", "zeros within"],
)
def test_a_damaged_file_is_named_and_set_aside(tmp_path, rows, content, message):
    in_pieces(tmp_path, rows, (3, 3))
    path = shards.pieces(tmp_path) / "1.parquet"
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(OutputError, match=rf"1\.parquet: found a {message}"):
        shards.read_rows(path)
    names, damaged = shards.finished(tmp_path)
    assert (names, damaged) == (set(IDS[:3]), [path])
    assert shards.set_aside(path).name == "1.parquet.corrupt"
    assert shards.finished(tmp_path) == (set(IDS[:3]), [])


def test_a_file_of_other_columns_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ["a"], "speed": [1.0]}), tmp_path / "part-a.parquet")
    with pytest.raises(OutputError, match=r"other columns than a run writes \(.*speed|area"):
        shards.read_rows(tmp_path / "part-a.parquet")


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, rows, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    with pytest.raises(OutputError, match=r"rows\.parquet: cannot be written: No space left"):
        shards.write_shard(tmp_path / "rows.parquet", rows)
    assert not list(tmp_path.iterdir())


def test_without_pyarrow_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'amx-jax\[data\]'"):
        shards.schema()
