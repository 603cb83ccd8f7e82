"""What a data-set-scale run costs: images a second by processes, bytes an image, and saving.

    python -m benchmarks.scale --data FOLDER [--photos 64] [--processes 1 2 4] [--output DIR]

runs ``amx run configs/default.py`` on the first photos of a folder, anew for each number of processes,
all of which work at the same time on this machine; the compiled programs are kept from one to the next.
Prints a table, and in its last line whether all of them wrote the same files.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from amx_jax.config import Config
from amx_jax.data.results import check_output, write_json
from benchmarks.programs import device_name

CONFIG = Path(__file__).parents[1] / "configs" / "default.py"


@dataclass(frozen=True)
class Work:
    """What a run does.

    Attributes:
        data: as of `amx run`.
        photos: how many, the first.
        save_every: seconds from one saving to the next.
        steps: as of the configuration.
        cell: likewise; 0 for the notion's own.
        trials: likewise.
        controls: likewise.
    """

    data: str
    photos: int = 64
    save_every: float = 60.0
    steps: int = Config.steps
    cell: int = Config.cell
    trials: int = Config.trials
    controls: int = Config.controls


@dataclass(frozen=True)
class Options(Work):
    """What a data-set-scale run costs.

    Attributes:
        processes: how many processes at a time, for each measurement.
        output: where scale.json goes; by default nowhere.
    """

    processes: tuple[int, ...] = (1, 2, 4)
    output: Path | None = None


def start(options: Work, output: Path, index: int, count: int) -> subprocess.Popen:
    """One process of a run."""
    command = [sys.executable, "-m", "amx_jax", "run", str(CONFIG), "--data", options.data]
    command += ["--first", str(options.photos), "--save-every", str(options.save_every)]
    for name in ("steps", "cell", "trials", "controls"):
        command += [f"--config.{name}", str(getattr(options, name))]
    command += ["--output", str(output), "--processes", str(count), "--process", str(index), "--quiet"]
    return subprocess.Popen(command, env={**os.environ, "PYTHONWARNINGS": "ignore"})


def measure(options: Options, output: Path, count: int) -> dict[str, Any]:
    """Run so many processes to their end.

    Returns:
        ``processes``, ``seconds``, ``images_per_second``, ``bytes_per_image``, ``saving``: the share of
        the processes' time that they spent on saving, and ``peak_mib``, the largest memory of one.
    """
    began = time.perf_counter()
    running = [start(options, output, index, count) for index in range(count)]
    peaks = [os.wait4(process.pid, 0)[2].ru_maxrss / 1024 for process in running]
    seconds = time.perf_counter() - began
    events = logged(output)
    saving = sum(event["seconds"] for event in events if event["event"] == "saved")
    explained = sum(event["event"] == "explained" for event in events)
    size = sum(path.stat().st_size for path in output.glob("*.parquet"))
    return {
        "processes": count,
        "images": explained,
        "seconds": seconds,
        "images_per_second": explained / seconds,
        "bytes_per_image": size / max(explained, 1),
        "saving": saving / (count * seconds),
        "peak_mib": max(peaks),
    }


def logged(output: Path) -> list[dict[str, Any]]:
    """What the processes of a run have logged so far."""
    logs = sorted(output.glob("log-*.jsonl"))
    return [json.loads(line) for log in logs for line in log.read_text().splitlines()]


def written(output: Path) -> dict[str, bytes]:
    """A run's Parquet files by name."""
    return {path.name: path.read_bytes() for path in output.glob("*.parquet")}


def table(found: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of what :func:`measure` returned."""
    headings = ("processes", "images", "s an image", "images/s", "bytes an image", "saving %", "MiB")
    rows = [
        (
            f"{one['processes']}",
            f"{one['images']}",
            f"{one['seconds'] / max(one['images'], 1):.2f}",
            f"{one['images_per_second']:.3f}",
            f"{one['bytes_per_image']:.0f}",
            f"{100 * one['saving']:.2f}",
            f"{one['peak_mib']:.0f}",
        )
        for one in found
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), *rows))


def main() -> None:
    """Measure, print."""
    options = tyro.cli(Options)
    output = options.output and check_output(options.output)
    found, files = [], []
    with tempfile.TemporaryDirectory() as folder:
        for count in options.processes:
            out = Path(folder, str(count))
            found.append(measure(options, out, count))
            files.append(written(out))
            print(f"{count} processes: {found[-1]['seconds']:.0f} s", file=sys.stderr, flush=True)
    print(table(found))
    if output:
        write_json(output / "scale.json", {"device": device_name(), "measured": found})
    same = all(one == files[0] for one in files)
    print(f"\nthe files of all are {'the same' if same else 'NOT the same'}")


if __name__ == "__main__":
    main()
