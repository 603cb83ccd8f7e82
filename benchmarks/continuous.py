"""What refilling slots gains over fixed batches, under the same stopping rule.

    python -m benchmarks.continuous --data FOLDER [--photos 64] [--chunk 4] [--patience 20 …]

Explains the first photos of the folder twice, from photo to certificate: once as one stream, where an
image that meets its stopping rule leaves its slot to the next; and once in batches of ``batch_size``,
each of which waits for its slowest image. Both find the same masks. On a CPU a slot whose image is
finished costs nothing, unless ``--chunk`` ties several slots of a device together as an accelerator
does: what waiting costs there is told in steps. Every field of the configuration is an option; the last
line is the ratio.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from amx_jax import Config, Explainer, Explanation, Unexplained, load_classifier
from amx_jax.data.photos import read_photo
from amx_jax.lift import share_cores
from benchmarks.programs import device_name, first_photos


@dataclass(frozen=True)
class Options:
    """Continuous batching against fixed batches.

    Attributes:
        data: folder of photos.
        photos: how many of them, the first by name.
        classifier: one of ``amx classifiers``.
        config: how to explain.
    """

    data: Path
    photos: int = 64
    classifier: str = "efficientnet_lite0"
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def same(one: Explanation | Unexplained, other: Explanation | Unexplained) -> bool:
    """Whether two explanations agree in every pixel of their masks."""
    if isinstance(one, Unexplained) or isinstance(other, Unexplained):
        return one == other
    return np.array_equal(one.mask, other.mask)


def main() -> None:
    """Explain twice, print."""
    options = tyro.cli(Options)
    config = options.config
    share_cores(config.batch_size)
    explainer = Explainer(load_classifier(options.classifier), config)
    images = [read_photo(photo) for photo in first_photos(options.data, options.photos)]
    explainer(images[:1])  # compiles
    start = time.perf_counter()
    stream = explainer(images)
    seconds = {"continuous": time.perf_counter() - start}
    start = time.perf_counter()
    fixed: list[Explanation | Unexplained] = []
    for first in range(0, len(images), config.batch_size):
        fixed += explainer(images[first : first + config.batch_size])
    seconds["fixed"] = time.perf_counter() - start
    agree = sum(same(one, other) for one, other in zip(stream, fixed, strict=True))
    explained = [e for e in stream if isinstance(e, Explanation)]
    taken = [e.steps for e in explained]
    groups = [taken[i : i + config.batch_size] for i in range(0, len(taken), config.batch_size)]
    lockstep = sum(max(group) * len(group) for group in groups)
    print(f"{device_name()}, batch {config.batch_size}, chunk {config.chunk}, {len(images)} photos")
    print(f"steps an image: median {np.median(taken):.0f}, {min(taken)} … {max(taken)}")
    print(f"median area {np.median([e.certificate.area for e in explained]):.2%}")
    print(f"steps of slots that wait for their slowest, over steps: {lockstep / sum(taken):.2f}")
    print(f"equal masks: {agree} of {len(images)}")
    for name, value in seconds.items():
        print(f"{name:>10}: {value / len(images):.2f} s a photo")
    print(f"continuous over fixed: {seconds['fixed'] / seconds['continuous']:.2f} × images a second")


if __name__ == "__main__":
    main()
