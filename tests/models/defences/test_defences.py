"""Defences: each stage computes what its name says; a defended model is saved and served like any other."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from models import registry
from models.attacks.core.rng import RowRNG
from models.attacks.criteria.classification import Misclassified
from models.attacks.pgd import PGD
from models.defences.defended import Defended, defend, fingerprints
from models.defences.stage import read_config
from models.families.autoencoders.autoencoder import Autoencoder
from models.families.autoencoders.corruption import median_filter
from models.families.classifiers.classifier import Classifier
from models.operations.attack import access_of
from models.operations.detect_adversarial import DetectAdversarial
from models.types import ConfigError, InputError
from tests.models.data import dataset

KINDS = list(registry.defences())


def stage(kind: str, **settings):
    found = registry.defences()[kind]
    return found(read_config(found, settings))


def draws(count: int) -> RowRNG:
    return RowRNG(torch.arange(count))


def smooth(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Random smooth 8-bit images."""
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.avg_pool2d(noise, 5, 1, 2, count_include_pad=False) * 255).round() / 255


def classifier(shape=(1, 12, 12)) -> Classifier:
    torch.manual_seed(0)
    model = Classifier.create({"width": 4, "images": 8}, dataset("labelled", shape)[0])
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model.eval().requires_grad_(False)


def autoencoder(shape=(1, 12, 12)) -> Autoencoder:
    torch.manual_seed(1)
    return Autoencoder.create({"images": 8}, dataset("labelled", shape)[0]).eval().requires_grad_(False)


def behind(*stages: dict, shape=(1, 12, 12), **settings) -> Defended:
    return defend(classifier(shape), "digits@1", list(stages), lambda reference: autoencoder(shape), **settings)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("quality", [10, 50, 90])
def test_jpeg_stage_approximates_the_jpeg_file(mode, quality):
    images = smooth((1, len(mode), 21, 34))
    levels = (images[0] * 255).round().to(torch.uint8)
    array = levels[0].numpy() if mode == "L" else levels.permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(array, mode).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    written = np.asarray(Image.open(file)).astype(np.float32) / 255
    found = stage("jpeg", quality=quality)(images, draws(1))[0]
    found = found[0].numpy() if mode == "L" else found.permute(1, 2, 0).numpy()
    lost = np.abs(written - array / 255).mean()
    # files have a finer way to scale colour up
    assert np.abs(found - written).mean() < (0.55 * lost if mode == "RGB" else 0.6 / 255)


def test_bit_depth_and_median_compute_what_they_say():
    images = smooth((2, 3, 9, 12))
    found = stage("bit_depth", bits=2)(images, draws(2))
    assert torch.equal(found.unique(), torch.tensor([0, 1 / 3, 2 / 3, 1])[(found.unique() * 3).long()])
    assert (found - images).abs().max() <= 1 / 6 + 1e-6
    inner = stage("median", size=3)(images, draws(2))[:, :, 1:-1, 1:-1]
    assert torch.equal(inner, median_filter(images)[:, :, 1:-1, 1:-1])
    assert stage("median", size=4)(images, draws(2)).shape == images.shape


def test_larger_weight_of_total_variation_smooths_more():
    def variation(values: torch.Tensor) -> float:
        return float(values.diff(dim=2).abs().sum() + values.diff(dim=3).abs().sum())

    images = smooth((1, 1, 16, 16))
    flat = [stage("tv", weight=weight, steps=200)(images, draws(1)) for weight in (0.01, 0.1, 5.0)]
    assert variation(images) > variation(flat[0]) > variation(flat[1]) > variation(flat[2])
    assert torch.allclose(flat[2], images.mean(), atol=5e-3)  # at a high price nothing but the mean is left
    tiny = torch.rand(2, 1, 1, 3)
    assert torch.isfinite(stage("tv")(tiny, draws(2))).all()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "purify"])
def test_every_stage_passes_a_gradient(kind):
    images = smooth((2, 1, 12, 12)).requires_grad_()
    found = stage(kind)(images, draws(2))
    weights = torch.rand(found.shape)
    (slope,) = torch.autograd.grad((found * weights).sum(), images)
    assert torch.isfinite(slope).all() and slope.abs().sum() > 0
    if not stage(kind).differentiable:
        assert torch.equal(slope, weights)


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 9, 14)], ids=["grey", "colour"])
@pytest.mark.parametrize("kind", KINDS)
def test_defended_model_gives_the_same_answer_alone_and_in_a_batch(kind, shape):
    made = behind({"kind": kind} | ({"model": "coder"} if kind == "purify" else {}), shape=shape, draws=3)
    images = smooth((4, *shape))
    made.calibrate(images)
    again = Defended.create(made.config.model_dump(mode="json"), made.data).load_for_serving(made.serving_state())
    assert torch.equal(again.logits(images), made.logits(images)) and again.threshold == made.threshold
    assert torch.equal(made.logits(images), made.logits(images))
    mixed = torch.cat([smooth((3, *shape), 5), images[3:]])
    assert torch.equal(made.logits(mixed)[3], made.logits(images)[3])
    assert not torch.equal(made.logits(images), made.base.logits(images))


