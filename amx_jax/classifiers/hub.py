"""Weights from the Hugging Face hub: how to get a repository, and what timm states in one.

Which architectures there are is not known here.
"""

import json
import math
import re
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from amx_jax.errors import WeightsError, one_line

NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there


class Repository(NamedTuple):
    """What a folder with timm's ``config.json`` holds; None is what it does not state.

    Attributes:
        weights: the weight file.
        architecture: timm's name of the model.
        classes: how many logits there are.
        size: side of the square input, in pixels.
        crop: the part of the resized photo's short side that the input shows, in (0, 1].
        mean: of each channel, for pixel values in 0 … 1.
        std: likewise.
        labels: the names of the classes, in the order of the logits.
    """

    weights: Path
    architecture: str
    classes: int | None
    size: int | None
    crop: float | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    labels: tuple[str, ...] | None


def fetch(name: str) -> Path:
    """Download a repository's configuration and weights, or find them in the hub's cache.

    Args:
        name: ``hf:OWNER/NAME``, and where wanted ``@REVISION``: a branch, tag or commit.

    Returns:
        The folder of the files.

    Raises:
        WeightsError: another kind of name, ``huggingface_hub`` is not installed, or the download fails.
    """
    parts = NAME.fullmatch(name)
    if parts is None:
        raise WeightsError(f"found {name!r}, expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise WeightsError(
            f"{name}: huggingface_hub is not installed: pip install 'amx-jax[hub]'"
        ) from error
    owned, revision = parts.groups()
    try:
        return Path(
            snapshot_download(owned, revision=revision, allow_patterns=["config.json", *WEIGHTS])
        )
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"{name}: the hub has no such repository, or it is private or gated (hf auth login)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(f"{name}: the repository has no revision {revision or 'main'}") from error
    # Network, server and disk fail in many ways, which change with the versions of the package.
    except Exception as error:
        cause = one_line(" ".join(str(error).split()))
        raise WeightsError(f"{name}: cannot be downloaded ({type(error).__name__}: {cause})") from error


def describe(folder: Path) -> Repository:
    """What a folder with timm's ``config.json`` and a weight file beside it holds.

    Args:
        folder: a repository that was fetched, cloned or written by timm.

    Raises:
        WeightsError: a file is missing, the JSON is broken, or a field has no valid value.
    """
    file = folder / "config.json"
    shown = one_line(file)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(
            f"{shown}: cannot be read: {error.strerror or error}; expected timm's beside the weights"
        ) from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{shown}: found broken JSON ({one_line(str(error))})") from error

    def field(source: dict[str, Any], name: str, expected: str, valid: Callable[[Any], bool]) -> Any:
        value = source.get(name)
        if value is not None and not valid(value):
            raise WeightsError(f"{shown}: found {name} {reprlib.repr(value)}, expected {expected}")
        return value

    if not isinstance(config, dict):
        raise WeightsError(f"{shown}: found {reprlib.repr(config)}, expected an object")
    architecture = field(config, "architecture", "a name", _is_text)
    if architecture is None:
        raise WeightsError(f"{shown}: found no field architecture, expected it as timm writes it")
    # Before 2023 timm wrote the fields of pretrained_cfg among the others.
    nested = field(config, "pretrained_cfg", "an object", lambda value: isinstance(value, dict))
    trained = config if nested is None else nested
    whole = "a positive whole number"
    classes = field(trained, "num_classes", whole, _is_count)
    classes = field(config, "num_classes", whole, _is_count) or classes
    size = field(trained, "input_size", "[3, SIDE, SIDE]", _is_square)
    crop = field(
        trained, "crop_pct", "a number in (0, 1]", lambda value: _is_number(value) and 0 < value <= 1
    )
    mean = field(trained, "mean", "three numbers", _is_triple)
    std = field(
        trained, "std", "three positive numbers", lambda value: _is_triple(value) and min(value) > 0
    )
    name = "label_names" if "label_names" in config else "labels"  # as it was called before
    names = field(config, name, "a list of names, or an object of them by index from 0", _is_names)
    if isinstance(names, dict):
        names = [names[str(index)] for index in range(len(names))]
    texts = field(config, "label_descriptions", "an object of texts", _is_texts) or {}
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise WeightsError(f"{one_line(folder)}: found no {' or '.join(WEIGHTS)} beside config.json")
    return Repository(
        weights=weights,
        architecture=architecture,
        classes=classes,
        size=size and size[1],
        crop=crop,
        mean=mean and tuple(mean),
        std=std and tuple(std),
        labels=names and tuple(texts.get(name, name) for name in names),
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_names(value: Any) -> bool:
    if isinstance(value, dict):
        indices = {str(index) for index in range(len(value))}
        return bool(value) and set(value) == indices and _is_texts(value)
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_square(value: Any) -> bool:
    return isinstance(value, list) and value == [3, *value[-1:] * 2] and all(map(_is_count, value))


def _is_triple(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))
