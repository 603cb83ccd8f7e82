"""``amx plot``: pictures for papers, made of what ``amx explain`` and ``amx evaluate`` wrote."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import tyro
from rich.console import Console
from tyro.conf import DisallowNone, Positional, arg, subcommand

from amx_jax.config import PRESETS, Config, preset
from amx_jax.console import DONE, NOTHING, PARTLY, complain
from amx_jax.data.explained import Explained, own_photo, read_pictures, read_records
from amx_jax.data.photos import read_photo
from amx_jax.data.results import EVALUATION, check_output, read_evaluation, write_whole
from amx_jax.errors import ConfigError, ImageError, OutputError, one_line
from amx_jax.options import Model, OtherPhotos, other_photos
from amx_jax.report.panels import DPI, Pictured, Step, room, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg")
ANIMATED = 640  # pixels of the long side of a GIF file: it holds each frame whole, in 256 colours
LONGEST = 2**16  # pixels of a side that a PNG file of Matplotlib can have
DESCRIPTION = "Draw pictures for papers: PNG, PDF, SVG or GIF by the output's suffix."
Size = Literal["own", "input"]
Folders = Annotated[
    Positional[tuple[str, ...]], arg(metavar="DIR ...", help_behavior_hint="(required)")
]
File = Annotated[str, arg(metavar="FILE.png|pdf|svg")]
Many = Annotated[DisallowNone[int | None], arg(metavar="INT", help_behavior_hint="(default: all)")]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rows of photos: photo, overlay, kept pixels.

    Attributes:
        folders: that amx explain wrote, or those of single photos in them.
        output: its suffix says what is drawn: .png, .pdf or .svg.
        size: own draws over the whole photo, with what the classifier does not see almost white; input
            over what it sees, at its resolution.
        columns: photos beside each other, three pictures each.
        dpi: dots per inch of the 7 inches of width; photos of more pixels are made smaller.
    """

    folders: Folders = ()
    output: File
    size: Size = "own"
    columns: int = 1
    dpi: int = DPI

    def run(self) -> int:
        """Draw; returns the exit status."""
        paper = Paper(self.output, self.dpi, SUFFIXES)
        _positive(columns=self.columns)
        from amx_jax.report.panels import explanation_grid

        most = paper.pixels(3 * self.columns)
        folders = _some(self.folders)
        found = [one for folder in folders for _, one in read_shown(folder, self.size, most)]
        paper.write(explanation_grid(found, self.columns, self.dpi))
        return _told(len(found), self.output)


