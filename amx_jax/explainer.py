"""The one class most users call: photos in, verified explanations out."""

import copy
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
from amx_jax.classifiers.fingerprint import fingerprint
from amx_jax.config import Config
from amx_jax.errors import ClassifierError, ConfigError, ImageError
from amx_jax.evaluate.metrics import iou_matrix_mean
from amx_jax.evaluate.peers import METHODS
from amx_jax.lift import Devices
from amx_jax.masks.backgrounds import SHOW_PHOTOS
from amx_jax.objective.decision import MARGIN, NONE, Decision
from amx_jax.optimize.loop import Optimized, Optimizer, image_keys, look
from amx_jax.verify.certificate import Certificate, Kept, certify, pooled_bound
from amx_jax.verify.controls import Controls, shape_leakage, specificity
from amx_jax.verify.evaluator import Evaluator
from amx_jax.verify.notion import ROUNDS, Notion, View
from amx_jax.verify.pool import Judged, Pool, Search
from amx_jax.verify.prune import prune, smallest_prefix, step_back, widen
from amx_jax.verify.words import in_words

SCHEMA = 1
# Rankings that compete with the optimiser's to be pruned, where a mask must hold on many backgrounds:
# which start is the smallest differs from photo to photo (benchmarks/README.md).
STARTS = ("occlusion", "rise")
TRIALS = {"plain": 32, "robust": 160, "worst": 160}  # of each kind in the certificate
OPTIMISED = 0.6  # the share of a photo's time by which its optimisation ends, as measured
# The default pruning cell: 1/28 of the input's side, 8 pixels of 224, or 16 where each test is dear.
CELLS = {"plain": 28, "robust": 14, "worst": 14}
PACKAGES = ("amx-jax", "jax", "flax", "optax", "numpy")
Photo = Image.Image | np.ndarray


@dataclass(frozen=True, eq=False)
class Explanation:
    """Which pixels decide, and what was verified of them.

    Attributes:
        pixels: what the classifier saw, uint8 ``(H, W, C)``.
        mask: bool ``(H, W)``, true where kept; hard, pruned and certified.
        ranking: ``(H, W)``, the optimiser's logits or the method's: larger is more important.
        start: which ranking that was, ``amx`` for the optimiser's.
        optimized_mask: bool ``(H, W)``, before pruning: the optimiser's own hard mask, or the smallest
            top share of the ranking that holds.
        optimized_sufficient: whether that one held.
        target: the explained class.
        label: its name.
        decision: what had to hold of it.
        rival: name of the class that it was compared with, or None.
        certificate: what was measured on ``mask``.
        controls: what must not have given the decision, and did or did not.
        steps: steps that the optimiser took.
        calls: forward passes that it took to find and prune the mask.
        seconds: this photo's share of the time.
        classifier: its name.
        weights: SHA-256 of its parameters.
        config: the whole configuration.
        cell: side of the squares it is minimal in, in pixels.
    """

    pixels: np.ndarray
    mask: np.ndarray
    ranking: np.ndarray
    start: str
    optimized_mask: np.ndarray
    optimized_sufficient: bool
    target: int
    label: str
    decision: Decision
    rival: str | None
    certificate: Certificate
    controls: Controls
    steps: int
    calls: int
    seconds: float
    classifier: str
    weights: str
    config: Config
    cell: int

    def record(self, image: str) -> dict[str, Any]:
        """The explanation as the JSON object of the output contract, without its arrays.

        Args:
            image: what the photo is called.
        """
        c = self.certificate
        rgb = tuple(self.config.background)
        record = {
            "schema": SCHEMA,
            "image": image,
            "classifier": self.classifier,
            "weights": self.weights,
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
            "notion": {
                "name": self.config.notion,
                "goal": self.config.goal,
                "confidence": self.config.confidence,
                "holds": c.holds,
            },
            "method": {"name": self.config.method, "start": self.start, "pruned": self.config.prune},
            "before_pruning": {
                "area": float(self.optimized_mask.mean()),
                "sufficient": self.optimized_sufficient,
            },
            "robustness": {k: {"kept": kept, "trials": n} for k, (kept, n) in c.robustness.items()},
            "robustness_bound": {"share": c.bound, "certainty": c.certainty},
            "controls": self._controls(),
            "components": c.components,
            "background": {"name": "#{:02x}{:02x}{:02x}".format(*rgb), "rgb": rgb},
            "seed": self.config.seed,
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "config": dataclasses.asdict(self.config),
            "versions": versions(),
        }
        return {**record, "words": in_words(record)}

    def _controls(self) -> dict[str, Any]:
        """What was controlled, as JSON; null where it was not."""
        found: dict[str, Any] = {"specificity": None, "leakage": None, "stability": None}
        if self.controls.specificity is not None:
            own, *wrong, holds = self.controls.specificity
            kept = {
                kind: {"kept": hits, "trials": n}
                for kind, (hits, n) in zip(("displaced", "scattered"), wrong, strict=True)
            }
            found["specificity"] = {"own": own, **kept, "holds": holds}
        if self.controls.leakage is not None:
            *kinds, flagged = self.controls.leakage
            leaked = {
                kind: {"leaked": hits, "trials": n}
                for kind, (hits, n) in zip(("constants", "photos"), kinds, strict=True)
            }
            found["leakage"] = {**leaked, "flagged": flagged}
        if self.controls.stability is not None:
            found["stability"] = {"seeds": self.config.seeds, "iou": self.controls.stability}
        return {**found, "flags": list(self.controls.flags)}

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
    rankings: dict[str, jax.Array] = dataclasses.field(default_factory=dict)  # being computed
    asked: Any = None  # the decision, where no optimiser says it
    keys: Any = None  # data of the keys of its search's backgrounds


