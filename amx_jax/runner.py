"""A data set through an explainer, so that a process may end at any moment and nothing is lost.

Every image becomes one row. Rows are written in small pieces now and then, and with them where the
images under way stand; whoever runs the same again goes on from there. Processes share the images among
them by number and say nothing to each other: what is finished is read from the folder.
"""

import ctypes
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from amx_jax.classifiers.classifier import Classifier
from amx_jax.classifiers.fingerprint import fingerprint
from amx_jax.data import shards
from amx_jax.data.checkpoints import Checkpoints, delete_checkpoints, read_checkpoints
from amx_jax.data.run_folder import HIDDEN, Busy, Lock, Log, begin, note_images
from amx_jax.data.sources import Source, ahead
from amx_jax.errors import AmxError, ImageError
from amx_jax.experiment import Experiment
from amx_jax.explainer import Explainer, Photo, Stream
from amx_jax.explanation import Explanation, Unexplained, versions

CHECKPOINTS = "checkpoints"
AHEAD = 2  # decoded images that wait, for each that is explained


@dataclass(frozen=True)
class Share:
    """Which of the processes this is.

    Attributes:
        index: from 0.
        count: of the processes.
    """

    index: int = 0
    count: int = 1


ALONE = Share()


@dataclass
class Standing:
    """How far a process is.

    Attributes:
        total: images of its share.
        before: of these finished when it began.
        explained: since.
        failed: since.
        under_way: a sum over the images under way, of 0 … 1 each.
        phase: what was done last.
    """

    total: int
    before: int
    explained: int = 0
    failed: int = 0
    under_way: float = 0.0
    phase: str = "compiling"

    @property
    def done(self) -> int:
        """Images that need no more work."""
        return self.before + self.explained + self.failed


class Stopped(Exception):
    """The run was asked to end; what was under way is saved."""


