"""``amx run`` and ``amx inspect``: files of experiments, what is refused, and what is said."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amx_jax.cli import parse
from amx_jax.data import shards
from amx_jax.errors import ConfigError
from amx_jax.experiment import Experiment, load_experiment
from tests.command import amx

CONFIGS = sorted(Path(__file__).parents[1].glob("configs/*.py"))
EXPERIMENT = """
from amx_jax import Config
from amx_jax.experiment import Experiment

experiment = Experiment(
    data="photos",
    config=Config(generator="grid", grid=8, stages=(), steps=6, cell=8, trials=2, batch_size=2,
                  controls=0),
)
"""


@pytest.fixture
def folder(tiny, photos, explainers, monkeypatch, tmp_path):
    """A folder with photos and an experiment, where the classifier costs nothing."""
    monkeypatch.setattr("amx_jax.classifiers.registry.load_classifier", lambda *_: tiny)
    monkeypatch.setattr("amx_jax.lift.keep_compiled", lambda folder: None)
    monkeypatch.setattr("amx_jax.runner.Explainer", explainers)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    Path("photos/deep").mkdir(parents=True)
    for index, photo in enumerate(photos):
        Image.fromarray(photo).save(f"photos/deep/{index}.png")
    Path("experiment.py").write_text(EXPERIMENT)
    return tmp_path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_file_in_configs_is_an_experiment_with_its_command_in_its_docstring(path):
    experiment = load_experiment(path)
    assert isinstance(experiment, Experiment)
    text = path.read_text()
    assert f"amx run configs/{path.name}" in text.split('"""')[1]


def test_the_configurations_promised_are_there():
    names = {path.stem for path in CONFIGS}
    assert {"default", "paper_resnet18", "cifar10_resnet20", "tpu_multihost"} <= names


def test_every_field_of_a_file_can_be_changed_by_name():
    given = ["--data", "d", "--first", "7", "--config.steps", "9", "--config.objective.kl", "0.5"]
    experiment = parse(["run", str(CONFIGS[0]), *given]).experiment
    assert (experiment.data, experiment.first) == ("d", 7)
    assert (experiment.config.steps, experiment.config.objective.kl) == (9, 0.5)
    assert experiment.classifier == load_experiment(CONFIGS[0]).classifier


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("1 +", "cannot be run: SyntaxError"),
        ("raise KeyError('a\\nb')", "cannot be run: KeyError"),
        ("x = 1", r"found no experiment, expected `experiment = Experiment"),
        ("experiment = 3", "found no experiment"),
        ("from amx_jax import Config\nConfig(steps=0)", "steps: found 0"),
    ],
)
def test_a_file_that_defines_no_experiment_is_refused_in_a_line(tmp_path, content, message):
    path = tmp_path / "experiment.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message) as refused:
        load_experiment(path)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(str(path))
    status, _, err = amx("run", path)
    assert status == 2
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("field", "value"), [("first", -1), ("rows", 0), ("workers", 0), ("save_every", 0.0)]
)
def test_a_value_outside_its_range_is_named(field, value):
    with pytest.raises(ConfigError, match=rf"{field}: found {value}, expected"):
        Experiment("photos", **{field: value})


def test_a_run_writes_rows_and_says_what_it_found(folder):
    Path("photos/broken.png").write_bytes(b"no image")
    status, out, err = amx("run", "experiment.py", "--output", "out", "--rows", "4")
    assert (status, err) == (1, "")
    assert "6 explained, 1 failed" in out
    assert "failed: found no image" in out
    assert "1 image: broken.png" in out
    assert max(map(len, out.splitlines())) <= 80
    rows = [r for path in sorted(Path("out").glob("*.parquet")) for r in shards.read_rows(path)]
    assert [row["id"] for row in rows] == ["broken.png", *(f"deep/{i}.png" for i in range(6))]
    again = amx("run", "experiment.py", "--output", "out", "--rows", "4")
    assert again == (status, out, err)