@dataclass(frozen=True, kw_only=True)
class Methods:
    """A column for each method, a row for each photo.

    Attributes:
        folders: those of one method each, that amx explain --method wrote of the same photos, or those
            of single photos in them.
        output: .png, .pdf or .svg.
        size: as of amx plot grid.
        columns: pictures beside each other; of one photo, more go into further rows.
        dpi: as of amx plot grid.
    """

    folders: Folders = ()
    output: File
    size: Size = "own"
    columns: Many = None
    dpi: int = DPI

    def run(self) -> int:
        """Draw; returns the exit status."""
        paper = Paper(self.output, self.dpi, SUFFIXES)
        if self.columns is not None:
            _positive(columns=self.columns)
        from amx_jax.report.panels import method_strip

        most = paper.pixels(self.columns or len(_some(self.folders)) + 1)
        read = [_by_photo(folder, self.size, most) for folder in _some(self.folders)]
        names = _distinct(read, self.folders)
        photos = [photo for photo in read[0] if all(photo in others for others in read)]
        missing = sorted({photo for others in read for photo in others} - set(photos))
        if not photos:
            raise OutputError("found no photo that all folders have, expected explanations of the same")
        rows = [dict(zip(names, (one[photo] for one in read), strict=True)) for photo in photos]
        for photo, row in zip(photos, rows, strict=True):
            _one_decision(photo, row)
        try:
            figure = method_strip(rows, self.columns, self.dpi)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        paper.write(figure)
        for photo in missing:
            complain(f"{one_line(photo)}: not explained in every folder; left out")
        told = _told(len(photos), self.output, f" by {len(read)} methods")
        return PARTLY if missing else told


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The share of backgrounds that keep the decision, by area.

    Attributes:
        folders: one that amx evaluate wrote: a line for each method; or those that amx explain --curve
            wrote: the nested masks of the photo, or a line for each photo.
        output: .png, .pdf or .svg.
        delta: draw a line at 1 − δ; by default that of the explanations, where they are robust.
    """

    folders: Folders = ()
    output: File
    delta: Annotated[
        DisallowNone[float | None], arg(metavar="FLOAT", help_behavior_hint="(default: as recorded)")
    ] = None

    def run(self) -> int:
        """Draw; returns the exit status."""
        paper = Paper(self.output, DPI, SUFFIXES)
        if self.delta is not None and not 0 <= self.delta <= 1:
            raise ConfigError(f"delta: found {self.delta}, expected from 0 to 1")
        folders = _some(self.folders)
        if any(Path(folder, f"{EVALUATION}.json").exists() for folder in folders):
            if len(folders) > 1:
                raise OutputError(
                    f"found {len(folders)} folders, one of them of amx evaluate; expected that alone"
                )
            figure, count = self._of_methods(folders[0])
        else:
            figure, count = self._of_photos(folders)
        paper.write(figure)
        return _told(count, self.output)

    def _of_methods(self, folder: str) -> "tuple[Figure, int]":
        records, _ = read_evaluation(folder)
        measured = [record for record in records if record.get("curve")]
        if not measured:
            raise OutputError(f"{one_line(folder)}: found no curves; evaluate without --no-curves")
        count = len({record["image"] for record in measured})
        title = f"{count} photo{'s' if count > 1 else ''}: median of nested masks"
        return methods_plot(measured, title, self.delta), count

    def _of_photos(self, folders: Sequence[str]) -> "tuple[Figure, int]":
        import numpy as np

        from amx_jax.report.plots import retention_plot, sufficiency_plot

        found = [(Path(folder), *one) for folder in folders for one in read_records(folder)]
        measured = [(folder, place, record) for folder, place, record in found if record.get("curve")]
        if not measured:
            names = ", ".join(one_line(folder) for folder in folders)
            raise OutputError(f"{names}: found no curves; explain the photos with --curve")
        for _, place, record in found:
            if not record.get("curve"):
                complain(f"{one_line(place)}: has no curve, left out; explain it with --curve")
        configs = [record.get("config", {}) for *_, record in measured]
        robust = [config["delta"] for config in configs if config.get("notion") == "robust"]
        delta = self.delta if self.delta is not None or not robust else robust[0]
        try:
            if len(measured) == 1:
                [(_, _, record)] = measured
                curve, kept = record["curve"], record["robustness"].values()
                trials = sum(one["trials"] for one in kept)
                certified = None  # of another goal these are not the backgrounds that keep the decision
                if trials and record["notion"]["goal"] == "sufficient":
                    certified = record["area"], sum(one["kept"] for one in kept) / trials
                figure = sufficiency_plot(
                    np.array(curve["area"]),
                    np.array(curve["retention"]),
                    certified=certified,
                    delta=delta,
                    title=record["target"]["name"],
                )
            else:
                places = [place for _, place, _ in measured]
                unique = len({place.name for place in places}) == len(places)
                curves = {
                    place.name if unique else str(place): (
                        np.array(record["curve"]["area"]),
                        np.array(record["curve"]["retention"]),
                    )
                    for _, place, record in measured
                }
                figure = retention_plot(curves, f"{len(curves)} explanations: nested masks", delta)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise OutputError(
                f"{one_line(measured[0][0])}: found a damaged curve ({error}); explain the photos again"
            ) from error
        return figure, len(measured)


@dataclass(frozen=True, kw_only=True)
class Evolution(Model):
    """Explain a photo and draw its mask after every few steps.

    Attributes:
        photo: an image file.
        output: .gif for an animation; .png, .pdf or .svg for some steps in a row.
        every: steps from one mask to the next, a multiple of 4.
        columns: masks in the row.
        size: as of amx plot grid; of a GIF at most 640 pixels.
        dpi: as of amx plot grid.
        target: class to explain, by name or index.
        rather_than: ask why the target rather than this class, by name or index.
        others: as of amx explain.
        preset: the configuration that the options below change.
        config: see above.
    """

    photo: Annotated[Positional[str], arg(metavar="PHOTO")]
    output: Annotated[str, arg(metavar="FILE.gif|png|pdf|svg")]
    every: int = 4
    columns: int = 6
    size: Size = "own"
    dpi: int = DPI
    target: Annotated[
        DisallowNone[str | None],
        arg(metavar="CLASS", help_behavior_hint="(default: the photo's top class)"),
    ] = None
    rather_than: Annotated[
        DisallowNone[str | None],
        arg(metavar="CLASS", help_behavior_hint="(default: than all others)"),
    ] = None
    others: OtherPhotos = ()
    preset: Annotated[str, arg(metavar="|".join(PRESETS))] = "default"
    config: Annotated[Config, arg(name="")] = field(default_factory=Config)

    def run(self) -> int:
        """Explain and draw; returns the exit status."""
        paper = Paper(self.output, self.dpi, (*SUFFIXES, ".gif"))
        _positive(every=self.every, columns=self.columns)
        read_photo(self.photo, 1)  # before JAX is started: most mistakes are here
        import numpy as np

        from amx_jax.explanation import Unexplained
        from amx_jax.report.panels import evolution_gif, evolution_strip

        with Console(stderr=True).status("explaining", spinner="line"):
            frames, explanation, classifier = self._explained(paper)
        if isinstance(explanation, Unexplained):
            complain(f"{one_line(self.photo)}: {explanation.reason}")
            return NOTHING
        seen = asdict(classifier.preprocess)
        record = {**explanation.record(self.photo), "preprocess": seen}
        photo, geometry = None, None
        if self.size == "own":
            pixels = np.broadcast_to(explanation.pixels, (*explanation.mask.shape, 3))
            found = Explained(record, pixels, explanation.mask)
            most = ANIMATED if paper.suffix == "gif" else paper.pixels(self.columns)
            photo, geometry = own_photo(found, Path(), most)
        steps = [
            Step(frame.name, shown(record, explanation.pixels, frame.mask, photo, geometry))
            for frame in frames
        ]
        if paper.suffix == "gif":
            paper.save(evolution_gif(steps))
        else:
            paper.write(evolution_strip(steps, self.columns, self.dpi))
        print(f"{len(frames)} masks of {explanation.steps} steps in {one_line(self.output)}")
        return DONE

    def _explained(self, paper: "Paper") -> Any:
        """The masks of the photo's run, its explanation, and the classifier."""
        from amx_jax.evolution import evolution
        from amx_jax.explainer import Explainer

        classifier = self.load()
        others = other_photos(self.config, self.others, classifier)
        explainer = Explainer(classifier, self.config, others=others)
        paper.make_folder()
        photo = read_photo(self.photo, classifier.preprocess.resize)
        found = evolution(explainer, photo, self.every, self.target, self.rather_than)
        return *found, classifier


