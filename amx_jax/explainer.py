"""The one class most users call: photos in, verified explanations out."""

import dataclasses
import platform
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import repeat
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from amx_jax.classifiers.classifier import Classifier
from amx_jax.config import Config
from amx_jax.errors import ConfigError, ImageError
from amx_jax.lift import Devices
from amx_jax.objective.decision import NONE, Decision
from amx_jax.optimize.loop import Optimized, Optimizer, image_keys
from amx_jax.verify.certificate import Certificate, certify
from amx_jax.verify.evaluator import Evaluator
from amx_jax.verify.pool import Judged, Pool, Search
from amx_jax.verify.prune import prune, widen

SCHEMA = 1
OPTIMISED = 0.6  # the share of a photo's time by which its optimisation ends, as measured
GRID_CELLS = 28  # the default pruning cell is 1/28 of the input's side: 8 pixels of 224
PACKAGES = ("amx-jax", "jax", "flax", "optax", "numpy")
Photo = Image.Image | np.ndarray


@dataclass(frozen=True, eq=False)
class Explanation:
    """Which pixels decide, and what was verified of them.

    Attributes:
        pixels: what the classifier saw, uint8 ``(H, W, C)``.
        mask: bool ``(H, W)``, true where kept; hard, pruned and certified.
        ranking: ``(H, W)``, the optimiser's logits: larger is more important.
        optimized_mask: bool ``(H, W)``, the optimiser's own hard mask, before pruning.
        optimized_sufficient: whether that one kept the decision.
        target: the explained class.
        label: its name.
        decision: what had to hold of it.
        rival: name of the class that it was compared with, or None.
        certificate: what was measured on ``mask``.
        steps: steps that the optimiser took.
        calls: forward passes that pruning took.
        seconds: this photo's share of the time.
        classifier: its name.
        config: the whole configuration.
        cell: side of the squares it is minimal in, in pixels.
    """

    pixels: np.ndarray
    mask: np.ndarray
    ranking: np.ndarray
    optimized_mask: np.ndarray
    optimized_sufficient: bool
    target: int
    label: str
    decision: Decision
    rival: str | None
    certificate: Certificate
    steps: int
    calls: int
    seconds: float
    classifier: str
    config: Config
    cell: int

    def record(self, image: str) -> dict[str, Any]:
        """The explanation as the JSON object of the output contract, without its arrays.

        Args:
            image: what the photo is called.
        """
        c = self.certificate
        rgb = tuple(self.config.background)
        return {
            "schema": SCHEMA,
            "image": image,
            "classifier": self.classifier,
            "target": {"index": self.target, "name": self.label},
            "decision": self._decision(),
            "probability": {
                "image": c.probability_image,
                "explanation": c.probability_explanation,
                "complement": c.probability_complement,
            },
            "area": c.area,
            "sufficient": c.sufficient,
            "necessary": c.necessary,
            "minimal": {"holds": c.minimal, "cell": self.cell, "calls": self.calls},
            "before_pruning": {
                "area": float(self.optimized_mask.mean()),
                "sufficient": self.optimized_sufficient,
            },
            "robustness": {k: {"kept": kept, "trials": n} for k, (kept, n) in c.robustness.items()},
            "components": c.components,
            "background": {"name": "#{:02x}{:02x}{:02x}".format(*rgb), "rgb": rgb},
            "seed": self.config.seed,
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "config": dataclasses.asdict(self.config),
            "versions": versions(),
        }

    def _decision(self) -> dict[str, Any]:
        """What had to hold, as JSON."""
        if self.rival is not None:
            return {"kind": "rather", "rival": {"index": self.decision.rival, "name": self.rival}}
        if self.decision.rival == NONE:
            return {"kind": "above", "threshold": self.config.threshold}
        return {"kind": "top"}


@dataclass(frozen=True)
class Unexplained:
    """An image whose optimisation met a value that is not finite.

    Attributes:
        reason: the step and the term.
    """

    reason: str


@dataclass
class _Job:
    """A photo on its way through the explainer."""

    number: int
    pixels: np.ndarray
    name: int
    target: int | None
    rival: int | None
    seconds: float = 0.0
    share: float = 0.0  # of its steps


class _Verified(NamedTuple):
    """What the verification of one photo found."""

    sufficient: bool  # the optimiser's own hard mask
    mask: np.ndarray
    calls: int
    certificate: Certificate


