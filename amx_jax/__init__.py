"""Which few pixels made the classifier decide: minimal, verified masks by activation matching."""

from amx_jax.classifiers.classifier import Classifier, Preprocess
from amx_jax.classifiers.registry import load_classifier
from amx_jax.config import Config, Weights, preset
from amx_jax.explainer import Explainer, Explanation, Unexplained

__all__ = [
    "Classifier",
    "Config",
    "Explainer",
    "Explanation",
    "Preprocess",
    "Unexplained",
    "Weights",
    "load_classifier",
    "preset",
]
