"""A data set through processes that end at any moment: each image once, to the same bytes."""

import json
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amx_jax import Config, Explainer
from amx_jax.data import shards
from amx_jax.data.run_folder import Lock
from amx_jax.data.sources import Source, open_source
from amx_jax.errors import ImageError, OutputError
from amx_jax.experiment import Experiment
from amx_jax.runner import Runner, Share, Stopped

TINY_RUN = Path(__file__).with_name("tiny_run.py")
CONFIG = Config(
    generator="grid", grid=8, stages=(), steps=16, cell=4, trials=3, batch_size=3, controls=2
)
COUNT = 12


def make_photos(folder, count):
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)
    rows, columns = np.indices((32, 32))
    for index in range(count):
        photo = rng.normal(127, 25, (32, 32, 3))
        row, column = rng.uniform(8, 24, 2)
        photo[(rows - row) ** 2 + (columns - column) ** 2 < 49] += rng.normal(0, 90, 3)
        Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8)).save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture(autouse=True, scope="module")
def compiled_once(explainers):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amx_jax.runner.Explainer", explainers)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve photos, and one that is none."""
    folder = make_photos(tmp_path_factory.mktemp("data") / "photos", COUNT)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def runner(tiny, data, output, share=Share(), config=CONFIG, **options):  # noqa: B008
    fields = {name: options.pop(name) for name in ("rows", "first", "target") if name in options}
    experiment = Experiment(str(data), str(output), save_every=1e-9, config=config, **fields)
    source = options.pop("source", None) or open_source(str(data))
    return Runner(experiment, source, tiny, share=share, **options)


def rows_of(folder):
    return [row for path in sorted(folder.glob("*.parquet")) for row in shards.read_rows(path)]


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def events(folder, event):
    lines = [line for log in folder.glob("log-*.jsonl") for line in log.read_text().splitlines()]
    return [found for found in map(json.loads, lines) if found["event"] == event]


