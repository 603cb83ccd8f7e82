"""What the benchmarks share: their photos, where they run, and what a compiled program holds."""

import re
from pathlib import Path

import jax
import numpy as np

from amx_jax.data.photos import find_photos
from amx_jax.lift import cores

COLLECTIVES = (
    "all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter|send|recv"
)


def first_photos(folder: Path, count: int) -> list[Path]:
    """The first of a folder by name; ends the program where one cannot be used or there are none."""
    photos, failures = find_photos([folder])
    if failures or not photos:
        raise SystemExit("\n".join(failure.reason for failure in failures) or f"{folder}: no photos")
    return photos[:count]


def noise(count: int, side: int) -> np.ndarray:
    """Random images ``(count, side, side, 3)``, the first the same whatever the count."""
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def device_name() -> str:
    """What JAX computes on."""
    device = jax.devices()[0]
    cpu = f"{cores()} CPU cores"
    return cpu if device.platform == "cpu" else f"{device.device_kind}, {cpu}"


def collectives(text: str) -> list[str]:
    """The names of the operations of a compiled program in which devices wait for each other.

    Examples:
        >>> collectives("%sum = f32[8]{0} all-reduce(%x), replica_groups={}")
        ['all-reduce']
    """
    return re.findall(rf" ({COLLECTIVES})(?:-start|-done)?\(", text)
