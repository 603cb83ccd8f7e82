"""A run's folder: what it was begun with, who works in it, and its log."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from amx_jax.data.run_folder import Lock, Log, begin
from amx_jax.errors import OutputError

ABOUT = {"data": "photos", "config": {"steps": 100, "kinds": ("colour", "noise")}}
HOLD = """
import sys, time
from pathlib import Path
from amx_jax.data.run_folder import Lock
with Lock(Path(sys.argv[1]), "0"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_same_run_may_go_on_and_another_is_told_each_field_that_differs(tmp_path):
    begin(tmp_path, ABOUT)
    begin(tmp_path, ABOUT)
    other = {"data": "pictures", "config": {**ABOUT["config"], "steps": 7}}
    with pytest.raises(OutputError) as refused:
        begin(tmp_path, other)
    assert "data 'photos', found 'pictures'" in str(refused.value)
    assert "config.steps 100, found 7" in str(refused.value)
    assert "kinds" not in str(refused.value)


def test_numbers_of_numpy_are_the_same_numbers(tmp_path):
    begin(tmp_path, ABOUT)
    begin(tmp_path, {**ABOUT, "config": {**ABOUT["config"], "steps": np.int64(100)}})


def test_a_field_that_is_missing_or_new_differs_too(tmp_path):
    begin(tmp_path, ABOUT)
    with pytest.raises(OutputError, match=r"seed None, found 3"):
        begin(tmp_path, {**ABOUT, "seed": 3})


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(OutputError, match=r"run\.json: found damaged JSON"):
        begin(tmp_path, ABOUT)


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="found a file"):
        begin(tmp_path / "out", ABOUT)


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=f"found process {holder.pid} on .* at work"):
            Lock(tmp_path, "0")
        with Lock(tmp_path, "1"):  # another share
            pass
        os.kill(holder.pid, signal.SIGKILL)
    with Lock(tmp_path, "0"):
        pass


def test_the_log_survives_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "begun"}\n{"event": "expl')
    log = Log(path)
    log("explained", id="cät\n.png", area=0.5)
    log.close()
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    last = json.loads(lines[-1])
    assert (last["event"], last["id"], last["area"]) == ("explained", "cät\n.png", 0.5)
