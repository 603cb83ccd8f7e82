"""What an explainer needs of a classifier: a pure function, its constants, and its input's meaning."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from amx_jax.errors import ClassifierError, ConfigError, UnknownNameError, nearest
from amx_jax.objective.decision import Head

Params = Any
# The name (``jax.ad_checkpoint.checkpoint_name``) that a classifier may give to what passes between its
# blocks: ``Config.remat`` keeps that and computes the rest again.
BLOCK = "block"
Apply = Callable[[Params, Array], tuple[Array, dict[str, Array]]]
CONTRACT = (
    "apply(params, image) takes one normalised image (size, size, channels) and returns logits "
    "(classes,), or (logits, {stage: activation})"
)


@dataclass(frozen=True)
class Preprocess:
    """From a photo to a classifier's input: resize the short side, crop the centre, normalise.

    Attributes:
        size: side of the square input, in pixels.
        resize: what the photo's short side is scaled to before the crop, in pixels.
        mean: subtracted from pixel values in 0 … 255; one number, or one a channel.
        scale: what the difference is divided by; likewise.
        channels: 3 for red, green and blue, 1 for gray.

    Raises:
        ConfigError: a value outside its range.

    Examples:
        >>> preprocess = Preprocess(size=224, resize=256, mean=127.0, scale=128.0)
        >>> preprocess.crop(Image.new("RGB", (640, 480), "white")).shape
        (224, 224, 3)
        >>> float(preprocess.normalize(np.uint8(255)))
        1.0
        >>> digits = Preprocess(size=28, resize=28, mean=33.3, scale=78.6, channels=1)
        >>> digits.crop(Image.new("RGB", (640, 480), "white")).shape
        (28, 28, 1)
    """

    size: int
    resize: int
    mean: float | tuple[float, ...]
    scale: float | tuple[float, ...]
    channels: int = 3

    def __post_init__(self) -> None:
        checks = [
            ("size", self.size >= 1, "at least 1"),
            ("resize", self.resize >= self.size, f"at least the size, {self.size}"),
            ("channels", self.channels in (1, 3), "1 or 3"),
            *(
                (name, np.shape(getattr(self, name)) in ((), (self.channels,)), "one, or one a channel")
                for name in ("mean", "scale")
            ),
            ("mean", np.isfinite(self.mean).all(), "finite"),
            ("scale", np.isfinite(self.scale).all() and np.all(self.scale), "finite and not 0"),
        ]
        for name, holds, expected in checks:
            if not holds:
                raise ConfigError(f"{name}: found {getattr(self, name)!r}, expected {expected}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the classifier's input."""
        return self.size, self.size, self.channels

    def square(self, size: tuple[int, int]) -> tuple[float, float, float]:
        """Left and top edge and side of the part of a photo that is seen, in pixels of the photo.

        Args:
            size: width and height of the photo.

        Examples:
            >>> Preprocess(size=224, resize=256, mean=0.0, scale=1.0).square((640, 512))
            (96.0, 32.0, 448.0)
        """
        width, height = size
        side = min(size) * self.size / self.resize
        return (width - side) / 2, (height - side) / 2, side

    def crop(self, photo: Image.Image) -> np.ndarray:
        """The part of a photo that the classifier sees.

        Args:
            photo: an image of any mode and size.

        Returns:
            uint8 ``(size, size, channels)``.
        """
        photo = photo.convert("RGB" if self.channels == 3 else "L")
        # One resampling of the centre square: resizing the whole photo first would make a
        # 1 × 20,000 image five million pixels long.
        left, top, side = self.square(photo.size)
        box = (left, top, left + side, top + side)
        square = photo.resize((self.size, self.size), Image.Resampling.BICUBIC, box)
        return np.asarray(square).reshape(self.shape)

    def uncrop(self, values: np.ndarray, size: tuple[int, int], outside: Any) -> np.ndarray:
        """What is known of the input's pixels, laid back over the photo: the inverse of :meth:`crop`.

        Each pixel of the photo takes the value of the input's pixel that its centre lies in. Where the
        photo's square has at least ``size`` pixels a side, none of the values is lost.

        Args:
            values: of the input's pixels, such as a mask, ``(size, size, …)``.
            size: width and height of the photo.
            outside: what pixels take that the classifier does not see.

        Returns:
            ``(height, width, …)``, of the type of ``values``.

        Raises:
            ValueError: another shape.

        Examples:
            >>> preprocess = Preprocess(size=2, resize=4, mean=0.0, scale=1.0)
            >>> preprocess.uncrop(np.array([[1, 2], [3, 4]]), (6, 4), 0)
            array([[0, 0, 0, 0, 0, 0],
                   [0, 0, 1, 2, 0, 0],
                   [0, 0, 3, 4, 0, 0],
                   [0, 0, 0, 0, 0, 0]])
        """
        if values.shape[:2] != (self.size, self.size):
            raise ValueError(f"found {values.shape}, expected ({self.size}, {self.size}, …)")
        left, top, side = self.square(size)
        # Of a centre on the edge between two, the first: where the photo is as fine as the input, half
        # a pixel off, each value then has one pixel still.
        columns, rows = (
            np.ceil((np.arange(length) + 0.5 - start) * (self.size / side)).astype(int) - 1
            for length, start in zip(size, (left, top), strict=True)
        )
        seen = [(places >= 0) & (places < self.size) for places in (rows, columns)]
        laid = np.full((*size[::-1], *values.shape[2:]), outside, values.dtype)
        laid[np.ix_(*seen)] = values[np.ix_(rows[seen[0]], columns[seen[1]])]
        return laid

    def normalize(self, pixels):
        """Pixel values in 0 … 255, NumPy or JAX ``(…, channels)``, to the classifier's input space."""
        return (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.scale, np.float32)

    def limits(self, background: tuple[int, int, int]) -> tuple[Array, Array, Array]:
        """A background and the lowest and highest input, each ``(channels,)`` in the input space.

        Args:
            background: red, green and blue, 0 … 255.
        """
        black = np.zeros(self.channels, np.float32)
        first, last = self.normalize(black), self.normalize(black + 255)
        lowest, highest = np.minimum(first, last), np.maximum(first, last)
        colour = self.normalize(self.fill(background))
        return jnp.asarray(colour), jnp.asarray(lowest), jnp.asarray(highest)

    def fill(self, background: tuple[int, int, int]) -> np.ndarray:
        """A colour as the classifier's channels, float32 ``(channels,)`` in 0 … 255."""
        colour = np.asarray(background, np.float32)
        if self.channels == 1:
            colour = colour @ np.array([[0.299], [0.587], [0.114]], np.float32)  # as Pillow's mode L
        return colour