class Runner:
    """One process of a run.

    Args:
        experiment: what to do.
        source: its images.
        classifier: its classifier.
        others: as of :class:`Explainer`.
        share: which images are this process's.
        on_progress: called often with how far it is.
        stopping: asked often whether to save and end.

    Raises:
        OutputError: the folder was begun with something else.
        UnknownNameError: the classifier does not have the experiment's target.

    Attributes:
        standing: how far it is.
    """

    def __init__(
        self,
        experiment: Experiment,
        source: Source,
        classifier: Classifier,
        others: Sequence[Photo] = (),
        share: Share = ALONE,
        on_progress: Callable[[Standing], None] = lambda standing: None,
        stopping: Callable[[], bool] = lambda: False,
    ):
        self._experiment, self._source, self._classifier = experiment, source, classifier
        self._share, self._on_progress, self._stopping = share, on_progress, stopping
        self._folder = Path(experiment.output)
        self._ids = [shards.text(name) for name in source.ids[: experiment.first or None]]
        if experiment.target is not None:
            classifier.class_index(experiment.target)  # a wrong one is refused before any work
        explainer = Explainer(classifier, experiment.config, jax.local_devices(), others)
        self._explainer = explainer
        about = about_run(experiment, explainer)
        begin(self._folder, about)
        self._metadata = {"run": about}
        self._rows: list[dict[str, Any]] = []
        self._saved = time.monotonic()
        self._piece = 0
        self._coming: dict[int, int] = {}  # from an image's number in the stream to its index
        self.standing = Standing(0, 0)

    def run(self) -> bool:
        """Explain what is left of this process's share, and put all together if it was the last.

        Returns:
            Whether the whole run is finished and its files are in place.

        Raises:
            Stopped: it was asked to end.
            OutputError: another process works at this share, or results cannot be written.
        """
        with Lock(self._folder, str(self._share.index)):
            note_images(self._folder, len(self._ids))
            self._log = Log(self._folder / f"log-{self._share.index:05d}.jsonl")
            try:
                self._explain()
                return self._put_together()
            finally:
                self._log.close()

    def _explain(self) -> None:
        finished = self._finished()
        own = range(self._share.index, len(self._ids), self._share.count)
        left = [index for index in own if self._ids[index] not in finished]
        self.standing = Standing(len(own), len(own) - len(left))
        self._log("begun", total=len(own), left=len(left), process=self._share.index)
        if not left:
            return
        places = self._folder / HIDDEN / CHECKPOINTS
        before = read_checkpoints(places.absolute())
        self._checkpoints = Checkpoints((places / str(self._share.index)).absolute())
        self._stream = Stream(
            self._explainer,
            self._images(left),
            self._targets(),
            self._tick,
            resumed=lambda number, again: before.pop(self._name(number, again), None),
        )
        try:
            self._saved = time.monotonic()
            for number, found in self._stream:
                self._take(self._ids[self._coming.pop(number)], found)
            self._save()
        finally:
            self._checkpoints.close()

    def _finished(self) -> set[str]:
        """The images that have a row; a damaged file is set aside, and its images have none."""
        finished, damaged = shards.finished(self._folder)
        for path in damaged:
            self._log("damaged", file=path.name, kept=shards.set_aside(path).name)
        return finished

    def _images(self, left: Sequence[int]) -> Iterator[Photo]:
        """The images that can be read, one after the other."""
        experiment = self._experiment
        at_most = experiment.workers + AHEAD * experiment.config.batch_size
        at_least = self._classifier.preprocess.resize
        number = 0
        for index, image in ahead(self._source, left, experiment.workers, at_most, at_least):
            if isinstance(image, ImageError):
                self._fail(self._ids[index], str(image))
                continue
            try:
                self._target = self._class_of(index)
            except AmxError as error:  # a name in the data that is no class
                self._fail(self._ids[index], str(error))
                continue
            self._coming[number] = index
            number += 1
            yield image

    def _class_of(self, index: int) -> int | None:
        target = self._source.targets[index]
        target = self._experiment.target if target is None else target
        return None if target is None else self._classifier.class_index(target)

    def _targets(self) -> Iterator[int | None]:
        """Of the image that was just drawn."""
        while True:
            yield self._target

    def _name(self, number: int, again: int) -> str:
        """What an image under way is called in a checkpoint."""
        return f"{again}:{self._ids[self._coming[number]]}"

    def _take(self, name: str, found: Explanation | Unexplained) -> None:
        if isinstance(found, Unexplained):
            self._fail(name, found.reason)
            return
        self._rows.append(shards.row(name, found.record(name), found.mask))
        self.standing.explained += 1
        seconds = round(found.seconds, 3)
        self._log("explained", id=name, seconds=seconds, area=found.certificate.area)

    def _fail(self, name: str, reason: str) -> None:
        self._rows.append(shards.failed(name, reason))
        self.standing.failed += 1
        self._log("failed", id=name, reason=reason)

    def _tick(self, phase: str, under_way: float) -> None:
        self.standing.phase, self.standing.under_way = phase, under_way
        self._on_progress(self.standing)
        if self._stopping():
            self._save()
            self._log("stopped")
            raise Stopped
        if time.monotonic() - self._saved >= self._experiment.save_every:
            self._save()

    def _save(self) -> None:
        """Write the rows that wait, and then where the others stand: never is one in neither."""
        start = time.monotonic()
        rows, self._rows = self._rows, []
        if rows:
            # Its number may be taken by an earlier process of this share: its time tells them apart.
            name = f"{self._share.index:05d}-{time.time_ns()}-{self._piece:05d}.parquet"
            shards.write_shard(shards.pieces(self._folder) / name, rows, self._metadata)
            self._piece += 1
        states = self._stream.under_way()
        self._checkpoints.save({self._name(*key): arrays for key, arrays in states.items()})
        give_back()
        self._saved = time.monotonic()
        self._log("saved", rows=len(rows), under_way=len(states), seconds=self._saved - start)

    def _put_together(self) -> bool:
        """Where all images of all processes have a row, make the final files of them."""
        if not self._finished() >= set(self._ids):
            self._log("ended", whole=False)
            return False
        try:
            with Lock(self._folder, "merge"):
                shards.merge(self._folder, self._ids, self._experiment.rows, self._metadata)
                delete_checkpoints(self._folder / HIDDEN / CHECKPOINTS)
        except Busy:  # another process is at it
            pass
        self._log("ended", whole=True)
        return True


def give_back() -> None:
    """Give memory that was freed back to the system, where the C library is glibc.

    Photos of many sizes are decoded beside arrays that stay, and what is freed lies in pieces that the
    library keeps: a run would seem to grow with its images (benchmarks/scale.md).
    """
    with suppress(OSError, TypeError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def about_run(experiment: Experiment, explainer: Explainer) -> dict[str, Any]:
    """What a row depends on, as JSON: a run that goes on must have the same."""
    return {
        "data": experiment.data,
        "target": experiment.target,
        "classifier": explainer.classifier.name,
        "weights": fingerprint(explainer.classifier.params),
        "others": len(experiment.others),
        "config": dataclasses.asdict(experiment.config),
        "versions": versions(),
    }