class Paper:
    """The file that is drawn.

    Args:
        output: its path.
        dpi: dots per inch.
        suffixes: that it may have.

    Raises:
        ConfigError: another suffix, or a resolution below 1.
        OutputError: it is a folder.
    """

    def __init__(self, output: str, dpi: int, suffixes: Sequence[str]):
        self.path, self.dpi = Path(output), dpi
        suffix = self.path.suffix.lower()
        if suffix not in suffixes:
            told = f"the suffix {suffix!r}" if suffix else "no suffix"
            raise ConfigError(f"{one_line(output)}: found {told}, expected {', '.join(suffixes)}")
        if self.path.is_dir():
            raise OutputError(f"{one_line(output)}: found a folder, expected a file to write")
        _positive(dpi=dpi)
        self.suffix = suffix[1:]

    def pixels(self, columns: int) -> int:
        """Of a picture's width where so many are side by side."""
        return max(1, round(room(columns) * self.dpi))

    def make_folder(self) -> None:
        """Of the file, and make sure that it takes files."""
        check_output(self.path.parent)

    def write(self, figure: "Figure") -> None:
        """Save a figure."""
        from amx_jax.report.encode import encode_figure

        width, height = figure.get_size_inches()
        if self.suffix == "png" and max(width, height) * figure.dpi >= LONGEST:
            raise ConfigError(
                f"found pictures {height:.0f} inches high in all, expected at most "
                f"{LONGEST / figure.dpi:.0f} at {figure.dpi:g} dots per inch; draw fewer photos, or "
                "give more --columns or a lower --dpi"
            )
        self.save(encode_figure(figure, self.suffix))

    def save(self, content: bytes) -> None:
        """Write the file."""
        self.make_folder()
        write_whole(self.path, content)


