"""The notebooks in colab/: they run, and what is stored in them is what they printed and drew."""

import json
import re

import nbformat
import pytest
from pyarrow import parquet

from colab.execute import digest, execute, notebooks

NOTEBOOKS = {path.stem: path for path in notebooks()}
LARGEST = 600_000  # bytes: GitHub and readers on phones wait for more
# Folders of some machine: of Linux, Colab and macOS, and of Windows.
MACHINE = re.compile(
    r"(?<![\w.:/])/(?:home|root|tmp|usr|opt|work|var|mnt|content|Users|private)/|[A-Z]:\\"
)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook, kind):
    found = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [output for output in found if output.output_type == kind]


def printed(notebook, name="stdout"):
    return "".join(o.text for o in outputs(notebook, "stream") if o.name == name)


def complaints(notebook):
    """What is on stderr but the progress of a run."""
    return re.sub(r"^\d+/\d+ images.*\n", "", printed(notebook, "stderr"), flags=re.MULTILINE)


def pictures(notebook):
    shown = outputs(notebook, "display_data") + outputs(notebook, "execute_result")
    return [o for o in shown if any(kind.startswith("image/") for kind in o.data)]


def texts(notebook):
    """All that is stored of a run but the bytes of its pictures."""
    for output in outputs(notebook, "stream"):
        yield output.text
    for kind in ("display_data", "execute_result"):
        for output in outputs(notebook, kind):
            yield from (str(v) for k, v in output.data.items() if not k.startswith("image/"))


def test_there_are_three():
    assert list(NOTEBOOKS) == ["batch_tpu", "bring_your_own_model", "quickstart"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_outputs_are_of_one_whole_run_of_this_code(name):
    path = NOTEBOOKS[name]
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert notebook.metadata["amx"]["executed"] == digest(notebook), "run python colab/execute.py"
    assert not outputs(notebook, "error")
    assert not complaints(notebook)
    assert pictures(notebook)
    assert path.stat().st_size < LARGEST


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_nothing_stored_names_a_folder_of_a_machine(name):
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    sources = (cell.source for cell in notebook.cells)
    assert not [text for text in (*texts(notebook), *sources) if MACHINE.search(text)]


@pytest.mark.parametrize("path", ["/tmp/x", "see /root/.cache/y", "'/content/z'", r"C:\Users"])
def test_a_folder_of_a_machine_is_known(path):
    assert MACHINE.search(path)
    assert not MACHINE.search("https://example.org/home/x, a/tmp/b, ../usr/c")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_nothing_is_installed_where_the_package_is_and_never_another_jax(name):
    first = code_cells(nbformat.read(NOTEBOOKS[name], as_version=4))[0].source
    guarded = first.split('if importlib.util.find_spec("amx_jax") is None:\n')[1]
    assert all(line.startswith("    ") for line in guarded.splitlines())
    assert first.count("%pip") == 1 and "{kept}" in guarded


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that executes a notebook with small sizes: the folder and the notebook afterwards."""

    def executed(name):
        folder = tmp_path_factory.mktemp(name)
        return folder, execute(NOTEBOOKS[name], folder, small=True)

    return executed


@pytest.mark.slow
def test_quickstart_explains_and_shows_four_photos(run):
    folder, notebook = run("quickstart")
    assert not outputs(notebook, "error") and not complaints(notebook)
    assert "(CPU)" in printed(notebook)
    assert len(pictures(notebook)) == 4
    assert len([o for o in outputs(notebook, "execute_result") if "text/html" in o.data]) == 1
    records = json.loads((folder / "amx-explanations/explanations.json").read_text())
    assert [record["image"] for record in records] == [
        "chelsea.png", "coffee.png", "rocket.jpg", "camera.png",
    ]  # fmt: skip
    assert all(record["sufficient"] and record["minimal"]["holds"] for record in records)
    assert all(0 < record["area"] < 0.5 for record in records)


@pytest.mark.slow
def test_batch_measures_runs_and_reads_back(run):
    folder, notebook = run("batch_tpu")
    assert not outputs(notebook, "error") and not complaints(notebook)
    said = printed(notebook)
    assert "collective operations: none" in said
    speeds = re.findall(r"batch +(\d+): ([\d.]+) images a second", said)
    assert [size for size, _ in speeds] == ["2", "4"] and all(float(speed) > 0 for _, speed in speeds)
    [file] = folder.glob("explained/*.parquet")
    rows = parquet.read_table(file).to_pylist()
    assert [row["id"] for row in rows] == [f"{number:04}.jpg" for number in range(4)]
    assert all(row["failure"] is None and row["sufficient"] and row["minimal"] for row in rows)
    assert (folder / "areas.png").read_bytes().startswith(b"\x89PNG")
    assert len(pictures(notebook)) == 3  # the scaling, the extremes, the areas


@pytest.mark.slow
def test_masks_tell_the_flawed_model_from_the_clean_one(run):
    _, notebook = run("bring_your_own_model")
    assert not outputs(notebook, "error") and not complaints(notebook)
    assert len(pictures(notebook)) == 4
    said = printed(notebook)
    accuracy = dict(re.findall(r"(flawed|clean) +([\d.]+)%\n", said))
    touched = dict(re.findall(r"(flawed|clean) +\d+ masks: (\d+)% touch the tag", said))
    recall = dict(re.findall(r"(flawed|clean) +finds (\d+)% of circles", said))
    assert all(float(accuracy[name]) > 80 for name in ("flawed", "clean"))
    assert int(touched["flawed"]) >= int(touched["clean"]) + 50
    assert int(recall["flawed"]) <= int(recall["clean"]) - 20
