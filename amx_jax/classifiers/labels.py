"""Class names: from a sequence, or from the files that people keep them in."""

import json
from collections.abc import Sequence
from pathlib import Path

from amx_jax.errors import LabelsError, one_line


def read_labels(labels: Sequence[str] | str | Path, classes: int) -> tuple[str, ...]:
    """A name for each class.

    Args:
        labels: the names, or the path of a file: UTF-8 text with a name a line, or JSON: a list of
            names, or an object from index (or name) to name (or index).
        classes: how many there have to be.

    Returns:
        The names in the order of the logits.

    Raises:
        LabelsError: an unreadable file, another number of names, an index missing or given twice.

    Examples:
        >>> read_labels(["cat", "dog"], 2)
        ('cat', 'dog')
    """
    origin = "labels"
    if isinstance(labels, str | Path):
        origin = one_line(labels)
        labels = _from_file(Path(labels), origin)
    names = tuple(str(name) for name in labels)
    if len(names) != classes:
        raise LabelsError(
            f"{origin}: found {len(names)} names, expected one for each of {classes} classes"
        )
    return names


def _from_file(path: Path, origin: str) -> Sequence[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabelsError(f"{origin}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise LabelsError(f"{origin}: found bytes that are no UTF-8, expected text") from error
    if not text.lstrip().startswith(("[", "{")):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        found = json.loads(text)
    except ValueError as error:
        raise LabelsError(f"{origin}: found broken JSON ({error}), expected names") from error
    if isinstance(found, list):
        return [_name(value, origin) for value in found]
    by_index = {}
    for key, value in found.items():
        index, name = (value, key) if isinstance(value, int) else (key, value)
        if not str(index).isdigit():
            raise LabelsError(f"{origin}: found the index {index!r}, expected a number from 0")
        if int(index) in by_index:
            raise LabelsError(f"{origin}: found the index {int(index)} twice, expected each once")
        by_index[int(index)] = _name(name, origin)
    missing = [index for index in range(len(by_index)) if index not in by_index]
    if missing:
        raise LabelsError(f"{origin}: found no name for class {missing[0]}, expected one for each")
    return [by_index[index] for index in range(len(by_index))]


def _name(value: object, origin: str) -> str:
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return value[-1]  # as Keras keeps them: ["n01440764", "tench"]
    if not isinstance(value, str):
        raise LabelsError(f"{origin}: found {value!r}, expected a name")
    return value