def test_noise_depends_on_the_image_alone():
    images = smooth((3, 1, 12, 12))
    assert len(set(fingerprints(images).tolist())) == 3
    assert torch.equal(fingerprints(images[2:]), fingerprints(images)[2:])
    assert torch.equal(fingerprints(images + 1e-4), fingerprints(images))  # what an 8-bit file would say
    moved = images.clone()
    moved[0, 0, 0, 0] = 1 - moved[0, 0, 0, 0]
    assert fingerprints(moved)[0] != fingerprints(images)[0]


@pytest.mark.parametrize("kind", ["bit_depth", "jpeg", "noise"])
def test_attack_on_defended_model_passes_through_the_defence(kind):
    """The attack on the undefended model does less harm than the adaptive attack."""
    made = behind({"kind": kind, **({"sigma": 0.1} if kind == "noise" else {})}, draws=4)
    images = smooth((24, 1, 12, 12))
    labels = made.logits(images).argmax(1)
    attack = PGD(steps=10, eps="10/255")
    blind = attack.run(access_of(made.base, attack), images, Misclassified(made.base.logits(images).argmax(1)))
    knowing = attack.run(access_of(made, attack), images, Misclassified(labels))
    survived = made.logits(blind.images).argmax(1) == labels
    assert knowing.success.sum() > (~survived).sum() or knowing.success.all()


@pytest.mark.parametrize(
    ("stages", "field"),
    [
        ([{"kind": "sepia"}], "stages/0/kind"),
        ([{"kind": "jpeg"}, {"kind": "jpeg", "quality": 0}], "stages/1/quality"),
        ([{"kind": "purify"}], "stages/0/model"),
        ([{"kind": "purify", "model": "classifier"}], "stages/0/model"),
    ],
)
def test_invalid_stage_is_named_in_the_error(stages, field):
    with pytest.raises(ConfigError) as caught:
        defend(classifier(), "digits", stages, lambda reference: classifier())
    assert caught.value.field == field


def test_autoencoder_of_another_image_size_is_refused():
    with pytest.raises(ConfigError) as caught:
        defend(classifier(), "d", [{"kind": "purify", "model": "m"}], lambda reference: autoencoder((3, 12, 12)))
    assert "3x12x12" in caught.value.detail


TRAINED = {"kind": "trained", "attacks": ["pgd"], "images": 64, "eps": "20/255"}


def test_trained_detector_is_saved_with_the_model_and_reproducible():
    images = smooth((64, 3, 9, 14))
    models = [behind({"kind": "bit_depth"}, shape=(3, 9, 14), detector=TRAINED) for _ in range(2)]
    for model in models:
        steps = list(model.fit_detector(images))
        assert steps[-1][0] == steps[-1][1] and not any(p.requires_grad for p in model.parameters())
        model.calibrate(images)
    one, two = models
    assert torch.equal(one.adversarial_score(images), two.adversarial_score(images)) and one.threshold == two.threshold
    served = Defended.create(one.config.model_dump(mode="json"), one.data).load_for_serving(one.serving_state())
    assert torch.equal(served.adversarial_score(images), one.adversarial_score(images))
    slope = torch.autograd.grad(served.adversarial_score(leaf := images[:2].requires_grad_()).sum(), leaf)[0]
    assert torch.isfinite(slope).all() and slope.flatten(1).abs().sum(1).gt(0).all()


def test_trained_detector_errors_name_the_cause():
    class OracleUnavailable(Classifier):
        def logits(self, images):
            return super().logits(images).detach()

    made = behind(detector=TRAINED)
    made.base.__class__ = OracleUnavailable
    with pytest.raises(ConfigError, match="pgd") as caught:
        list(made.fit_detector(smooth((64, 1, 12, 12))))
    assert caught.value.field == "detector/attacks" and "square" in caught.value.remedy
    made = behind(detector=TRAINED | {"attacks": ["square"]})
    made.base.__class__ = OracleUnavailable
    assert list(made.fit_detector(smooth((64, 1, 12, 12))))  # what needs no gradient teaches it too
    made = behind(detector=TRAINED | {"eps": "0/255"})
    with pytest.raises(ConfigError, match="nothing to learn"):
        list(made.fit_detector(smooth((64, 1, 12, 12))))


@pytest.mark.parametrize("detector", [{"kind": "squeezing"}, {"kind": "reconstruction", "model": "coder"}])
def test_threshold_is_the_quantile_of_clean_scores(detector):
    made = behind(detector=detector | {"quantile": 0.8})
    images = smooth((40, 1, 12, 12))
    operation = DetectAdversarial()
    with pytest.raises(InputError):
        operation.result(made, {}, operation.compute(made, {"inputs": images}, None), None)
    made.calibrate(images)
    items = operation.result(made, {}, operation.compute(made, {"inputs": images}, None), None).facts["items"]
    assert sum(item["adversarial"] for item in items) == 8
    assert all(item["adversarial"] == (item["score"] > item["threshold"]) for item in items)
