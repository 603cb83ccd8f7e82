"""Your own model: what it computes alone is what the classifier made of it computes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from amx_jax import (
    Classifier,
    Config,
    Explainer,
    Preprocess,
    Weights,
    from_linen,
    from_nnx,
    two_classes,
)
from amx_jax.errors import ClassifierError, ConfigError

PREPROCESS = Preprocess(size=16, resize=16, mean=127.5, scale=127.5)
BRIEF = Config(generator="grid", grid=8, steps=6, cell=4, trials=2, batch_size=2, candidates=4)
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
IMAGE = PREPROCESS.normalize(PHOTO)


class LinenBlock(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Conv(self.features, (3, 3), name="zconv")(x))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = LinenBlock(4, name="second")(LinenBlock(3, name="zeroth")(x))
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3, name="head")(x.reshape(x.shape[0], -1))


class NNXBlock(nnx.Module):
    def __init__(self, in_features, features, rngs):
        self.conv = nnx.Conv(in_features, features, (3, 3), rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.conv(x))


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.zblocks = nnx.List([NNXBlock(3, 4, rngs), NNXBlock(4, 4, rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.again = nnx.Conv(4, 4, (1, 1), rngs=rngs)
        self.head = nnx.Linear(4 * 16 * 16, 3, rngs=rngs)

    def __call__(self, x):
        for block in self.zblocks:
            x = block(x)
        x = self.again(self.again(self.dropout(self.norm(x))))
        return self.head(x.reshape(x.shape[0], -1))


@pytest.fixture(scope="module")
def linen():
    variables = LinenNet().init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False)
    statistics = {"norm": {"mean": jnp.array([0.3, 0.1, -0.2, 0.0]), "var": jnp.full(4, 2.0)}}
    return {"params": variables["params"], "batch_stats": statistics}


@pytest.fixture(scope="module")
def module():
    net = NNXNet(nnx.Rngs(0))
    net.norm.mean[...] = jnp.array([0.3, 0.1, -0.2, 0.0])
    return net


def test_a_linen_model_gives_its_own_logits_and_its_submodules_outputs(linen):
    classifier = from_linen(LinenNet(), linen, PREPROCESS, train=False)
    logits, activations = jax.jit(classifier.apply)(classifier.params, IMAGE)
    expected = LinenNet().apply(linen, IMAGE[None], train=False)[0]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    inner = jax.nn.relu(nn.Conv(3, (3, 3)).apply({"params": linen["params"]["zeroth"]["zconv"]}, IMAGE))
    np.testing.assert_allclose(activations["zeroth"], inner, rtol=1e-5, atol=1e-5)
    assert set(activations) >= {"zeroth", "zeroth/zconv", "second", "second/zconv", "norm", "head"}
    assert classifier.stages == ("second", "norm", "Dropout_0")  # the last three, as they are called


def test_an_nnx_model_gives_its_own_logits_and_its_submodules_outputs(module):
    classifier = from_nnx(module, PREPROCESS)
    logits, activations = jax.jit(classifier.apply)(classifier.params, IMAGE)
    trained = nnx.clone(module)
    trained.eval()
    np.testing.assert_allclose(logits, trained(IMAGE[None])[0], rtol=1e-5, atol=1e-5)
    inner = trained.zblocks[0](IMAGE[None])[0]
    np.testing.assert_allclose(activations["zblocks.0"], inner, rtol=1e-5, atol=1e-5)
    assert set(activations) >= {"zblocks.0", "zblocks.1.conv", "norm", "again", "head"}
    assert classifier.stages == ("norm", "dropout", "again")
    assert not module.dropout.deterministic  # the user's module is as it was
    assert type(module.zblocks[0]) is NNXBlock


def test_stages_are_chosen_by_path_at_any_depth(linen, module):
    classifier = from_linen(LinenNet(), linen, PREPROCESS, stages=["second/zconv"], train=False)
    assert classifier.stages == ("second/zconv",)
    assert from_nnx(module, PREPROCESS, stages=["zblocks.1.conv"]).stages == ("zblocks.1.conv",)
    with pytest.raises(ClassifierError, match=r"no submodule third.*zeroth/zconv.*norm.*head"):
        from_linen(LinenNet(), linen, PREPROCESS, stages=["third"], train=False)
    with pytest.raises(ClassifierError, match=r"no submodule blocks.*zblocks\.0"):
        from_nnx(module, PREPROCESS, stages=["blocks"])


def test_a_model_of_single_images_is_taken_as_it_is():
    class Single(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.Conv(4, (3, 3))(x).mean(axis=(0, 1)))

    variables = Single().init(jax.random.key(0), IMAGE)
    classifier = from_linen(Single(), variables, PREPROCESS, batched=False)
    expected = Single().apply(variables, IMAGE)
    np.testing.assert_allclose(classifier.apply(variables, IMAGE)[0], expected, rtol=1e-6)
    assert classifier.activations["Conv_0"].shape == (16, 16, 4)


def test_own_models_are_explained_like_any_other(linen, module):
    for classifier in (
        from_linen(LinenNet(), linen, PREPROCESS, train=False),
        from_nnx(module, PREPROCESS, labels=["a", "b", "c"]),
    ):
        [explanation] = Explainer(classifier, BRIEF)([PHOTO])
        logits, _ = classifier.apply(classifier.params, IMAGE)
        assert explanation.target == int(np.argmax(logits))
        kept = np.where(explanation.mask[..., None], PHOTO, 127)
        found, _ = classifier.apply(classifier.params, PREPROCESS.normalize(kept))
        assert explanation.certificate.sufficient == (int(np.argmax(found)) == explanation.target)


# --- a plain function -----------------------------------------------------------------------------


def logits_only(params, image):
    return image.mean(axis=(0, 1)) @ params


def test_a_function_that_returns_only_logits_will_do_and_is_told_what_is_off():
    params = jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)
    classifier = Classifier(apply=logits_only, params=params, preprocess=PREPROCESS)
    assert (classifier.stages, classifier.labels[3]) == ((), "class 3")
    with pytest.warns(UserWarning, match="no stages: the activation term is off"):
        explainer = Explainer(classifier, BRIEF)
    [explanation] = explainer([PHOTO])
    assert explanation.certificate.sufficient
    silent = Config(**{**BRIEF.__dict__, "objective": Weights(activation=0.0)})
    assert np.array_equal(Explainer(classifier, silent)([PHOTO])[0].mask, explanation.mask)


def test_gray_images_of_another_range_are_explained():
    preprocess = Preprocess(size=16, resize=16, mean=255.0, scale=-1.0, channels=1)  # ink is high

    def apply(params, image):
        x = jax.nn.relu(image.reshape(4, 4, 4, 4).mean(axis=(1, 3)) / 255)
        return x.reshape(-1) @ params, {"patches": x}

    params = jnp.asarray(RNG.normal(size=(16, 3)), jnp.float32)
    classifier = Classifier(apply=apply, params=params, preprocess=preprocess, labels=("1", "2", "3"))
    [explanation] = Explainer(classifier, BRIEF)([PHOTO[..., :1]])
    assert explanation.pixels.shape == (16, 16, 1) and explanation.certificate.sufficient
    background, low, high = preprocess.limits((255, 255, 255))
    assert (background.tolist(), low.tolist(), high.tolist()) == ([0.0], [0.0], [255.0])


def test_one_logit_becomes_two_classes_with_the_sigmoids_probability():
    def one_logit(params, image):
        return image.mean() * params + 0.2, {"image": image}

    params = jnp.float32(30.0)
    with pytest.raises(ClassifierError, match=r"logits float32 \(\)"):
        Classifier(apply=one_logit, params=params, preprocess=PREPROCESS)
    with pytest.raises(ClassifierError, match="two_classes"):
        Classifier(
            apply=lambda params, image: one_logit(params, image)[0][None],
            params=params,
            preprocess=PREPROCESS,
        )
    classifier = Classifier(
        apply=two_classes(one_logit), params=params, preprocess=PREPROCESS, labels=("no", "yes")
    )
    logits, _ = classifier.apply(params, IMAGE)
    z = one_logit(params, IMAGE)[0]
    np.testing.assert_allclose(jax.nn.softmax(logits)[1], jax.nn.sigmoid(z), rtol=1e-6)
    [explanation] = Explainer(classifier, BRIEF)([PHOTO])
    assert explanation.label == ("yes" if z > 0 else "no") and explanation.certificate.sufficient


def multi_label(params, image):
    x = image.reshape(4, 4, 4, 4, 3).mean(axis=(1, 3))
    return x.reshape(-1) @ params, {"patches": x}


def test_a_class_of_a_multi_label_head_is_explained_by_its_own_threshold():
    params = jnp.asarray(RNG.normal(size=(48, 4)), jnp.float32)
    classifier = Classifier(apply=multi_label, params=params, preprocess=PREPROCESS, head="sigmoid")
    logits = np.asarray(multi_label(params, IMAGE)[0])
    present = int(np.argsort(logits)[-2])  # not the top class
    assert logits[present] > 0
    [explanation] = Explainer(classifier, BRIEF)([PHOTO], [present])
    kept = np.where(explanation.mask[..., None], PHOTO, 127)
    found = multi_label(params, PREPROCESS.normalize(kept))[0]
    assert explanation.certificate.sufficient and found[present] > 0
    np.testing.assert_allclose(
        explanation.certificate.probability_image, jax.nn.sigmoid(logits[present]), rtol=1e-5
    )
    assert explanation.record("x")["decision"] == {"kind": "above", "threshold": 0.5}


def test_why_one_class_rather_than_another_keeps_their_order_and_no_other(photos, tiny):
    explainer = Explainer(tiny, Config(generator="grid", grid=8, steps=12, cell=4, trials=2))
    logits = np.asarray(
        jax.vmap(lambda p: tiny.apply(tiny.params, tiny.preprocess.normalize(p))[0])(photos)
    )
    order = np.argsort(-logits, axis=1)
    targets, rivals = order[:, 1].tolist(), order[:, 2].tolist()  # none is the top class
    for photo, target, rival, explanation in zip(
        photos, targets, rivals, explainer(list(photos), targets, rivals), strict=True
    ):
        kept = np.where(explanation.mask[..., None], photo, 127)
        found = tiny.apply(tiny.params, tiny.preprocess.normalize(kept))[0]
        assert explanation.certificate.sufficient and found[target] > found[rival]
        name = tiny.labels[rival]
        assert explanation.rival == name
        assert explanation.record("x")["decision"] == {
            "kind": "rather",
            "rival": {"index": rival, "name": name},
        }
    with pytest.raises(ConfigError, match="image 0: found class bee as target and as its rival"):
        explainer([photos[0]], ["bee"], ["bee"])


# --- what does not fit the contract ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("apply", "expected"),
    [
        (
            lambda params, image: image[None].mean(axis=(1, 2)),
            r"logits float32 \(1, 3\).*image\[None\]",
        ),
        (
            lambda params, image: (image.mean(axis=(0, 1)), [image]),
            "activations that are no dictionary",
        ),
        (lambda params, image: {"logits": image}, "dict instead of logits"),
        (lambda params, image: image @ params, "apply fails on an image .*expected: apply"),
        (lambda params, image: jnp.argmax(image.ravel())[None], r"logits int32 \(1,\)"),
    ],
)
def test_a_function_that_breaks_the_contract_is_told_what_it_returns(apply, expected):
    with pytest.raises(ClassifierError, match=expected) as caught:
        Classifier(apply=apply, params=jnp.ones((5, 5)), preprocess=PREPROCESS, name="mine")
    assert str(caught.value).startswith("mine: ") and str(caught.value).isprintable()


def test_labels_stages_and_heads_that_do_not_fit_are_refused():
    given = {"apply": multi_label, "params": jnp.ones((48, 4)), "preprocess": PREPROCESS}
    with pytest.raises(ClassifierError, match="found 2 labels for 4 logits"):
        Classifier(**given, labels=("a", "b"))
    with pytest.raises(ClassifierError, match="no activation stage9, expected stages among patches"):
        Classifier(**given, stages=("stage9",))
    with pytest.raises(ClassifierError, match="found head 'tanh', expected softmax or sigmoid"):
        Classifier(**given, head="tanh")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"size": 0}, "size: found 0, expected at least 1"),
        ({"resize": 8}, "resize: found 8, expected at least the size, 16"),
        ({"channels": 4}, "channels: found 4, expected 1 or 3"),
        ({"mean": (1.0, 2.0)}, "mean: found .*, expected one, or one a channel"),
        ({"scale": 0.0}, "scale: found 0.0, expected finite and not 0"),
        ({"mean": float("nan")}, "mean: found nan, expected finite"),
    ],
)
def test_a_preprocessing_out_of_range_is_refused(change, expected):
    with pytest.raises(ConfigError, match=expected):
        Preprocess(**{"size": 16, "resize": 16, "mean": 0.0, "scale": 1.0} | change)
