"""A run of real photos that is killed again and again, against one that is not.

    python -m benchmarks.kills --data FOLDER [--photos 300] [--kills 20]

runs ``amx run configs/default.py`` twice, in one go and with SIGKILL at random moments, some of them
while a process starts. Prints how much memory the first used at each 50th image, what share of the
time it spent on saving, and whether both wrote the same bytes, with no image twice and none missing.
Fewer steps and larger cells make it shorter and change nothing of that. POSIX only, as
``ps`` says how much memory is used.
"""

import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import tyro

from benchmarks import scale

WARM = 50  # images from one figure of the memory to the next; after the first it should not grow
EVERY = 2.0  # seconds from one look at a process to the next


@dataclass(frozen=True)
class Options(scale.Work):
    """A run that is killed, and one that is not.

    Attributes:
        kills: how many.
        seed: of the moments.
        folder: where both runs write; by default a temporary folder.
    """

    photos: int = 300
    save_every: float = 20.0
    kills: int = 20
    seed: int = 0
    folder: Path | None = None


def explained(output: Path) -> int:
    """Images that a run has explained so far."""
    return sum(event["event"] == "explained" for event in scale.logged(output))


def resident(process: subprocess.Popen) -> float:
    """Memory of a process, in MiB."""
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(process.pid)], capture_output=True, text=True)
    return int(shown.stdout or 0) / 1024


def in_one_go(options: Options, output: Path) -> tuple[float, float]:
    """Run to the end and say what it took.

    Returns:
        Seconds in all, and until it began with the images.
    """
    began = time.time()
    process, seen = scale.start(options, output, 0, 1), []
    while process.poll() is None:
        time.sleep(EVERY)
        if (memory := resident(process)) and output.exists():
            seen.append((explained(output), memory))
    seconds = time.time() - began
    saving = sum(event["seconds"] for event in scale.logged(output) if event["event"] == "saved")
    start = scale.logged(output)[0]["time"] - began
    print(f"{explained(output)} images in {seconds:.0f} s, {100 * saving / seconds:.2f} % of it saving")
    first = {images - images % WARM: memory for images, memory in reversed(seen)}
    print("images, memory in MiB:", ", ".join(f"{n}: {m:.0f}" for n, m in sorted(first.items()) if n))
    return seconds, start


def killed(options: Options, output: Path, seconds: float, start: float) -> int:
    """Run to the end in spite of kills; returns how many there were."""
    moments = random.Random(options.seed)
    for number in range(options.kills):
        process = scale.start(options, output, 0, 1)
        try:
            process.wait(moments.uniform(0, start + 2 * seconds / options.kills))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            shown = f"kill {number + 1}: {explained(output)} explained"
            print(shown, file=sys.stderr, flush=True)
        else:
            return number
    scale.start(options, output, 0, 1).wait()
    return options.kills


def main() -> int:
    """Run both, compare; returns the exit status."""
    options = tyro.cli(Options)
    with tempfile.TemporaryDirectory() as temporary:
        whole, pieces = (Path(options.folder or temporary, name) for name in ("whole", "killed"))
        kills = killed(options, pieces, *in_one_go(options, whole))
        files = scale.written(whole)
        same = bool(files) and files == scale.written(pieces)
        rows = [pq.read_table(path, columns=["id"]) for path in sorted(pieces.glob("*.parquet"))]
        ids = [name for table in rows for name in table["id"].to_pylist()]
    once = len(ids) == len(set(ids)) == options.photos
    print(f"{kills} kills: the files are {'the same' if same else 'NOT the same'}, to the byte")
    print(f"{len(ids)} rows, {'every image once' if once else 'NOT every image once'}")
    return 0 if same and once else 1


if __name__ == "__main__":
    sys.exit(main())
