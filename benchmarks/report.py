"""How long a report takes to write and, in a headless Chromium, to open and to search.

    python -m benchmarks.report FOLDER [--photos 300 1000] [--data PHOTOS]

takes the photos of an output folder of ``amx explain`` or ``amx run``, in turn and as often as it needs
so many (each differs in a pixel, so none is shared). Needs Playwright and Chromium.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import tyro
from tyro.conf import Positional

from amx_jax.data.shown import Shown
from amx_jax.report_command import shown_in, write_report
from benchmarks.programs import device_name

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
TIMES = 5


@dataclass(frozen=True)
class Options:
    """How long a report takes to write, to open and to search.

    Attributes:
        folder: output of `amx explain` or `amx run`.
        photos: how many, for each measurement.
        data: of a run, where its photos are now.
    """

    folder: Positional[Path]
    photos: tuple[int, ...] = (300, 1000)
    data: str | None = None


def repeated(photos: Sequence[Shown], count: int) -> Iterator[Shown]:
    """So many photos, each with a pixel of its own."""
    for number, photo in enumerate(islice(cycle(photos), count)):
        assert photo.pixels is not None
        pixels = photo.pixels.copy()
        pixels[0, 0] = number // 256, number % 256, 0
        yield replace(photo, name=f"{number}-{photo.name}", pixels=pixels)


def measure(browser: Any, path: Path) -> dict[str, float]:
    """Open a report anew several times; medians in seconds.

    Returns:
        ``open``: until a photo is drawn; ``sight``: until all that are in sight are; ``search``: from a
        key to what is found.
    """
    found: dict[str, list[float]] = {"open": [], "sight": [], "search": []}
    for _ in range(TIMES):
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        tab = context.new_page()
        start = time.perf_counter()
        tab.goto(path.as_uri(), wait_until="commit")
        tab.wait_for_selector("canvas[data-drawn]")
        found["open"].append(time.perf_counter() - start)
        tab.wait_for_function(
            """() => [...document.querySelectorAll(".gallery canvas")].every((one) =>
              one.dataset.drawn || one.getBoundingClientRect().top > innerHeight)"""
        )
        found["sight"].append(time.perf_counter() - start)
        found["search"].append(
            tab.evaluate(
                """() => { const start = performance.now();
                  const field = document.getElementById("text");
                  field.value = "1-";
                  field.dispatchEvent(new Event("input", { bubbles: true }));
                  return (performance.now() - start) / 1000; }"""
            )
        )
        context.close()
    return {name: median(times) for name, times in found.items()}


def main(options: Options) -> None:
    """Measure and print."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, BROWSERS)))
    photos = [photo for photo in shown_in(options.folder, options.data) if photo.failure is None]
    root = os.geteuid() == 0
    print(f"{len(photos)} photos of {options.folder.name}; {device_name()}")
    print("| photos | page, MB | beside it, MB | write, s | first drawn, s | in sight, s | search, s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"] if root else []
        )
        for count in options.photos:
            path = Path(folder, f"{count}.html")
            start = time.perf_counter()
            write_report(path, repeated(photos, count))
            seconds = time.perf_counter() - start
            beside = sum(file.stat().st_size for file in Path(folder, f"{count}-files").glob("*"))
            found = measure(browser, path)
            sizes = f"{path.stat().st_size / 2**20:.1f} | {beside / 2**20:.1f}"
            print(
                f"| {count:,} | {sizes} | {seconds:.1f} "
                f"| {found['open']:.2f} | {found['sight']:.2f} | {found['search']:.3f} |"
            )
        browser.close()


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
