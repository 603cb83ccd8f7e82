"""What other explanation tools say of the same pixels: rankings and masks for one judge to compare.

    python -m benchmarks.outside --data FOLDER [--photos 16] [--tools rex torchray …] [--output DIR]

takes the first photos of the folder by name, crops them as amx_jax does, and asks each tool why
EfficientNet-Lite0, here in PyTorch, gives its top class. ``DIR/<photo>/<tool>.npz`` holds

| name | what |
| --- | --- |
| ``ranking`` | float32 (H, W): the more, the earlier the tool would keep this pixel |
| ``mask`` | bool (H, W): the pixels the tool says are enough; absent where it names none |
| ``pixels`` | uint8 (H, W, 3): the classifier's input |
| ``target``, ``seed`` | int |
| ``seconds`` | of the tool alone, without imports |
| ``passes`` | images that went forward through the classifier; backward passes are not counted |

A file is there as a whole or not at all, and a second run makes only what is missing. Nothing is judged
here. A removed pixel is gray 127 for every tool, which is 0 in the classifier's input space.

The tools are no dependency of amx_jax. captum installs as it is. rex-xai asks for numpy 1.26.4, with
which today's JAX does not run, but works with numpy 2; torchray asks for torchvision, which the part
used here does not import. So both are installed without what they ask for:

    pip install '.[bench]' captum anytree onnxruntime pandas sqlalchemy tabulate toml tqdm
    pip install --no-deps rex-xai==0.4.1 torchray==1.0.0.2

On one core captum takes seconds a photo, ReX two minutes (2,100 to 2,900 passes), and torchray about
eleven: in each of its 800 steps the masks cost three times what the classifier does.

Left out: grad-cam imports torchvision, and its Grad-CAM is captum's; Xplique needs TensorFlow.
"""

import contextlib
import importlib
import io
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image

from amx_jax import load_classifier
from amx_jax.data.photos import read_photo, unique_stems
from amx_jax.data.results import check_output, write_whole
from benchmarks.programs import first_photos
from benchmarks.recheck import load_model, logits

CLASSIFIER = "efficientnet_lite0"
MEAN, SCALE = 127.0, 128.0  # of the classifier's input; the mean is the gray of removed pixels
BATCH = 8
AREAS = (0.025, 0.05, 0.1, 0.2)  # of extremal perturbations, as in their paper
ITERATIONS = 800  # of extremal perturbations, torchray's default
PATCH, STRIDE = 32, 8  # of occlusion, in pixels

Found = tuple[np.ndarray, np.ndarray | None]
Search = Callable[[torch.nn.Module, np.ndarray, int, int], Found]


@dataclass(frozen=True)
class Outcome:
    """What a tool found for one photo.

    Attributes:
        ranking: float32 ``(H, W)``, the more the earlier a pixel is kept.
        mask: bool ``(H, W)``, the pixels said to suffice, or None where the tool names none.
        seconds: of the tool alone.
        passes: images that went forward through the model.
    """

    ranking: np.ndarray
    mask: np.ndarray | None
    seconds: float
    passes: int


@dataclass(frozen=True)
class Tool:
    """An outside tool; calling it explains one photo.

    Attributes:
        package: its name on PyPI.
        module: what of it is imported.
        search: from model, pixels, target and seed to ranking and mask.
    """

    package: str
    module: str
    search: Search

    def missing(self) -> str | None:
        """Why the tool cannot be imported here, or None where it can."""
        try:
            with _quiet():
                importlib.import_module(self.module)
        except ImportError as error:
            return f"{self.package}: {error}"
        return None

    def __call__(self, model: torch.nn.Module, pixels: np.ndarray, target: int, seed: int) -> Outcome:
        """Explain why the model gives ``pixels``, uint8 ``(H, W, 3)``, the class ``target``."""
        reason = self.missing()  # the import stays outside the clock
        if reason is not None:
            raise SystemExit(reason)
        with _quiet(), counted(model) as count:
            start = time.perf_counter()
            ranking, mask = self.search(model, pixels, target, seed)
            seconds = time.perf_counter() - start
        assert ranking.shape == pixels.shape[:2] and (mask is None or mask.shape == ranking.shape)
        return Outcome(ranking.astype(np.float32), mask, seconds, count())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tools' progress bars and deprecations."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def counted(model: torch.nn.Module) -> Iterator[Callable[[], int]]:
    """Gives a function that says how many images have gone forward through the model since.

    Examples:
        >>> model = torch.nn.Identity()
        >>> with counted(model) as count:
        ...     _ = model(torch.zeros(3, 2)), model(torch.zeros(1, 2))
        >>> count()
        4
    """
    passes = 0

    def add(_, arguments):
        nonlocal passes
        passes += len(arguments[0])

    hook = model.register_forward_pre_hook(add)
    try:
        yield lambda: passes
    finally:
        hook.remove()


