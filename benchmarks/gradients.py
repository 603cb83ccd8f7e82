"""What a classifier's forward pass and input gradient cost, against PyTorch on the same cores.

    python -m benchmarks.gradients [--models resnet18 …] [--batch-size 8] [--rounds 5]

For each convolutional classifier: milliseconds an image of the input gradient of the cross-entropy,
ours as the optimiser runs it and PyTorch's for the whole batch in channels_last, in turns; medians, and
the median of the turns' ratios. Weights are random.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro

from amx_jax import Classifier
from amx_jax.classifiers.zoo import CLASSIFIERS
from amx_jax.lift import Devices, cores, share_cores
from benchmarks.classifiers import CLASSES, random_classifier
from benchmarks.programs import device_name, noise
from tests import oracles

LEAST = 0.3  # seconds of a turn
CONVOLUTIONAL = tuple(name for name in CLASSIFIERS if not name.startswith(("vit", "deit")))


@dataclass(frozen=True)
class Options:
    """Input gradients against PyTorch.

    Attributes:
        models: names of ``amx classifiers``.
        batch_size: images.
        rounds: turns of each.
    """

    models: tuple[str, ...] = CONVOLUTIONAL
    batch_size: int = 8
    rounds: int = 5


def ours(classifier: Classifier, images: np.ndarray) -> Callable[[], None]:
    """A call that computes the gradient of every image."""
    devices = Devices()

    def gradient(params, image):
        def loss(image):
            return -jax.nn.log_softmax(classifier.apply(params, image)[0])[0]

        return jax.grad(loss)(image)

    run, params = devices.lift(gradient), devices.replicate(classifier.params)
    inputs = devices.split(jnp.asarray(images))
    return lambda: jax.block_until_ready(run(params, inputs))


def theirs(name: str, images: np.ndarray) -> Callable[[], None]:
    """The same in PyTorch; the parameters need no gradient."""
    layout = CLASSIFIERS[name].layouts[0]
    model = oracles.build(name, layout.source.split(",")[0], images.shape[1:3], CLASSES)
    model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    inputs = torch.from_numpy(images).movedim(3, 1).requires_grad_()

    def run() -> None:
        loss = -torch.log_softmax(model(inputs)[0], dim=1)[:, 0].sum()
        torch.autograd.grad(loss, inputs)

    return run


def main() -> None:
    """Time, print."""
    options = tyro.cli(Options)
    share_cores(options.batch_size)
    torch.set_num_threads(cores())
    print(f"{device_name()}, batch {options.batch_size}")
    print("| classifier | amx_jax, ms | PyTorch, ms | ours over PyTorch's |", flush=True)
    for name in options.models:
        classifier = random_classifier(name)
        images = noise(options.batch_size, classifier.preprocess.size)
        images = np.asarray(classifier.preprocess.normalize(images), np.float32)
        calls = [ours(classifier, images), theirs(name, images)]
        seconds: list[list[float]] = [[], []]
        for turn in range(options.rounds + 1):
            for call, taken in zip(calls, seconds, strict=True):
                call()  # compiles, and lets the other's threads come to rest
                start = time.perf_counter()
                count = 0
                while (passed := time.perf_counter() - start) < LEAST * bool(turn):
                    call()
                    count += 1
                if turn:
                    taken.append(passed / count)
        ratio = statistics.median(a / b for a, b in zip(*seconds, strict=True))
        ms = [1e3 * statistics.median(taken) / options.batch_size for taken in seconds]
        print(f"| {name} | {ms[0]:.1f} | {ms[1]:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