@dataclass(frozen=True, eq=False, kw_only=True)
class Classifier:
    """A frozen classifier as plain data: your own in a few lines.

    Attributes:
        apply: ``(params, image) -> (logits, {stage: activation})`` for one normalised image
            ``(size, size, channels)``; pure. Batches are its ``jax.vmap``. One that returns only logits
            will do: nothing is then matched but the output.
        params: the pytree ``apply`` takes, constant.
        preprocess: from photo to input.
        labels: a name for each logit; numbers by default.
        stages: the stages whose activations are matched unless the configuration says otherwise; by
            default all there are.
        head: ``softmax`` where classes exclude each other, ``sigmoid`` where each is present or not.
        name: what it is called in results.
        activations: shape and type of each stage's activation; found out, not given.

    Raises:
        ClassifierError: ``apply`` does not do what is said above, or labels or stages do not fit it.

    Examples:
        >>> def apply(params, image):
        ...     features = jax.nn.relu(image.mean(axis=(0, 1)) @ params["in"])
        ...     return features @ params["out"], {"features": features}
        >>> classifier = Classifier(
        ...     apply=apply,
        ...     params={"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))},
        ...     preprocess=Preprocess(size=64, resize=64, mean=0.0, scale=255.0),
        ...     labels=("cat", "dog"),
        ... )
        >>> classifier.stages, classifier.activations["features"].shape
        (('features',), (8,))
    """

    apply: Apply
    params: Params
    preprocess: Preprocess
    labels: Sequence[str] = ()
    stages: Sequence[str] | None = None
    head: Head = "softmax"
    name: str = "classifier"
    activations: dict[str, jax.ShapeDtypeStruct] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        def settle(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        # Each program takes it in as if it were written there, but it is traced once for all of them.
        def traced_once(apply: Callable) -> Callable:
            return apply if isinstance(apply, jax.stages.Wrapped) else jax.jit(apply, inline=True)

        settle("apply", traced_once(self.apply))
        logits, activations = self._shapes()
        if activations is None:
            only_logits = self.apply
            settle("apply", traced_once(lambda params, image: (only_logits(params, image), {})))
            activations = {}
        classes = logits.shape[0]
        if classes == 1 and self.head == "softmax":
            raise ClassifierError(
                f"{self.name}: found one logit, expected one for each class; where its sigmoid is the "
                "probability of a second class, give apply=two_classes(apply)"
            )
        if self.head not in ("softmax", "sigmoid"):
            raise ClassifierError(f"{self.name}: found head {self.head!r}, expected softmax or sigmoid")
        labels = tuple(self.labels) or tuple(f"class {index}" for index in range(classes))
        if len(labels) != classes:
            raise ClassifierError(
                f"{self.name}: found {len(labels)} labels for {classes} logits, expected one for each"
            )
        stages = tuple(activations) if self.stages is None else tuple(self.stages)
        unknown = [stage for stage in stages if stage not in activations]
        if unknown:
            raise ClassifierError(
                f"{self.name}: found no activation {', '.join(unknown)}, expected stages among "
                f"{', '.join(activations) or 'none: apply returns only logits'}"
            )
        settle("labels", labels)
        settle("stages", stages)
        settle("activations", activations)

    def _shapes(self) -> tuple[jax.ShapeDtypeStruct, dict[str, jax.ShapeDtypeStruct] | None]:
        """Of the logits and, where there are any, the activations of one image."""
        image = jax.ShapeDtypeStruct(self.preprocess.shape, jnp.float32)
        try:
            found = jax.eval_shape(self.apply, self.params, image)
        except Exception as error:  # anything that a user's function can raise
            cause = str(error).strip().split("\n")[0]
            raise ClassifierError(
                f"{self.name}: apply fails on an image {image.shape}: {type(error).__name__}: {cause}; "
                f"expected: {CONTRACT}"
            ) from error
        logits, activations = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
        wrong = None
        if not isinstance(logits, jax.ShapeDtypeStruct):
            wrong = f"{type(logits).__name__} instead of logits"
        elif logits.ndim != 1 or not jnp.issubdtype(logits.dtype, jnp.floating):
            wrong = f"logits {logits.dtype} {logits.shape}"
        elif activations is not None and not (
            isinstance(activations, dict)
            and all(isinstance(value, jax.ShapeDtypeStruct) for value in activations.values())
        ):
            wrong = "activations that are no dictionary of arrays"
        if wrong:
            raise ClassifierError(
                f"{self.name}: apply returns {wrong} for an image {image.shape}; expected: {CONTRACT}; "
                "a model of batches takes image[None] and its result's [0]"
            )
        return logits, activations

    def class_index(self, target: int | str) -> int:
        """The logit index of a class given by index (also as digits) or by name.

        Raises:
            UnknownNameError: no such class, or several of that name; names what would fit.
        """
        text = str(target).strip()
        if re.fullmatch(r"-?\d{1,18}", text):
            index = int(text)
            if not 0 <= index < len(self.labels):
                raise UnknownNameError(
                    f"class {index} does not exist: {self.name} has classes 0 to {len(self.labels) - 1}"
                )
            return index
        found = [i for i, label in enumerate(self.labels) if label.lower() == text.lower()]
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownNameError(
                f"class {text!r} is ambiguous: give one of the indices {', '.join(map(str, found))}"
            )
        raise UnknownNameError(f"no class {text!r} in {self.name}{nearest(text, self.labels)}")
