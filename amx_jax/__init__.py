"""Which few pixels made the classifier decide: minimal, verified masks by activation matching."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amx_jax.classifiers.adapters import from_linen, from_nnx, two_classes
    from amx_jax.classifiers.classifier import Classifier, Preprocess
    from amx_jax.classifiers.registry import load_classifier
    from amx_jax.config import Config, Weights, preset
    from amx_jax.explainer import Explainer
    from amx_jax.explanation import Explanation, Unexplained
    from amx_jax.instances import explain_instances

__all__ = [
    "Classifier",
    "Config",
    "Explainer",
    "Explanation",
    "Preprocess",
    "Unexplained",
    "Weights",
    "explain_instances",
    "from_linen",
    "from_nnx",
    "load_classifier",
    "preset",
    "two_classes",
]
# Imported when first asked for: `amx --help` needs neither JAX nor Flax.
_MODULES = {
    "Classifier": "classifiers.classifier",
    "Config": "config",
    "Explainer": "explainer",
    "Explanation": "explanation",
    "Preprocess": "classifiers.classifier",
    "Unexplained": "explanation",
    "Weights": "config",
    "explain_instances": "instances",
    "from_linen": "classifiers.adapters",
    "from_nnx": "classifiers.adapters",
    "load_classifier": "classifiers.registry",
    "preset": "config",
    "two_classes": "classifiers.adapters",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
