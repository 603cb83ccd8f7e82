"""``amx run`` and ``amx inspect``: a data set explained, and what came of it."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from tyro.conf import DisallowNone, FlagCreatePairsOff, Positional, arg

from amx_jax.console import INTERRUPTED, TERMINATED, complain, outcome, show_json
from amx_jax.data.results import write_whole
from amx_jax.errors import ConfigError, OutputError, one_line
from amx_jax.experiment import Experiment
from amx_jax.options import load, other_photos
from amx_jax.report.terminal import run_lines

if TYPE_CHECKING:
    from amx_jax.runner import Share, Standing

EVERY = 30.0  # seconds from one line of progress to the next, where there is no terminal
TRACED = 40  # calls of the progress that --profile records, after the first explanation's compilation


@dataclass(frozen=True)
class Run:
    """Explain a data set, and go on where an earlier run of the same ended.

    Attributes:
        file: Python that assigns an Experiment to `experiment`, such as those in configs/; the options
            below change it.
        processes: how many processes share the images; 0 for what --coordinator says, else one.
        process: which of them this is, from 0.
        coordinator: initialise jax.distributed: HOST:PORT of process 0, or `auto` on a Cloud TPU or
            under Slurm, where the rest is known.
        profile: write a trace of JAX's profiler to this folder, of some seconds after compilation.
        tensorboard: write scalars for TensorBoard to this folder.
        cache: keep compiled programs in the user's cache folder.
        quiet: no progress and no summary.
        json: print the summary as JSON and nothing else on stdout.
        experiment: see above.
    """

    file: Annotated[Positional[str], arg(metavar="CONFIG.py")]
    processes: int = 0
    process: int = 0
    coordinator: Annotated[
        DisallowNone[str | None],
        arg(metavar="HOST:PORT|auto", help_behavior_hint="(default: none is needed)"),
    ] = None
    profile: Annotated[
        DisallowNone[str | None], arg(metavar="DIR", help_behavior_hint="(default: none)")
    ] = None
    tensorboard: Annotated[
        DisallowNone[str | None], arg(metavar="DIR", help_behavior_hint="(default: none)")
    ] = None
    cache: bool = True
    quiet: FlagCreatePairsOff[bool] = False
    json: FlagCreatePairsOff[bool] = False
    experiment: Annotated[Experiment, arg(name="")] = field(default_factory=lambda: Experiment(""))

    def run(self) -> int:
        """Explain what is left; returns the exit status."""
        experiment = self.experiment
        if self.coordinator is None and not 0 <= self.process < max(self.processes, 1):
            raise ConfigError(
                f"process: found {self.process}, expected from 0 to {max(self.processes, 1) - 1}; they "
                "are counted from 0, and --processes says how many there are"
            )
        from amx_jax.data.sources import open_source

        source = open_source(experiment.data)  # before JAX is started: most mistakes are here
        share = self._share(len(source))
        from amx_jax.runner import Runner, Stopped

        classifier = self._classifier()
        others = other_photos(experiment.config, experiment.others, classifier)
        with signals() as asked, self._progress() as show:
            runner = Runner(experiment, source, classifier, others, share, show, lambda: bool(asked))
            try:
                whole = runner.run()
            except Stopped:
                complain(f"stopped; the same command goes on, with {one_line(experiment.output)}/")
                return TERMINATED if signal.SIGTERM in asked else INTERRUPTED
        standing = runner.standing
        if not whole:
            if not self.quiet:
                done = f"{standing.done} of {standing.total} images of this process"
                print(f"{done} are done, and others' are not", file=sys.stderr)
            return outcome(standing.done - standing.failed, standing.total)
        summary = summarised(experiment.output)
        self._show(summary)
        return outcome(summary["explained"], summary["explained"] + summary["failed"])

    def _share(self, images: int) -> "Share":
        """Which of the processes it is; JAX is initialised."""
        import jax

        from amx_jax.lift import share_cores
        from amx_jax.runner import Share

        share_cores(min(self.experiment.config.batch_size, images))
        if self.coordinator is None:
            return Share(self.process, max(self.processes, 1))
        where: dict[str, Any] = {}
        if self.coordinator != "auto":
            where = {
                "coordinator_address": self.coordinator,
                "num_processes": self.processes,
                "process_id": self.process,
            }
        try:
            jax.distributed.initialize(**where)
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"coordinator: found {self.coordinator}, and JAX cannot start with it: {reason}; on a "
                "machine that is neither a Cloud TPU nor under Slurm give HOST:PORT, --processes and "
                "--process"
            ) from error
        return Share(jax.process_index(), jax.process_count())

    def _classifier(self) -> Any:
        import logging

        experiment = self.experiment
        found = load(experiment.classifier, experiment.weights, experiment.labels, self.cache)
        for name in ("jax", "absl", "orbax"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        return found

    def _show(self, summary: dict[str, Any]) -> None:
        if self.json:
            show_json(summary)
        elif not self.quiet:
            out = Console(highlight=False)
            out.out(run_lines(summary, out.width), highlight=False)
            out.out(f"results in {one_line(self.experiment.output)}/", highlight=False)

    @contextmanager
    def _progress(self) -> Iterator[Any]:
        """A function that shows how far the process is, in every way that was asked for."""
        with (
            _bar(self.quiet) as bar,
            _trace(self.profile) as trace,
            _scalars(self.tensorboard) as scalars,
        ):

            def show(standing: "Standing") -> None:
                bar(standing)
                trace(standing)
                scalars(standing)

            yield show


@dataclass(frozen=True)
class Inspect:
    """Say what a run found so far: how many, how small, what failed.

    Attributes:
        folder: the run's output.
        plot: write the distribution of the area as this PNG.
        examples: failed images named for each cause.
        json: print JSON for machines and nothing else on stdout.
    """

    folder: Annotated[Positional[str], arg(metavar="DIR")]
    plot: Annotated[
        DisallowNone[str | None], arg(metavar="FILE.png", help_behavior_hint="(default: none)")
    ] = None
    examples: int = 3
    json: FlagCreatePairsOff[bool] = False

    def run(self) -> int:
        """Summarise; returns the exit status."""
        if self.examples < 0:
            raise ConfigError(f"examples: found {self.examples}, expected at least 0")
        summary = summarised(self.folder, self.examples)
        if self.plot:
            self._draw(self.plot)
        if self.json:
            show_json(summary)
        else:
            out = Console(highlight=False)
            out.out(run_lines(summary, out.width), highlight=False)
        return outcome(summary["explained"], summary["explained"] + summary["failed"])

    def _draw(self, path: str) -> None:
        """Plot the distribution of the area."""
        import numpy as np

        from amx_jax.data.shards import read_columns
        from amx_jax.report.encode import encode_figure
        from amx_jax.report.plots import area_plot

        found = read_columns(Path(self.folder), ["area"])["area"]
        areas = np.array([area for area in found if area is not None])
        if not len(areas):
            raise OutputError(f"{one_line(self.folder)}: found no explained image, and nothing to plot")
        title = f"{one_line(self.folder)}: {len(areas):,} photo{'s' if len(areas) > 1 else ''}"
        write_whole(Path(path), encode_figure(area_plot(areas, title)))


def summarised(folder: str, examples: int = 3) -> dict[str, Any]:
    """What a run found so far, as :func:`amx_jax.evaluate.run_summary.summarise_run` says it."""
    from amx_jax.data.run_folder import count_images
    from amx_jax.data.shards import read_columns
    from amx_jax.evaluate.run_summary import COLUMNS, summarise_run

    return summarise_run(read_columns(Path(folder), COLUMNS), examples, count_images(Path(folder)))


@contextmanager
def signals() -> Iterator[list[int]]:
    """The signals to end that came; the first asks, and Ctrl-C a second time ends at once."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if number == signal.SIGINT and asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _bar(quiet: bool) -> Iterator[Any]:
    """Progress on a terminal; a line now and then where there is none."""
    console = Console(stderr=True)
    began = time.monotonic()
    if quiet or not console.is_terminal:
        said = began

        def say(standing: "Standing") -> None:
            nonlocal said
            if not quiet and time.monotonic() - said >= EVERY:
                said = time.monotonic()
                print(_line(standing, said - began), file=sys.stderr, flush=True)

        yield say
        return
    columns = TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[line]}")
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("compiling", total=None, line="")

        def draw(standing: "Standing") -> None:
            line = _line(standing, time.monotonic() - began)
            done = standing.done + standing.under_way
            bar.update(
                task, description=standing.phase, total=standing.total, completed=done, line=line
            )

        yield draw


