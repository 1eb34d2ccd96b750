"""Classifier and regressor: starting from an encoder, and numbers in the unit they came in."""

import numpy as np
import pytest
import torch

from models.data import Columns
from models.families.autoencoders.autoencoder import Autoencoder
from models.families.autoencoders.denoising_autoencoder import DenoisingAutoencoder
from models.families.autoencoders.vae import VAE
from models.families.classifiers.classifier import Classifier
from models.families.classifiers.regressor import Regressor
from models.families.classifiers.ridge import PENALTIES, PatchRidge
from models.operations.attack import AttackOperation
from models.training.loop import Training
from models.types import ConfigError, DataSpec
from tests.models.data import dataset, digits

SHORT = {"images": 32, "batch_size": 8}
DATA = dataset("labelled", (1, 16, 20), 32)


def served(family, **config):
    torch.manual_seed(1)
    model = family.create(SHORT | config, DATA[0])
    return family.create(model.config.model_dump(), DATA[0]).load_for_serving(model.serving_state())


def classifier(**config) -> Classifier:
    torch.manual_seed(2)
    return Classifier.create(SHORT | config, DATA[0])


def brightness(scale: float = 1.0, shift: float = 0.0, count: int = 400) -> tuple[DataSpec, Columns, Columns]:
    """Images whose target is the side of the square they show."""
    draws = np.random.default_rng(0)
    sides = draws.integers(2, 12, count)
    images = draws.integers(0, 80, (count, 1, 14, 14)).astype(np.uint8)
    for image, side in zip(images, sides, strict=True):
        row, column = draws.integers(0, 14 - side + 1, 2)
        image[0, row : row + side, column : column + side] = 255
    rows = Columns({"images": images, "targets": (sides * scale + shift).astype(np.float32)})
    return DataSpec("plain", 14, 14, 1, None, {"train": {"images": count, "targets": count}}), rows, rows


def train(model, train, validation, seed: int = 0) -> dict[str, float]:
    training = Training(model, train, validation, seed)
    for _ in training.run():
        pass
    return training.finish()


@pytest.mark.parametrize("family", [Autoencoder, VAE, DenoisingAutoencoder])
@pytest.mark.parametrize("body", ["auto", "mlp", "linear"])
def test_a_classifier_takes_over_the_encoder_of_an_autoencoder(family, body):
    encoder, model = served(family, body=body, latent_dim=6), classifier()
    model.init_from(encoder)
    images = torch.rand(3, *DATA[0].shape)
    torch.testing.assert_close(model.trunk(images), encoder.encode(images))
    assert all(parameter.requires_grad for parameter in model.parameters())
    before = encoder.encode(images)
    train(model, *DATA[1:])
    assert torch.equal(encoder.encode(images), before)
    again = Classifier.create(model.config.model_dump(), DATA[0]).load_for_serving(model.serving_state())
    assert torch.equal(again.logits(images), model.eval().logits(images))


def test_a_regressor_from_the_encoder_of_a_vae_learns_and_can_be_attacked():
    spec, rows, held = brightness(scale=3.0, shift=-20.0)
    torch.manual_seed(1)
    encoder = VAE.create({"latent_dim": 6, "images": 64}, spec)
    model = Regressor.create({"images": 2000, "batch_size": 16}, spec)
    model.init_from(encoder)
    images = held.head(4)["images"]
    torch.testing.assert_close(model.trunk(images), encoder.encode(images))
    assert train(model, rows, held)["r2"] > 0.5
    model.eval().requires_grad_(False)
    operation = AttackOperation()
    params = operation.Params(method="pgd", eps=0.1)
    found = operation.compute(model, operation.rows(model, images, params), params)
    assert (found["images"] - images).abs().max() <= 0.1 + 1e-6
    signs = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).sign()
    usual, moved = model.estimate(images), model.estimate(found["images"])
    blind = model.estimate((images + 0.1 * signs).clamp(0, 1))
    assert (moved - usual).abs().min() > 2 * (blind - usual).abs().max()


def test_a_probe_trains_the_head_and_leaves_the_encoder():
    model = classifier(trained="head", dropout=0)
    model.init_from(served(Autoencoder))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, *DATA[1:])
    changed = {
        name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {"head"}
    image = torch.rand(1, *DATA[0].shape, requires_grad=True)
    model.eval().logits(image).sum().backward()
    assert image.grad.abs().sum() > 0  # attacks still reach the image


def test_a_classifier_starts_from_a_classifier():
    first = classifier()
    train(first, *DATA[1:])
    second = classifier()
    second.init_from(first)
    images = torch.rand(3, *DATA[0].shape)
    assert torch.equal(first.eval().logits(images), second.eval().logits(images))


def test_an_encoder_of_other_images_is_refused():
    other = Autoencoder.create({}, DataSpec("plain", 16, 16, 3))
    with pytest.raises(ConfigError, match=r"3x16x16.*1x16x20") as caught:
        classifier().init_from(other)
    assert caught.value.field == "init_from"


def test_a_run_that_started_from_an_encoder_resumes_bit_for_bit():
    def build():
        model = classifier()
        model.init_from(served(Autoencoder))
        return Training(model, *DATA[1:])

    whole = build()
    whole.advance()
    state = whole.state()
    for _ in whole.run():
        pass
    resumed = build()
    resumed.restore(state)
    for _ in resumed.run():
        pass
    final, expected = resumed.state().tensors, whole.state().tensors
    assert final.keys() == expected.keys() and all(torch.equal(final[name], expected[name]) for name in final)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1000.0, -40_000.0), (1e-4, 5.0)])
