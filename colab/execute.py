"""Execute the notebooks and keep their outputs in them, as readers on GitHub see them.

python colab/execute.py [NOTEBOOK ...]
"""

import hashlib
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
TIMEOUT = 1800  # seconds a cell


def notebooks() -> list[Path]:
    """All of them."""
    return sorted(FOLDER.glob("*.ipynb"))


def execute(path: Path, folder: Path, small: bool = False) -> NotebookNode:
    """A notebook with the outputs of a run in a new process.

    Args:
        path: of the notebook, which stays as it is.
        folder: where it runs, and where its files are left.
        small: whether with the sizes of a test.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell that fails.
    """
    notebook = nbformat.read(path, as_version=4)
    commands = os.pathsep.join(
        [os.path.dirname(sys.executable), os.environ["PATH"]]
    )  # amx of this Python
    environment = {**os.environ, "PATH": commands, "AMX_NOTEBOOK_SMALL": str(int(small))}
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook, timeout=TIMEOUT, kernel_name="python3", resources=resources, record_timing=False
    )
    client.execute(env=environment)
    return notebook


def digest(notebook: NotebookNode) -> str:
    """Of the code: tells whether stored outputs are of this code."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def main(paths: list[str]) -> None:
    """Execute notebooks in place; one that fails stays as it is."""
    for path in [Path(path) for path in paths] or notebooks():
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        notebook.metadata["amx"] = {"executed": digest(notebook)}
        # Which Python and which editor it was matters to nobody.
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
