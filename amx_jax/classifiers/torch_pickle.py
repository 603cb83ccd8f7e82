"""Read the dictionary that ``torch.save`` wrote, safely and without PyTorch.

It comes in two formats: a zip archive (PyTorch 1.6 and later) or a row of pickles (before). In both,
a pickle says which tensors there are, and a pickle is a program. This reader admits only the few
globals a dictionary of tensors needs and refuses any other by name, before anything of it is called.
"""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from amx_jax.errors import WeightsError, one_line

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
ELEMENT_TYPES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "u2",  # NumPy has none: its bits, until they are widened
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
# Tied weights lie in a file once and become an array each, but a small file must not fill the memory.
MOST_REPEATS = 16


class _ElementType(NamedTuple):
    """What stands for a storage class: as all that a pickle gets to hold, nothing it can change."""

    name: str


class _Storage(NamedTuple):
    """A flat buffer named in the pickle; its bytes lie elsewhere in the file."""

    key: str
    element: str
    length: int

    @property
    def nbytes(self) -> int:
        return self.length * np.dtype(ELEMENT_TYPES[self.element]).itemsize

    def decode(self, data: bytes, order: str = "<") -> np.ndarray:
        values = np.frombuffer(data, order + ELEMENT_TYPES[self.element])
        return widen(values) if self.element == "BFloat16Storage" else values


class _Tensor(NamedTuple):
    """A strided view of a storage, resolved once the storages have been read."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def array(self, storages: dict[str, np.ndarray]) -> np.ndarray:
        geometry = (self.offset, *self.size, *self.stride)
        if not all(isinstance(n, int) and n >= 0 for n in geometry):
            raise ValueError("a tensor without a valid offset, size or stride")
        if self.storage.key not in storages:
            raise ValueError(f"storage {self.storage.key!r} is missing")
        values = storages[self.storage.key]
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
        return view.astype(values.dtype.newbyteorder("="))  # a copy, always


def _plain(key: object) -> bool:
    return isinstance(key, str | int)


def _with_plain_keys(opcode: bytes, keys: slice) -> Callable:
    """How to run an opcode that takes keys from the stack, where they are text or numbers.

    A tuple in a tuple in a tuple … is no key then: its hash, deep enough, ends the process.
    """
    load = pickle._Unpickler.dispatch[opcode[0]]

    def checked(unpickler):
        if not all(map(_plain, unpickler.stack[keys])):
            raise ValueError("a dictionary with a name that is no text")
        load(unpickler)

    return checked


# The unpickler in Python, not the one in C: that keeps what a pickle numbers in a list as long as the
# highest number, so one damaged byte can ask for 32 GiB.
class _RestrictedUnpickler(pickle._Unpickler):
    dispatch = {
        opcode: load
        for opcode, load in pickle._Unpickler.dispatch.items()
        if bytes([opcode]) not in (pickle.EMPTY_SET, pickle.FROZENSET, pickle.ADDITEMS)  # hash as well
    } | {
        pickle.SETITEM[0]: _with_plain_keys(pickle.SETITEM, slice(-2, -1)),
        pickle.SETITEMS[0]: _with_plain_keys(pickle.SETITEMS, slice(0, None, 2)),
        pickle.DICT[0]: _with_plain_keys(pickle.DICT, slice(0, None, 2)),
    }

    def __init__(self, file: BinaryIO, storages: dict[str, _Storage]):
        super().__init__(file, encoding="utf-8")
        self.storages = storages

    def find_class(self, module: str, name: str):
        # New functions each time: what the pickle may do to them must not outlive the file.
        def ordered(items=()):
            pairs = [(key, value) for key, value in items]
            if not all(_plain(key) for key, _ in pairs):
                raise ValueError("a dictionary with a name that is no text")
            return OrderedDict(pairs)

        def rebuild_tensor(storage, offset, size, stride, _grad=False, _hooks=None, metadata=None):
            if not isinstance(storage, _Storage):
                raise ValueError("a tensor whose storage is not a storage")
            if metadata:
                raise ValueError("a tensor that is stored negated or conjugated")
            return _Tensor(storage, offset, size, stride)

        def rebuild_parameter(tensor, *_rest):
            if not isinstance(tensor, _Tensor):
                raise ValueError("a parameter that is not a tensor")
            return tensor

        def encode(text="", encoding="latin1"):
            if not isinstance(text, str) or encoding != "latin1":
                raise ValueError("bytes that are not spelt as text")
            return text.encode("latin1")

        admitted = {
            "collections.OrderedDict": ordered,
            "torch._utils._rebuild_tensor": rebuild_tensor,
            "torch._utils._rebuild_tensor_v2": rebuild_tensor,
            "torch._utils._rebuild_parameter": rebuild_parameter,
            "_codecs.encode": encode,  # how pickles before protocol 3 spell bytes
            "__builtin__.bytes": encode,  # and no bytes
        }
        asked = f"{module}.{name}"
        if asked in admitted:
            return admitted[asked]
        asked = one_line(asked)
        if module == "torch" and name.endswith("Storage"):
            if name in ELEMENT_TYPES:
                return _ElementType(name)
            raise WeightsError(
                f"found tensors of type {asked}, expected one of {', '.join(ELEMENT_TYPES)}"
            )
        raise WeightsError(
            f"refused: the pickle asks for {asked}, which a dictionary of tensors does not "
            "need and which could run code; save model.state_dict() alone"
        )

    def persistent_load(self, pid):
        kind, element, key, _location, length, *view = pid
        known = isinstance(element, _ElementType) and isinstance(key, str) and isinstance(length, int)
        if kind != "storage" or not known or any(part is not None for part in view):
            raise ValueError("an unknown persistent object")
        storage = _Storage(key, element.name, length)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {key!r} is described in two ways")
        return storage


def widen(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers of which bfloat16 is the upper half.

    Args:
        bits: ``(n,)``, uint16.

    Returns:
        ``(n,)``, float32, exact.

    Examples:
        >>> widen(np.array([0x3F80, 0xC000], np.uint16)).tolist()
        [1.0, -2.0]
    """
    return (bits.astype(np.uint32) << 16).view(np.float32)


