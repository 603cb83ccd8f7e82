"""What explanations of different classifiers look like in figures: area, proof and cost of each.

    python -m benchmarks.classifiers --data FOLDER --models efficientnet_lite0 mobilenet_v2=FILE …

Explains the first photos of the folder with each classifier, its own top class as target, and prints a
row each. A model is a name of ``amx classifiers``, and behind ``=`` its weights where they are not
installed; ``=random`` stands for random weights, which show that and how fast it runs, no more. Every
field of the configuration is an option.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from amx_jax import Classifier, Config, Explainer, Explanation, load_classifier
from amx_jax.classifiers.registry import find, known_labels
from amx_jax.data.photos import read_photo
from amx_jax.lift import share_cores
from benchmarks.programs import device_name, first_photos

CLASSES = 1000  # of random weights


@dataclass(frozen=True)
class Options:
    """Explanations of different classifiers.

    Attributes:
        data: folder of photos.
        models: names, each with ``=FILE`` or ``=random`` where its weights are not installed.
        photos: how many, the first by name.
        config: how to explain.
    """

    data: Path
    models: tuple[str, ...] = ("efficientnet_lite0",)
    photos: int = 16
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def random_classifier(name: str) -> Classifier:
    """An architecture with normal weights that keep activations of one size."""
    entry = find(name)
    layout = entry.layouts[0]
    graph, abstract = nnx.split(nnx.eval_shape(lambda: layout.build(CLASSES)))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        scale = {"kernel": np.prod(leaf.shape[:-1]) ** -0.5, "scale": 1.0}.get(str(path[-2].key), 0.1)
        return jnp.asarray(rng.normal(size=leaf.shape) * scale, jnp.float32)

    return Classifier(
        name=name,
        apply=lambda params, image: nnx.merge(graph, params)(image),
        params=jax.tree_util.tree_map_with_path(draw, abstract),
        preprocess=layout.preprocess,
        labels=known_labels(CLASSES, entry.name),
        stages=entry.stages,
    )


def load(model: str) -> Classifier:
    """The classifier that one of the command's models names."""
    name, _, weights = model.partition("=")
    return random_classifier(name) if weights == "random" else load_classifier(name, weights or None)


def row(classifier: Classifier, photos: list[Path], config: Config) -> str:
    """A line of the table."""
    explainer = Explainer(classifier, config)
    least = classifier.preprocess.resize
    explainer([read_photo(photos[0], least)])  # compiles
    start = time.perf_counter()
    found = [e for e in explainer([read_photo(p, least) for p in photos]) if isinstance(e, Explanation)]
    seconds = (time.perf_counter() - start) / len(photos)
    certificates = [e.certificate for e in found]
    columns = [
        classifier.name,
        f"{len(found)} of {len(photos)}",
        f"{np.mean([c.sufficient for c in certificates]):.0%}",
        f"{np.mean([c.minimal for c in certificates]):.0%}",
        f"{100 * np.median([e.optimized_mask.mean() for e in found]):.1f} %",
        f"{100 * np.median([c.area for c in certificates]):.1f} %",
        f"{np.median([c.components for c in certificates]):.0f}",
        f"{np.median([c.probability_explanation for c in certificates]):.2f}",
        f"{seconds:.1f}",
    ]
    return f"| {' | '.join(columns)} |"


def main() -> None:
    """Explain, print."""
    options = tyro.cli(Options)
    share_cores(options.config.batch_size)
    photos = first_photos(options.data, options.photos)
    print(device_name())
    print(
        "| classifier | explained | sufficient | 1-minimal | area before | area | regions | p(e) | s |",
        flush=True,
    )
    for model in options.models:
        print(row(load(model), photos, options.config), flush=True)


if __name__ == "__main__":
    main()
