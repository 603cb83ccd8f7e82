"""Options that several commands share, and what they stand for.

What needs JAX is imported where it is used, so that ``--help`` need not wait for it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from PIL import Image
from platformdirs import user_cache_path
from tyro.conf import DisallowNone, arg

from amx_jax.config import Config
from amx_jax.data.photos import bundled_photos, find_photos, read_photo
from amx_jax.errors import ImageError

if TYPE_CHECKING:
    from amx_jax.classifiers.classifier import Classifier

OtherPhotos = Annotated[
    tuple[str, ...],
    arg(metavar="PHOTO|FOLDER ...", help_behavior_hint="(default: the bundled photos)"),
]


@dataclass(frozen=True)
class Model:
    """By what to classify.

    Attributes:
        classifier: its name; `amx classifiers` lists them.
        weights: a file of PyTorch, safetensors or NumPy, a folder with config.json and weights, or
            hf:OWNER/NAME.
        labels: names of the classes, a file with a line each or JSON.
        cache: keep compiled programs in the user's cache folder, so that the next run need not compile.
    """

    classifier: Annotated[str, arg(metavar="NAME")] = "efficientnet_lite0"
    weights: Annotated[
        DisallowNone[str | None], arg(metavar="FILE", help_behavior_hint="(default: as installed)")
    ] = None
    labels: Annotated[
        DisallowNone[str | None],
        arg(metavar="FILE", help_behavior_hint="(default: those of the weights)"),
    ] = None
    cache: bool = True

    def load(self, at_a_time: int = 1) -> "Classifier":
        """The classifier, and JAX made ready to work on so many photos at a time."""
        from amx_jax.lift import share_cores

        share_cores(at_a_time)
        return load(self.classifier, self.weights, self.labels, self.cache)


def load(classifier: str, weights: str | None, labels: str | None, cache: bool) -> "Classifier":
    """A classifier, on a JAX that says only what went wrong; as of :class:`Model`."""
    from amx_jax.classifiers.registry import load_classifier
    from amx_jax.lift import keep_compiled

    if cache:
        keep_compiled(user_cache_path("amx_jax"))
    logging.getLogger("jax").setLevel(logging.ERROR)
    return load_classifier(classifier, weights, labels)


def other_photos(
    config: Config, paths: Sequence[str], classifier: "Classifier"
) -> tuple[Image.Image, ...]:
    """The photos that backgrounds and controls show; the bundled ones where none are given."""
    from amx_jax.masks.backgrounds import SHOW_PHOTOS

    if not config.controls and not set(config.kinds) & set(SHOW_PHOTOS):
        return ()
    found, failures = find_photos(paths or bundled_photos())
    if failures:
        raise ImageError(failures[0].reason)
    return tuple(read_photo(path, at_least=classifier.preprocess.resize) for path in found)
