"""The optimisation step of ``amx_jax.optimize.step`` in PyTorch, in three forms."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor

from amx_jax.classifiers.zoo import CLASSIFIERS
from amx_jax.config import Config
from amx_jax.errors import ConfigError
from amx_jax.objective.decision import MARGIN
from amx_jax.optimize.step import START
from benchmarks.pytorch_reference.classifier import Classifier
from benchmarks.pytorch_reference.generator import Params, autoencoder, to_patches
from benchmarks.pytorch_reference.objective import (
    Images,
    budget_threshold,
    objective,
    straight_through_mask,
)

Form = Literal["loop", "batched", "compiled"]
FORMS: tuple[Form, ...] = get_args(Form)


class CompilerError(RuntimeError):
    """``torch.compile`` does not work here: most often there is no C++ compiler."""


class Outcome(NamedTuple):
    """What one evaluation finds: objective ``(n,)``, logits of classes and of masks, areas ``(n,)``."""

    losses: Tensor
    scores: Tensor
    logits: Tensor
    areas: Tensor


@dataclass
class Part:
    """The state of the images that are optimised in one call; the fields are those of ``State``."""

    params: Params
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    budget: Tensor
    area: Tensor
    logits: Tensor
    failed: Tensor
    number: int = 0


@dataclass
class State:
    """What changes from step to step, in place.

    Attributes:
        parts: one for each image in form ``loop``, else one for all.
    """

    parts: list[Part]

    @property
    def params(self) -> Params:
        """Of the generators, each tensor's first axis the image."""
        names = self.parts[0].params
        return {name: torch.cat([part.params[name].detach() for part in self.parts]) for name in names}

    @property
    def budget(self) -> Tensor:
        """Share of the grid that is kept, ``(n,)``."""
        return torch.cat([part.budget for part in self.parts])

    @property
    def area(self) -> Tensor:
        """Kept share of the pixels of the best mask so far, ``(n,)``; 1 while there is none."""
        return torch.cat([part.area for part in self.parts])

    @property
    def logits(self) -> Tensor:
        """``(n, grid, grid)``, positive where the best mask keeps."""
        return torch.cat([part.logits for part in self.parts])

    @property
    def failed(self) -> Tensor:
        """Step at which objective or gradient was not finite, or −1, ``(n,)``."""
        return torch.cat([part.failed for part in self.parts])


