"""Your own Flax model as a :class:`Classifier`, its activations found without rewriting it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx
from jax import Array

from amx_jax.classifiers.classifier import Classifier, Params, Preprocess
from amx_jax.errors import ClassifierError
from amx_jax.objective.decision import Head

MATCHED = 3  # stages, where none are asked for
# (params, one image) -> logits and each submodule's output, in the order of the calls
Watched = Callable[[Params, Array], tuple[Array, dict[str, Array]]]


def from_linen(
    module: nn.Module,
    variables: Mapping[str, Any],
    preprocess: Preprocess,
    labels: Sequence[str] = (),
    stages: Sequence[str] | None = None,
    *,
    head: Head = "softmax",
    name: str | None = None,
    batched: bool = True,
    **call: Any,
) -> Classifier:
    """A Linen module as a classifier.

    Args:
        module: its call takes images and returns logits.
        variables: all of its collections, ``params`` and ``batch_stats`` say.
        preprocess: from photo to input.
        labels: a name for each logit.
        stages: submodules whose outputs are matched, by path: ``Conv_0`` or ``encoder/block1``. By
            default the last three that return one image ``(H, W, C)`` and are the module's own.
        head: as for :class:`Classifier`.
        name: by default the module's class.
        batched: whether the module takes ``(N, H, W, C)``, or else ``(H, W, C)``.
        **call: what the module's call takes besides, ``train=False`` say.

    Returns:
        The classifier; its activations are the outputs of all submodules.

    Raises:
        ClassifierError: as :class:`Classifier`; a submodule that does not exist.

    Examples:
        >>> import jax
        >>> class Net(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x, train=True):
        ...         x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
        ...         x = nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3))(x))
        ...         return nn.Dense(5)(x.mean(axis=(1, 2)))
        >>> variables = Net().init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> preprocess = Preprocess(size=32, resize=32, mean=127.5, scale=127.5)
        >>> classifier = from_linen(Net(), variables, preprocess, train=False)
        >>> classifier.stages
        ('Conv_0', 'Conv_1', 'BatchNorm_0')
    """

    def watched(params: Params, image: Array) -> tuple[Array, dict[str, Array]]:
        logits, state = module.apply(
            params, image, capture_intermediates=True, mutable=["intermediates"], **call
        )
        outputs: dict[str, Array] = {}
        _collect(state["intermediates"], (), outputs)
        return logits, outputs

    return _classifier(
        watched,
        dict(variables),
        preprocess,
        labels,
        stages,
        head,
        name or type(module).__name__,
        batched,
        separator="/",
    )


def _collect(tree: Mapping[str, Any], path: tuple[str, ...], outputs: dict[str, Array]) -> None:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            _collect(value, (*path, key), outputs)
        elif key == "__call__" and path and isinstance(value[-1], Array):
            outputs["/".join(path)] = value[-1]


def from_nnx(
    module: nnx.Module,
    preprocess: Preprocess,
    labels: Sequence[str] = (),
    stages: Sequence[str] | None = None,
    *,
    head: Head = "softmax",
    name: str | None = None,
    batched: bool = True,
    **call: Any,
) -> Classifier:
    """An NNX module as a classifier, in evaluation mode; the module itself is left as it is.

    Args:
        module: its call takes images and returns logits.
        preprocess: from photo to input.
        labels: a name for each logit.
        stages: submodules whose outputs are matched, by path: ``conv1`` or ``blocks.0.conv``. By
            default the last three that return one image ``(H, W, C)`` and are the module's own.
        head: as for :class:`Classifier`.
        name: by default the module's class.
        batched: whether the module takes ``(N, H, W, C)``, or else ``(H, W, C)``.
        **call: what the module's call takes besides.

    Returns:
        The classifier; its activations are the outputs of all submodules.

    Raises:
        ClassifierError: as :class:`Classifier`; a submodule that does not exist.

    Examples:
        >>> class Net(nnx.Module):
        ...     def __init__(self, rngs):
        ...         self.conv1 = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
        ...         self.norm = nnx.BatchNorm(8, rngs=rngs)
        ...         self.dense = nnx.Linear(8, 5, rngs=rngs)
        ...     def __call__(self, x):
        ...         x = nnx.relu(self.norm(self.conv1(x)))
        ...         return self.dense(x.mean(axis=(1, 2)))
        >>> preprocess = Preprocess(size=32, resize=32, mean=127.5, scale=127.5)
        >>> from_nnx(Net(nnx.Rngs(0)), preprocess).stages
        ('conv1', 'norm')
    """
    module = nnx.clone(module)
    module.eval()
    graph, params = nnx.split(module)

    def watched(params: Params, image: Array) -> tuple[Array, dict[str, Array]]:
        model = nnx.merge(graph, params)
        outputs: dict[str, Array] = {}
        for path, part in nnx.iter_modules(model):
            if path:
                _watch(part, ".".join(map(str, path)), outputs)
        return model(image, **call), outputs

    return _classifier(
        watched,
        params,
        preprocess,
        labels,
        stages,
        head,
        name or type(module).__name__,
        batched,
        separator=".",
    )


def _watch(module: nnx.Module, path: str, outputs: dict[str, Array]) -> None:
    """Let a module note what it returns: its class becomes a subclass that does."""
    original = type(module)
    if not callable(module):
        return

    def __call__(self, *arguments, **named):
        value = original.__call__(self, *arguments, **named)
        if isinstance(value, Array):
            outputs.pop(path, None)
            outputs[path] = value
        return value

    object.__setattr__(
        module, "__class__", type(original.__name__, (original,), {"__call__": __call__})
    )


def _classifier(
    watched: Watched,
    params: Params,
    preprocess: Preprocess,
    labels: Sequence[str],
    stages: Sequence[str] | None,
    head: Head,
    name: str,
    batched: bool,
    separator: str,
) -> Classifier:
    order: list[str] = []  # of the calls: what leaves a traced function is sorted by name

    def apply(params: Params, image: Array) -> tuple[Array, dict[str, Array]]:
        logits, outputs = watched(params, image[None] if batched else image)
        if batched:
            logits = logits[0]
            outputs = {path: value[0] for path, value in outputs.items() if value.shape[:1] == (1,)}
        order[:] = outputs
        return logits, outputs

    every = Classifier(
        apply=apply,
        params=params,
        preprocess=preprocess,
        labels=labels,
        stages=(),
        head=head,
        name=name,
    )
    if stages is None:
        own = [path for path in order if separator not in path and every.activations[path].ndim == 3]
        stages = own[-MATCHED:]
    unknown = [stage for stage in stages if stage not in order]
    if unknown:
        raise ClassifierError(
            f"{name}: found no submodule {', '.join(unknown)} that returns an array, expected stages "
            f"among {', '.join(order) or 'none'}"
        )
    return replace(every, stages=tuple(stages))


def two_classes(apply: Callable[[Params, Array], Any]) -> Callable[[Params, Array], Any]:
    """A model with one logit z, whose sigmoid is the probability of the second class, as two classes.

    Args:
        apply: ``(params, image) -> z`` or ``(z, {stage: activation})``, z of one element.

    Returns:
        The same with the logits ``(0, z)``: their softmax is the sigmoid.

    Examples:
        >>> two_classes(lambda params, image: image.sum(keepdims=True)[0, 0])(None, jnp.ones((2, 1, 1)))
        Array([0., 2.], dtype=float32)
    """

    def both(params: Params, image: Array) -> Any:
        found = apply(params, image)
        logit, *activations = found if isinstance(found, tuple) else (found,)
        logits = jnp.append(jnp.zeros((1,), logit.dtype), logit.reshape(1))
        return (logits, *activations) if activations else logits

    return both