def as_input(pixels: np.ndarray) -> torch.Tensor:
    """The classifier's input ``(1, 3, H, W)`` of uint8 ``(H, W, 3)``; gray 127 becomes 0."""
    return torch.from_numpy(((pixels - MEAN) / SCALE).transpose(2, 0, 1)[None]).float()


def occlusion(model: torch.nn.Module, pixels: np.ndarray, target: int, seed: int) -> Found:
    """How much a gray square takes from the target's logit, summed over the squares on a pixel."""
    from captum.attr import Occlusion

    attribution = Occlusion(model).attribute(
        as_input(pixels),
        sliding_window_shapes=(3, PATCH, PATCH),
        strides=(3, STRIDE, STRIDE),
        baselines=0,
        target=target,
        perturbations_per_eval=BATCH,
    )
    return attribution[0, 0].numpy(), None  # a square covers all channels: they are equal


def integrated_gradients(model: torch.nn.Module, pixels: np.ndarray, target: int, seed: int) -> Found:
    """What each pixel adds to the target's logit on the straight way from gray to the photo."""
    from captum.attr import IntegratedGradients

    attribution = IntegratedGradients(model).attribute(
        as_input(pixels), baselines=0, target=target, n_steps=50, internal_batch_size=BATCH
    )
    return attribution[0].sum(dim=0).detach().numpy(), None


def grad_cam(model: torch.nn.Module, pixels: np.ndarray, target: int, seed: int) -> Found:
    """Grad-CAM at what the model pools, enlarged to the photo."""
    from captum.attr import LayerAttribution, LayerGradCam

    attribution = LayerGradCam(model, model._avg_pooling).attribute(
        as_input(pixels).requires_grad_(),
        target=target,
        attribute_to_layer_input=True,
        relu_attributions=True,
    )
    enlarged = LayerAttribution.interpolate(attribution, pixels.shape[:2], interpolate_mode="bilinear")
    return enlarged[0, 0].detach().numpy(), None


def _responsibility(model: torch.nn.Module, pixels: np.ndarray, target: int, seed: int) -> tuple | None:
    """What ReX explains from, with the package's own settings; None where it finds nothing."""
    from rex_xai.explanation.rex import calculate_responsibility
    from rex_xai.input.config import CausalArgs
    from rex_xai.input.input_data import Data
    from rex_xai.responsibility.prediction import Prediction, default_prediction_function

    image = as_input(pixels)
    with torch.inference_mode():
        probabilities = model(image).softmax(dim=1)[0]
    if int(probabilities.argmax()) != target:  # its last loop would not end
        raise ValueError("ReX explains the top class only")
    settings = CausalArgs()
    settings.seed, settings.batch_size, settings.progress_bar = seed, BATCH, False
    data = Data(Image.fromarray(pixels), list(image.shape), torch.device("cpu"), mode="RGB")
    data.data = image
    data.set_mask_value(0)
    data.target = Prediction(target, float(probabilities[target]))
    predict = default_prediction_function(model)
    maps, statistics = calculate_responsibility(data, settings, predict)
    if maps.get(target) is None:  # no combination of its boxes kept the class
        return None
    return maps, predict, data, settings, statistics


def _of_pixels(mask: torch.Tensor, pixels: np.ndarray) -> np.ndarray:
    """A mask of all channels, which ReX keeps alike."""
    return mask.numpy().reshape(as_input(pixels).shape)[0, 0].astype(bool)


def rex(model: torch.nn.Module, pixels: np.ndarray, target: int, seed: int) -> Found:
    """ReX's responsibility map, and its sufficient mask."""
    from rex_xai.explanation.explanation import Explanation

    found = _responsibility(model, pixels, target, seed)
    if found is None:
        return np.zeros(pixels.shape[:2], np.float32), None
    ranking = found[0].get(target).copy()
    explanation = Explanation(*found)
    explanation.extract()
    return ranking, _of_pixels(explanation.sufficiency_mask, pixels)


def rex_multi(
    model: torch.nn.Module, pixels: np.ndarray, target: int, seed: int
) -> Sequence[np.ndarray]:
    """The most of ReX's explanations of one photo, from its ten spotlights, of which no two overlap."""
    from rex_xai.explanation.multi_explanation import MultiExplanation

    with _quiet():
        found = _responsibility(model, pixels, target, seed)
        if found is None:
            return []
        explanation = MultiExplanation(*found)
        np.random.seed(seed)  # noqa: NPY002 - rex-xai draws from this one
        explanation.extract()
        apart = explanation.separate_by(0.0)
    masks = [_of_pixels(explanation.explanations[i], pixels) for i in apart[0]] if apart else []
    return [mask for mask in masks if mask.any()]