class _Verified(NamedTuple):
    """What the verification of one photo found."""

    start: str  # the ranking
    ranking: np.ndarray
    before: np.ndarray  # the mask that pruning began with
    sufficient: bool  # the optimiser's own hard mask, or that one
    mask: np.ndarray
    calls: int
    certificate: Certificate
    controls: Controls


class Explainer:
    """Explains a classifier's decisions, many images at once.

    Args:
        classifier: f, as :func:`amx_jax.load_classifier` returns it.
        config: how to search and verify.
        devices: JAX devices of one platform that share the work; by default all there are.
        others: photos of other things, at least two for backgrounds that show them: those in even
            places appear in the search, the others in the certificate. All are seen through the mask,
            to know whether its shape alone gives the decision.

    Raises:
        ConfigError: a stage that the classifier does not have, or too few other photos.

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
        others: Sequence[Photo] = (),
    ):
        self.classifier, self.config = classifier, config or Config()
        config = self.config
        self.cell = config.cell or max(1, round(classifier.preprocess.size / CELLS[config.notion]))
        self.trials = config.trials or TRIALS[config.notion]
        shown = [kind for kind in config.kinds if kind in SHOW_PHOTOS]
        if shown and len(others) < 2:
            raise ConfigError(
                f"kinds: found {', '.join(shown)} and {len(others)} other photos to show, expected at "
                "least two: one for the search, one for the certificate"
            )
        stages = classifier.activations
        unknown = [stage for stage in config.stages if stage not in stages]
        if unknown:
            raise ConfigError(
                f"stages: found {', '.join(unknown)}, expected some of {', '.join(stages)}"
            )
        if config.objective.activation and not (config.stages or classifier.stages):
            warnings.warn(f"{classifier.name} has no stages: the activation term is off", stacklevel=2)
        self._devices = shared = Devices(devices, config.chunk)
        pixels = [self._input(number, photo) for number, photo in enumerate(others)]
        self._others = np.array(pixels, np.uint8).reshape(-1, *classifier.preprocess.shape)
        self._evaluator = Evaluator(
            classifier,
            config.background,
            config.candidates,
            shared,
            config.kinds,
            self._others if shown else None,  # else they would only be compiled in
        )
        self._fingerprint = fingerprint(classifier.params)
        self._copies: dict[jax.Device, Any] = {}
        self._ask = jax.jit(
            lambda *asked: look(classifier, config.threshold, *asked).decision  # params, pixels, …
        )
        self._prepare()

    def _prepare(self) -> None:
        """What the method needs."""
        config = self.config
        if config.method == "amx":
            self._optimizer = Optimizer(
                self.classifier, searched(config), self._devices, self._evaluator.of_search
            )
        plain = config.notion == "plain"
        methods = [config.method] if config.method != "amx" else [] if plain else STARTS
        self._rank = {name: jax.jit(self._ranking(name)) for name in methods}

    def ranked_by(self, method: str, prune: bool = True) -> "Explainer":
        """The same with pixels ranked by another method; what verifies is compiled once for both.

        Args:
            method: as of ``Config``.
            prune: likewise.

        Raises:
            ConfigError: no such method.
        """
        twin = copy.copy(self)
        twin.config = dataclasses.replace(self.config, method=method, prune=prune)
        twin._prepare()
        return twin

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
        optimizer = self._optimizer.emptied() if self.config.method == "amx" else None
        slots: dict[int, _Job] = {}
        verified: dict[int, tuple[_Job, Optimized]] = {}  # by number: being verified
        results: dict[int, Explanation | Unexplained] = {}
        following, more = 0, True

        def judge(owners: Sequence[int], masks: Sequence[np.ndarray]) -> Judged:
            start = time.perf_counter()
            jobs, found = zip(*(verified[number] for number in owners), strict=True)
            judged = self._judge(jobs, [optimized.decision for optimized in found], masks)
            for job in jobs:
                job.seconds += (time.perf_counter() - start) / len(jobs)
            return judged

        pool = Pool(judge, self._evaluator.batch_size)
        while True:
            while more and (optimizer.free if optimizer else len(pool) < self.config.batch_size):
                job = next(coming, None)
                if job is None:
                    more = False
                    break
                self._begin(job)
                if optimizer:
                    slots[optimizer.put(job.pixels, job.target, job.name, job.rival)] = job
                else:
                    verified[job.number] = job, self._ranked(job)
                    pool.add(job.number, self._verify(*verified[job.number]))
            if not slots and not pool:
                break
            if pool.waiting >= self._evaluator.batch_size or not slots:
                for number, outcome in pool.advance():
                    results[number] = self._explanation(*verified.pop(number), outcome)
                phase = "verifying"
            else:
                assert optimizer is not None  # else nothing has a slot
                for slot, optimized in advance(optimizer, slots):
                    job = slots.pop(slot)
                    if optimized.failure is not None:
                        results[job.number] = Unexplained(optimized.failure)
                        continue
                    verified[job.number] = job, optimized
                    pool.add(job.number, self._verify(job, optimized))
                phase = "optimising"
            work = sum(OPTIMISED * job.share for job in slots.values()) + OPTIMISED * len(verified)
            seeds = self.config.seeds
            on_progress(phase, (work + len(results)) / seeds)
            while all(number in results for number in range(following, following + seeds)):
                yield _joined([results.pop(following + again) for again in range(seeds)])
                following += seeds

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
            # randomness. Where a checksum begins is what its repetitions differ in.
            for again in range(self.config.seeds):
                name = zlib.crc32(pixels.tobytes(), again)
                yield _Job(number * self.config.seeds + again, pixels, name, target, rival)

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

    def _ranking(self, name: str) -> Callable[..., jax.Array]:
        """The method of that name as a function of parameters, an input and what is asked."""
        classifier, rank = self.classifier, METHODS[name].rank
        colour, _, _ = classifier.preprocess.limits(self.config.background)

        def ranking(params, pixels, decision, key):
            image = classifier.preprocess.normalize(pixels.astype(np.float32))
            return rank(classifier, params, image, decision, key, colour)

        return ranking

    def _begin(self, job: _Job) -> None:
        """Start to compute the rankings of a photo, on the devices in turn; nobody waits yet."""
        if not self._rank:
            return
        device = self._devices.devices[job.number % len(self._devices.devices)]
        params = self._params_on(device)
        pixels = jax.device_put(job.pixels, device)
        asked = (np.int32(-1 if index is None else index) for index in (job.target, job.rival))
        job.asked = self._ask(params, pixels, *asked)
        _, _, key = image_keys(self.config.seed, job.name)
        key = jax.device_put(jax.random.fold_in(key, 2**31), device)  # no background has that number
        job.rankings = {name: rank(params, pixels, job.asked, key) for name, rank in self._rank.items()}

    def _params_on(self, device: jax.Device) -> Any:
        """The classifier's parameters on one device, copied once."""
        if device not in self._copies:
            self._copies[device] = jax.device_put(self.classifier.params, device)
        return self._copies[device]

    def _ranked(self, job: _Job) -> Optimized:
        """What stands for the optimiser's outcome where another method ranks the pixels."""
        start = time.perf_counter()
        ranking = np.asarray(job.rankings[self.config.method])
        job.seconds += time.perf_counter() - start
        decision = Decision(*(value.item() for value in job.asked))
        if not np.isfinite(ranking).all():
            raise ClassifierError(f"{self.config.method}: found a ranking that is not finite")
        return Optimized(decision, np.ones(ranking.shape, bool), ranking, 0, None)

    def _judge(self, jobs, decisions, candidates) -> Judged:
        """What the classifier says of masks, and of views of them."""
        pixels = [job.pixels for job in jobs]
        if self.config.notion == "plain":
            return self._evaluator.judge(pixels, decisions, candidates)
        views = [c if isinstance(c, View) else View(c, -1) for c in candidates]
        kinds = [v.trial % len(self.config.kinds) if v.trial >= 0 else -1 for v in views]
        keys = [job.keys[max(view.trial, 0)] for job, view in zip(jobs, views, strict=True)]
        return self._evaluator.judge_views(pixels, decisions, [v.mask for v in views], kinds, keys)

    def _verify(self, job: _Job, optimized: Optimized) -> Search[_Verified]:
        """Find a mask that holds, prune it, and certify what is left."""
        config = self.config
        probability = 1.0
        if config.confidence:
            probability = float((yield [np.ones_like(optimized.mask)]).probabilities[0])
        notion = Notion(config, probability)
        if not notion.plain:
            _, _, key = image_keys(config.seed, job.name)
            numbers = np.arange(config.backgrounds * 2 ** (ROUNDS - 1), dtype=np.uint32)
            job.keys = np.asarray(_keys(key, numbers))
        rankings = {"amx": optimized.logits} if config.method == "amx" else {}
        rankings |= {name: np.asarray(ranking) for name, ranking in job.rankings.items()}
        found = 0  # views that only confirm what the optimiser found are no search
        if notion.plain and config.method == "amx":
            start, before = "amx", optimized.mask
            mask, holds = yield from widen(before, optimized.logits, notion)
            sufficient, found = holds and mask is before, notion.views
        else:
            which, mask, holds = yield from smallest_prefix(list(rankings.values()), notion)
            start, before, sufficient = list(rankings)[which], mask, holds
        ranking = rankings[start]

        # A robust mask's tests share the permitted error, so the last bound is as certain as one alone.
        robust = config.notion == "robust"
        share = 1 - config.delta if robust else None
        certainty = 1 - (1 - config.certainty) / ROUNDS if robust else config.certainty

        def refused(kept: Kept) -> bool:
            return share is not None and pooled_bound(kept, certainty) < share

        mask, kept = yield from self._search(
            job, optimized.decision, notion, mask, holds, ranking, refused
        )
        calls = notion.views - found
        certificate = yield from certify(mask, self.cell, notion, kept, certainty, share)
        controls = self._controlled(job, optimized.decision, mask)
        return _Verified(start, ranking, before, sufficient, mask, calls, certificate, controls)

    def _search(self, job, decision, notion, mask, holds, ranking, refused) -> Search[tuple[Any, Kept]]:
        """A mask, pruned, and on how many unseen backgrounds it meets the goal.

        One that the certificate would refuse is searched again on more backgrounds; after the last
        refusal only the whole photo is left to be certain of.
        """
        for number in range(ROUNDS):
            visited = [mask]
            if holds and self.config.prune:
                visited = (yield from prune(mask, ranking, self.cell, notion)).visited
            mask = visited[-1]
            kept = self._unseen(job, decision, mask, notion, number)
            if not holds or not refused(kept):
                return mask, kept
            if number < ROUNDS - 1:
                notion.extend()
                if self.config.prune:
                    mask, holds = yield from step_back(visited, ranking, notion)
                else:
                    least = float(mask.mean())
                    _, mask, holds = yield from smallest_prefix([ranking], notion, least)
        whole = np.ones_like(mask)
        return whole, self._unseen(job, decision, whole, notion, ROUNDS)

    def _unseen(
        self, job: _Job, decision: Decision, mask: np.ndarray, notion: Notion, number: int
    ) -> Kept:
        """On how many unseen backgrounds of each kind a mask meets the goal."""
        start = time.perf_counter()
        _, key, _ = image_keys(self.config.seed, job.name)
        key = jax.random.fold_in(key, number)

        def ask(mask: np.ndarray) -> dict[str, Judged]:
            return self._evaluator.unseen(job.pixels, decision, mask, key, self.trials)

        kept = ask(mask) if notion.goal != "necessary" else {}
        lost = ask(~mask) if notion.goal != "sufficient" else {}
        job.seconds += time.perf_counter() - start
        scores = {kind: notion.scores(kept.get(kind), lost.get(kind)) for kind in kept or lost}
        return {kind: (int((values > MARGIN).sum()), len(values)) for kind, values in scores.items()}

    def retention(
        self, explanation: Explanation, masks: Sequence[np.ndarray], trials: int
    ) -> list[float]:
        """On which share of random backgrounds each mask keeps an explanation's decision.

        The backgrounds are the same for all masks; neither the search nor the certificate has seen
        them. Whatever the goal, it is the mask that is asked about, not its complement.

        Args:
            explanation: of this explainer; says the photo and the decision.
            masks: bool ``(H, W)`` each.
            trials: backgrounds of each kind.

        Returns:
            A share in [0, 1] for each mask, all kinds together.
        """
        _, key, _ = image_keys(self.config.seed, zlib.crc32(explanation.pixels.tobytes()))
        key = jax.random.fold_in(key, 2**31)  # no round of a certificate has that number
        shares = []
        for mask in masks:
            judged = self._evaluator.unseen(explanation.pixels, explanation.decision, mask, key, trials)
            shares.append(float(np.mean([one.margins > MARGIN for one in judged.values()])))
        return shares

    def _controlled(self, job: _Job, decision: Decision, mask: np.ndarray) -> Controls:
        """What must not give the decision."""
        count, size = self.config.controls, self._evaluator.batch_size
        if not count:
            return Controls()
        start = time.perf_counter()
        rng = np.random.default_rng([self.config.seed, job.name])

        def ask(images: list[np.ndarray], masks: list[np.ndarray]) -> np.ndarray:
            asked = [decision] * size
            parts = [slice(first, first + size) for first in range(0, len(masks), size)]
            judge = self._evaluator.judge
            return np.concatenate([judge(images[p], asked, masks[p]).margins for p in parts])

        specific = None  # a mask that need not keep the decision has nothing to be specific of
        if self.config.goal != "necessary":
            specific = specificity(ask, job.pixels, mask, self.cell, count, rng)
        found = Controls(specific, shape_leakage(ask, mask, self._others, count, rng))
        job.seconds += time.perf_counter() - start
        return found

    def _explanation(self, job: _Job, optimized: Optimized, verified: _Verified) -> Explanation:
        labels, (target, rival, _) = self.classifier.labels, optimized.decision
        return Explanation(
            pixels=job.pixels,
            mask=verified.mask,
            ranking=verified.ranking,
            start=verified.start,
            optimized_mask=verified.before,
            optimized_sufficient=verified.sufficient,
            target=target,
            label=labels[target],
            decision=optimized.decision,
            rival=labels[rival] if rival >= 0 else None,
            certificate=verified.certificate,
            controls=verified.controls,
            steps=optimized.steps,
            calls=verified.calls,
            seconds=job.seconds,
            classifier=self.classifier.name,
            weights=self._fingerprint,
            config=self.config,
            cell=self.cell,
        )


def _joined(found: Sequence[Explanation | Unexplained]) -> Explanation | Unexplained:
    """The first of the repetitions of one photo, which says how alike they are."""
    first, explanations = found[0], [one for one in found if isinstance(one, Explanation)]
    if isinstance(first, Unexplained) or len(explanations) < 2:
        return first
    alike = iou_matrix_mean([one.mask for one in explanations])
    return dataclasses.replace(first, controls=first.controls._replace(stability=alike))


def searched(config: Config) -> Config:
    """The configuration of the optimiser: of a robust or worst mask, with the robustness term.

    The budget then settles where a share 1 − δ of the steps hold.
    """
    if config.notion == "plain" or config.objective.robustness:
        return config
    objective = dataclasses.replace(config.objective, robustness=1.0)
    return dataclasses.replace(config, objective=objective)


@jax.jit
def _keys(key: jax.Array, numbers: jax.Array) -> jax.Array:
    return jax.random.key_data(jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers))


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