def read_shown(folder: str, size: Size, most: int) -> Iterator[tuple[str, Pictured]]:
    """The explanations of a folder by their photos' paths, made ready to be drawn.

    A photo that is gone or has changed is drawn from its ``input.png``; that is told.

    Args:
        folder: as of :func:`amx_jax.data.explained.read_records`.
        size: draw over the photos or over the classifier's inputs.
        most: pixels of a photo's long side.
    """
    for place, record in read_records(folder):
        found = read_pictures(place, record)
        photo, geometry = None, None
        if size == "own":
            try:
                photo, geometry = own_photo(found, place, most)
            except ImageError as error:
                height, width = found.mask.shape
                complain(f"{error}; drawn from input.png, {width} × {height} pixels")
        yield record["image"], shown(record, found.pixels, found.mask, photo, geometry)


def methods_plot(
    records: Sequence[Mapping[str, Any]], title: str, delta: float | None = None
) -> "Figure":
    """The curves of an evaluation, each the median over a method's photos.

    Args:
        records: of :func:`amx_jax.evaluate.compare.compare`, each with a curve.
        title: above the plot.
        delta: as of :func:`amx_jax.report.plots.retention_plot`.
    """
    import numpy as np

    from amx_jax.evaluate.curves import AREAS
    from amx_jax.evaluate.summary import mean_curve
    from amx_jax.report.plots import retention_plot

    areas = np.array(AREAS)
    methods = dict.fromkeys(record["method"] for record in records)
    curves = {method: (areas, mean_curve(records, method, areas)) for method in methods}
    return retention_plot(curves, title, delta)


def plots(chosen: str) -> Any:
    """The kinds of ``amx plot``, for tyro; the options of an evolution begin at that preset."""
    missing = cast(Any, tyro.MISSING)
    begun = Evolution(photo=missing, output=missing, preset=chosen, config=preset(chosen))
    return Annotated[
        Annotated[Grid, subcommand("grid")]
        | Annotated[Methods, subcommand("methods")]
        | Annotated[Evolution, subcommand("evolution", default=begun)]
        | Annotated[Curves, subcommand("curves")],
        subcommand("plot", description=DESCRIPTION),
    ]


def _some(folders: Sequence[str]) -> Sequence[str]:
    if not folders:
        raise OutputError("found no folder, expected one that amx explain wrote")
    return folders


def _positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f"{name}: found {number}, expected at least 1")


def _by_photo(folder: str, size: Size, most: int) -> dict[str, Pictured]:
    """The explanations of a folder, one of each photo."""
    found: dict[str, Pictured] = {}
    for photo, one in read_shown(folder, size, most):
        if photo in found:
            raise OutputError(
                f"{one_line(folder)}: found several explanations of {one_line(photo)}, expected one; "
                "explain it without --instances and --classes"
            )
        found[photo] = one
    return found


def _method(record: Mapping[str, Any]) -> str:
    """As ``amx evaluate`` calls it."""
    name, pruned = record["method"]["name"], record["method"]["pruned"]
    if name == "amx":
        return name if pruned else "amx, unpruned"
    return f"{name}+prune" if pruned else name


def _distinct(read: Sequence[Mapping[str, Pictured]], folders: Sequence[str]) -> list[str]:
    """A name for each folder: that of its method, with the folder's where two have the same."""
    names = []
    for one, folder in zip(read, folders, strict=True):
        found = sorted({_method(shown.record) for shown in one.values()})
        if len(found) > 1:
            raise OutputError(
                f"{one_line(folder)}: found the methods {', '.join(found)}, expected one; give a "
                "folder for each"
            )
        names += found
    if len(set(names)) < len(names):
        names = [f"{name} ({folder})" for name, folder in zip(names, folders, strict=True)]
    if len(set(names)) < len(names):
        raise OutputError("found the same folder twice, expected one for each method")
    return names


def _one_decision(photo: str, row: Mapping[str, Pictured]) -> None:
    """Refuse to compare masks that explain different things."""
    asked = {}
    for name, one in row.items():
        target = one.record["target"]
        asked[one.record["weights"], target["index"]] = f"{target['name']} ({name})"
    if len(asked) > 1:
        raise OutputError(
            f"{one_line(photo)}: found explanations of different decisions "
            f"({'; '.join(asked.values())}), expected one classifier and class; explain it again with "
            "--target"
        )


def _told(photos: int, output: str, how: str = "") -> int:
    print(f"{photos} photo{'s' if photos > 1 else ''}{how} in {one_line(output)}")
    return DONE
