"""From a function of one image to a function of many, on all devices.

Everything below the Explainer is written for one image. Here, and only here, it becomes a program
over a batch: each device takes its share of the images (``shard_map``: no device ever waits for
another, the compiled program has no collectives), and works on them a chunk at a time.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "image"
SPLIT, WHOLE = PartitionSpec(AXIS), PartitionSpec()


class Devices:
    """Devices that share batches of images.

    Args:
        devices: all of one platform; by default all of JAX's default platform.
        chunk: images that a device computes together; 0 for one on a CPU, where one image's
            activations fill the caches and more make each step slower, and all elsewhere.

    Examples:
        >>> devices = Devices()
        >>> double = devices.lift(lambda scale, x: scale * x, shared=1)
        >>> double(2, np.arange(float(devices.slots(1)))).shape == (devices.slots(1),)
        True
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None, chunk: int = 0):
        self.devices = list(devices or jax.devices())
        self.mesh = Mesh(np.asarray(self.devices), (AXIS,))
        self._chunk = chunk or (1 if self.devices[0].platform == "cpu" else None)

    def slots(self, batch_size: int) -> int:
        """The least batch of at least ``batch_size`` that fills every device with whole chunks."""
        least = len(self.devices) * (self._chunk or 1)
        return -(-batch_size // least) * least

    def in_turn(self, slots: int) -> list[int]:
        """The order in which the slots of a batch are best filled: neighbours share a device, so every
        n-th comes first, and a batch that is not full keeps the devices equally busy.

        Examples:
            >>> Devices(2 * jax.devices()[:1]).in_turn(6)
            [0, 3, 1, 4, 2, 5]
        """
        share = slots // len(self.devices)
        return [d * share + i for i in range(share) for d in range(len(self.devices))]

    def owner(self, index: Array, slots: int) -> tuple[Array, Array]:
        """Inside a lifted program: whether this device holds slot ``index``, and where in its share."""
        share = slots // len(self.devices)
        local = index - jax.lax.axis_index(AXIS) * share
        return (local >= 0) & (local < share), local.clip(0, share - 1)

    def lift(self, function: Callable[..., Any], shared: int = 1, donate: tuple[int, ...] = ()) -> Any:
        """``function`` of one image as a compiled function of a batch.

        Args:
            function: its first ``shared`` arguments are the same for all images; the others and the
                result are pytrees of one image's arrays.
            shared: how many.
            donate: positions of the arguments whose memory the result may take.

        Returns:
            The same with an axis in front of every array of the other arguments and of the result,
            of a length that :meth:`slots` returns.
        """

        def many(*arguments: Any) -> Any:
            common, own = arguments[:shared], arguments[shared:]
            if self._chunk is None:
                return jax.vmap(lambda *one: function(*common, *one))(*own)
            chunk = self._chunk if self._chunk > 1 else None
            return jax.lax.map(lambda one: function(*common, *one), own, batch_size=chunk)

        return self.spread(many, shared, donate)

    def spread(self, function: Callable[..., Any], shared: int, donate: tuple[int, ...] = ()) -> Any:
        """``function`` of a device's share of the batch, compiled for all of them."""

        def whole(*arguments: Any) -> Any:
            specs = tuple(WHOLE if i < shared else SPLIT for i in range(len(arguments)))
            return jax.shard_map(
                function, mesh=self.mesh, in_specs=specs, out_specs=SPLIT, check_vma=False
            )(*arguments)

        split = NamedSharding(self.mesh, SPLIT)  # else an empty array comes back whole, and recompiles
        return jax.jit(whole, donate_argnums=donate, out_shardings=split)

    def replicate(self, tree: Any) -> Any:
        """A copy of the arrays on every device."""
        return jax.device_put(tree, NamedSharding(self.mesh, WHOLE))

    def split(self, tree: Any) -> Any:
        """The arrays, each device with its share of their first axis."""
        return jax.device_put(tree, NamedSharding(self.mesh, SPLIT))


def in_chunks(function: Callable[..., Any], values: Any, chunk: int) -> Any:
    """``function`` of each of some values: one after another on a CPU, ``chunk`` at a time elsewhere.

    For the many passes of one image's search: what fills a CPU leaves an accelerator idle. Elsewhere
    than on a CPU the memory it takes grows with ``chunk``, nowhere with the number of values.

    Args:
        function: of one value; any pytree of arrays to any other.
        values: pytree of arrays with a common first axis.
        chunk: at least 1.

    Returns:
        The results, stacked likewise.

    Examples:
        >>> import jax.numpy as jnp
        >>> in_chunks(jnp.sum, jnp.ones((3, 2)), chunk=2).tolist()
        [2.0, 2.0, 2.0]
    """
    return jax.lax.platform_dependent(
        values,
        cpu=partial(jax.lax.map, function),
        default=partial(jax.lax.map, function, batch_size=chunk),
    )


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_cores(at_most: int) -> None:
    """Let JAX see this machine's CPU as one device a core, so that each core has an image of its own.

    An image's operations are too small to be split among cores well: a step of EfficientNet-Lite0 takes
    two cores 20 ms an image as one device, and 14 as two (benchmarks/scaling.py).

    Call it before anything of JAX runs; where JAX runs already, or the number of its CPU devices has
    been set, nothing changes.

    Args:
        at_most: devices; more than there are images at a time would idle.
    """
    set_already = jax.config.jax_num_cpu_devices != -1  # type: ignore[attr-defined]
    if set_already or "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with suppress(RuntimeError):  # JAX runs already
        jax.config.update("jax_num_cpu_devices", min(cores(), at_most))


def keep_compiled(folder: Path) -> None:
    """Keep compiled programs in a folder and take them from there; nothing where one is set already.

    A folder that cannot be written costs a compilation and no more.
    """
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
