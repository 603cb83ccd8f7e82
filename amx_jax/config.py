"""Every choice of a run, as one frozen value with defaults that work."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin

from amx_jax.errors import ConfigError, nearest

GRAY = (127, 127, 127)
SURE = 0.6  # least p(window) of an instance, as a share of p(x); why: amx_jax.instances


@dataclass(frozen=True)
class Weights:
    """The weight of each term of the objective; a term of weight 0 is not computed.

    Attributes:
        activation: activation matching over the stages.
        kl: KL(f(x) ‖ f(e)).
        cross_entropy: −log p_t(e).
        area: mean of the soft mask; needed where ``budget`` is false.
        binarization: mean of m (1 − m) of the soft mask.
        total_variation: perimeter over side of the soft mask.
        robustness: −log p_t on one background a step, a colour, noise or blur at random.
        necessity: −log(1 − p_t) of the complement.
    """

    activation: float = 0.2
    kl: float = 0.1
    cross_entropy: float = 1.0
    area: float = 0.0
    binarization: float = 0.0
    total_variation: float = 0.1
    robustness: float = 0.0
    necessity: float = 0.0


@dataclass(frozen=True)
class Config:
    """What to search for, how, and how to verify it.

    Attributes:
        generator: what makes the mask: a convolutional autoencoder, or a grid of free logits.
        free_gain: how many times faster than the kernels the free logit of each cell learns; 0 for an
            autoencoder without them.
        grid: side of the grid of mask logits, in cells.
        background: red, green and blue of the removed pixels, 0 to 255; the default, gray, is the zero
            of EfficientNet-Lite's input space, so that e = m⊙x, and close to that of most others.
        stages: the stages whose activations are matched; empty for the classifier's own choice.
        objective: the weight of each term of the objective.
        budget: keep the top share of the logits, a share that shrinks while the decision holds and
            grows when it breaks; else keep positive logits, their number a matter of the area term.
        shrink: factor of the budget after a step whose hard mask is sufficient.
        grow: factor of the budget after a step whose hard mask is not.
        dual: without the budget, the area term's weight is multiplied by 1 + dual after a step whose
            hard mask is sufficient and divided by it after another, so that it becomes the multiplier
            of *the least area that is sufficient*; 0 for a fixed weight.
        steps: number of optimiser steps, at most.
        patience: stop an image that has a sufficient mask after so many steps without progress; 0 for
            never.
        progress: what counts as progress: the share by which the area of the best mask must fall.
        learning_rate: the optimiser's rate at its peak; it falls to a tenth along a cosine.
        temperature: softness of the mask whose gradient is taken, in logits.
        hardening: what the classifier sees in a step: *straight-through* the hard mask, with the
            gradient of the soft one; *annealed* a soft mask whose temperature falls from
            ``temperature`` to a twentieth over the steps, and in one more forward pass the hard mask,
            which is judged.
        method: what ranks the pixels: the optimiser, or one of ``amx_jax.evaluate.peers.METHODS``.
        notion: when a mask holds: *plain* on the stated background, *robust* on all but a share delta
            of random backgrounds, *worst* on each of some random backgrounds.
        kinds: of the random backgrounds, as often each: ``amx_jax.masks.backgrounds.KINDS``.
        delta: the share of the backgrounds on which a robust mask may fail.
        certainty: of the bounds in the certificate.
        backgrounds: number of random backgrounds that the search of a robust or worst mask asks about.
        confidence: share of the photo's probability that the explanation must keep, up to 1.
        goal: whether the mask must keep the decision, its complement must lose it, or both.
        prune: whether to prune the mask; without, the smallest top share of the ranking is certified.
        cell: side of the squares that pruning removes, in pixels; 0 for 1/28 of the input's side, and
            1/14 where the notion is not plain.
        trials: number of unseen backgrounds of each kind in the certificate; 0 for 32, and 160 where
            the notion is not plain.
        controls: trials of each kind in the certificate's controls: wrong masks and images of two
            colours; 0 for no controls.
        seeds: how many times each photo is explained, each time with other randomness; from 2 on the
            explanation says how alike the masks are.
        threshold: of a sigmoid head, the probability from which a class is present.
        seed: what all randomness derives from.
        batch_size: images under optimisation at a time, rounded up to what the devices share evenly.
        candidates: masks tested in one forward pass while pruning and certifying, rounded up alike.
        chunk: images of a batch that one device computes together; 0 for one on a CPU and all
            elsewhere.
        dtype: of the classifier in the optimiser's steps; what is verified is always float32.
        remat: keep only the activations between the classifier's blocks, and compute the others again
            in the backward pass: for batches that an accelerator's memory does not hold otherwise.
    """

    generator: Literal["autoencoder", "grid"] = "autoencoder"
    free_gain: float = 60.0
    grid: int = 28
    background: tuple[int, int, int] = GRAY
    stages: tuple[str, ...] = ()
    objective: Weights = field(default_factory=Weights)
    budget: bool = True
    shrink: float = 0.98
    grow: float = 1.02
    dual: float = 0.0
    steps: int = 175
    patience: int = 0
    progress: float = 0.05
    learning_rate: float = 0.003
    temperature: float = 0.5
    hardening: Literal["straight-through", "annealed"] = "straight-through"
    method: str = "amx"
    notion: Literal["plain", "robust", "worst"] = "plain"
    kinds: tuple[str, ...] = ("colour", "noise", "blur")
    delta: float = 0.1
    certainty: float = 0.95
    backgrounds: int = 48
    confidence: float = 0.0
    goal: Literal["sufficient", "necessary", "complete"] = "sufficient"
    prune: bool = True
    cell: int = 0
    trials: int = 0
    controls: int = 20
    seeds: int = 1
    threshold: float = 0.5
    seed: int = 0
    batch_size: int = 8
    candidates: int = 16
    chunk: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: naming the field, what was found and what was expected.
        """
        for name, found, expected in _of_another_type(self):
            raise ConfigError(f"{name}: found {found!r}, expected {expected}")
        above_zero = ("learning_rate", "temperature", "grow")
        at_least_one = ("steps", "grid", "backgrounds", "seeds", "batch_size", "candidates")
        inside = ("threshold", "delta", "certainty")
        checks = [
            *((name, getattr(self, name) >= 1, "at least 1") for name in at_least_one),
            *((name, 0 < getattr(self, name) < math.inf, "above 0 and finite") for name in above_zero),
            *(
                (f"objective.{name}", 0 <= value < math.inf, "at least 0 and finite")
                for name, value in asdict(self.objective).items()
            ),
            ("objective", any(asdict(self.objective).values()), "at least one above 0"),
            ("generator", self.generator in GENERATORS, f"one of {', '.join(GENERATORS)}"),
            ("hardening", self.hardening in HARDENINGS, f"one of {', '.join(HARDENINGS)}"),
            ("dtype", self.dtype in DTYPES, f"one of {', '.join(DTYPES)}"),
            ("method", self.method in METHODS, f"one of {', '.join(METHODS)}"),
            ("notion", self.notion in NOTIONS, f"one of {', '.join(NOTIONS)}"),
            ("goal", self.goal in GOALS, f"one of {', '.join(GOALS)}"),
            (
                "kinds",
                bool(self.kinds) and set(self.kinds) <= set(KINDS),
                f"some of {', '.join(KINDS)}",
            ),
            ("kinds", len(self.kinds) == len(set(self.kinds)), "each kind once"),
            ("confidence", 0 <= self.confidence <= 1, "from 0 to 1"),
            ("free_gain", 0 <= self.free_gain < math.inf, "at least 0 and finite"),
            ("free_gain", self.free_gain > 0 or self.generator != "grid", "above 0 for the grid"),
            ("shrink", 0 < self.shrink <= 1, "above 0 and at most 1"),
            ("grow", self.grow >= 1, "at least 1"),
            ("dual", 0 <= self.dual < math.inf, "at least 0 and finite"),
            ("dual", not (self.dual and self.budget), "0 where there is a budget"),
            ("objective.area", self.objective.area > 0 or not self.dual, "above 0 where dual is"),
            ("grid", 4 <= self.grid <= 512, "from 4 to 512"),
            *(
                (name, getattr(self, name) >= 0, "at least 0")
                for name in ("cell", "trials", "controls", "patience", "chunk")
            ),
            *((name, 0 < getattr(self, name) < 1, "above 0 and below 1") for name in inside),
            ("progress", 0 <= self.progress < 1, "at least 0 and below 1"),
            ("seed", 0 <= self.seed < 2**32, "from 0 to 4294967295"),
            (
                "background",
                len(self.background) == 3 and all(0 <= c <= 255 for c in self.background),
                "three values from 0 to 255",
            ),
        ]
        for name, holds, expected in checks:
            if not holds:
                found = self
                for part in name.split("."):
                    found = getattr(found, part)
                raise ConfigError(f"{name}: found {found!r}, expected {expected}")