class Explainer:
    """Explains a classifier's decisions, many images at once.

    Args:
        classifier: f, as :func:`amx_jax.load_classifier` returns it.
        config: how to search and verify.
        devices: JAX devices of one platform that share the work; by default all there are.

    Raises:
        ConfigError: a stage that the classifier does not have.

    Examples:
        >>> from amx_jax import Config, Explainer, load_classifier
        >>> explainer = Explainer(load_classifier(), Config(steps=3, trials=2, batch_size=1))
        >>> gray = np.full((224, 224, 3), 127, np.uint8)
        >>> [explanation] = explainer([gray])
        >>> explanation.mask.shape, explanation.mask.dtype
        ((224, 224), dtype('bool'))
    """

    def __init__(
        self,
        classifier: Classifier,
        config: Config | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        self.classifier, self.config = classifier, config or Config()
        config = self.config
        self.cell = config.cell or max(1, round(classifier.preprocess.size / GRID_CELLS))
        stages = classifier.activations
        unknown = [stage for stage in config.stages if stage not in stages]
        if unknown:
            raise ConfigError(
                f"stages: found {', '.join(unknown)}, expected some of {', '.join(stages)}"
            )
        if config.objective.activation and not (config.stages or classifier.stages):
            warnings.warn(f"{classifier.name} has no stages: the activation term is off", stacklevel=2)
        shared = Devices(devices, config.chunk)
        self._optimizer = Optimizer(classifier, config, shared)
        self._evaluator = Evaluator(classifier, config.background, config.candidates, shared)

    def __call__(
        self,
        images: Iterable[Photo],
        targets: Sequence[int | str | None] | None = None,
        rivals: Sequence[int | str | None] | None = None,
    ) -> list[Explanation | Unexplained]:
        """Explain images.

        Args:
            images: photos as Pillow images, cropped and resized as the classifier's preprocessing
                says, or its inputs as uint8 ``(size, size, channels)``, taken as they are.
            targets: for each image a class by index or name, or None for the classifier's top class.
            rivals: for each image a class, to ask *why the target rather than this one*, or None to
                ask why the target is the top class (of a sigmoid head: why it is present).

        Returns:
            In order, an explanation of each image, or why there is none. Each depends on its image,
            its target and the configuration only, not on the other images or their order.

        Raises:
            ImageError: an array of another type or shape; names its position.
            UnknownNameError: a target or rival that the classifier does not have.
        """
        return list(self.stream(images, targets, rivals=rivals))

    def stream(
        self,
        images: Iterable[Photo],
        targets: Iterable[int | str | None] | None = None,
        on_progress: Callable[[str, float], None] = lambda phase, work: None,
        rivals: Iterable[int | str | None] | None = None,
    ) -> Iterator[Explanation | Unexplained]:
        """The same, one by one as they are ready, in order; few images are in memory at a time.

        An image is optimised in one of ``batch_size`` slots, and when it meets its stopping rule
        (:func:`amx_jax.optimize.step.finished`) the next takes its place. Candidate masks of all
        images that are being pruned or certified share full batches.

        Args:
            images: as above; may be a generator.
            targets: as above.
            on_progress: called with what was done last, ``optimising`` or ``verifying``, and how much
                of the images under way is finished: a sum over them of 0 … 1 each.
            rivals: as above.

        Yields:
            What :meth:`__call__` returns.
        """
        coming = self._jobs(images, targets, rivals)
        optimizer = self._optimizer.emptied()
        slots: dict[int, _Job] = {}
        verified: dict[int, tuple[_Job, Optimized]] = {}  # by number: being verified
        results: dict[int, Explanation | Unexplained] = {}
        following, more = 0, True

        def judge(owners: Sequence[int], masks: Sequence[np.ndarray]) -> Judged:
            start = time.perf_counter()
            jobs, found = zip(*(verified[number] for number in owners), strict=True)
            judged = self._evaluator.judge(
                [job.pixels for job in jobs], [optimized.decision for optimized in found], masks
            )
            for job in jobs:
                job.seconds += (time.perf_counter() - start) / len(jobs)
            return judged

        pool = Pool(judge, self._evaluator.batch_size)
        while True:
            while more and optimizer.free:
                job = next(coming, None)
                if job is None:
                    more = False
                else:
                    slots[optimizer.put(job.pixels, job.target, job.name, job.rival)] = job
            if not slots and not pool:
                break
            if pool.waiting >= self._evaluator.batch_size or not slots:
                for number, outcome in pool.advance():
                    results[number] = self._explanation(*verified.pop(number), outcome)
                phase = "verifying"
            else:
                for slot, optimized in advance(optimizer, slots):
                    job = slots.pop(slot)
                    if optimized.failure is not None:
                        results[job.number] = Unexplained(optimized.failure)
                        continue
                    verified[job.number] = job, optimized
                    pool.add(job.number, self._verify(job, optimized))
                phase = "optimising"
            work = sum(OPTIMISED * job.share for job in slots.values()) + OPTIMISED * len(verified)
            on_progress(phase, work + len(results))
            while following in results:
                yield results.pop(following)
                following += 1

    def _jobs(self, images, targets, rivals) -> Iterator[_Job]:
        asked = {
            what: repeat(None) if classes is None else iter(classes)
            for what, classes in (("targets", targets), ("rivals", rivals))
        }
        for number, image in enumerate(images):
            pixels = self._input(number, image)
            indices = []
            for what, classes in asked.items():
                try:
                    name = next(classes)
                except StopIteration:
                    raise ValueError(f"fewer {what} than images") from None
                indices.append(None if name is None else self.classifier.class_index(name))
            target, rival = indices
            if rival is not None and rival == target:
                raise ConfigError(
                    f"image {number}: found class {self.classifier.labels[rival]} as target and as its "
                    "rival, expected two classes"
                )
            # The image's own content names it: neither its order nor its neighbours change its
            # randomness.
            yield _Job(number, pixels, zlib.crc32(pixels.tobytes()), target, rival)

    def _input(self, number: int, image: Photo) -> np.ndarray:
        if isinstance(image, Image.Image):
            return self.classifier.preprocess.crop(image)
        shape = self.classifier.preprocess.shape
        if image.dtype != np.uint8 or image.shape != shape:
            raise ImageError(
                f"image {number}: found an array {image.dtype} {image.shape}, expected uint8 {shape}; "
                "give a Pillow image to have it resized and cropped"
            )
        return image

    def _verify(self, job: _Job, optimized: Optimized) -> Search[_Verified]:
        """Prune a mask, widened first where it is not sufficient, and certify what is left."""
        decision, mask, ranking = optimized.decision, optimized.mask, optimized.logits

        def robustness(mask: np.ndarray) -> dict[str, tuple[int, int]]:
            start = time.perf_counter()
            _, key = image_keys(self.config.seed, job.name)
            kept = self._evaluator.robustness(job.pixels, decision, mask, key, self.config.trials)
            job.seconds += time.perf_counter() - start
            return kept

        mask, holds = yield from widen(mask, ranking)
        sufficient, calls = holds and mask is optimized.mask, 0
        if holds:
            mask, calls, _ = yield from prune(mask, ranking, self.cell)
        certificate = yield from certify(mask, self.cell, robustness)
        return _Verified(sufficient, mask, calls, certificate)

    def _explanation(self, job: _Job, optimized: Optimized, verified: _Verified) -> Explanation:
        labels, (target, rival, _) = self.classifier.labels, optimized.decision
        return Explanation(
            pixels=job.pixels,
            mask=verified.mask,
            ranking=optimized.logits,
            optimized_mask=optimized.mask,
            optimized_sufficient=verified.sufficient,
            target=target,
            label=labels[target],
            decision=optimized.decision,
            rival=labels[rival] if rival >= 0 else None,
            certificate=verified.certificate,
            steps=optimized.steps,
            calls=verified.calls,
            seconds=job.seconds,
            classifier=self.classifier.name,
            config=self.config,
            cell=self.cell,
        )


def advance(optimizer: Optimizer, slots: dict[int, _Job]) -> Iterator[tuple[int, Optimized]]:
    """Move every slot; yields those that are finished, and what they found."""
    start = time.perf_counter()
    shares = optimizer.advance()
    for slot, job in slots.items():
        job.seconds += (time.perf_counter() - start) / len(slots)
        job.share = float(shares[slot])
    for slot in [slot for slot in slots if shares[slot] == 1]:
        yield slot, optimizer.take(slot)


@cache
def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