@pytest.fixture(scope="module")
def whole(tiny, data, tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert runner(tiny, data, folder, rows=5).run()
    return folder


def test_every_image_is_explained_as_the_explainer_does_or_has_its_cause(tiny, data, whole):
    rows = rows_of(whole)
    assert [row["id"] for row in rows] == [*(f"{i:03d}.png" for i in range(COUNT)), "broken.png"]
    assert "found no image" in rows[-1]["failure"]
    photos = [np.array(Image.open(data / row["id"])) for row in rows[:-1]]
    for row, one in zip(rows, Explainer(tiny, CONFIG)(photos), strict=False):
        assert np.array_equal(shards.mask_of(row["mask"]), one.mask)
        record = json.loads(row["record"])
        assert record["words"] == one.record(row["id"])["words"]
    assert [len(shards.read_rows(path)) for path in sorted(whole.glob("*.parquet"))] == [5, 5, 3]
    assert len(events(whole, "explained")) == COUNT


def test_a_finished_run_has_nothing_left_to_do(tiny, data, whole, tmp_path):
    before = bytes_of(whole)
    again = runner(tiny, data, whole, rows=5)
    assert again.run()
    assert (again.standing.explained, again.standing.done) == (0, COUNT + 1)
    assert bytes_of(whole) == before


@pytest.mark.parametrize("calls", [17, 25])
def test_a_run_that_is_stopped_goes_on_to_the_same_bytes(tiny, data, whole, tmp_path, calls):
    explained = 0
    for _ in range(100):
        asked = 0

        def stopping():
            nonlocal asked
            asked += 1
            return asked > calls

        one = runner(tiny, data, tmp_path, rows=5, stopping=stopping)
        try:
            assert one.run()
            explained += one.standing.explained
            break
        except Stopped:
            explained += one.standing.explained
    else:
        pytest.fail("it never ended")
    assert bytes_of(tmp_path) == bytes_of(whole)
    assert explained == COUNT  # none twice
    assert events(tmp_path, "stopped")


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_images_and_find_the_same(tiny, data, whole, tmp_path, count):
    ends = [runner(tiny, data, tmp_path, Share(index, count), rows=5).run() for index in range(count)]
    assert ends == [False] * (count - 1) + [True]
    assert bytes_of(tmp_path) == bytes_of(whole)


def test_what_a_process_left_is_done_by_any_number_of_others(tiny, data, whole, tmp_path):
    def stop_at_once():
        return True

    with pytest.raises(Stopped):
        runner(tiny, data, tmp_path, Share(1, 3), rows=5, stopping=stop_at_once).run()
    assert not runner(tiny, data, tmp_path, Share(0, 3), rows=5).run()
    assert runner(tiny, data, tmp_path, rows=5).run()
    assert bytes_of(tmp_path) == bytes_of(whole)


def test_a_damaged_piece_is_set_aside_and_its_images_explained_anew(tiny, data, whole, tmp_path):
    assert not runner(tiny, data, tmp_path, Share(0, 2), rows=5).run()
    piece = sorted(shards.pieces(tmp_path).glob("*.parquet"))[0]
    piece.write_bytes(piece.read_bytes()[:100])
    assert runner(tiny, data, tmp_path, rows=5).run()
    assert bytes_of(tmp_path) == bytes_of(whole)
    assert [event["file"] for event in events(tmp_path, "damaged")] == [piece.name]


def test_a_file_that_becomes_unreadable_on_the_way_fails_alone(tiny, data, tmp_path):
    source = open_source(str(data))

    def read(index, at_least):
        if source.ids[index] == "007.png":
            raise OSError("the disk is gone")
        return source.read(index, at_least)

    def guarded(index, at_least):
        try:
            return read(index, at_least)
        except OSError as error:
            raise ImageError(str(error)) from error

    broken = Source(source.ids, source.targets, guarded)
    assert runner(tiny, data, tmp_path, source=broken).run()
    failed = {row["id"]: row["failure"] for row in rows_of(tmp_path) if row["failure"]}
    assert set(failed) == {"007.png", "broken.png"}
    assert failed["007.png"] == "007.png: the disk is gone"


def test_an_image_without_finite_values_fails_alone(unit_power, tmp_path):
    folder = make_photos(tmp_path / "photos", 3)
    Image.new("RGB", (32, 32), (127, 127, 127)).save(folder / "gray.png")
    assert runner(unit_power, folder, tmp_path / "out").run()
    failed = {row["id"]: row["failure"] for row in rows_of(tmp_path / "out") if row["failure"]}
    assert list(failed) == ["gray.png"]
    assert "is not finite" in failed["gray.png"]


def test_targets_of_the_data_are_explained_and_a_wrong_one_fails_alone(tiny, data, tmp_path):
    lines = ["path,target", f"{data}/000.png,bee", f"{data}/001.png,", f"{data}/002.png,bumblebee"]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(lines))
    assert runner(tiny, table, tmp_path / "out").run()
    rows = rows_of(tmp_path / "out")
    assert rows[0]["label"] == "bee"
    assert rows[1]["failure"] is None
    assert "bumblebee" in rows[2]["failure"]


def test_another_configuration_is_refused_with_its_fields(tiny, data, whole):
    with pytest.raises(OutputError, match=r"config\.steps 16, found 17"):
        runner(tiny, data, whole, config=replace(CONFIG, steps=17))


def test_another_classifier_is_refused(tiny, data, whole):
    other = replace(tiny, params={**tiny.params, "bias": tiny.params["bias"] + 1})
    with pytest.raises(OutputError, match=r"weights 'sha256:\w+', found"):
        runner(other, data, whole)


def test_a_run_of_more_images_goes_on_from_one_of_fewer(tiny, data, whole, tmp_path):
    assert runner(tiny, data, tmp_path, rows=5, first=4).run()
    assert len(rows_of(tmp_path)) == 4
    more = runner(tiny, data, tmp_path, rows=5)
    assert more.run()
    assert more.standing.explained == COUNT - 4
    assert bytes_of(tmp_path) == bytes_of(whole)


