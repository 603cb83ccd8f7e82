"""The pictures of the documentation, of a photo that comes bundled.

    python -m benchmarks.docs_pictures [FOLDER]

takes some minutes on a CPU: one of the masks must hold on backgrounds never seen. FOLDER is
docs/pictures by default.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from amx_jax import Classifier, Config, Explainer, Explanation, load_classifier
from amx_jax.data.photos import bundled_photos, read_photo
from amx_jax.lift import share_cores
from amx_jax.masks.backgrounds import Scene, draw
from amx_jax.report.pictures import on_background, overlay, strip
from amx_jax.verify.controls import displaced, scattered

PHOTO = "coffee.png"
KINDS = ("colour", "noise", "blur")
NOTIONS = {
    "plain": Config(),
    "as sure as the photo": Config(confidence=1.0),
    "robust": Config(notion="robust"),
}


class Asked:
    """A classifier that says what it sees in pixels ``(H, W, 3)``, in words."""

    def __init__(self, classifier: Classifier):
        self.classifier = classifier
        self._look = jax.jit(
            lambda params, x: jax.nn.softmax(
                classifier.apply(params, classifier.preprocess.normalize(x))[0]
            )
        )

    def __call__(self, pixels: np.ndarray) -> str:
        probabilities = np.asarray(self._look(self.classifier.params, pixels.astype(np.float32)))
        top = int(probabilities.argmax())
        return f"{self.classifier.labels[top]}, p {probabilities[top]:.2f}"


def heat(ranking: np.ndarray) -> np.ndarray:
    """A ranking in gray, its most important pixels white: each value's rank among all."""
    order = np.argsort(np.argsort(ranking, axis=None)).reshape(ranking.shape)
    return (255 * (order / order.max()) ** 4).astype(np.uint8)  # the top few per cent matter


def stages(found: Explanation) -> np.ndarray:
    """From the photo to the pruned mask."""
    pictures = {
        "photo": found.pixels,
        "ranking": heat(found.ranking),
        f"optimised: {found.optimized_mask.mean():.1%}": overlay(found.pixels, found.optimized_mask),
        f"pruned: {found.mask.mean():.1%}": overlay(found.pixels, found.mask),
    }
    return strip(list(pictures.values()), list(pictures))


def notions(found: dict[str, Explanation]) -> np.ndarray:
    """What each notion needs of one photo."""
    captions = [f"{name}: {one.mask.mean():.1%}" for name, one in found.items()]
    return strip([overlay(one.pixels, one.mask) for one in found.values()], captions)


def behind(found: Explanation, ask: Asked) -> np.ndarray:
    """The kept pixels on the stated background and on one of each kind, and what is seen there."""
    preprocess = ask.classifier.preprocess
    _, low, high = preprocess.limits(found.config.background)
    image = preprocess.normalize(found.pixels.astype(np.float32))
    scene = Scene(image, low, high, jnp.zeros((0, *image.shape)))
    pictures = [on_background(found.pixels, found.mask, found.config.background)]
    for number in range(len(KINDS)):
        drawn = draw(KINDS, number, jax.random.key(number), scene)
        pixels = np.asarray(drawn) * preprocess.scale + preprocess.mean
        pixels = np.clip(pixels.round(), 0, 255).astype(np.uint8)
        pictures.append(np.where(found.mask[..., None], found.pixels, pixels))
    return strip(pictures, [ask(picture) for picture in pictures])


def wrong(found: Explanation, ask: Asked) -> np.ndarray:
    """The mask, and two that are like it elsewhere, and what is seen through each."""
    rng = np.random.default_rng(0)
    masks = [
        found.mask,
        *displaced(found.mask, 1, rng),
        *scattered(found.mask, found.cell, 1, rng),
    ]
    seen = [ask(on_background(found.pixels, mask, found.config.background)) for mask in masks]
    return strip([overlay(found.pixels, mask) for mask in masks], seen)


def main() -> None:
    """Explain the photo by each notion, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs/pictures"))
    folder = parser.parse_args().folder
    share_cores(8)
    classifier = load_classifier()
    [path] = [path for path in bundled_photos() if path.name == PHOTO]
    found = {}
    for name, config in NOTIONS.items():
        [explanation] = Explainer(classifier, replace(config, batch_size=1))([read_photo(path)])
        if not isinstance(explanation, Explanation):
            raise SystemExit(f"{name}: {explanation.reason}")
        found[name] = explanation
        print(f"{name}: {explanation.mask.mean():.1%}", flush=True)
    ask = Asked(classifier)
    pictures = {
        "stages": stages(found["plain"]),
        "notions": notions(found),
        "backgrounds": behind(found["plain"], ask),
        "robust_backgrounds": behind(found["robust"], ask),
        "wrong": wrong(found["plain"], ask),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / f"{name}.jpg", quality=85)


if __name__ == "__main__":
    main()