def extremal_perturbation(model: torch.nn.Module, pixels: np.ndarray, target: int, seed: int) -> Found:
    """The masks of all ``AREAS`` summed; as mask the smallest that, made binary, suffices on gray."""
    from torchray.attribution import extremal_perturbation as torchray

    image = as_input(pixels)
    soft, _ = torchray.extremal_perturbation(
        model,
        image,
        target,
        areas=list(AREAS),
        perturbation=torchray.FADE_PERTURBATION,
        max_iter=ITERATIONS,
        reward_func=torchray.contrastive_reward,
    )
    hard = soft > 0.5
    with torch.inference_mode():
        keeps = model(image * hard).argmax(dim=1) == target
    mask = next((m[0].numpy() for m, keep in zip(hard, keeps, strict=True) if keep), None)
    return soft.sum(dim=(0, 1)).numpy(), mask


TOOLS = {
    "captum-occlusion": Tool("captum", "captum.attr", occlusion),
    "captum-integrated-gradients": Tool("captum", "captum.attr", integrated_gradients),
    "captum-gradcam": Tool("captum", "captum.attr", grad_cam),
    "rex": Tool("rex-xai", "rex_xai.explanation.rex", rex),
    "torchray": Tool("torchray", "torchray.attribution.extremal_perturbation", extremal_perturbation),
}


def available() -> list[str]:
    """The tools that can be imported here."""
    return [name for name, tool in TOOLS.items() if tool.missing() is None]


def write(path: Path, outcome: Outcome, pixels: np.ndarray, target: int, seed: int) -> None:
    """One ``.npz``, by a rename, so that none is ever half-written."""
    arrays: dict[str, Any] = {
        "ranking": outcome.ranking,
        "pixels": pixels,
        "target": np.int64(target),
        "seed": np.int64(seed),
        "seconds": np.float64(outcome.seconds),
        "passes": np.int64(outcome.passes),
    }
    if outcome.mask is not None:
        arrays["mask"] = outcome.mask
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.getvalue())


def is_done(path: Path, pixels: np.ndarray, target: int, seed: int) -> bool:
    """Whether a file answers this very question already."""
    if not path.exists():
        return False
    with np.load(path) as file:
        same = int(file["target"]) == target and int(file["seed"]) == seed
        return same and np.array_equal(file["pixels"], pixels)


@dataclass(frozen=True)
class Options:
    """Rankings and masks of outside tools over a folder of photos.

    Attributes:
        data: folder of photos.
        photos: how many of them, the first by name.
        tools: which tools; all that are installed by default.
        output: where the .npz files go.
        seed: of the tools that draw at random.
    """

    data: Path
    photos: int = 16
    tools: tuple[str, ...] = ()
    output: Path = Path("outside")
    seed: int = 0


def run(options: Options) -> None:
    """Make what is missing in the output folder.

    Args:
        options: which photos and tools.

    Raises:
        SystemExit: a tool is unknown or not installed, or none is.
    """
    unknown = [name for name in options.tools if name not in TOOLS]
    if unknown:
        raise SystemExit(f"{', '.join(unknown)}: unknown tools, expected some of {', '.join(TOOLS)}")
    names = options.tools or available()
    reasons = [reason for name in names or TOOLS if (reason := TOOLS[name].missing()) is not None]
    if reasons:
        raise SystemExit("\n".join(dict.fromkeys(reasons)))
    output = check_output(options.output)
    photos = first_photos(options.data, options.photos)
    preprocess = load_classifier(CLASSIFIER).preprocess
    # Only the input needs gradients, and its depthwise convolutions are faster in channels_last.
    model = load_model(CLASSIFIER).requires_grad_(False)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for photo, stem in zip(photos, unique_stems(photos), strict=True):
        pixels = preprocess.crop(read_photo(photo))
        target = int(logits(model, pixels[None].astype(np.float32))[0].argmax())
        for name in names:
            path = output / stem / f"{name}.npz"
            if is_done(path, pixels, target, options.seed):
                continue
            outcome = TOOLS[name](model, pixels, target, options.seed)
            write(path, outcome, pixels, target, options.seed)
            area = "no mask" if outcome.mask is None else f"{outcome.mask.mean():.1%} kept"
            cost = f"{outcome.seconds:.1f} s, {outcome.passes} passes"
            print(f"{stem}, {name}: {area}, {cost}", flush=True)


def main() -> None:
    """Parse and run."""
    run(tyro.cli(Options))


if __name__ == "__main__":
    main()