def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(tiny, data, whole, tmp_path, monkeypatch):
    real, left = shards.write_shard, 2

    def write(*args, **options):
        nonlocal left
        left -= 1
        if left < 0:
            raise OutputError("no space left")
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", write)
        with pytest.raises(OutputError, match="no space left"):
            runner(tiny, data, tmp_path, rows=5).run()
    assert runner(tiny, data, tmp_path, rows=5).run()
    assert bytes_of(tmp_path) == bytes_of(whole)


def test_nothing_under_way_is_in_memory_twice(tiny, data, tmp_path):
    one = runner(tiny, data, tmp_path)
    one.run()
    assert not one._rows
    assert not one._coming


FRAGMENTED = """
import os
from pathlib import Path
from amx_jax.runner import give_back

def resident():  # MiB
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

begun = resident()
pieces = [bytearray(60_000) for _ in range(5_000)]
kept = pieces[::100]
del pieces
before = resident()
give_back()
print(before - begun, resident() - begun)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_freed_memory_goes_back_though_pieces_among_it_stay():
    code = [sys.executable, "-c", FRAGMENTED]
    shown = subprocess.run(code, capture_output=True, text=True, check=True).stdout
    before, after = map(float, shown.split())
    assert before > 200  # of 286 MiB: else nothing was shown
    assert after < before / 4


# --- processes of their own -----------------------------------------------------------------------


def start(data, output, cache, *share):
    return subprocess.Popen(
        [sys.executable, str(TINY_RUN), str(data), str(output), *map(str, share)],
        env={"JAX_COMPILATION_CACHE_DIR": str(cache), **os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(process, folder, event, count=1):
    """Until the log of a run has an event so many times, or the process ends."""
    while process.poll() is None and len(events_so_far(folder, event)) < count:
        time.sleep(0.02)


def events_so_far(folder, event):
    lines = [line for log in folder.glob("log-*.jsonl") for line in log.read_text().splitlines()]
    return [line for line in lines if f'"event": "{event}"' in line]


@pytest.mark.slow
def test_twenty_kills_change_no_byte(tmp_path_factory):
    base = tmp_path_factory.mktemp("kills")
    data, cache = make_photos(base / "data", 60), base / "cache"
    (data / "broken.png").write_bytes(b"no image")
    with start(data, base / "whole", cache) as process:
        assert process.wait() == 0
    chance = random.Random(0)
    killed, terminated, folder = 0, 0, base / "killed"
    while True:
        with start(data, folder, cache) as process:
            wait_for(process, folder, "begun", len(events_so_far(folder, "begun")) + 1)
            if killed < 20:
                time.sleep(chance.uniform(0.0, 1.5))
                process.send_signal(signal.SIGKILL if chance.random() < 0.8 else signal.SIGTERM)
            code = process.wait()
        if code == 0:
            break
        assert code in (-signal.SIGKILL, -signal.SIGTERM, 3)
        killed += code != 3
        terminated += code == 3
        assert killed < 60
    assert killed >= 20, (killed, terminated)
    assert bytes_of(folder) == bytes_of(base / "whole")
    names = [row["id"] for row in rows_of(folder)]
    assert names == [*(f"{i:03d}.png" for i in range(60)), "broken.png"]


def a_free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "together"), [(2, True), (4, False)])
def test_processes_at_the_same_time_find_what_one_does(data, tmp_path, count, together):
    """Whether jax.distributed knows of them or not: none waits for another."""
    with start(data, tmp_path / "one", tmp_path / "cache") as process:
        assert process.wait() == 0
    port = [a_free_port()] if together else []
    processes = [
        start(data, tmp_path / "many", tmp_path / "cache", index, count, *port)
        for index in range(count)
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count
    explained = [json.loads(output.splitlines()[-1])["explained"] for output in outputs]
    assert sum(explained) == COUNT
    assert bytes_of(tmp_path / "many") == bytes_of(tmp_path / "one")


@pytest.mark.slow
def test_a_second_process_in_the_same_folder_is_refused(data, tmp_path):
    with start(data, tmp_path / "out", tmp_path / "cache") as process:
        wait_for(process, tmp_path / "out", "begun")
        with pytest.raises(OutputError, match=f"process {process.pid} on"):
            Lock(tmp_path / "out", "0")
        assert process.wait() == 0
