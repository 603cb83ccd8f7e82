"""The one class most users call: photos in, verified explanations out."""

import dataclasses
import platform
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from amx_jax.classifiers.classifier import Classifier
from amx_jax.config import Config
from amx_jax.errors import ConfigError, ImageError
from amx_jax.objective.decision import MARGIN
from amx_jax.optimize.loop import Optimizer
from amx_jax.verify.certificate import Certificate, certify
from amx_jax.verify.evaluator import Evaluator
from amx_jax.verify.prune import prune, prune_all

SCHEMA = 1
GRID_CELLS = 28  # the default pruning cell is 1/28 of the input's side: 8 pixels of 224
PACKAGES = ("amx-jax", "jax", "flax", "optax", "numpy")
Photo = Image.Image | np.ndarray


@dataclass(frozen=True, eq=False)
class Explanation:
    """Which pixels decide, and what was verified of them.

    Attributes:
        pixels: what the classifier saw, uint8 ``(H, W, 3)``.
        mask: bool ``(H, W)``, true where kept; hard, pruned and certified.
        ranking: ``(H, W)``, the optimiser's logits: larger is more important.
        optimized_mask: bool ``(H, W)``, the optimiser's own hard mask, before pruning.
        optimized_sufficient: whether that one kept the decision.
        target: the explained class.
        label: its name.
        certificate: what was measured on ``mask``.
        calls: forward passes that pruning took.
        seconds: this photo's share of its batch's time.
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
    certificate: Certificate
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
            "steps": self.config.steps,
            "seconds": round(self.seconds, 3),
            "config": dataclasses.asdict(self.config),
            "versions": versions(),
        }


@dataclass(frozen=True)
class Unexplained:
    """An image whose optimisation met a value that is not finite.

    Attributes:
        reason: the step and the term.
    """

    reason: str


class Explainer:
    """Explains a classifier's decisions, many images at once.

    Args:
        classifier: f, as :func:`amx_jax.load_classifier` returns it.
        config: how to search and verify.

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

    def __init__(self, classifier: Classifier, config: Config | None = None):
        self.classifier, self.config = classifier, config or Config()
        config = self.config
        side = classifier.preprocess.size
        self.cell = config.cell or max(1, round(side / GRID_CELLS))
        image = jax.ShapeDtypeStruct((side, side, 3), jnp.float32)
        _, stages = jax.eval_shape(classifier.apply, classifier.params, image)
        unknown = [stage for stage in config.stages if stage not in stages]
        if unknown:
            raise ConfigError(
                f"stages: found {', '.join(unknown)}, expected some of {', '.join(stages)}"
            )
        self._logits = jax.jit(jax.vmap(lambda p, x: classifier.apply(p, x)[0], in_axes=(None, 0)))
        self._optimizer = Optimizer(classifier, config)
        self._evaluator = Evaluator(classifier, config.background, config.candidates)

    def __call__(
        self, images: Iterable[Photo], targets: Sequence[int | str | None] | None = None
    ) -> list[Explanation | Unexplained]:
        """Explain images.

        Args:
            images: photos as Pillow images, cropped and resized as the classifier's preprocessing
                says, or its inputs as uint8 ``(size, size, 3)``, taken as they are.
            targets: for each image a class by index or name, or None for the classifier's top class.

        Returns:
            In order, an explanation of each image, or why there is none. Each depends on its image,
            its target and the configuration only, not on the other images or their order.

        Raises:
            ImageError: an array of another type or shape; names its position.
            UnknownNameError: a target that the classifier does not have.
        """
        return list(self.stream(images, targets))

    def stream(
        self,
        images: Iterable[Photo],
        targets: Iterable[int | str | None] | None = None,
        on_progress: Callable[[str, float], None] = lambda phase, share: None,
    ) -> Iterator[Explanation | Unexplained]:
        """The same, a batch at a time: only one batch is in memory.

        Args:
            images: as above; may be a generator.
            targets: as above.
            on_progress: called with the phase of the present batch and the finished share of the
                batch's work, 0 … 1.

        Yields:
            What :meth:`__call__` returns.
        """
        inputs = (self._input(number, image) for number, image in enumerate(images))
        classes = iter(targets) if targets is not None else None
        while batch := list(islice(inputs, self.config.batch_size)):
            given = [None] * len(batch) if classes is None else list(islice(classes, len(batch)))
            if len(given) < len(batch):
                raise ValueError("fewer targets than images")
            yield from self._explain(np.stack(batch), given, on_progress)

    def _input(self, number: int, image: Photo) -> np.ndarray:
        if isinstance(image, Image.Image):
            return self.classifier.preprocess.crop(image.convert("RGB"))
        shape = (self.classifier.preprocess.size,) * 2 + (3,)
        if image.dtype != np.uint8 or image.shape != shape:
            raise ImageError(
                f"image {number}: found an array {image.dtype} {image.shape}, expected uint8 {shape}; "
                "give a Pillow image to have it resized and cropped"
            )
        return image

    def _explain(self, pixels, given, on_progress) -> Iterator[Explanation | Unexplained]:
        start = time.perf_counter()
        config, count = self.config, len(pixels)
        # A ragged last batch is padded with its own first image: one shape, one compilation.
        padding = [0] * (config.batch_size - count)
        chosen = [*range(count), *padding]
        images = jnp.asarray(self.classifier.preprocess.normalize(pixels[chosen].astype(np.float32)))
        targets = self._targets(images, [given[i] for i in chosen])
        root = jax.random.key(config.seed)
        # The image's own content names it: neither its order nor its neighbours change its randomness.
        keys = jnp.stack([jax.random.fold_in(root, zlib.crc32(pixels[i].tobytes())) for i in chosen])
        optimize_keys, certify_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)

        optimized = self._optimizer(
            images,
            targets,
            optimize_keys,
            on_step=lambda number: on_progress("optimising", number / config.steps),
        )
        on_progress("pruning", 1.0)
        finite = np.array([i for i in range(count) if optimized.failures[i] is None], int)
        masks, calls = optimized.masks.copy(), np.zeros(count, int)

        def judge(owners: np.ndarray, candidates: np.ndarray) -> np.ndarray:
            return self._evaluator.judge(images, targets, owners, candidates)[0]

        sufficient = np.zeros(count, bool)
        sufficient[finite] = judge(finite, masks[finite]) > MARGIN
        prunable = np.flatnonzero(sufficient)
        searches = [prune(masks[i], optimized.logits[i], self.cell) for i in prunable]
        outcomes = prune_all(searches, lambda owners, masks: judge(prunable[owners], masks))
        for index, outcome in zip(prunable.tolist(), outcomes, strict=True):
            masks[index], calls[index] = outcome.mask, outcome.calls
        on_progress("certifying", 1.0)
        certificates = certify(
            self._evaluator,
            images,
            targets,
            finite,
            masks[finite],
            certify_keys,
            self.cell,
            config.trials,
        )
        certificate_of = dict(zip(finite.tolist(), certificates, strict=True))
        seconds = (time.perf_counter() - start) / count
        for i in range(count):
            failure = optimized.failures[i]
            if failure is not None:
                yield Unexplained(failure)
                continue
            yield Explanation(
                pixels=pixels[i],
                mask=masks[i],
                ranking=optimized.logits[i],
                optimized_mask=optimized.masks[i],
                optimized_sufficient=bool(sufficient[i]),
                target=int(targets[i]),
                label=self.classifier.labels[int(targets[i])],
                certificate=certificate_of[i],
                calls=int(calls[i]),
                seconds=seconds,
                classifier=self.classifier.name,
                config=config,
                cell=self.cell,
            )

    def _targets(self, images: Array, given: Sequence[int | str | None]) -> Array:
        top = np.asarray(jnp.argmax(self._logits(self.classifier.params, images), axis=-1))
        chosen = [
            top[i] if target is None else self.classifier.class_index(target)
            for i, target in enumerate(given)
        ]
        return jnp.asarray(chosen, jnp.int32)


@cache
def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