def read_state_dict(path: str | Path) -> dict[str, Any]:
    """The dictionary that ``torch.save`` wrote, in either format.

    Args:
        path: the file, usually ``.pth``, ``.pt`` or ``.bin``.

    Returns:
        An array for each tensor, in the file's order and element type (bfloat16: float32), by name. A
        checkpoint that holds more comes as it is nested: dictionaries, lists and tuples, with arrays,
        numbers, text, bytes and None in them.

    Raises:
        WeightsError: the file is missing, truncated, of another format, or its pickle asks for
            anything but tensors and plain values (the refused global is named).
    """
    path = Path(path)
    with failures_named(path, "PyTorch"), path.open("rb") as file:
        return _read(file, path.stat().st_size)


@contextmanager
def failures_named(path: Path, kind: str) -> Iterator[None]:
    """Whatever fails in the reading of ``path`` as a weight file of some kind is a WeightsError."""
    shown = one_line(path)
    try:
        yield
    except OSError as error:
        raise WeightsError(f"{shown}: cannot be read: {error.strerror or error}") from error
    except WeightsError as error:
        raise WeightsError(f"{shown}: {error}") from error
    # Reading a damaged file can raise nearly anything; each means the same to the caller.
    except Exception as error:
        raise WeightsError(
            f"{shown}: not a readable {kind} weight file: it is truncated, damaged or of another kind "
            f"({type(error).__name__}: {one_line(str(error))}); copy or download it again"
        ) from error


