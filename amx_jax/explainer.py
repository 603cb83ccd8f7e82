"""The one class most users call: photos in, verified explanations out."""

import copy
import dataclasses
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from amx_jax.classifiers.classifier import Classifier
from amx_jax.classifiers.fingerprint import fingerprint
from amx_jax.config import Config
from amx_jax.errors import ClassifierError, ConfigError, ImageError
from amx_jax.evaluate.cutting import last_image_stage
from amx_jax.evaluate.metrics import iou_matrix_mean
from amx_jax.evaluate.peers import METHODS
from amx_jax.explanation import Explanation, Unexplained
from amx_jax.lift import Devices
from amx_jax.masks.backgrounds import SHOW_PHOTOS
from amx_jax.objective.decision import MARGIN, Decision
from amx_jax.optimize.loop import Optimized, Optimizer, image_keys, look
from amx_jax.verify.certificate import Certificate, Kept, certify, pooled_bound
from amx_jax.verify.controls import Controls, shape_leakage, specificity
from amx_jax.verify.evaluator import Evaluator
from amx_jax.verify.notion import ROUNDS, Notion, View
from amx_jax.verify.pool import Judged, Pool, Search
from amx_jax.verify.prune import prune, smallest_prefix, step_back, widen
from amx_jax.verify.top import Top

TRIALS = {"plain": 32, "robust": 160, "worst": 160}  # of each kind in the certificate
OPTIMISED = 0.6  # the share of a photo's time by which its optimisation ends, as measured
# The default pruning cell: 1/28 of the input's side, 8 pixels of 224, or 16 where each test is dear.
CELLS = {"plain": 28, "robust": 14, "worst": 14}
Photo = Image.Image | np.ndarray


