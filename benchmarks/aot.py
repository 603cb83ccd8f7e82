"""What the optimisation step costs on a TPU or an NVIDIA GPU, compiled here, without having one.

    python -m benchmarks.aot [--batch-sizes 16 64 256] [--dtypes float32 bfloat16]

With libtpu from PyPI (``pip install '.[tpu]'``) XLA compiles for TPU v5e on any machine and tells the
memory, the floating-point operations, the bytes moved and the collectives of the compiled program;
for CUDA it is lowered, not compiled. The roofline is the larger of FLOPs over peak and bytes over
bandwidth: what the step would take if nothing but that limited it.
"""

import json
import os
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from jax import export
from jax.experimental import topologies
from jax.sharding import NamedSharding

from amx_jax import Classifier, Config, load_classifier
from amx_jax.lift import SPLIT, WHOLE, Devices
from amx_jax.optimize.loop import pure_functions, shapes_of_one
from benchmarks.programs import collectives

V5E = {"float32": 197e12, "bfloat16": 197e12}  # its matrix unit takes float32 as bfloat16
H100 = {"float32": 495e12, "bfloat16": 989e12}  # TF32 and bfloat16, dense
V5E_BANDWIDTH, H100_BANDWIDTH = 819e9, 3.35e12  # bytes a second


@dataclass(frozen=True)
class Options:
    """Cost of the step on accelerators.

    Attributes:
        batch_sizes: images a chip.
        dtypes: of the classifier in the step.
        topologies: TPU v5e slices.
        classifier: one of ``amx classifiers``.
        remat: recompute activations in the backward pass.
        output: where aot.json goes.
    """

    batch_sizes: tuple[int, ...] = (16, 64, 256)
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    topologies: tuple[str, ...] = ("v5e:1x1", "v5e:2x2")
    classifier: str = "efficientnet_lite0"
    remat: bool = False
    output: Path | None = None


def tpu_devices(topology: str) -> Sequence[Any]:
    """The chips of a slice that need not exist."""
    rows, columns = (int(n) for n in topology.removeprefix("v5e:").split("x"))
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # or libtpu asks a cloud's metadata server what it runs on
    os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
    os.environ["TPU_ACCELERATOR_TYPE"] = "v5litepod-4"
    options: dict[str, Any] = {}
    if rows * columns == 1:
        options = {"chips_per_host_bounds": (1, 1, 1)}
    return topologies.get_topology_desc(topology, "tpu", **options).devices


def programme(classifier: Classifier, config: Config, devices: Devices, batch: int):
    """One step of one image, and the shapes of its arguments for a batch."""
    enter, advance = pure_functions(classifier, config, burst=1)

    def shaped(leaf: Any, spec: Any, *lead: int) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(devices.mesh, spec)
        return jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype, sharding=sharding)

    params = jax.tree.map(lambda leaf: shaped(leaf, WHOLE), classifier.params)
    own = jax.tree.map(lambda leaf: shaped(leaf, SPLIT, batch), shapes_of_one(classifier, enter))
    return advance, (params, *own)


def compile_for_tpu(
    classifier: Classifier, config: Config, topology: str, batch: int
) -> dict[str, Any]:
    """Figures of the step for ``batch`` images a chip."""
    devices = Devices(tpu_devices(topology))
    chips = len(devices.devices)
    advance, arguments = programme(classifier, config, devices, batch * chips)
    start = time.perf_counter()
    compiled = devices.lift(advance, donate=(2,)).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    hbm = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    flops, moved = cost["flops"] / batch, cost["bytes accessed"] / batch
    dtype = config.dtype
    return {
        "topology": topology,
        "dtype": dtype,
        "images a chip": batch,
        "compile seconds": seconds,
        "collectives": len(collectives(compiled.as_text())),
        "HBM bytes a chip": hbm,
        "FLOPs an image-step": flops,
        "bytes an image-step": moved,
        "v5e roofline seconds an image-step": max(flops / V5E[dtype], moved / V5E_BANDWIDTH),
        "H100 roofline seconds an image-step": max(flops / H100[dtype], moved / H100_BANDWIDTH),
    }


def lower_for_cuda(classifier: Classifier, config: Config, batch: int) -> dict[str, Any]:
    """That the step lowers for CUDA, and how large the program is."""
    cpu = Devices(jax.devices("cpu")[:1])
    advance, arguments = programme(classifier, config, cpu, batch)
    step = jax.jit(jax.vmap(advance, in_axes=(None, 0, 0)))
    text = export.export(step, platforms=["cuda"])(*arguments).mlir_module()
    return {
        "platform": "cuda",
        "dtype": config.dtype,
        "operations": len(re.findall(r"= \"?stablehlo", text)),
    }


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """One line over all programs: the slowest compilation, what the largest batch of one chip takes."""
    first = [row for row in rows if row["topology"] == rows[0]["topology"]]
    memory = ", ".join(f"{row['HBM bytes a chip'] / 1e9:.2f} ({row['images a chip']})" for row in first)
    last = first[-1]
    return (
        f"compiled in at most {max(row['compile seconds'] for row in rows):.0f} s; "
        f"{sum(row['collectives'] for row in rows)} collectives; GB of HBM (images a chip): {memory}; "
        f"{last['FLOPs an image-step'] / 1e9:.2f} GFLOP and {last['bytes an image-step'] / 1e6:.0f} MB "
        f"an image-step: {1e3 * last['v5e roofline seconds an image-step']:.2f} ms on v5e, "
        f"{1e3 * last['H100 roofline seconds an image-step']:.2f} ms on H100 ({last['dtype']})"
    )


def main() -> None:
    """Compile, print, sum up."""
    options = tyro.cli(Options)
    classifier = load_classifier(options.classifier)
    rows = []
    for dtype in options.dtypes:
        config = Config(dtype=dtype, remat=options.remat)
        print(json.dumps(lower_for_cuda(classifier, config, 8)), flush=True)
        for topology in options.topologies:
            sizes = options.batch_sizes if topology == options.topologies[0] else (64,)
            for batch in sizes:
                rows.append(compile_for_tpu(classifier, config, topology, batch))
                print(json.dumps(rows[-1]), flush=True)
    if options.output:
        options.output.write_text(json.dumps({"machine": platform.machine(), "rows": rows}, indent=2))
    print(summary(rows))


if __name__ == "__main__":
    main()
