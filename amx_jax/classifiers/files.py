"""Read a weight file of any known kind into arrays by name; nothing in a file is ever run.

What the kind is, the content says, not the suffix. Which architecture the arrays are for is not known
here.
"""

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import deserialize

from amx_jax.classifiers import hub
from amx_jax.classifiers.torch_pickle import failures_named, read_state_dict, widen
from amx_jax.errors import WeightsError

# Where training scripts keep the state dict in a checkpoint.
WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema", "net", "params")
# What DataParallel, torch.compile and modules around a module put before every name.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
SAFETENSORS_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # NumPy has none: its bits, until they are widened
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "<u1",
    "BOOL": "?",
}
# Deflated zeros grow a thousandfold; deflated weights do not even double.
MOST_GROWTH = 100
EXPECTED = "expected a file of PyTorch (torch.save), safetensors or NumPy (.npz)"
# Files that are taken for weights, by where which bytes stand in them.
OTHER_KINDS = (
    (0, b"version https://git-lfs", "a pointer to a file in Git LFS (git lfs pull fetches it)"),
    (0, b"\x89HDF\r\n", "HDF5, as Keras writes it"),
    (4, b"TFL3", "TensorFlow Lite"),
    (0, b"GGUF", "GGUF"),
    (0, b"\x93NUMPY", "a single NumPy array (.npy)"),
    (0, b"\x1f\x8b", "gzip (unpack it)"),
    (257, b"ustar", "a tar archive"),
    (0, b"<", "a web page or XML"),
)


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a weight file, under the names that the model itself gave them.

    A state dict is taken out of the checkpoint around it, and a prefix that DataParallel,
    ``torch.compile`` or a module around the module gave to all names is taken off.

    Args:
        path: a file of ``torch.save`` (either format), safetensors, or NumPy's ``.npz``; or a folder
            with one of them, as :func:`amx_jax.classifiers.hub.describe` wants it.

    Returns:
        Arrays by name, in the file's element type (bfloat16: float32). What is not numeric in an
        ``.npz`` is left out.

    Raises:
        WeightsError: the file is missing, damaged, unsafe or of another kind, or holds no state dict or
            several.
    """
    path = Path(path)
    if path.is_dir():
        path = hub.describe(path).weights
    with failures_named(path, "PyTorch or NumPy"):
        kind = _kind(path)
    arrays = {"PyTorch": _read_torch, "safetensors": _read_safetensors, "NumPy": _read_npz}[kind](path)
    while arrays and (shared := [p for p in PREFIXES if all(name.startswith(p) for name in arrays)]):
        arrays = {name.removeprefix(shared[0]): array for name, array in arrays.items()}
    return arrays


def _kind(path: Path) -> str:
    """Which reader the file is for."""
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/data.pkl") for name in names):
            return "PyTorch"
        if any(name.endswith(".npy") for name in names):
            return "NumPy"
        raise WeightsError(f"found a zip archive with no data.pkl or .npy files in it, {EXPECTED}")
    # The length of a safetensors header has 64 bits and needs 27. It may begin as a pickle does.
    if start[4:9] == b"\0\0\0\0{":
        return "safetensors"
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        return "PyTorch"
    raise WeightsError(f"found {_described(start)}, {EXPECTED}")


def _described(start: bytes) -> str:
    """What a file that no reader is for begins with."""
    if not start:
        return "an empty file"
    for offset, magic, kind in OTHER_KINDS:
        if start.startswith(magic, offset):
            return kind
    if start.isascii() and start.decode().replace("\n", "").isprintable():
        return "text"
    return f"a file that begins with the bytes {start[:8].hex(' ')}"


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    found = read_state_dict(path)
    with failures_named(path, "PyTorch"):
        return _state_dict(found)


def _state_dict(found: dict[str, Any]) -> dict[str, np.ndarray]:
    """The one dictionary of arrays in a checkpoint, which may be the checkpoint itself."""

    def holds_arrays(value: object) -> bool:
        return isinstance(value, dict) and any(isinstance(item, np.ndarray) for item in value.values())

    fitting = [key for key in WRAPPERS if holds_arrays(found.get(key))]
    if len(fitting) > 1:
        raise WeightsError(
            f"found several state dicts, {_listed(fitting)}; expected one: save the one you want alone"
        )
    if not fitting and found and not holds_arrays(found):
        raise WeightsError(
            f"found a dictionary of {_listed(found)}, expected one of arrays, itself or in "
            f"{_listed(WRAPPERS)}; save model.state_dict() alone"
        )
    state = found[fitting[0]] if fitting else found
    strangers = [name for name, value in state.items() if not isinstance(value, np.ndarray)]
    if strangers:
        raise WeightsError(
            f"found {_listed(strangers)} beside the arrays, expected arrays alone; "
            "save model.state_dict() alone"
        )
    return state


def _listed(names: Iterable[str], most: int = 10) -> str:
    shown = [repr(name) for name in names]
    more = [f"{len(shown) - most} more"] if len(shown) > most else []
    return ", ".join(shown[:most] + more)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    arrays = {}
    with failures_named(path, "safetensors"):
        for name, tensor in deserialize(path.read_bytes()):
            element = tensor["dtype"]
            if element not in SAFETENSORS_TYPES:
                raise WeightsError(
                    f"found arrays of type {element}, expected one of {', '.join(SAFETENSORS_TYPES)}"
                )
            values = np.frombuffer(tensor["data"], SAFETENSORS_TYPES[element])
            arrays[name] = (widen(values) if element == "BF16" else values).reshape(tensor["shape"])
    return arrays


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with failures_named(path, "NumPy"):
        with zipfile.ZipFile(path) as archive:
            grown = sum(record.file_size for record in archive.infolist())
        if grown > MOST_GROWTH * path.stat().st_size:
            raise WeightsError(f"it unpacks to {grown} bytes, more than {MOST_GROWTH} times its size")
        with np.load(path, allow_pickle=False) as file:
            members = {name: file[name] for name in file.files}
    # Others are what people keep beside the weights, such as the text of a graph.
    return {
        name: array
        for name, array in members.items()
        if isinstance(array, np.ndarray) and array.dtype.kind in "biufc"
    }