def test_a_regressor_learns_in_the_unit_of_its_targets(scale, shift):
    spec, rows, validation = brightness(scale, shift)
    torch.manual_seed(0)
    found = train(Regressor.create({"epochs": 8}, spec), rows, validation)
    assert found["mae"] < 0.25 * found["mae_mean"] and found["mae"] < found["mae_linear"]
    assert found["r2"] > 0.9
    assert found["mae"] < scale


def test_the_mean_and_spread_are_those_of_the_training_targets():
    spec, rows, validation = brightness(3.0, 7.0, count=64)
    model = Regressor.create({"images": 256, "batch_size": 16}, spec)
    train(model, rows, validation)
    targets = rows.columns["targets"].astype(np.float64)
    assert model.mean.item() == pytest.approx(targets.mean())
    assert model.deviation.item() == pytest.approx(targets.std())


def test_a_few_images_suffice_for_what_brightness_says():
    spec, rows, validation = brightness(1.0, 0.0, count=40)
    torch.manual_seed(0)
    found = train(Regressor.create({"images": 640}, spec), rows, validation)
    assert found["mae"] < 0.1 * found["mae_mean"]


def test_a_linear_answer_is_the_ridge_of_the_least_leave_one_out_error():
    draws = torch.Generator().manual_seed(0)
    level = PatchRidge((1, 8, 8))
    images = torch.rand(30, 1, 8, 8, generator=draws)
    patches = level.patches(images)
    torch.testing.assert_close(patches[:, 5], (images[:, 0, 2:4, 2:4].mean((1, 2)) - 0.5) * 2)
    wanted = patches[:, 3] + 0.3 * torch.randn(30, generator=draws)
    level.fit(patches, wanted)

    def left_out(penalty: float) -> float:
        errors = []
        for row in range(30):
            others = torch.arange(30) != row
            rows, answers = patches[others].double(), wanted[others].double()
            centred = rows - rows.mean(0)
            gram = centred.T @ centred + penalty * torch.eye(16, dtype=torch.double)
            weight = torch.linalg.solve(gram, centred.T @ (answers - answers.mean()))
            errors.append(float((patches[row].double() - rows.mean(0)) @ weight + answers.mean() - wanted[row]) ** 2)
        return sum(errors) / 30

    strongest = float(torch.linalg.svdvals((patches - patches.mean(0)).double())[0]) ** 2
    best = min((PENALTIES * strongest).tolist(), key=left_out)
    centred = (patches - patches.mean(0)).double()
    gram = centred.T @ centred + best * torch.eye(16, dtype=torch.double)
    weight = torch.linalg.solve(gram, centred.T @ (wanted - wanted.mean()).double())
    torch.testing.assert_close(level.weight, weight.float(), rtol=1e-3, atol=1e-4)


def test_a_linear_answer_to_noise_is_none():
    draws = torch.Generator().manual_seed(0)
    level = PatchRidge((1, 8, 8))
    level.fit(torch.randn(40, 16, generator=draws), torch.randn(40, generator=draws))
    assert float(level.weight.norm()) < 0.3


def test_equal_targets_are_answered_and_have_no_r2():
    spec, rows, validation = brightness(0.0, 21.5, count=32)
    found = train(Regressor.create(SHORT, spec), rows, validation)
    assert "r2" not in found and found["mae_mean"] == 0 and found["mae"] < 2


def test_a_linear_probe_of_a_denoising_code_beats_one_of_the_pixels():
    spec, rows, validation = digits()
    classic = {"body": "linear", "code": "sigmoid", "latent_dim": 1000, "noise": "masking", "p": 0.3}
    torch.manual_seed(0)
    encoder = DenoisingAutoencoder.create(classic | {"reconstruction": "bce", "epochs": 12}, spec)
    train(encoder, rows, validation)
    probe = {"trained": "head", "dropout": 0, "learning_rate": 0.01, "epochs": 12, "shift": 0}
    model = Classifier.create(probe, spec)
    model.init_from(encoder.eval())
    found = train(model, rows, validation)
    assert found["accuracy"] >= found["accuracy_linear"] + 0.03
