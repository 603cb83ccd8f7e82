"""From the arrays of a weight file to the parameters of a Flax module, checked on both sides.

A table of :class:`Rule` says which source arrays make each target parameter. Nothing is guessed:
a source nobody uses, a target nobody fills and a wrong shape are all errors, reported together.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from amx_jax.errors import WeightsError

Path = tuple[str | int, ...]
# PyTorch's count of training batches: no part of inference.
UNUSED_SOURCES = re.compile(r"(^|\.)num_batches_tracked$")


class Rule(NamedTuple):
    """One target parameter, the source arrays it is made of, and how."""

    target: Path
    sources: tuple[str, ...]
    transform: Callable[..., np.ndarray]


def fold_conv(
    target: Path, conv: str, norm: str, epsilon: float = 1e-5, *, biased: bool = False
) -> Iterator[Rule]:
    """Rules for a PyTorch convolution followed by batch norm: γ(Wx + b − μ)/√(σ² + ε) + β."""
    yield from _fold(target, conv, norm, epsilon, conv_kernel, biased)


def fold_depthwise(target: Path, conv: str, norm: str, epsilon: float = 1e-5) -> Iterator[Rule]:
    """The same for a depthwise convolution, PyTorch ``(C, 1, k, k)`` to ``(k, k, C)``."""
    yield from _fold(target, conv, norm, epsilon, depthwise_kernel, False)


def _fold(target: Path, conv: str, norm: str, epsilon: float, layout, biased: bool) -> Iterator[Rule]:
    def kernel(weight, gamma, variance):
        _same_length(weight[:, 0, 0, 0], gamma, variance)
        # float64: the fold must not add rounding of its own
        scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        return layout(weight * scale[:, None, None, None])

    def bias(gamma, beta, mean, variance, *bias):
        _same_length(gamma, beta, mean, variance, *bias)
        scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        return beta - (mean - sum(bias)) * scale

    gamma, beta = f"{norm}.weight", f"{norm}.bias"
    mean, variance = f"{norm}.running_mean", f"{norm}.running_var"
    own = (f"{conv}.bias",) if biased else ()
    yield Rule((*target, "kernel"), (f"{conv}.weight", gamma, variance), kernel)
    yield Rule((*target, "bias"), (gamma, beta, mean, variance, *own), bias)


def conv(target: Path, name: str) -> Iterator[Rule]:
    """Rules for a PyTorch convolution with bias."""
    yield Rule((*target, "kernel"), (f"{name}.weight",), conv_kernel)
    yield Rule((*target, "bias"), (f"{name}.bias",), unchanged)


def linear(target: Path, name: str) -> Iterator[Rule]:
    """Rules for a PyTorch linear layer."""
    yield Rule((*target, "kernel"), (f"{name}.weight",), linear_kernel)
    yield Rule((*target, "bias"), (f"{name}.bias",), unchanged)


def layer_norm(target: Path, name: str) -> Iterator[Rule]:
    """Rules for a PyTorch layer norm."""
    yield Rule((*target, "scale"), (f"{name}.weight",), unchanged)
    yield Rule((*target, "bias"), (f"{name}.bias",), unchanged)


def _same_length(*vectors: np.ndarray) -> None:
    """Refuse what NumPy would broadcast: one statistic is not the statistics of all channels."""
    if len({vector.shape for vector in vectors}) > 1 or vectors[0].ndim != 1:
        raise ValueError("shapes differ")


def conv_kernel(weight: np.ndarray) -> np.ndarray:
    """PyTorch ``(out, in, k, k)`` to ``(k, k, in, out)``."""
    return weight.transpose(2, 3, 1, 0)


def depthwise_kernel(weight: np.ndarray) -> np.ndarray:
    """PyTorch ``(C, 1, k, k)`` to ``(k, k, C)``."""
    return weight.squeeze(1).transpose(1, 2, 0)


def linear_kernel(weight: np.ndarray) -> np.ndarray:
    """PyTorch ``(out, in)`` to ``(in, out)``."""
    return weight.T


def unchanged(array: np.ndarray) -> np.ndarray:
    """As it is in the file."""
    return array


def fill(
    module: nnx.Module, arrays: Mapping[str, np.ndarray], rules: Iterable[Rule], origin: str
) -> nnx.State:
    """Parameters for ``module`` made from ``arrays`` by ``rules``.

    Args:
        module: gives the targets and their shapes; may be abstract (``nnx.eval_shape``).
        arrays: the weight file's arrays by name.
        rules: one for every parameter of the module.
        origin: the file, for error messages.

    Returns:
        The module's ``nnx.Param`` state, float32.

    Raises:
        WeightsError: naming every source that is missing or unused, every target that is unfilled,
            and every shape that differs.
    """
    state = nnx.state(module, nnx.Param)
    targets: dict[Any, Any] = dict(iter(nnx.to_flat_state(state)))
    problems: list[str] = []
    used: set[str] = set()
    filled: dict[Path, Array | None] = {}  # None: a rule is there, but not its value
    for rule in rules:
        missing = [name for name in rule.sources if name not in arrays]
        problems += [f"no array {name!r} in the file" for name in missing]
        used.update(rule.sources)
        if rule.target not in targets:
            problems.append(f"the model has no parameter {_dotted(rule.target)}")
            continue
        if rule.target in filled:
            problems.append(f"parameter {_dotted(rule.target)} has more than one rule")
        filled[rule.target] = None
        if missing:
            continue
        sources = [arrays[name] for name in rule.sources]
        expected = targets[rule.target].shape
        found = " and ".join(str(source.shape) for source in sources)
        try:
            with np.errstate(all="ignore"):  # what is not finite is reported below
                value = np.asarray(rule.transform(*sources), np.float32)
            if value.shape == expected:
                filled[rule.target] = jnp.asarray(value)
                continue
            found = str(value.shape)
        except (ValueError, IndexError):  # arrays of a rank or size the layout does not have
            pass
        problems.append(
            f"{' + '.join(rule.sources)}: found shape {found}, expected {expected} "
            f"for {_dotted(rule.target)}"
        )
    problems += [f"parameter {_dotted(path)} is not filled" for path in targets if path not in filled]
    problems += [
        f"array {name!r} in the file is not used"
        for name in arrays
        if name not in used and not UNUSED_SOURCES.search(name)
    ]
    problems += [
        f"parameter {_dotted(path)} has values that are not finite"
        for path, value in filled.items()
        if value is not None and not np.isfinite(value).all()
    ]
    if problems:
        unique = list(dict.fromkeys(problems))
        count = f"{len(unique)} problem" + ("s" if len(unique) > 1 else "")
        raise WeightsError(
            f"{origin}: the weights do not fit the model ({count}): " + "; ".join(unique)
        )
    return nnx.from_flat_state([(path, targets[path].replace(filled[path])) for path in targets])


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))
