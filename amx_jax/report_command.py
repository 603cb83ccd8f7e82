"""``amx report``: what a command found, as a page to look at."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from tyro.conf import DisallowNone, FlagCreatePairsOff, Positional, arg

from amx_jax.console import DONE
from amx_jax.data.report_files import ReportFiles
from amx_jax.data.results import read_json
from amx_jax.data.run_folder import MANIFEST
from amx_jax.data.shown import Shown, is_explained, is_run, of_explained, of_run
from amx_jax.errors import ConfigError, OutputError, one_line

NAME = "report.html"


@dataclass(frozen=True)
class Report:
    """Write a page of what `amx explain` or `amx run` found, to be opened from the disk.

    It needs no network. Above 64 MB of photos they lie in a folder beside the page, which goes with it.

    Attributes:
        folder: output of `amx explain` or `amx run`.
        output: the page.
        first: how many of the photos, the first; 0 for all.
        data: of a run, where its photos are now.
        weights: of a run, the file of weights that it was given.
        quiet: say nothing but what went wrong.
    """

    folder: Annotated[Positional[str], arg(metavar="DIR")]
    output: Annotated[
        DisallowNone[str | None], arg(metavar="FILE", help_behavior_hint="(default: DIR/report.html)")
    ] = None
    first: int = 0
    data: Annotated[
        DisallowNone[str | None], arg(metavar="DATA", help_behavior_hint="(default: as the run had)")
    ] = None
    weights: Annotated[
        DisallowNone[str | None], arg(metavar="FILE", help_behavior_hint="(default: as installed)")
    ] = None
    quiet: FlagCreatePairsOff[bool] = False

    def run(self) -> int:
        """Write the page; returns the exit status."""
        if self.first < 0:
            raise ConfigError(f"first: found {self.first}, expected at least 0")
        folder = Path(self.folder)
        path = Path(self.output) if self.output is not None else folder / NAME
        if path.is_dir() or path.name in ("", ".", ".."):
            raise OutputError(
                f"{one_line(path) or repr(str(path))}: found a folder, expected a file for the page; "
                f"give one as {NAME}"
            )
        photos = shown_in(folder, self.data, self.weights)
        with closing(photos):
            write_report(path, islice(photos, self.first or None))
        if not self.quiet:
            Console(highlight=False).out(f"report in {one_line(path)}", highlight=False)
        return DONE


def shown_in(
    folder: Path, data: str | None = None, weights: str | None = None
) -> Generator[Shown, None, None]:
    """The photos of a command's output folder, with their masks, one at a time.

    Args:
        folder: output of `amx explain` or `amx run`.
        data: of a run, where its photos are now; by default where they were.
        weights: of a run, the file of weights that it was given.

    Raises:
        OutputError: the folder is of neither, or damaged.
        ConfigError: there are no such photos, or the weights are not those of the run.
    """
    if is_explained(folder):
        return of_explained(folder)
    if not is_run(folder):
        raise OutputError(
            f"{one_line(folder)}: found neither explanations.json nor a run, expected the output "
            "folder of `amx explain` or `amx run`; check the path"
        )
    from amx_jax.classifiers.fingerprint import fingerprint
    from amx_jax.classifiers.registry import load_classifier
    from amx_jax.data.sources import open_source

    about = read_json(folder / MANIFEST, "what a run was begun with", "give another folder")
    try:
        where, name, fitting = (about[key] for key in ("data", "classifier", "weights"))
    except (TypeError, KeyError) as error:
        raise OutputError(
            f"{one_line(folder / MANIFEST)}: found no data, classifier or weights, expected what a run "
            "was begun with; give the output folder of `amx run`"
        ) from error
    source = open_source(data or where)
    classifier = load_classifier(name, weights, None)
    found = fingerprint(classifier.params)
    if found != fitting:
        raise ConfigError(
            f"weights: found {found[:19]}…, expected those of the run, {fitting[:19]}…; give their "
            "file with --weights"
        )
    preprocess = classifier.preprocess
    return of_run(folder, source, preprocess.crop, preprocess.resize)


def write_report(path: Path, photos: Iterable[Shown]) -> Path:
    """Write a page of photos, of which few are in memory at a time if they are many.

    Args:
        path: of the page.
        photos: that it shows.

    Returns:
        The page.

    Raises:
        OutputError: it cannot be written.
    """
    from amx_jax.report.page import card, page
    from amx_jax.report.pictures import encode_png

    files = ReportFiles(path)
    cards: list[Mapping[str, Any]] = []
    classifiers: dict[str, None] = {}
    for photo in photos:
        cards.append(card(photo))
        classifiers |= {one.record["classifier"]: None for one in photo.masks}
        files.add(encode_png(photo.pixels) if photo.pixels is not None else None)
    about = ", ".join(classifiers) or "the classifier"
    return files.write(page(cards, files.photos(), about))


def report_of(folder: str, records: Sequence[Mapping[str, Any]]) -> Path:
    """Write the page of what was just explained into its own folder.

    Args:
        folder: the output of `amx explain`.
        records: of it.

    Returns:
        The page.

    Raises:
        OutputError: it cannot be written.
    """
    return write_report(Path(folder, NAME), of_explained(Path(folder), records))
