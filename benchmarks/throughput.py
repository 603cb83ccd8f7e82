"""Optimisation steps a second, ours against the PyTorch reference, and where our time goes.

    python -m benchmarks.throughput [--batch-sizes 1 2 4 8 16 32] [--output DIR]

Ours and the three forms of ``benchmarks/pytorch_reference`` take the same steps on the same images,
turn by turn in one run, each with all cores; compilation is timed apart. Prints medians and spreads in
milliseconds an image and step, then our phases, and last the ratios at the batch size nearest to 8.
DIR gets ``throughput.json`` and ``throughput.png``.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro

from amx_jax import Classifier, Config, load_classifier
from amx_jax.lift import Devices, cores, share_cores
from amx_jax.optimize.loop import BURST, Optimizer, make_generator
from amx_jax.verify.evaluator import Evaluator
from benchmarks.programs import device_name, noise
from benchmarks.pytorch_reference import FORMS, CompilerError, Reference, from_jax
from benchmarks.recheck import load_model

OURS = "amx_jax"


@dataclass(frozen=True)
class Options:
    """Throughput of the optimisation step.

    Attributes:
        batch_sizes: images at a time.
        rounds: turns that each form takes; of BURST steps each.
        references: which forms of PyTorch.
        classifier: one of ``amx classifiers`` with a PyTorch twin.
        output: folder for the figures and the plot.
    """

    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    rounds: int = 7
    references: tuple[str, ...] = FORMS
    classifier: str = "efficientnet_lite0"
    output: Path | None = None


def our_steps(classifier: Classifier, config: Config, pixels: np.ndarray) -> tuple[Callable, Any]:
    """A function that takes ``BURST`` steps, and the generators' parameters before the first."""
    optimizer = Optimizer(classifier, config, Devices())
    slots = [optimizer.put(photo, None, number) for number, photo in enumerate(pixels)]
    state = optimizer.slots[1]
    return optimizer.advance, jax.tree.map(lambda leaf: np.asarray(leaf)[slots], state.params)


def their_steps(form: str, config: Config, model: Any, images, targets, params) -> Callable[[], None]:
    """The same in PyTorch."""
    reference = Reference(config, model, images, targets, form)  # type: ignore[arg-type]
    state = reference.init(from_jax(params))

    def steps() -> None:
        for _ in range(BURST):
            reference.step(state)

    return steps