@pytest.mark.filterwarnings("default")
def test_a_data_set_of_tfds_gives_the_masks_of_its_folder(folder, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    from amx_jax.data.tfds_folder import build_tfds

    monkeypatch.setenv("TFDS_DATA_DIR", "tfds")
    build_tfds("photos", "mine")
    amx("run", "experiment.py", "--output", "out", "--quiet")
    status, _, _ = amx(
        "run", "experiment.py", "--data", "tfds:mine/train", "--output", "tfds-out", "--quiet"
    )
    assert status == 0
    ours, theirs = (
        [row for path in sorted(Path(name).glob("*.parquet")) for row in shards.read_rows(path)]
        for name in ("out", "tfds-out")
    )
    assert [row["mask"] for row in ours] == [row["mask"] for row in theirs]
    assert [row["id"] for row in theirs] == [f"mine/train/{i:08d}" for i in range(6)]


def test_inspect_says_the_same_and_draws(folder):
    amx("run", "experiment.py", "--output", "out", "--quiet")
    status, out, err = amx("inspect", "out", "--plot", "areas.png")
    assert (status, err) == (0, "")
    assert out.startswith("6 explained, 0 failed\n")
    with Image.open("areas.png") as plot:
        assert plot.size == (1125, 630)
    status, out, _ = amx("inspect", "out", "--json")
    found = json.loads(out)
    areas = [row["area"] for path in Path("out").glob("*.parquet") for row in shards.read_rows(path)]
    assert found["area"]["50 %"] == np.median(areas)
    assert (found["explained"], found["failed"], found["failures"]) == (6, 0, {})


def test_inspect_of_anything_else_is_refused(folder):
    status, out, err = amx("inspect", "photos")
    assert (status, out) == (2, "")
    assert err.startswith("amx: photos: found no rows of a run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--process", "2", "--processes", "2"], "process: found 2, expected from 0 to 1"),
        (["--data", "nowhere"], "nowhere"),
        (["--data", "photos/deep/0.png"], "0.png"),
        (["--config.steps", "0"], "steps: found 0"),
        (["--target", "bumblebee"], "bumblebee"),
        (["--examples", "3"], "examples"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line_before_anything_is_written(folder, arguments, message):
    status, out, err = amx("run", "experiment.py", "--output", "out", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not Path("out").exists()


def test_another_configuration_in_the_same_folder_is_refused(folder):
    amx("run", "experiment.py", "--output", "out", "--first", "1", "--quiet")
    status, _, err = amx("run", "experiment.py", "--output", "out", "--config.seed", "5")
    assert status == 2
    assert err == (
        "amx: out: was begun with config.seed 0, found 5; give the same, or another output folder\n"
    )


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_signal_saves_and_ends_and_the_same_command_goes_on(folder, number, status):
    begun = threading.Event()

    def interrupt():
        log = Path("out/log-00000.jsonl")
        while not log.exists() or '"begun"' not in log.read_text():
            time.sleep(0.01)
        begun.set()
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    found, out, err = amx("run", "experiment.py", "--output", "out")
    assert begun.is_set()
    assert (found, out) == (status, "")
    assert err == "amx: stopped; the same command goes on, with out/\n"
    found, out, err = amx("run", "experiment.py", "--output", "out")
    assert (found, err) == (0, "")
    assert "6 explained, 0 failed" in out


def test_processes_that_are_not_the_last_say_so(folder):
    status, out, err = amx(
        "run", "experiment.py", "--output", "out", "--processes", "2", "--process", "1"
    )
    assert (status, out) == (0, "")
    assert err == "3 of 3 images of this process are done, and others' are not\n"
    assert amx("inspect", "out")[1].startswith("3 explained, 0 failed, 3 pending\n")
    status, out, _ = amx("run", "experiment.py", "--output", "out", "--processes", "2")
    assert "6 explained" in out


def test_a_trace_and_scalars_are_written_where_they_are_asked_for(folder):
    pytest.importorskip("tensorboardX")
    status, _, _ = amx(
        "run", "experiment.py", "--output", "out", "--profile", "trace", "--tensorboard", "board"
    )
    assert status == 0
    assert list(Path("board").glob("events*"))
    assert list(Path("trace").rglob("*.xplane.pb"))