def _read(file: BinaryIO, size: int) -> dict[str, Any]:
    zipped = file.read(4) == b"PK\x03\x04"
    file.seek(0)
    found, storages = _read_zip(file, size) if zipped else _read_legacy(file, size)
    if not isinstance(found, dict):
        raise ValueError(f"expected a dictionary of tensors, found {type(found).__name__}")
    return _resolve(found, storages, MOST_REPEATS * size)


def _read_zip(file: BinaryIO, size: int) -> tuple[Any, dict[str, np.ndarray]]:
    with zipfile.ZipFile(file) as archive:
        records: dict[str, int] = {}
        for record in archive.infolist():
            if record.filename in records:
                raise WeightsError(f"found two records {record.filename!r}, expected one")
            if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
                raise WeightsError(
                    f"the record {record.filename!r} is compressed, expected it as torch.save stores it"
                )
            records[record.filename] = record.file_size
        if sum(records.values()) > size:
            raise ValueError("its records are larger than the file")
        roots = [name.removesuffix("data.pkl") for name in records if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(f"found {len(roots)} records data.pkl, expected one")
        root = roots[0]
        written = archive.read(f"{root}byteorder") if f"{root}byteorder" in records else b"little"
        order = {b"little": "<", b"big": ">"}[written]
        needed: dict[str, _Storage] = {}
        found = _RestrictedUnpickler(io.BytesIO(archive.read(f"{root}data.pkl")), needed).load()
        storages = {}
        for key, storage in needed.items():
            name = f"{root}data/{key}"
            if name not in records:
                raise ValueError(f"the record {name!r} is missing")
            if records[name] != storage.nbytes:
                raise ValueError(f"{name!r} has {records[name]} bytes, not {storage.nbytes}")
            storages[key] = storage.decode(archive.read(name), order)
    return found, storages


def _read_legacy(file: BinaryIO, size: int) -> tuple[Any, dict[str, np.ndarray]]:
    needed: dict[str, _Storage] = {}

    def load():
        return _RestrictedUnpickler(file, needed).load()

    if load() != MAGIC or load() != PROTOCOL:
        raise ValueError("the magic number or protocol differs")
    load()  # what the machine that wrote it was like; the bytes are little-endian on any
    found, keys = load(), load()
    storages = {}
    if not all(isinstance(key, str) for key in keys):
        raise ValueError("a storage with a name that is no text")
    for key in keys:
        storage = needed[key]
        length = int.from_bytes(file.read(8), "little")
        if length != storage.length or file.tell() + storage.nbytes > size:
            raise ValueError(f"storage {key!r} is cut short")
        storages[key] = storage.decode(file.read(storage.nbytes))
    return found, storages


def _resolve(found: dict, storages: dict[str, np.ndarray], most: int) -> dict[str, Any]:
    """``found`` with arrays, of ``most`` bytes together, in place of its tensors."""
    containers: dict[int, Any] = {}  # each once: a pickle can nest the same two lists 50 deep
    total = 0

    def resolve(value, name):
        nonlocal total
        if isinstance(value, _Tensor):
            array = value.array(storages)
            total += array.nbytes
            if total > most:
                raise ValueError(f"its tensors repeat its bytes more than {MOST_REPEATS} times")
            return array
        if value is None or isinstance(value, int | float | str | bytes):
            return value
        if id(value) not in containers:
            if type(value) in (list, tuple):
                containers[id(value)] = type(value)(resolve(item, name) for item in value)
            elif isinstance(value, dict):
                containers[id(value)] = entries(value)
            else:
                raise ValueError(f"{name!r} is neither a tensor nor a plain value")
        return containers[id(value)]

    def entries(value):
        resolved = {}
        for name, item in dict.items(value):  # the pickle may have given it an attribute ``items``
            if str(name) in resolved:
                raise ValueError(f"a dictionary with the name {str(name)!r} twice")
            resolved[str(name)] = resolve(item, str(name))
        return resolved

    return entries(found)
