"""What the benchmarks share: where they run, and what a compiled program holds."""

import os
import re

import jax

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def device_name() -> str:
    """What JAX computes on."""
    device = jax.devices()[0]
    cpu = f"{cores()} CPU cores"
    return cpu if device.platform == "cpu" else f"{device.device_kind}, {cpu}"


def collectives(text: str) -> int:
    """How many collective operations a compiled program holds.

    Examples:
        >>> collectives("%sum = f32[8]{0} all-reduce(%x), replica_groups={}")
        1
    """
    return sum(len(re.findall(rf" {name}(?:-start)?\(", text)) for name in COLLECTIVES)