def timed(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def compare(options: Options, classifier: Classifier, pixels: np.ndarray) -> list[dict[str, Any]]:
    """Seconds an image and step of each form, in turns; one row for each form."""
    count = len(pixels)
    config = Config(batch_size=count, steps=10**6)  # none stops
    model = load_model(options.classifier)
    images = np.asarray(classifier.preprocess.normalize(pixels.astype(np.float32)))
    logits = jax.jit(jax.vmap(lambda x: classifier.apply(classifier.params, x)[0]))(images)
    targets = np.asarray(logits.argmax(-1))
    start = time.perf_counter()
    ours, params = our_steps(classifier, config, pixels)
    ours()
    forms, compiling = {OURS: ours}, {OURS: time.perf_counter() - start}
    for form in options.references:
        start = time.perf_counter()
        try:
            forms[form] = their_steps(form, config, model, images, targets, params)
            forms[form]()
        except CompilerError as error:
            print(f"PyTorch {form}: not available: {error}", flush=True)
            forms.pop(form, None)
            continue
        compiling[form] = time.perf_counter() - start
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    for steps in forms.values():
        timed(steps)
    for _ in range(options.rounds):
        for form, steps in forms.items():
            seconds[form].append(timed(steps) / BURST / count)
    return [
        {
            "form": form,
            "batch": count,
            "seconds": statistics.median(values),
            "least": min(values),
            "most": max(values),
            "first call": compiling[form],
        }
        for form, values in seconds.items()
    ]


def phases(classifier: Classifier, pixels: np.ndarray, rounds: int) -> dict[str, float]:
    """Seconds an image of what a step and a verification consist of."""
    count, config, devices = len(pixels), Config(), Devices()
    generator = make_generator(config, 3)
    images = classifier.preprocess.normalize(pixels.astype(np.float32))
    seen = jax.vmap(generator.see)(images)
    own = jax.vmap(generator.init)(jax.random.split(jax.random.key(0), count))
    params = devices.replicate(classifier.params)
    images, seen, own = (devices.split(tree) for tree in (images, seen, own))

    def logits(params: Any, x: jax.Array) -> jax.Array:
        return classifier.apply(params, x)[0]

    def entropy(params: Any, x: jax.Array) -> jax.Array:
        scores = logits(params, x)
        return jax.nn.logsumexp(scores) - scores[0]

    forward = devices.lift(logits)
    gradient = devices.lift(jax.grad(entropy, argnums=1))
    mask = devices.lift(
        lambda own, seen: jax.grad(lambda p: jnp.sum(generator.apply(p, seen) ** 2))(own), shared=0
    )
    optimizer = Optimizer(classifier, Config(batch_size=count, steps=10**6), devices)
    for number, photo in enumerate(pixels):
        optimizer.put(photo, None, number)
    evaluator = Evaluator(classifier, config.background, count, devices)
    masks = list(np.random.default_rng(0).random((count, *pixels.shape[1:3])) < 0.1)
    key = jax.random.key(0)

    def unseen() -> None:
        evaluator.unseen(pixels[0], 0, masks[0], key, count)

    work: dict[str, tuple[Callable[[], Any], int]] = {
        "step": (optimizer.advance, BURST * count),
        "classifier forward": (lambda: forward(params, images), count),
        "classifier forward and gradient": (lambda: gradient(params, images), count),
        "autoencoder forward and gradient": (lambda: mask(own, seen), count),
        "candidate of pruning": (lambda: evaluator.judge(list(pixels), [0] * count, masks), count),
        "background of the certificate": (unseen, len(evaluator.kinds) * count),
    }
    for function, _ in work.values():
        timed(function)
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, (function, images_each) in work.items():
            found[name].append(timed(function) / images_each)
    return {name: statistics.median(values) for name, values in found.items()}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Image-steps a second against the batch size, a line for each form."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for form in dict.fromkeys(row["form"] for row in rows):
        own = [row for row in rows if row["form"] == form]
        name = OURS if form == OURS else f"PyTorch, {form}"
        sizes = [row["batch"] for row in own]
        axes.plot(sizes, [1 / row["seconds"] for row in own], "o-", label=name)
        lowest, highest = ([1 / row[key] for row in own] for key in ("most", "least"))
        axes.fill_between(sizes, lowest, highest, alpha=0.15)
    axes.set_xscale("log", base=2)
    axes.set_xticks([row["batch"] for row in rows], [str(row["batch"]) for row in rows])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("batch size")
    axes.set_ylabel("optimisation steps × images a second")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print, plot."""
    options = tyro.cli(Options)
    share_cores(max(options.batch_sizes))
    torch.set_num_threads(cores())
    classifier = load_classifier(options.classifier)
    side = classifier.preprocess.size
    pixels = noise(max(options.batch_sizes), side)
    print(
        f"{device_name()}; milliseconds an image and step: median (least … most), first call",
        flush=True,
    )
    rows: list[dict[str, Any]] = []
    for size in options.batch_sizes:
        for row in compare(options, classifier, pixels[:size]):
            rows.append(row)
            middle, least, most = (1e3 * row[key] for key in ("seconds", "least", "most"))
            print(
                f"batch {size:3d}  {row['form']:>9}  {middle:6.2f} ({least:.2f} … {most:.2f})"
                f"  {row['first call']:5.1f} s",
                flush=True,
            )
    shown = min(options.batch_sizes, key=lambda size: abs(size - 8))
    parts = phases(classifier, pixels[:shown], options.rounds)
    for name, seconds in parts.items():
        print(f"{name:>34}  {1e3 * seconds:6.2f} ms an image")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        report = {
            "device": device_name(),
            "machine": platform.machine(),
            "jax": jax.__version__,
            "torch": torch.__version__,
            "rows": rows,
            "phases": parts,
        }
        text = json.dumps(report, indent=2) + "\n"
        (options.output / "throughput.json").write_text(text, encoding="utf-8")
        plot(rows, options.output / "throughput.png")
    seconds_of = {row["form"]: row["seconds"] for row in rows if row["batch"] == shown}
    theirs = {form: value for form, value in seconds_of.items() if form != OURS}
    if theirs:
        best = min(theirs.values()) / seconds_of[OURS]
        loop = f"{theirs['loop'] / seconds_of[OURS]:.2f}" if "loop" in theirs else "not measured"
        print(f"ratio to best PyTorch {best:.2f}, to PyTorch loop {loop} (batch {shown})")


if __name__ == "__main__":
    main()
