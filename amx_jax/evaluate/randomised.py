"""The control of an explanation's method: the same classifier with what it has learned taken away.

Only an explanation that depends on the learned parameters changes with them. Knows nothing of methods,
masks or metrics: what comes out is a classifier like any other.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from amx_jax.classifiers.classifier import Classifier


def randomised(classifier: Classifier, key: Array, name_suffix: str = "randomised") -> Classifier:
    """The classifier with every parameter at random: the model-parameter randomisation check.

    Per floating leaf, independently:

    - two axes or more, kernels: w ~ N(μ, σ²), μ and σ the leaf's own mean and standard deviation over
      all its entries. Nothing learned is left but these two numbers.
    - one axis, as biases, scales and running statistics: the entries in random order. They would be a
      poor sample of a normal, and a variance must stay positive; the order is what says which channel
      each belongs to.

    Numbers (no axis), integers and PRNG keys stay. Initialising anew would not do for the classifiers
    here: their batch norm is folded into kernel and bias, and an initial scale that counts on
    normalisation lets activations vanish or explode. With each leaf's own moments they stay in range:
    EfficientNet-Lite0's logits within ± 35 for each of 12 keys. But they hardly depend on the photo (by
    at most 3.7 between the bundled ones): the top class is mostly the same for all, and for the bare
    background too, where a mask of it is empty. That is a true answer, and one to expect.

    Args:
        classifier: f.
        key: of the draws; the same key gives the same parameters.
        name_suffix: what the name ends in, after an underscore.

    Returns:
        A classifier of the same shapes and types, leaf by leaf; only ``params`` and ``name`` differ. A
        leaf whose entries are all equal, as biases of 0, comes back as it was.

    Examples:
        >>> from amx_jax import Preprocess
        >>> learned = Classifier(
        ...     apply=lambda params, image: image.mean(axis=(0, 1)) @ params["kernel"] + params["bias"],
        ...     params={"kernel": jnp.eye(3), "bias": jnp.arange(3.0)},
        ...     preprocess=Preprocess(size=8, resize=8, mean=0.0, scale=255.0),
        ...     name="mean_colour",
        ... )
        >>> other = randomised(learned, jax.random.key(0))
        >>> other.name, sorted(other.params["bias"].tolist())
        ('mean_colour_randomised', [0.0, 1.0, 2.0])

    Reference: Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018 (arXiv 1810.03292), whose
    layers are initialised anew instead.
    """
    # NumPy draws: JAX would compile several small programs for each shape among the leaves.
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    drawn = jax.tree.map(lambda leaf: _redrawn(leaf, rng), classifier.params)
    return replace(classifier, params=drawn, name=f"{classifier.name}_{name_suffix}")


def _redrawn(leaf: Any, rng: np.random.Generator) -> Any:
    if not jnp.ndim(leaf) or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    values = np.asarray(leaf)
    if values.ndim == 1:
        return jnp.asarray(rng.permutation(values))
    wide = values.astype(np.float32)  # the squares of float16 may overflow
    normal = rng.standard_normal(values.shape, np.float32)
    return jnp.asarray((wide.mean() + wide.std() * normal).astype(values.dtype))
