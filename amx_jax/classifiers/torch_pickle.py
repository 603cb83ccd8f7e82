"""Read a PyTorch state dict in the legacy (before 1.6) pickle format, safely and without PyTorch.

A pickle is a program. This reader admits only the few globals a dictionary of tensors needs and
refuses any other by name, before anything of it is called.
"""

import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from amx_jax.errors import WeightsError, one_line

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
ELEMENT_TYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}


class _Storage:
    """A flat buffer named in the pickle; its bytes follow later in the file."""

    def __init__(self, dtype: np.dtype, length: int):
        self.dtype, self.length = dtype, length
        self.values: np.ndarray | None = None


class _Tensor(NamedTuple):
    """A strided view of a storage, resolved once the storages have been read.

    A named tuple because a pickle may set attributes of what it has built, methods included.
    """

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def array(self) -> np.ndarray:
        values = self.storage.values
        geometry = (self.offset, *self.size, *self.stride)
        if values is None or not all(isinstance(n, int) and n >= 0 for n in geometry):
            raise ValueError("a tensor without a valid storage, size or stride")
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        if 0 not in self.size and last >= values.size:
            raise ValueError("a tensor reaches beyond its storage")
        if math.prod(self.size) > values.size:  # stride 0: a small file could fill the memory
            raise ValueError("a tensor has more elements than its storage")
        view = np.lib.stride_tricks.as_strided(
            values[self.offset :],
            self.size,
            [s * values.itemsize for s in self.stride],
            writeable=False,
        )
        return view.copy()


class _RestrictedUnpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, storages: dict[str, _Storage]):
        super().__init__(file, encoding="utf-8")
        self.storages = storages

    def find_class(self, module: str, name: str):
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # A new function each time: what the pickle may do to it must not outlive the file.
            def rebuild_tensor(storage, offset, size, stride, *_rest):
                if not isinstance(storage, _Storage):
                    raise ValueError("a tensor whose storage is not a storage")
                return _Tensor(storage, offset, size, stride)

            return rebuild_tensor
        asked = one_line(f"{module}.{name}")
        if module == "torch" and name.endswith("Storage"):
            if name in ELEMENT_TYPES:
                return np.dtype(ELEMENT_TYPES[name])
            raise WeightsError(
                f"found tensors of type {asked}, expected one of {', '.join(ELEMENT_TYPES)}"
            )
        raise WeightsError(
            f"refused: the pickle asks for {asked}, which a dictionary of tensors does not "
            "need and which could run code"
        )

    def persistent_load(self, pid):
        kind, dtype, key, _location, length, view = pid
        if kind != "storage" or view is not None or not isinstance(dtype, np.dtype):
            raise ValueError(f"an unknown persistent object {kind!r}")
        return self.storages.setdefault(key, _Storage(dtype, length))


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a PyTorch state dict saved in the legacy pickle format.

    Args:
        path: the ``.pth`` file.

    Returns:
        Arrays by name, in the file's order and element type.

    Raises:
        WeightsError: the file is missing, truncated, of another format, or its pickle asks for
            anything but tensors (the refused global is named).
    """
    path = Path(path)
    shown = one_line(str(path))
    try:
        with path.open("rb") as file:
            state = _read(file, path.stat().st_size)
    except OSError as error:
        raise WeightsError(f"{shown}: cannot be read: {error.strerror or error}") from error
    except WeightsError as error:
        raise WeightsError(f"{shown}: {error}") from error
    # Unpickling a damaged file can raise nearly anything; each means the same to the caller.
    except Exception as error:
        raise WeightsError(
            f"{shown}: not a readable PyTorch weight file (legacy pickle format): it is truncated, "
            f"damaged or of another kind ({type(error).__name__}: {one_line(str(error))})"
        ) from error
    return state


def _read(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    storages: dict[str, _Storage] = {}

    def load():
        return _RestrictedUnpickler(file, storages).load()

    if file.read(4) == b"PK\x03\x04":
        raise WeightsError(
            "found a zip archive, PyTorch's newer format; expected the legacy one, which "
            "torch.save(..., _use_new_zipfile_serialization=False) writes"
        )
    file.seek(0)
    if load() != MAGIC or load() != PROTOCOL:
        raise ValueError("the magic number or protocol differs")
    load()  # byte order and integer sizes of the machine that wrote it
    tensors, keys = load(), load()
    if not isinstance(tensors, dict):
        raise ValueError(f"expected a dictionary of tensors, found {type(tensors).__name__}")
    for key in keys:
        storage = storages[key]
        length = int.from_bytes(file.read(8), "little")
        count = length * storage.dtype.itemsize
        if length != storage.length or file.tell() + count > size:
            raise ValueError(f"storage {key!r} is cut short")
        storage.values = np.frombuffer(file.read(count), storage.dtype)
    strangers = [name for name, value in tensors.items() if not isinstance(value, _Tensor)]
    if strangers:
        raise ValueError(f"{strangers[0]!r} is not a tensor")
    return {str(name): tensor.array() for name, tensor in tensors.items()}