class Reference:
    """The optimisation of one batch of images.

    Args:
        config: with the autoencoder, and without the terms robustness and necessity.
        model: as ``benchmarks.recheck.load_model`` loads it.
        images: normalised, ``(n, H, H, 3)``.
        targets: classes, ``(n,)``.
        form: ``loop`` takes one image at a time, ``batched`` all at once, ``compiled`` is the same
            under ``torch.compile``.

    Raises:
        ConfigError: the configuration asks for what is not here.
        CompilerError: ``torch.compile`` does not work on this machine.
    """

    def __init__(
        self,
        config: Config,
        model: EfficientNet,
        images: np.ndarray,
        targets: np.ndarray,
        form: Form = "batched",
    ):
        check(config, form)
        self.config = config
        self.stages = config.stages or CLASSIFIERS["efficientnet_lite0"].stages
        self.side = images.shape[1]
        self.classifier = Classifier(model)
        background = (torch.tensor(config.background) - 127.0) / 128.0
        self.background = background[:, None, None]
        size = 1 if form == "loop" else len(images)
        self.batches = [
            self._refer(torch.tensor(images[i : i + size]), torch.tensor(targets[i : i + size]))
            for i in range(0, len(images), size)
        ]
        self.evaluate = self._evaluate
        if form == "compiled":
            check_compiler()
            self.evaluate = torch.compile(self._evaluate, dynamic=False, fullgraph=True)

    def _refer(self, images: Tensor, targets: Tensor) -> Images:
        x = images.movedim(3, 1)  # channels_last already
        with torch.no_grad():
            scores, found = self.classifier(x)
        matched = [found[stage] for stage in self.stages] if self.config.objective.activation else []
        scales = [activation.square().sum((1, 2, 3)) for activation in matched]
        return Images(
            contrast=x - self.background,
            patches=to_patches(x, self.config.grid),
            target=targets.long(),
            log_p=F.log_softmax(scores, dim=1),
            activations=tuple(matched),
            scales=tuple(torch.where(scale > 0, scale, 1.0) for scale in scales),
        )

    def _evaluate(self, params: Params, budget: Tensor, images: Images) -> Outcome:
        config = self.config
        logits = autoencoder(params, images.patches, config.free_gain)
        if config.budget:
            logits = logits - budget_threshold(logits.detach(), budget)[:, None, None]
        mask = straight_through_mask(logits, self.side, config.temperature)
        soft = torch.sigmoid(logits / config.temperature)
        losses, scores = objective(
            config.objective, self.stages, self.classifier, self.background, images, mask, soft
        )
        return Outcome(losses, scores.detach(), logits.detach(), mask.detach().mean((1, 2)))

    def losses(self, params: Params, budget: float = 1.0) -> tuple[Tensor, Params]:
        """The objective of each image at a budget, ``(n,)``, and its gradient in the parameters."""
        losses, gradients = [], []
        for batch, own in zip(self.batches, self._split(params), strict=True):
            outcome = self.evaluate(own, torch.full((len(batch.target),), budget), batch)
            gradients.append(torch.autograd.grad(outcome.losses.sum(), list(own.values())))
            losses.append(outcome.losses.detach())
        joined = map(torch.cat, zip(*gradients, strict=True))
        return torch.cat(losses), dict(zip(params, joined, strict=True))

    def losses_of_masks(self, masks: np.ndarray, soft: np.ndarray) -> Tensor:
        """The objective of each image for given masks.

        Args:
            masks: what the classifier sees, ``(n, H, H)``.
            soft: what the priors see, ``(n, h, w)``.

        Returns:
            ``(n,)``.
        """
        found, start = [], 0
        for batch in self.batches:
            own = slice(start, start := start + len(batch.target))
            with torch.no_grad():
                losses, _ = objective(
                    self.config.objective,
                    self.stages,
                    self.classifier,
                    self.background,
                    batch,
                    torch.tensor(masks[own], dtype=torch.float32),
                    torch.tensor(soft[own]),
                )
            found.append(losses)
        return torch.cat(found)

    def _split(self, params: Params) -> list[Params]:
        """A copy of the parameters for each batch."""
        split, start = [], 0
        for batch in self.batches:
            own = slice(start, start := start + len(batch.target))
            split.append({name: p[own].clone().requires_grad_() for name, p in params.items()})
        return split

    def init(self, params: Params) -> State:
        """The state before the first step.

        Args:
            params: of the generators, as ``from_jax`` converts them.
        """
        return State([self._init(own) for own in self._split(params)])

    def _init(self, params: Params) -> Part:
        steps, n = self.config.steps, len(params["free"])
        optimizer = torch.optim.Adam(params.values(), lr=self.config.learning_rate, fused=True)

        def decay(number: int) -> float:
            return 0.1 + 0.9 * (1 + math.cos(math.pi * min(number / steps, 1))) / 2

        return Part(
            params=params,
            optimizer=optimizer,
            schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, decay),
            budget=torch.full((n,), START),
            area=torch.ones(n),
            logits=torch.ones_like(params["free"].detach()),
            failed=torch.full((n,), -1),
        )

    def step(self, state: State) -> State:
        """One step of every image; the state is changed in place and returned."""
        for part, batch in zip(state.parts, self.batches, strict=True):
            self._step(part, batch)
        return state

    def _step(self, part: Part, images: Images) -> None:
        config = self.config
        outcome = self.evaluate(part.params, part.budget, images)
        part.optimizer.zero_grad()
        outcome.losses.sum().backward()
        gradients = [p.grad for p in part.params.values() if p.grad is not None]
        finite = torch.isfinite(
            torch.stack([outcome.losses.detach(), *(g.flatten(1).abs().amax(1) for g in gradients)])
        ).all(0)
        part.failed = torch.where((part.failed < 0) & ~finite, part.number, part.failed)
        well = part.failed < 0
        if not well.all():  # what is not finite enters no state; such an image's mask is final
            for gradient in gradients:
                gradient[~well] = 0
        part.optimizer.step()
        part.schedule.step()
        part.number += 1

        others = outcome.scores.scatter(1, images.target[:, None], -math.inf).amax(1)
        margin = outcome.scores.gather(1, images.target[:, None])[:, 0] - others
        sufficient = margin > MARGIN
        better = sufficient & (outcome.areas < part.area) & well
        factor = torch.where(sufficient, config.shrink, config.grow)
        part.budget = (part.budget * factor).clamp(1 / config.grid**2, 1)
        part.area = torch.where(better, outcome.areas, part.area)
        part.logits = torch.where(better[:, None, None], outcome.logits, part.logits)


def check(config: Config, form: str) -> None:
    """Refuse what is not here.

    Raises:
        ConfigError: naming it.
    """
    if form not in FORMS:
        raise ConfigError(f"form: found {form!r}, expected one of {', '.join(FORMS)}")
    if config.generator != "autoencoder":
        raise ConfigError(f"generator: the PyTorch reference has no {config.generator!r}")
    if config.dtype != "float32":
        raise ConfigError(f"dtype: the PyTorch reference has no {config.dtype}")
    for name in ("hardening", "dual"):
        if getattr(config, name) != getattr(Config(), name):
            raise ConfigError(f"{name}: the PyTorch reference has no {getattr(config, name)!r}")
    for name in ("robustness", "necessity"):
        if getattr(config.objective, name):
            raise ConfigError(f"objective.{name}: the PyTorch reference does not have this term")


def check_compiler() -> None:
    """Compile something small.

    Raises:
        CompilerError: it did not work.
    """
    try:
        torch.compile(lambda x: torch.sin(x) + 1, dynamic=False)(torch.zeros(8))
    except RuntimeError as error:  # Dynamo's and Inductor's are all of them
        raise CompilerError(
            f"torch.compile does not work here: {str(error).splitlines()[0]}"
        ) from error