def _of_another_type(values: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """The fields of a dataclass that hold another type than they declare, and what they should hold."""
    for of in fields(values):
        name, value, kind = prefix + of.name, getattr(values, of.name), of.type
        if kind is Weights and isinstance(value, Weights):
            yield from _of_another_type(value, f"{name}.")
        elif get_origin(kind) is tuple:
            each = get_args(kind)[0]
            if not (isinstance(value, tuple) and all(_is_a(one, each) for one in value)):
                yield name, value, f"a tuple, each of it {IN_WORDS[each]}"
        elif not _is_a(value, str if get_origin(kind) is Literal else kind):
            yield name, value, IN_WORDS.get(kind, "text")


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of a type; NumPy's numbers are numbers, and truth values are none."""
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return isinstance(value, kind)


def preset(name: str) -> Config:
    """A named configuration.

    ``default`` is ``Config()``. ``paper`` is the published objective as a fixed weighted sum, without
    the budget: area, binarisation and total variation as priors, robustness and necessity as terms.
    Its authors publish no weights; these are ours.

    Raises:
        ConfigError: no preset of that name.

    Examples:
        >>> preset("paper").budget
        False

    Reference: Suhail, Anand and Sethi, arXiv 2509.23051.
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}{nearest(name, PRESETS)}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


IN_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    Weights: "Weights",
}
DTYPES = ("float32", "bfloat16")
HARDENINGS = ("straight-through", "annealed")
GENERATORS = ("autoencoder", "grid")
NOTIONS = ("plain", "robust", "worst")
GOALS = ("sufficient", "necessary", "complete")
# Names of what JAX computes, which `amx --help` need not wait for: amx_jax.evaluate.peers and
# amx_jax.masks.backgrounds.
METHODS = ("amx", "gradcam", "ig", "occlusion", "rise", "extremal", "random", "centre")
KINDS = ("colour", "noise", "blur", "smooth", "shuffle", "mean", "black", "photo", "photo-blur")
PRESETS = {
    "default": Config(),
    "paper": Config(
        budget=False,
        objective=Weights(
            area=2.0, binarization=0.5, total_variation=0.1, robustness=1.0, necessity=0.5
        ),
    ),
}