def _line(standing: "Standing", seconds: float) -> str:
    """How far a process is, in one line.

    Examples:
        >>> from amx_jax.runner import Standing
        >>> _line(Standing(total=100, before=10, explained=29, failed=1), 60.0)
        '40/100 images, 1 failed, 0.50/s, 2 min left'
    """
    since = standing.explained + standing.failed
    speed = (since + standing.under_way) / max(seconds, 1e-9)
    parts = [f"{standing.done}/{standing.total} images"]
    if standing.failed:
        parts.append(f"{standing.failed} failed")
    if since and speed > 0:
        parts.append(f"{speed:.2f}/s" if speed < 10 else f"{speed:.0f}/s")
        parts.append(f"{_duration((standing.total - standing.done) / speed)} left")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    """Examples:
    >>> _duration(45), _duration(130), _duration(9000), _duration(300_000)
    ('45 s', '2 min', '2.5 h', '3.5 days')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


@contextmanager
def _trace(folder: str | None) -> Iterator[Any]:
    """JAX's profiler over some calls once something has been explained."""
    if folder is None:
        yield lambda standing: None
        return
    import jax

    calls = 0

    def trace(standing: "Standing") -> None:
        nonlocal calls
        if not standing.explained:
            return
        if calls == 0:
            jax.profiler.start_trace(folder)
        calls += 1
        if calls == TRACED:
            jax.profiler.stop_trace()

    try:
        yield trace
    finally:
        if 0 < calls < TRACED:
            jax.profiler.stop_trace()


@contextmanager
def _scalars(folder: str | None) -> Iterator[Any]:
    """Scalars for TensorBoard, at each explanation."""
    if folder is None:
        yield lambda standing: None
        return
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ConfigError(
            "tensorboard: tensorboardX is not installed: pip install 'amx-jax[tensorboard]'"
        ) from None
    began, seen = time.monotonic(), -1
    with SummaryWriter(folder) as writer:

        def write(standing: "Standing") -> None:
            nonlocal seen
            since = standing.explained + standing.failed
            if since == seen:
                return
            seen = since
            speed = since / max(time.monotonic() - began, 1e-9)
            for name, value in (
                ("images", standing.done),
                ("failed", standing.failed),
                ("images_per_second", speed),
            ):
                writer.add_scalar(name, value, standing.done)

        yield write