@dataclass
class _Job:
    """A photo on its way through the explainer."""

    number: int
    pixels: np.ndarray
    seen: np.ndarray  # by the optimiser and the rankings: the pixels that may be kept
    within: np.ndarray  # where these are
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
        >>> explainer = Explainer(load_classifier(), Config(steps=3, trials=2, cell=28, batch_size=1))
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
        pixels = [self.input(photo, number) for number, photo in enumerate(others)]
        self._others = np.array(pixels, np.uint8).reshape(-1, *classifier.preprocess.shape)
        self._evaluator = Evaluator(
            classifier,
            config.background,
            config.candidates,
            shared,
            config.kinds,
            self._others if shown else None,  # else they would only be compiled in
        )
        self._top = Top(classifier, config.background)
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
                self.classifier, config, self._devices, self._evaluator.of_search
            )
            methods = [start_of(self.classifier)] if config.notion != "plain" else []
        else:
            methods = [config.method]
        self._rank = {name: jax.jit(self._ranking(name)) for name in methods}

    @property
    def rankings(self) -> tuple[str, ...]:
        """Names of those of ``amx_jax.evaluate.peers.METHODS`` that are computed of each photo."""
        return tuple(self._rank)

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
        within: Sequence[np.ndarray | None] | None = None,
    ) -> list[Explanation | Unexplained]:
        """Explain images.

        Args:
            images: photos as Pillow images, cropped and resized as the classifier's preprocessing
                says, or its inputs as uint8 ``(size, size, channels)``, taken as they are.
            targets: for each image a class by index or name, or None for the classifier's top class.
            rivals: for each image a class, to ask *why the target rather than this one*, or None to
                ask why the target is the top class (of a sigmoid head: why it is present).
            within: for each image where its mask may keep pixels, bool ``(size, size)``, or None for
                anywhere. The certificate is of the whole photo all the same.

        Returns:
            In order, an explanation of each image, or why there is none. Each depends on its image,
            what is asked of it and the configuration only, not on the other images or their order.

        Raises:
            ImageError: an array of another type or shape, or an empty region; names its position.
            UnknownNameError: a target or rival that the classifier does not have.
        """
        return list(self.stream(images, targets, rivals=rivals, within=within))

    def stream(
        self,
        images: Iterable[Photo],
        targets: Iterable[int | str | None] | None = None,
        on_progress: Callable[[str, float], None] = lambda phase, work: None,
        rivals: Iterable[int | str | None] | None = None,
        within: Iterable[np.ndarray | None] | None = None,
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
            within: as above.

        Yields:
            What :meth:`__call__` returns.
        """
        waiting: dict[int, Explanation | Unexplained] = {}
        following = 0

        def show(phase: str, work: float) -> None:
            on_progress(phase, work + len(waiting))

        for number, found in Stream(self, images, targets, show, rivals, within=within):
            waiting[number] = found
            while following in waiting:
                yield waiting.pop(following)
                following += 1

    def _jobs(self, images, targets, rivals, within) -> Iterator[_Job]:
        given = {
            what: repeat(None) if values is None else iter(values)
            for what, values in (("targets", targets), ("rivals", rivals), ("regions", within))
        }
        colour = self.classifier.preprocess.fill(self.config.background).astype(np.uint8)
        for number, image in enumerate(images):
            pixels = self.input(image, number)
            asked = []
            for what, values in given.items():
                try:
                    asked.append(next(values))
                except StopIteration:
                    raise ValueError(f"fewer {what} than images") from None
            target, rival = (None if n is None else self.classifier.class_index(n) for n in asked[:2])
            if rival is not None and rival == target:
                raise ConfigError(
                    f"image {number}: found class {self.classifier.labels[rival]} as target and as its "
                    "rival, expected two classes"
                )
            region = _region(number, asked[2], pixels.shape[:2])
            seen = np.where(region[..., None], pixels, colour)
            # The image's own content names it: neither its order nor its neighbours change its
            # randomness. Where a checksum begins is what its repetitions differ in.
            for again in range(self.config.seeds):
                name = zlib.crc32(seen.tobytes(), again)
                job = number * self.config.seeds + again
                yield _Job(job, pixels, seen, region, name, target, rival)

    def input(self, image: Photo, number: int = 0) -> np.ndarray:
        """What the classifier sees of a photo, uint8 ``(size, size, channels)``.

        Args:
            image: as of :meth:`__call__`.
            number: what it is called in an error.

        Raises:
            ImageError: an array of another type or shape.
        """
        if isinstance(image, Image.Image):
            return self.classifier.preprocess.crop(image)
        shape = self.classifier.preprocess.shape
        if image.dtype != np.uint8 or image.shape != shape:
            raise ImageError(
                f"image {number}: found an array {image.dtype} {image.shape}, expected uint8 {shape}; "
                "give a Pillow image to have it resized and cropped"
            )
        return image

    def decision(
        self, pixels: np.ndarray, target: int | str | None = None, rival: int | str | None = None
    ) -> Decision:
        """What is asked of an input.

        Args:
            pixels: as :meth:`input` returns them.
            target: as of :meth:`__call__`.
            rival: likewise.
        """
        index = self.classifier.class_index
        asked = (np.int32(-1 if name is None else index(name)) for name in (target, rival))
        found = self._ask(self.classifier.params, pixels, *asked)
        return Decision(*(value.item() for value in found))

    def top(self, pixels: np.ndarray) -> list[int]:
        """The most probable classes of an input, five at most, the first first."""
        whole = np.ones(pixels.shape[:2], bool)
        return [one["index"] for one in self._top(pixels, whole)["image"]]

    def judge(
        self, images: Sequence[np.ndarray], decision: Decision, masks: Sequence[np.ndarray]
    ) -> Judged:
        """What the classifier says of masked inputs, on the stated background.

        Args:
            images: an input for each mask.
            decision: what is asked of all.
            masks: bool ``(size, size)`` each.
        """
        size, judge = self._evaluator.batch_size, self._evaluator.judge
        asked = [decision] * size
        parts = [slice(first, first + size) for first in range(0, len(masks), size)]
        found = [judge(images[p], asked, masks[p]) for p in parts]
        return Judged(*(np.concatenate(values) for values in zip(*found, strict=True)))

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
        pixels = jax.device_put(job.seen, device)
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
            start, before = "amx", optimized.mask & job.within
            mask, holds = yield from widen(before, optimized.logits, notion, job.within)
            sufficient, found = holds and mask is before, notion.views
        else:
            which, mask, holds = yield from smallest_prefix(
                list(rankings.values()), notion, within=job.within
            )
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
        refusal only all that may be kept is left to be certain of.
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
                    mask, holds = yield from step_back(visited, ranking, notion, job.within)
                else:
                    least = float(mask.sum() / job.within.sum())
                    _, mask, holds = yield from smallest_prefix([ranking], notion, least, job.within)
        return job.within, self._unseen(job, decision, job.within, notion, ROUNDS)

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
        count = self.config.controls
        if not count:
            return Controls()
        start = time.perf_counter()
        rng = np.random.default_rng([self.config.seed, job.name])

        def ask(images: list[np.ndarray], masks: list[np.ndarray]) -> np.ndarray:
            return self.judge(images, decision, masks).margins

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
            top=self._top(job.pixels, verified.mask),
            steps=optimized.steps,
            calls=verified.calls,
            seconds=job.seconds,
            classifier=self.classifier.name,
            weights=self._fingerprint,
            config=self.config,
            cell=self.cell,
        )


class Stream:
    """Images on their way through an explainer: an iterator of ``(number, explanation)``.

    A number is an image's place among ``images``; they come as they are ready, in any order.

    Args:
        explainer: that explains them.
        images: as of :meth:`Explainer.__call__`.
        targets: likewise.
        on_progress: as of :meth:`Explainer.stream`; what it raises ends the iteration, and
            :meth:`under_way` may be asked when it is called.
        rivals: as of :meth:`Explainer.__call__`.
        resumed: for an image's number and the number of its repetition, what :meth:`under_way` of
            another stream said of it, or None where it starts anew.
        within: as of :meth:`Explainer.__call__`.

    Examples:
        >>> from amx_jax import Config, load_classifier
        >>> explainer = Explainer(load_classifier(), Config(steps=3, trials=2, cell=28, batch_size=1))
        >>> [(number, explanation)] = Stream(explainer, [np.full((224, 224, 3), 127, np.uint8)])
        >>> number, explanation.steps
        (0, 3)
    """

    def __init__(
        self,
        explainer: Explainer,
        images: Iterable[Photo],
        targets: Iterable[int | str | None] | None = None,
        on_progress: Callable[[str, float], None] = lambda phase, work: None,
        rivals: Iterable[int | str | None] | None = None,
        resumed: Callable[[int, int], Sequence[np.ndarray] | None] = lambda number, again: None,
        within: Iterable[np.ndarray | None] | None = None,
    ):
        self._explainer, self._on_progress, self._resumed = explainer, on_progress, resumed
        self._seeds = explainer.config.seeds
        self._coming = explainer._jobs(images, targets, rivals, within)
        amx = explainer.config.method == "amx"
        self._optimizer = explainer._optimizer.emptied() if amx else None
        self._slots: dict[int, _Job] = {}
        self._verified: dict[int, tuple[_Job, Optimized]] = {}  # by the job's number: being verified
        # Likewise, as arrays: verified, and not handed over yet.
        self._leaving: dict[int, list[np.ndarray]] = {}
        # Of images that are explained more than once: those of their explanations that are ready.
        self._repeated: dict[int, dict[int, Explanation | Unexplained]] = {}
        self._ready: list[tuple[_Job, Explanation | Unexplained]] = []
        self._pool = Pool(self._judge, explainer._evaluator.batch_size)
        self._running = self._run()

    def __iter__(self) -> Iterator[tuple[int, Explanation | Unexplained]]:
        return self

    def __next__(self) -> tuple[int, Explanation | Unexplained]:
        return next(self._running)

    def under_way(self) -> dict[tuple[int, int], list[np.ndarray]]:
        """Where each image under way stands, by its number and the number of its repetition.

        The state of its optimisation, or, where it is being verified, what that found and what the
        classifier has said of candidates since, as arrays. From either a stream of the same classifier
        and configuration goes on to the same explanation, to the bit. Of a method without an optimiser
        there is nothing to go on from.
        """
        optimizer = self._optimizer
        if optimizer is None:
            return {}
        numbers = [job.number for job in self._slots.values()]
        states = map(optimizer.pack, optimizer.states(self._slots))
        arrays = dict(zip(numbers, states, strict=True))
        arrays |= {number: self._arrays(number) for number in self._verified}
        arrays |= self._leaving
        return {divmod(number, self._seeds): found for number, found in arrays.items()}

    def _arrays(self, number: int) -> list[np.ndarray]:
        """Of an image that is being verified."""
        assert self._optimizer is not None
        said = self._pool.said(number)
        packed = self._optimizer.pack(self._verified[number][1])
        return [*packed, said] if len(said) else packed  # Orbax refuses an empty array

    def _run(self) -> Iterator[tuple[int, Explanation | Unexplained]]:
        explainer, pool, optimizer = self._explainer, self._pool, self._optimizer
        size, more = explainer._evaluator.batch_size, True
        while True:
            while more and (optimizer.free if optimizer else len(pool) < explainer.config.batch_size):
                job = next(self._coming, None)
                if job is None:
                    more = False
                    break
                self._enter(job)
            if not (self._slots or pool or self._ready):
                break
            if pool.waiting >= size or not self._slots:
                for number, outcome in pool.advance():
                    if optimizer:
                        self._leaving[number] = self._arrays(number)
                    pool.forget(number)
                    job, optimized = self._verified.pop(number)
                    self._ready.append((job, explainer._explanation(job, optimized, outcome)))
                phase = "verifying"
            else:
                assert optimizer is not None  # else nothing has a slot
                for slot, optimized in advance(optimizer, self._slots):
                    self._verify(self._slots.pop(slot), optimized)
                phase = "optimising"
            whole = [found for job, one in self._ready for found in self._collect(job, one)]
            self._ready.clear()
            work = OPTIMISED * (sum(job.share for job in self._slots.values()) + len(self._verified))
            self._on_progress(phase, (work + sum(map(len, self._repeated.values()))) / self._seeds)
            for number, found in whole:
                yield number, found
                for again in range(self._seeds):
                    self._leaving.pop(number * self._seeds + again, None)

    def _enter(self, job: _Job) -> None:
        """Begin to explain an image, or go on where it stood."""
        explainer, optimizer = self._explainer, self._optimizer
        explainer._begin(job)
        if optimizer is None:
            self._verify(job, explainer._ranked(job))
            return
        arrays = list(self._resumed(*divmod(job.number, self._seeds)) or [])
        said: Any = ()
        before = optimizer.unpack(arrays)
        if before is None and arrays:
            said = arrays.pop()
            before = optimizer.unpack(arrays)
        if isinstance(before, Optimized):
            self._verify(job, before, said)
        else:
            slot = optimizer.put(job.seen, job.target, job.name, job.rival, before)
            self._slots[slot] = job

    def _verify(self, job: _Job, optimized: Optimized, said: Sequence[Any] = ()) -> None:
        target, rival, _ = optimized.decision
        failure = optimized.failure
        if target == rival:  # nobody named the target
            name = self._explainer.classifier.labels[rival]
            failure = f"its top class is {name}, the class it shall be compared with; name a target"
        if failure is not None:
            self._ready.append((job, Unexplained(failure)))
            return
        self._verified[job.number] = job, optimized
        self._pool.add(job.number, self._explainer._verify(job, optimized), said)

    def _judge(self, owners: Sequence[int], masks: Sequence[np.ndarray]) -> Judged:
        start = time.perf_counter()
        jobs, found = zip(*(self._verified[number] for number in owners), strict=True)
        judged = self._explainer._judge(jobs, [optimized.decision for optimized in found], masks)
        for job in jobs:
            job.seconds += (time.perf_counter() - start) / len(jobs)
        return judged

    def _collect(
        self, job: _Job, found: Explanation | Unexplained
    ) -> Iterator[tuple[int, Explanation | Unexplained]]:
        """The image's explanation, once all its repetitions are there."""
        number, again = divmod(job.number, self._seeds)
        all_found = self._repeated.setdefault(number, {})
        all_found[again] = found
        if len(all_found) == self._seeds:
            del self._repeated[number]
            yield number, _joined([all_found[again] for again in range(self._seeds)])


def _joined(found: Sequence[Explanation | Unexplained]) -> Explanation | Unexplained:
    """The first of the repetitions of one photo, which says how alike they are."""
    first, explanations = found[0], [one for one in found if isinstance(one, Explanation)]
    if isinstance(first, Unexplained) or len(explanations) < 2:
        return first
    alike = iou_matrix_mean([one.mask for one in explanations])
    return dataclasses.replace(first, controls=first.controls._replace(stability=alike))


def _region(number: int, region: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """Where an image's mask may keep pixels; everywhere where nothing is said."""
    if region is None:
        return np.ones(shape, bool)
    if region.dtype != bool or region.shape != shape or not region.any():
        empty = region.dtype == bool and region.shape == shape
        found = "an empty one" if empty else f"{region.dtype} {region.shape}"
        raise ImageError(f"image {number}: found as its region {found}, expected some of bool {shape}")
    return region


def start_of(classifier: Classifier) -> str:
    """The ranking that competes with the optimiser's where a mask must hold on many backgrounds.

    Which start is smaller differs from photo to photo. It is Grad-CAM's, or RISE's where no activation
    is like an image; both would find masks a little smaller still, for a fifth more passes
    (benchmarks/README.md).
    """
    image = jax.ShapeDtypeStruct(classifier.preprocess.shape, np.float32)
    try:
        last_image_stage(classifier.apply, classifier.params, image)
    except ClassifierError:
        return "rise"
    return "gradcam"


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
