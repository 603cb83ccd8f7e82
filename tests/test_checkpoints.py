"""Checkpoints: whole or not at all, and the one before where the last is damaged."""

import numpy as np
import pytest

from amx_jax.data.checkpoints import Checkpoints, delete_checkpoints, read_checkpoints
from amx_jax.errors import OutputError


def arrays(value, side=4):
    return [np.full((side, side), value, np.float32), np.array(value > 1), np.int32(value)]


def saved(folder, *states):
    checkpoints = Checkpoints(folder)
    for each in states:
        checkpoints.save(each)
    checkpoints.close()


def equal(found, expected):
    return found.keys() == expected.keys() and all(
        len(found[name]) == len(expected[name])
        and all(
            a.dtype == b.dtype and np.array_equal(a, b)
            for a, b in zip(found[name], expected[name], strict=True)
        )
        for name in expected
    )


def test_arrays_of_many_shapes_come_back_by_name_to_the_bit(tmp_path):
    states = {"0:a/ä b.jpg": arrays(1), "0:c": arrays(2, side=3), "1:c": arrays(3), "d": [np.arange(5)]}
    saved(tmp_path / "0", states)
    assert equal(read_checkpoints(tmp_path), states)


def test_the_last_of_each_process_counts(tmp_path):
    saved(tmp_path / "0", {"a": arrays(1)}, {"a": arrays(2), "b": arrays(1)}, {"b": arrays(4)})
    saved(tmp_path / "1", {"c": arrays(5)})
    assert equal(read_checkpoints(tmp_path), {"b": arrays(4), "c": arrays(5)})


def test_nothing_under_way_is_a_checkpoint_too(tmp_path):
    saved(tmp_path / "0", {"a": arrays(1)}, {})
    assert read_checkpoints(tmp_path) == {}


def test_no_more_than_two_are_kept(tmp_path):
    saved(tmp_path / "0", *({"a": arrays(i)} for i in range(5)))
    assert sorted(p.name for p in (tmp_path / "0").iterdir() if p.name.isdigit()) == ["4", "5"]


def test_numbers_go_on_after_a_restart(tmp_path):
    saved(tmp_path / "0", {"a": arrays(1)}, {"a": arrays(2)})
    saved(tmp_path / "0", {"a": arrays(3)})
    assert equal(read_checkpoints(tmp_path), {"a": arrays(3)})


@pytest.mark.parametrize("harm", ["flip", "cut", "delete"])
def test_whatever_is_damaged_the_last_or_the_one_before_is_read(tmp_path, harm):
    before, last = {"a": arrays(1), "b": arrays(2, 3)}, {"a": arrays(3), "b": arrays(4, 3)}
    saved(tmp_path / "0", before, last)
    files = [path for path in (tmp_path / "0" / "2").rglob("*") if path.is_file()]
    assert len(files) > 5
    used = set()
    for path in files:
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[len(damaged) // 2] ^= 0xFF
        if harm == "delete":
            path.unlink()
        else:
            path.write_bytes(bytes(damaged) if harm == "flip" else whole[: len(whole) // 2])
        found = read_checkpoints(tmp_path)
        path.write_bytes(whole)
        used.add(equal(found, last))
        assert equal(found, last) or equal(found, before), path
    assert False in used  # some of the damage was met


def test_a_checkpoint_that_was_being_written_is_no_checkpoint(tmp_path):
    saved(tmp_path / "0", {"a": arrays(1)})
    cut_off = tmp_path / "0" / "2.orbax-checkpoint-tmp"
    cut_off.mkdir()
    (cut_off / "arrays").write_text("")
    assert equal(read_checkpoints(tmp_path), {"a": arrays(1)})
    saved(tmp_path / "0", {"a": arrays(2)})
    assert equal(read_checkpoints(tmp_path), {"a": arrays(2)})


def test_a_folder_that_takes_no_files_is_named(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "0")

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        checkpoints.save({"a": arrays(1)})
    checkpoints.close()


def test_deleted_ones_are_gone_and_none_are_no_harm(tmp_path):
    delete_checkpoints(tmp_path / "none")
    assert read_checkpoints(tmp_path / "none") == {}
    saved(tmp_path / "all" / "0", {"a": arrays(1)})
    delete_checkpoints(tmp_path / "all")
    assert read_checkpoints(tmp_path / "all") == {}
