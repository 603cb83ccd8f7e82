"""Peers: each method is what its authors' or another framework's program computes."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam, Occlusion
from flax import linen, nnx
from scipy import ndimage
from torch import nn
from torch.nn import functional

from amx_jax import Classifier, Preprocess, config, from_linen, from_nnx, load_classifier
from amx_jax.data.photos import bundled_photos, read_photo
from amx_jax.errors import ClassifierError, ConfigError
from amx_jax.evaluate.cutting import cut, last_image_stage
from amx_jax.evaluate.extremal import (
    Ascent,
    area_loss,
    ascend,
    extremal_masks,
    extremal_perturbation,
    perturb,
    pyramid,
    smooth_mask,
)
from amx_jax.evaluate.gradients import grad_cam, integrated_gradients
from amx_jax.evaluate.peers import METHODS, centre_square, random_cells
from amx_jax.evaluate.perturbation import occlusion, rise, rise_masks
from amx_jax.objective.decision import Decision
from benchmarks.recheck import load_model

SIDE = 32
BASELINE = np.array([0.3, -0.2, 0.1], np.float32)
TARGET, RIVAL = 2, 1
DECISIONS = [Decision(TARGET), Decision(TARGET, rival=RIVAL)]
PREPROCESS = Preprocess(size=SIDE, resize=SIDE, mean=127.0, scale=128.0)


class Twin(nn.Module):
    """The tiny classifier in PyTorch, a batch with channels first."""

    def __init__(self, params):
        super().__init__()

        def stage(n):
            layer = nn.Conv2d(*params[f"kernel{n}"].shape[2:], 3, stride=2)
            layer.weight.data = tensor(params[f"kernel{n}"]).permute(3, 2, 0, 1)
            layer.bias.data = tensor(params[f"bias{n}"])
            return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), layer, nn.ReLU())

        self.stage1, self.stage2 = stage(1), stage(2)
        self.head = nn.Linear(*params["head"].shape)
        self.head.weight.data = tensor(params["head"]).T
        self.head.bias.data = tensor(params["bias"])

    def forward(self, x):
        return self.head(self.stage2(self.stage1(x)).permute(0, 2, 3, 1).flatten(1))


def tensor(array):
    return torch.tensor(np.asarray(array))


def channels_first(image):
    return tensor(image).permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def twin(tiny):
    return Twin(tiny.params).eval()


@pytest.fixture(scope="module")
def image(tiny, photos):
    return jnp.asarray(tiny.preprocess.normalize(photos[0]))


def in_torch(model, decision):
    """The scores of a batch, in PyTorch."""

    def scores(x):
        logits = model(x)
        rival = logits[:, decision.rival] if decision.rival >= 0 else 0
        return logits[:, decision.target] - rival

    return scores


def test_the_command_knows_the_methods_that_there_are():
    """It names them before anything of JAX is imported."""
    assert ("amx", *METHODS) == config.METHODS


def assert_close(actual, expected, tolerance=1e-5):
    """To a share of the largest value."""
    expected = np.asarray(expected)
    assert actual.dtype == np.float32 and actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("decision", DECISIONS, ids=["target", "rival"])
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_grad_cam_is_captums(tiny, twin, image, stage, decision):
    model = in_torch(twin, decision)
    heat = LayerGradCam(model, getattr(twin, stage)).attribute(
        channels_first(image), relu_attributions=True
    )
    expected = LayerAttribution.interpolate(heat, (SIDE, SIDE), "bilinear")[0, 0].detach()
    assert expected.max() > 0
    assert_close(grad_cam(tiny.apply, tiny.params, image, decision, stage), expected)


@jax.custom_vjp
def _halved_slope(x):
    return x


_halved_slope.defvjp(lambda x: (x, None), lambda _, gradient: (gradient / 2,))


def _in_batches(apply):
    """Goes on with a batch of one, and returns the only activation of it."""
    batch = jax.vmap(apply, (None, 0))
    return lambda params, image: jax.tree.map(lambda leaf: leaf[0], batch(params, image[None]))


def _in_bfloat16(apply):
    """Returns rounded activations, and goes on with those that are not."""

    def rounded(params, image):
        logits, stages = apply(params, image)
        return logits, {name: x.astype(jnp.bfloat16) for name, x in stages.items()}

    return rounded


def _turned(apply):
    """Goes on with activations turned by 90 degrees."""

    def turned(params, image):
        logits, stages = apply(params, image.transpose(1, 0, 2)[::-1])
        return logits, {name: x[::-1].transpose(1, 0, 2) for name, x in stages.items()}

    return turned


@pytest.mark.parametrize(
    ("wrap", "tolerance"),
    [
        (jax.jit, 1e-5),
        (jax.checkpoint, 1e-5),
        (lambda apply: jax.jit(jax.checkpoint(jax.jit(apply))), 1e-5),
        (_in_batches, 1e-5),
        (_in_bfloat16, 2**-7),
    ],
    ids=["jit", "checkpoint", "nested", "batches", "bfloat16"],
)
def test_an_activation_is_found_however_it_is_returned(tiny, image, wrap, tolerance):
    found = grad_cam(wrap(tiny.apply), tiny.params, image, DECISIONS[0], "stage2")
    expected = grad_cam(tiny.apply, tiny.params, image, DECISIONS[0], "stage2")
    assert_close(found, expected, tolerance)


def test_an_activation_returned_in_other_axes_is_found(tiny, image):
    """An image turned one way, and turned back inside: the heat is turned, too."""
    turned = image[::-1].transpose(1, 0, 2)
    found = grad_cam(_turned(tiny.apply), tiny.params, turned, DECISIONS[0], "stage1")
    expected = grad_cam(tiny.apply, tiny.params, image, DECISIONS[0], "stage1")
    assert_close(found, expected[::-1].T)


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_both_parts_of_a_classifier_make_the_whole(tiny, image, stage, jit):
    activation, logits = jit(
        lambda params, image: (lambda a, rest: (a, rest(a)))(*cut(tiny.apply, params, image, stage))
    )(tiny.params, image)
    expected, stages = tiny.apply(tiny.params, image)
    np.testing.assert_allclose(activation, stages[stage], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-4)


def test_the_second_part_keeps_the_classifiers_own_derivatives(image):
    def apply(params, image):
        features = 3 * image
        return _halved_slope(features).sum(axis=(0, 1)), {"features": features}

    activation, rest = cut(apply, None, image, "features")
    gradient = jax.grad(lambda a: rest(a)[0])(activation)
    np.testing.assert_array_equal(gradient[..., 0], 0.5)


def test_an_activation_inside_a_custom_derivative_is_refused_and_not_taken_for_unimportant(image):
    @jax.custom_vjp
    def both(x):
        features = jnp.tanh(x)
        return features.sum(axis=(0, 1)), features

    both.defvjp(lambda x: (both(x), x), lambda x, gradients: (x,))

    def apply(params, image):
        logits, features = both(image)
        return logits, {"features": features}

    with pytest.raises(ClassifierError, match="logits that do not depend on the activation"):
        grad_cam(apply, None, image, Decision(0), "features")


def test_grad_cam_of_flax_modules_of_batches():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 4, (3, 3), strides=2, rngs=rngs)
            self.dense = nnx.Linear(4, 5, rngs=rngs)

        def __call__(self, x):
            return self.dense(nnx.relu(self.conv(x)).mean(axis=(1, 2)))

    class Linen(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(5)(linen.relu(linen.Conv(4, (3, 3), 2)(x)).mean(axis=(1, 2)))

    rng = np.random.default_rng(0)
    kernel, head = rng.normal(size=(3, 3, 3, 4)), rng.normal(size=(4, 5))
    kernel, head = jnp.asarray(kernel, jnp.float32), jnp.asarray(head, jnp.float32)
    image = jnp.asarray(rng.normal(size=(SIDE, SIDE, 3)), jnp.float32)
    net = Net(nnx.Rngs(0))
    net.conv.kernel[...], net.dense.kernel[...] = kernel, head
    variables = Linen().init(jax.random.key(0), image[None])
    variables["params"]["Conv_0"]["kernel"] = kernel
    variables["params"]["Dense_0"]["kernel"] = head

    features = jax.lax.conv_general_dilated(
        image[None], kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]
    weights = np.asarray((features > 0).mean(axis=(0, 1)) * head[:, TARGET]) / features[..., 0].size
    expected = functional.interpolate(
        tensor(np.maximum(np.asarray(features) @ weights, 0))[None, None], (SIDE, SIDE), mode="bilinear"
    )[0, 0]
    for classifier, stage in (
        (from_nnx(net, PREPROCESS), "conv"),
        (from_linen(Linen(), variables, PREPROCESS), "Conv_0"),
    ):
        assert last_image_stage(classifier.apply, classifier.params, image) == stage
        heat = grad_cam(classifier.apply, classifier.params, image, Decision(TARGET), stage)
        assert_close(heat, expected)


def test_the_last_stage_is_the_one_computed_last_whatever_its_name():
    def apply(params, image):
        b = jnp.tanh(image)
        a = jnp.tanh(b)
        vector = a.mean(axis=(0, 1))
        return vector, {"a": a, "b": b, "c": jnp.cos(a), "d": vector, "e": vector[None, None]}

    image = jnp.zeros((4, 4, 3))
    assert last_image_stage(apply, None, image) == "a"
    assert last_image_stage(jax.jit(apply), None, image) == "a"


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("conv", "found no activation conv, expected one of aside, image, tokens, vector"),
        ("tokens", r"stage tokens: found an activation \(4, 3\), expected an image \(h, w, channels\)"),
        ("vector", r"stage vector: found an activation \(3,\), expected"),
        ("aside", "stage aside: found logits that do not depend on the activation"),
    ],
)
def test_grad_cam_says_what_is_wrong_with_a_stage(stage, message):
    def apply(params, image):
        tokens = jnp.tanh(image.reshape(4, 3))
        vector = tokens.mean(axis=0)
        aside = jnp.cos(image)
        return 2 * vector, {"tokens": tokens, "vector": vector, "aside": aside, "image": image}

    image = jnp.ones((2, 2, 3))
    with pytest.raises(ClassifierError, match=message):
        grad_cam(apply, None, image, Decision(0), stage)
    assert grad_cam(apply, None, image, Decision(0), "image").shape == (2, 2)  # the input itself


def test_a_classifier_without_an_image_shaped_stage_is_refused():
    def apply(params, image):
        vector = image.mean(axis=(0, 1))
        return 2 * vector, {"vector": vector}

    with pytest.raises(
        ClassifierError, match=r"found the activations vector \(3,\), expected one that"
    ):
        last_image_stage(apply, None, jnp.ones((2, 2, 3)))
    with pytest.raises(ClassifierError, match="found the activations none"):
        last_image_stage(lambda params, image: (image[0, 0], {}), None, jnp.ones((2, 2, 3)))


@pytest.mark.parametrize("decision", DECISIONS, ids=["target", "rival"])
@pytest.mark.parametrize("steps", [5, 32])
def test_integrated_gradients_are_captums(tiny, twin, image, steps, decision):
    attribution = IntegratedGradients(in_torch(twin, decision)).attribute(
        channels_first(image),
        channels_first(jnp.broadcast_to(BASELINE, image.shape)),
        n_steps=steps,
    )
    expected = attribution[0].abs().sum(dim=0).detach()
    found = integrated_gradients(tiny.apply, tiny.params, image, decision, BASELINE, steps)
    assert_close(found, expected)


# --- perturbations --------------------------------------------------------------------------------


@pytest.mark.parametrize("decision", DECISIONS, ids=["target", "rival"])
@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 5), (7, 3), (32, 1)])
def test_occlusion_is_captums(tiny, twin, image, window, stride, decision):
    with torch.no_grad():
        expected = Occlusion(in_torch(twin, decision)).attribute(
            channels_first(image),
            sliding_window_shapes=(3, window, window),
            strides=(3, stride, stride),
            baselines=channels_first(jnp.broadcast_to(BASELINE, image.shape)),
            perturbations_per_eval=32,
        )[0, 0]
    found = occlusion(tiny.apply, tiny.params, image, decision, BASELINE, window, stride)
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("window", "stride", "message"),
    [
        (33, 1, "window: found 33, expected 1 to 32"),
        (0, 1, "window"),
        (4, 5, "stride: found 5"),
        (4, 0, "stride"),
    ],
)
def test_occlusion_leaves_no_pixel_out(tiny, image, window, stride, message):
    with pytest.raises(ConfigError, match=message):
        occlusion(tiny.apply, tiny.params, image, DECISIONS[0], BASELINE, window, stride)


@pytest.mark.parametrize("decision", DECISIONS, ids=["target", "rival"])
def test_rise_is_the_probability_weighted_mean_of_its_masks(tiny, twin, image, decision):
    key, count, keep = jax.random.key(3), 20, 0.4
    total = np.zeros((SIDE, SIDE))
    for mask in np.asarray(rise_masks(key, count, 5, keep, (SIDE, SIDE)), np.float64):
        seen = mask[..., None] * np.asarray(image) + (1 - mask[..., None]) * BASELINE
        with torch.no_grad():
            z = twin(channels_first(seen.astype(np.float32)))[0].numpy().astype(np.float64)
        against = z[[decision.target, decision.rival]] if decision.rival >= 0 else z
        total += mask * np.exp(z[decision.target]) / np.exp(against).sum()
    found = rise(tiny.apply, tiny.params, image, decision, key, BASELINE, count, 5, keep)
    assert_close(found, (total / count / keep).astype(np.float32))


def test_masks_of_rise_are_enlarged_and_shifted_grids():
    """Each is one of the 16 grids of 2 × 2 cells, enlarged by PyTorch, at one of 16 shifts."""
    grids = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).reshape(16, 1, 2, 2)
    large = functional.interpolate(grids, (12, 12), mode="bilinear")[:, 0]
    shifts = [large[:, i : i + 8, j : j + 8] for i in range(4) for j in range(4)]
    possible = torch.cat(shifts).numpy()
    masks = rise_masks(jax.random.key(0), 200, 2, 0.5, (8, 8))
    distance = np.abs(np.asarray(masks)[:, None] - possible).max(axis=(2, 3))
    assert distance.min(axis=1).max() < 1e-6
    assert len(np.unique(distance.argmin(axis=1))) > 100


@pytest.mark.parametrize("shape", [(28, 28), (30, 17)])
def test_masks_of_rise_keep_each_pixel_as_often_as_asked(shape):
    masks = rise_masks(jax.random.key(0), 2000, 7, 0.3, shape)
    assert masks.shape == (2000, *shape)
    np.testing.assert_allclose(masks.mean(axis=0), 0.3, atol=0.06)


# --- extremal perturbations -----------------------------------------------------------------------


def mask_in_torch(grid, shape, step, sigma):
    """The smooth maximum, pixel by pixel over the cells around it, the margin included."""
    radius, padding = 1 + int(np.ceil(sigma / step)), 1 + int(np.ceil(2 * sigma / step))
    sizes = [(n + 2 * (padding - radius) - 1) * step + 1 for n in grid.shape]
    cells = [
        torch.arange(size)[:, None] // step + torch.arange(2 * radius + 1) - padding for size in sizes
    ]
    squares = [
        (torch.arange(size)[:, None] - sigma - step * near).float() ** 2
        for size, near in zip(sizes, cells, strict=True)
    ]
    inside = [(near >= 0) & (near < n) for near, n in zip(cells, grid.shape, strict=True)]
    row, column = (near.clamp(0, n - 1) for near, n in zip(cells, grid.shape, strict=True))
    values = grid[row[:, :, None, None], column] * (inside[0][:, :, None, None] & inside[1])
    distance = (squares[0][:, :, None, None] + squares[1]).sqrt() / sigma
    shares = values * torch.exp(-2 * (distance - 0.5).clamp(min=0) ** 2)
    shares = shares.permute(0, 2, 1, 3).flatten(2)
    whole = (shares * torch.softmax(20 * shares, dim=2)).sum(dim=2)
    margin = round(sigma)
    return whole, whole[margin : margin + shape[0], margin : margin + shape[1]]


@pytest.mark.parametrize(
    ("shape", "step", "sigma"), [((32, 32), 4, 12), ((20, 15), 3, 7.5), ((16, 16), 1, 3)]
)
def test_a_smooth_mask_is_the_smooth_maximum_of_the_cells_near_a_pixel(shape, step, sigma):
    rng = np.random.default_rng(0)
    grid = rng.uniform(size=[-(-side // step) for side in shape]).astype(np.float32)
    grid[0], grid[-1] = 0, 1
    leaf = tensor(grid).requires_grad_()
    expected, _ = mask_in_torch(leaf, shape, step, sigma)
    weights = rng.normal(size=expected.shape).astype(np.float32)
    (expected * tensor(weights)).sum().backward()
    found, pull = jax.vjp(lambda grid: smooth_mask(grid, shape, step, sigma), jnp.asarray(grid))
    assert_close(found, expected.detach())
    assert_close(pull(jnp.asarray(weights))[0], leaf.grad)


def test_levels_are_gaussian_blurs_with_the_baseline_beyond_the_border(image):
    found = pyramid(image, BASELINE, "blur", 3.0)
    for level, sigma in enumerate(3 * (1 - np.arange(8) / 7)):
        reach = int(np.ceil(4 * sigma))
        blurred = ndimage.gaussian_filter(
            np.asarray(image, np.float64) - BASELINE,
            max(sigma, 1e-9),
            mode="constant",
            radius=reach,
            axes=(0, 1),
        )
        np.testing.assert_allclose(found[level], blurred + BASELINE, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found[-1], image, rtol=0, atol=1e-6)


def test_fading_levels_make_the_composition_with_the_baseline(image):
    mask = np.random.default_rng(0).uniform(size=(SIDE, SIDE)).astype(np.float32)
    found = perturb(pyramid(image, BASELINE, "fade"), jnp.asarray(mask))
    expected = mask[..., None] * image + (1 - mask[..., None]) * BASELINE
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_perturbed_pixel_lies_between_the_levels_next_to_its_mask():
    rng = np.random.default_rng(0)
    levels = rng.normal(size=(8, 6, 5, 2)).astype(np.float32)
    mask = np.clip(rng.uniform(-0.2, 1.2, (6, 5)), 0, 1).astype(np.float32)
    mask[0, :3] = 0, 1, 3 / 7
    found = perturb(jnp.asarray(levels), jnp.asarray(mask))
    for i, j, c in np.ndindex(found.shape):
        expected = np.interp(mask[i, j], np.arange(8) / 7, levels[:, i, j, c])
        assert found[i, j, c] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("zeros", [0, 1, 5, 9])
def test_the_area_loss_is_the_distance_to_the_nearest_binary_mask_of_that_area(zeros):
    mask = np.random.default_rng(0).uniform(size=(3, 3)).astype(np.float32)
    masks = [
        ~np.isin(np.arange(9), none).reshape(3, 3) for none in itertools.combinations(range(9), zeros)
    ]
    expected = min(((mask - other) ** 2).mean() for other in masks)
    assert float(area_loss(jnp.asarray(mask), zeros)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("zeros", [0, 1, 700, 1599, 1600])
def test_the_area_losss_gradient_is_that_of_sorted_pixels_equal_ones_in_their_order(zeros):
    def by_sorting(mask):
        reference = (jnp.arange(mask.size) >= zeros).astype(mask.dtype)
        return jnp.mean((jnp.sort(mask.ravel()) - reference) ** 2)

    values = np.random.default_rng(0).uniform(size=(40, 40)).astype(np.float32)
    for mask in (values, values**8, values.round(1), np.ones_like(values), np.zeros_like(values)):
        found = jax.grad(area_loss)(jnp.asarray(mask), zeros)
        np.testing.assert_array_equal(found, jax.grad(by_sorting)(jnp.asarray(mask)))


@pytest.mark.parametrize("mirror", [True, False])
def test_the_ascent_is_the_one_of_torchs_optimiser(tiny, twin, image, mirror):
    """From a random grid: from one of ones, the order of tied pixels would be anyone's.

    So would be the side of the area's edge on which a pixel falls that lies on it, as with 1300 zeros.
    """
    step, sigma, steps, zeros = 4, 8, 12, 1250
    start = np.random.default_rng(0).uniform(size=(8, 8)).astype(np.float32)
    levels = pyramid(image, BASELINE)
    pixels = tensor(levels).permute(0, 3, 1, 2)

    grid = tensor(start).requires_grad_()
    optimiser = torch.optim.SGD([grid], lr=0.01, momentum=0.9, dampening=0.9)
    for time in range(steps):
        whole, mask = mask_in_torch(grid, (SIDE, SIDE), step, sigma)
        place = 7 * mask
        low = place.detach().floor()
        below = torch.gather(pixels, 0, low.long().expand(1, 3, -1, -1))[0]
        above = torch.gather(pixels, 0, (low.long() + 1).clamp(max=7).expand(1, 3, -1, -1))[0]
        seen = below + (place - low) * (above - below)
        seen = seen.flip(2) if mirror and time % 2 == 0 else seen
        ordered = whole.flatten().sort().values
        reference = torch.arange(len(ordered)) >= zeros
        misfit = 300 * 1.0035**time * ((ordered - reference.float()) ** 2).mean()
        optimiser.zero_grad()
        (misfit - twin(seen[None])[0, TARGET]).backward()
        optimiser.step()
        grid.data.clamp_(0, 1)

    state = Ascent(jnp.asarray(start), jnp.zeros((8, 8)), jnp.zeros((SIDE, SIDE)))
    advance = jax.jit(
        lambda state, time: ascend(
            tiny.apply, tiny.params, levels, DECISIONS[0], zeros, state, time, step, sigma, mirror
        )
    )
    for time in range(steps):
        state = advance(state, time)
    assert np.abs(state.grid - start).max() > 0.1
    assert_close(state.grid, grid.detach(), 1e-4)
    assert_close(state.mask, mask.detach(), 1e-4)


@pytest.fixture(scope="module")
def planted():
    """The logit of class 0 is the mean brightness of a patch, a hundred times over; of class 1, 40."""
    inside = np.zeros((SIDE, SIDE, 1), np.float32)
    inside[4:12, 11:21] = 100 / 80  # the same when mirrored

    def apply(params, image):
        x = jax.nn.relu(image)
        return jnp.append(jnp.sum(x * inside), 40.0), {"x": x}

    return Classifier(
        apply=apply,
        params=None,
        preprocess=dataclasses.replace(PREPROCESS, channels=1, mean=0.0, scale=255.0),
    ), inside[..., 0] > 0


def test_extremal_masks_have_their_areas_and_lie_where_the_score_comes_from(planted):
    classifier, inside = planted
    levels = pyramid(jnp.ones((SIDE, SIDE, 1)), jnp.zeros(1), "fade")
    areas = (0.1, 0.2)
    masks = jax.jit(
        lambda levels: extremal_masks(
            classifier.apply, None, levels, Decision(0), areas, 200, 2, 4, mirror=False
        )
    )(levels)
    assert masks.min() >= 0 and masks.max() <= 1
    whole = smooth_mask(jnp.ones((16, 16)), (SIDE, SIDE), 2, 4).size
    for area, mask in zip(areas, masks, strict=True):
        assert mask.sum() / whole == pytest.approx(area, rel=0.5)  # the score pulls, too
        assert mask[inside].mean() > 0.8
        assert mask[~inside].mean() < area * whole / SIDE**2


def test_the_extremal_ranking_adds_the_masks(tiny, image):
    setting = {"areas": (0.1, 0.3), "steps": 3, "step": 4, "sigma": 8.0}
    found = extremal_perturbation(
        tiny.apply, tiny.params, image, DECISIONS[0], BASELINE, kind="fade", **setting
    )
    levels = pyramid(image, BASELINE, "fade")
    masks = extremal_masks(tiny.apply, tiny.params, levels, DECISIONS[0], **setting)
    assert_close(found, masks.sum(axis=0))


# --- rankings that know nothing -------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "cell"), [((32, 32), 8), ((10, 7), 3)])
def test_random_cells_are_a_permutation_of_cells(shape, cell):
    ranking = np.asarray(random_cells(jax.random.key(0), shape, cell))
    rows, columns = np.arange(0, shape[0], cell), np.arange(0, shape[1], cell)
    values = [ranking[i : i + cell, j : j + cell] for i in rows for j in columns]
    assert all((value == value[0, 0]).all() for value in values)
    assert sorted(value[0, 0] for value in values) == list(range(len(values)))
    assert (ranking != np.asarray(random_cells(jax.random.key(1), shape, cell))).any()


@pytest.mark.parametrize("side", [7, 8])
def test_what_the_centre_ranks_first_are_centred_squares(side):
    ranking = np.asarray(centre_square((side, side)))
    for width in range(side, 0, -2):
        margin = (side - width) // 2
        square = np.zeros((side, side), bool)
        square[margin : side - margin, margin : side - margin] = True
        first = np.argsort(-ranking.ravel(), stable=True)[: width**2]
        assert square.ravel()[first].all()


# --- the registry ---------------------------------------------------------------------------------


def rank_of(name, classifier):
    method = METHODS[name]
    return lambda params, image, decision, key, background: method.rank(
        classifier, params, image, decision, key, background
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_method_compiles_and_maps_over_images_targets_and_keys(tiny, photos, name):
    images = jnp.asarray(tiny.preprocess.normalize(photos[:2]))
    decisions = Decision(jnp.array([0, TARGET]), jnp.array([-1, RIVAL]), jnp.full(2, -jnp.inf))
    keys, background = jax.random.split(jax.random.key(0), 2), jnp.asarray(BASELINE)
    rank = rank_of(name, tiny)
    found = jax.jit(jax.vmap(rank, (None, 0, 0, 0, None)))(
        tiny.params, images, decisions, keys, background
    )
    assert found.shape == (2, SIDE, SIDE) and found.dtype == jnp.float32
    assert jnp.isfinite(found).all()
    if name == "extremal":  # another rounding breaks the ties of its start in another way
        return
    single = jax.jit(rank)(tiny.params, images[1], Decision(TARGET, RIVAL), keys[1], background)
    assert_close(found[1], single)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_costs_the_passes_it_says(tiny, image, name):
    calls = []

    def apply(params, image):
        jax.debug.callback(lambda: calls.append(name))
        return tiny.apply(params, image)

    classifier = dataclasses.replace(tiny, apply=apply)
    calls.clear()
    ranking = jax.jit(rank_of(name, classifier))(
        tiny.params, image, DECISIONS[0], jax.random.key(0), BASELINE
    )
    jax.block_until_ready(ranking)
    jax.effects_barrier()
    both_ways = 2 if name in ("gradcam", "ig", "extremal") else 1
    assert len(calls) * both_ways == METHODS[name].passes


@pytest.mark.parametrize("name", ["ig", "occlusion", "rise", "extremal"])
def test_a_method_finds_where_the_score_comes_from(planted, name):
    classifier, inside = planted
    image, background = jnp.where(inside, 0.9, 0.1)[..., None], jnp.zeros(1)
    ranking = jax.jit(rank_of(name, classifier))(
        None, image, Decision(0), jax.random.key(0), background
    )
    assert ranking[inside].mean() > ranking[~inside].mean() + ranking[~inside].std()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage7", "head"])
def test_grad_cam_of_efficientnet_is_the_one_of_its_pytorch_implementation(stage):
    classifier, model = load_classifier("efficientnet_lite0"), load_model("efficientnet_lite0")
    photo = classifier.preprocess.crop(read_photo(bundled_photos()[0]))
    image = jnp.asarray(classifier.preprocess.normalize(photo))
    logits, _ = classifier.apply(classifier.params, image)
    target = int(jnp.argmax(logits))
    heat = LayerGradCam(
        model, model._blocks[-1] if stage == "stage7" else model._avg_pooling
    ).attribute(
        channels_first(image),
        target,
        attribute_to_layer_input=stage == "head",
        relu_attributions=True,
    )
    expected = LayerAttribution.interpolate(heat, image.shape[:2], "bilinear")[0, 0].detach()
    found = jax.jit(
        lambda params, image: grad_cam(classifier.apply, params, image, Decision(target), stage)
    )(classifier.params, image)
    assert_close(found, expected, 1e-4)
