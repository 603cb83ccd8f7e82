"""Rows in Parquet: each image once, whoever reads them and whenever the writer is killed."""

import contextlib
import json
import os
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    for png, row in zip(frame["mask"], rows, strict=True):
        assert row["failure"] or np.array_equal(shards.mask_of(png), shards.mask_of(row["mask"]))
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


def test_other_files_than_before_are_made_where_others_are_asked_for(tmp_path, rows):
    """Their names alone do not tell: two files of 5 and 1 rows are called as two of 3 and 3."""
    in_pieces(tmp_path, rows, (6,))
    shards.merge(tmp_path, IDS, 5)
    shards.merge(tmp_path, IDS, 3)
    assert [len(shards.read_rows(path)) for path in sorted(tmp_path.glob("*.parquet"))] == [3, 3]
    shards.merge(tmp_path, IDS[::-1], 3)
    assert [row["id"] for row in of_folder(tmp_path)] == IDS[::-1]


def test_files_that_are_as_asked_for_are_left_alone(tmp_path, rows):
    in_pieces(tmp_path, rows, (6,))
    before = [path.stat().st_mtime_ns for path in shards.merge(tmp_path, IDS, 4)]
    assert [path.stat().st_mtime_ns for path in shards.merge(tmp_path, IDS, 4)] == before


def test_an_id_that_is_asked_for_twice_is_one_row(tmp_path, rows):
    in_pieces(tmp_path, rows, (6,))
    shards.merge(tmp_path, [*IDS, IDS[0]], 10)
    assert [row["id"] for row in of_folder(tmp_path)] == IDS


def test_an_id_without_a_row_is_told_and_changes_nothing(tmp_path, rows):
    in_pieces(tmp_path, rows, (6,))
    with pytest.raises(OutputError, match="found no row of 1 of 7 images, as of 'g\\\\n', expected"):
        shards.merge(tmp_path, [*IDS, "g\n"], 4)
    assert shards.finished(tmp_path) == (set(IDS), [])
    assert not of_folder(tmp_path)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_whatever_the_pieces_each_image_is_one_row_in_order(data):
    order = data.draw(st.lists(st.text(min_size=1, max_size=4), unique=True, min_size=1, max_size=8))
    order = list(dict.fromkeys(map(shards.text, order)))
    again = data.draw(st.lists(st.sampled_from(order), max_size=4))
    written = data.draw(st.permutations(order + again))
    size, at_most = (data.draw(st.integers(1, 5)) for _ in range(2))
    with tempfile.TemporaryDirectory() as name:
        rows = [shards.failed(name, "gone") for name in written]
        in_pieces(Path(name), rows, [size] * -(-len(rows) // size))
        merged = shards.merge(Path(name), order, at_most)
        assert [row["id"] for row in of_folder(Path(name))] == order
        assert len(merged) == -(-len(order) // at_most)


def test_a_merge_holds_one_file_of_rows_whatever_their_order(tmp_path, rng):
    names = [f"{number:03d}" for number in range(300)]
    rows = [shards.failed(name, name * 10_000) for name in names]
    peaks = []
    for folder, order in ((tmp_path / "a", names), (tmp_path / "b", list(rng.permutation(names)))):
        in_pieces(folder, rows, [20] * 15)
        tracemalloc.start()
        shards.merge(folder, order, 20)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 2 * 20 * 30_000 + 1_000_000  # of 300 rows with 30 kB each


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

    for name in ("replace", "fsync"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
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


def test_what_is_finished_is_known_while_another_process_merges(tmp_path, rows, monkeypatch):
    """The other merges just before any one look of ours at the disk."""
    moment = 0
    while True:
        moment += 1
        folder = tmp_path / str(moment)
        in_pieces(folder, rows[:4], (2, 2))
        shards.merge(folder, IDS[:4], 2)
        in_pieces(folder, rows[4:], (1, 1))
        looks = 0
        with monkeypatch.context() as patch:

            def before(real, folder=folder, patch=patch, moment=moment):
                def look(*args, **options):
                    nonlocal looks
                    looks += 1
                    if looks == moment:
                        patch.undo()
                        shards.merge(folder, IDS, 3)
                    return real(*args, **options)

                return look

            patch.setattr(shards, "_table", before(shards._table))
            for name in ("glob", "exists"):
                patch.setattr(Path, name, before(getattr(Path, name)))
            assert shards.finished(folder) == (set(IDS), [])
        if looks < moment:
            break
    assert moment > 10


def test_a_name_is_on_the_disk_after_its_content_and_before_others_go(tmp_path, rows, monkeypatch):
    """Else a loss of power leaves an empty file, or neither the old nor the new."""
    done = []

    def noted(name, real):
        def change(path, *args, **options):
            done.append(name)
            return real(path, *args, **options)

        return change

    in_pieces(tmp_path, rows, (6,))
    for name in ("replace", "fsync"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    monkeypatch.setattr(Path, "unlink", noted("unlink", Path.unlink))
    shards.merge(tmp_path, IDS, 6)
    written = ["fsync", "replace", "fsync", "unlink"]  # the last, of a temporary file that is gone
    removed, moved, note = ["unlink"], ["replace", "fsync"], ["unlink"]
    assert done == [*written, *written, *removed, *moved, *note]


@pytest.mark.skipif(os.name != "posix", reason="needs permissions")
def test_a_file_that_may_not_be_read_is_no_damaged_one(tmp_path, rows, monkeypatch):
    in_pieces(tmp_path, rows, (6,))
    shards.merge(tmp_path, IDS, 6)
    [path] = tmp_path.glob("*.parquet")
    path.chmod(0)
    monkeypatch.chdir(tmp_path)  # pytest closes the folders above to other users
    tmp_path.chmod(0o755)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(OutputError, match=r"parquet: cannot be read: Permission denied; mend"):
            shards.finished(Path())
    finally:
        if root:
            os.seteuid(0)


def test_a_file_that_cannot_be_set_aside_is_told(tmp_path):
    with pytest.raises(OutputError, match=r"gone\.parquet: cannot be set aside: No such file"):
        shards.set_aside(tmp_path / "gone.parquet")


def test_a_damaged_note_of_a_merge_is_told(tmp_path, rows):
    in_pieces(tmp_path, rows, (6,))
    shards.write_shard(tmp_path / ".pieces/new/part-00000-of-00001.parquet", rows)
    (tmp_path / ".pieces/new/whole.json").write_bytes(b"")
    with pytest.raises(OutputError, match=r"whole\.json: found damaged JSON .*; delete it and run"):
        shards.merge(tmp_path, IDS, 6)
    (tmp_path / ".pieces/new/whole.json").unlink()
    shards.merge(tmp_path, IDS, 6)
    assert [row["id"] for row in of_folder(tmp_path)] == IDS


def test_a_file_of_the_users_own_is_left_alone(tmp_path, rows):
    (tmp_path / "part-list.parquet").write_bytes(b"mine")
    in_pieces(tmp_path, rows, (6,))
    assert shards.finished(tmp_path) == (set(IDS), [])
    shards.merge(tmp_path, IDS, 4)
    assert (tmp_path / "part-list.parquet").read_bytes() == b"mine"


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_no_flipped_bit_goes_unnoticed(rows, data):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "rows.parquet")
        shards.write_shard(path, rows)
        content, before = bytearray(path.read_bytes()), shards.read_rows(path)
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        with contextlib.suppress(OutputError):
            assert shards.read_rows(path) == before


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
