"""How the optimisation scales: with the batch, with devices, with the number of photos.

    python -m benchmarks.scaling [--output DIR]

Steps a second and memory against the batch size, and against the number of simulated CPU devices, each
setting in a process of its own and in turns. The digest shows whether the settings find the same bits
for the same image. No program may hold collectives; the run fails otherwise. DIR gets ``scaling.json``
and ``scaling.png``. Memory is what the process holds at most above what it held when the classifier was
loaded; the last lines give it for a whole run over few and over many photos.
"""

import hashlib
import json
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from amx_jax import Config, Explainer, load_classifier
from amx_jax.lift import Devices, cores
from amx_jax.optimize.loop import BURST, Optimizer
from benchmarks.programs import collectives, device_name, noise


@dataclass(frozen=True)
class Options:
    """Scaling of the optimisation step.

    Attributes:
        batch_sizes: with as many devices as cores.
        devices: numbers of simulated devices, at the batch size below.
        batch_size: for the devices.
        photos: numbers of photos whose memory is compared.
        rounds: turns of each setting.
        classifier: one of ``amx classifiers``.
        output: folder for the figures and the plot.
    """

    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    devices: tuple[int, ...] = (1, 2, 4, 8)
    batch_size: int = 8
    photos: tuple[int, int] = (8, 64)
    rounds: int = 3
    classifier: str = "efficientnet_lite0"
    output: Path | None = None


def peak() -> float:
    """Most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, from a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *arguments).result()


def steps(classifier_name: str, devices: int, batch: int) -> dict[str, Any]:
    """Seconds an image and step, memory, collectives, and a digest of what the first image came to."""
    jax.config.update("jax_num_cpu_devices", devices)  # which says nothing of accelerators
    classifier = load_classifier(classifier_name)
    optimizer = Optimizer(classifier, Config(batch_size=batch, steps=10**6), Devices())
    before = peak()
    slots = [
        optimizer.put(photo, None, number)
        for number, photo in enumerate(noise(batch, classifier.preprocess.size))
    ]
    optimizer.advance()
    logits = np.asarray(optimizer.slots[1].logits)[slots[0]]
    seconds = []
    for _ in range(max(3, 32 // batch)):
        start = time.perf_counter()
        optimizer.advance()
        seconds.append((time.perf_counter() - start) / BURST / batch)
    text = optimizer.compiled_text()
    return {
        "devices": len(jax.devices()),
        "batch": batch,
        "seconds": min(seconds),
        "memory": peak() - before,
        "collectives": len(collectives(text)),
        "digest": hashlib.sha256(logits.tobytes()).hexdigest()[:12],
    }


def memory_of_run(classifier_name: str, devices: int, photos: int) -> float:
    """Most memory that explaining so many photos takes, in bytes, above the classifier's."""
    jax.config.update("jax_num_cpu_devices", devices)  # which says nothing of accelerators
    classifier = load_classifier(classifier_name)
    config = Config(steps=8, trials=1)
    images = noise(photos, classifier.preprocess.size)
    before = peak()
    for _ in Explainer(classifier, config).stream(images):
        pass
    return peak() - before


def plot(rows: list[dict[str, Any]], options: Options, path: Path) -> None:
    """Image-steps a second, against the batch size and against the number of devices."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
    for axis, key in zip(axes, ("batch", "devices"), strict=True):
        own = [row for row in rows if row["series"] == key]
        axis.plot([row[key] for row in own], [1 / row["seconds"] for row in own], "o-")
        axis.set_xscale("log", base=2)
        axis.set_xticks([row[key] for row in own], [str(row[key]) for row in own])
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_xlabel("batch size")
    axes[1].set_xlabel(f"simulated devices (batch {options.batch_size}, {cores()} cores)")
    axes[0].set_ylabel("optimisation steps × images a second")
    axes[0].set_ylim(bottom=0)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, check, print, plot."""
    options = tyro.cli(Options)
    settings = [("batch", cores(), size) for size in options.batch_sizes]
    settings += [("devices", count, options.batch_size) for count in options.devices]
    found: dict[tuple, list[dict[str, Any]]] = {setting: [] for setting in settings}
    for _ in range(options.rounds):
        for setting in settings:
            _, devices, size = setting
            found[setting].append(apart(steps, options.classifier, min(devices, size), size))
    rows = []
    print(f"{device_name()}; median (least … most) of {options.rounds} processes")
    for (series, _, _), results in found.items():
        seconds = [result["seconds"] for result in results]
        memory = statistics.median(result["memory"] for result in results)
        row = {**results[0], "series": series, "seconds": statistics.median(seconds), "memory": memory}
        row |= {"least": min(seconds), "most": max(seconds)}
        rows.append(row)
        print(
            f"batch {row['batch']:3d}  devices {row['devices']}"
            f"  {1e3 * row['seconds']:6.2f} ({1e3 * row['least']:.2f} … {1e3 * row['most']:.2f}) ms an"
            f" image and step  {row['memory'] / 2**20:6.0f} MiB  collectives {row['collectives']}"
            f"  digest {row['digest']}",
            flush=True,
        )
    memory_for = {
        count: apart(memory_of_run, options.classifier, cores(), count) for count in options.photos
    }
    for count, memory in memory_for.items():
        print(f"memory of explaining {count} photos: {memory / 2**20:.0f} MiB")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        report: dict[str, Any] = {"device": device_name(), "machine": platform.machine(), "rows": rows}
        report["memory of a run"] = {str(count): memory for count, memory in memory_for.items()}
        text = json.dumps(report, indent=2) + "\n"
        (options.output / "scaling.json").write_text(text, encoding="utf-8")
        plot(rows, options, options.output / "scaling.png")
    by_batch = {row["batch"]: row["seconds"] for row in rows if row["series"] == "batch"}
    if {4, 32} <= by_batch.keys():
        print(f"cost an image at batch 32 over batch 4: {by_batch[32] / by_batch[4]:.3f}")
    if any(row["collectives"] for row in rows):
        raise SystemExit("a program has collectives")


if __name__ == "__main__":
    main()
