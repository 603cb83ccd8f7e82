"""What an explainer needs of a classifier: a pure function, its constants, and its input's meaning."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax import Array
from PIL import Image

from amx_jax.errors import UnknownNameError, nearest

Params = Any
# The name (``jax.ad_checkpoint.checkpoint_name``) that a classifier may give to what passes between its
# blocks: ``Config.remat`` keeps that and computes the rest again.
BLOCK = "block"
Apply = Callable[[Params, Array], tuple[Array, dict[str, Array]]]


@dataclass(frozen=True)
class Preprocess:
    """From a photo to a classifier's input: resize the short side, crop the centre, normalise.

    Attributes:
        size: side of the square input, in pixels.
        resize: what the photo's short side is scaled to before the crop, in pixels.
        mean: subtracted from pixel values in 0 … 255.
        scale: what the difference is divided by.

    Examples:
        >>> preprocess = Preprocess(size=224, resize=256, mean=127.0, scale=128.0)
        >>> preprocess.crop(Image.new("RGB", (640, 480), "white")).shape
        (224, 224, 3)
        >>> float(preprocess.normalize(np.uint8(255)))
        1.0
    """

    size: int
    resize: int
    mean: float
    scale: float

    def crop(self, photo: Image.Image) -> np.ndarray:
        """The part of an RGB photo that the classifier sees.

        Args:
            photo: an image of mode RGB and any size.

        Returns:
            uint8 ``(size, size, 3)``.
        """
        # One resampling of the centre square: resizing the whole photo first would make a
        # 1 × 20,000 image five million pixels long.
        side = min(photo.size) * self.size / self.resize
        left, top = (photo.width - side) / 2, (photo.height - side) / 2
        box = (left, top, left + side, top + side)
        square = photo.resize((self.size, self.size), Image.Resampling.BICUBIC, box)
        return np.asarray(square)

    def normalize(self, pixels):
        """Pixel values in 0 … 255, NumPy or JAX, to the classifier's input space."""
        return (pixels - np.float32(self.mean)) / np.float32(self.scale)


@dataclass(frozen=True, eq=False)
class Classifier:
    """A frozen classifier as plain data.

    Attributes:
        name: what ``load_classifier`` calls it.
        apply: ``(params, image) -> (logits, {stage: activation})`` for one normalised image
            ``(H, W, 3)``; pure. Batches are its ``jax.vmap``.
        params: the pytree ``apply`` takes, constant.
        preprocess: from photo to input.
        labels: a name for each logit.
        stages: the stages whose activations are matched unless the configuration says otherwise.
    """

    name: str
    apply: Apply
    params: Params
    preprocess: Preprocess
    labels: tuple[str, ...]
    stages: tuple[str, ...]

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
