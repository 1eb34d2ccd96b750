"""Each alarm of autoencoders and classifiers provoked by what it is about, and none of them in a healthy training; the
best weights kept; principal axes as a start.
"""

import numpy as np
import pytest
import torch

from models import registry
from models.data import Columns
from models.evaluation.metrics import pca_mse
from models.families.autoencoders.autoencoder import Autoencoder
from models.families.autoencoders.pca import MAX_NUMBERS, PrincipalAxes, explained_variance
from models.families.autoencoders.sparse_autoencoder import SparseAutoencoder
from models.families.autoencoders.vae import VAE
from models.families.classifiers.classifier import Classifier
from models.training.loop import Training
from models.types import ConfigError, DataSpec

SIDES = ("train", "validation")


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch):
    monkeypatch.setattr("models.evaluation.feature_network.MAX_TRAINED", 64)


def waves(count: int, seed: int, noise: float = 0.03, side: int = 8) -> np.ndarray:
    """Images of three waves each, of any strength and phase, and a little noise: six numbers say nearly all."""
    draws = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(np.arange(side), np.arange(side))) / side
    found = np.full((count, side, side), 0.5)
    for way in ((1, 0), (0, 1), (1, 1)):
        phase = 2 * np.pi * (way[0] * place[0] + way[1] * place[1])
        for wave in (np.sin(phase), np.cos(phase)):
            found += draws.uniform(-0.35, 0.35, (count, 1, 1)) * wave
    found += noise * draws.normal(size=found.shape)
    return (found.clip(0, 1)[:, None] * 255).round().astype(np.uint8)


def splits(count: int, held: int = 60, **look) -> tuple[DataSpec, Columns, Columns]:
    """Waves; the label says whether the image is brighter at the top."""
    sides = [{"images": waves(rows, seed, **look)} for seed, rows in enumerate((count, held))]
    for side in sides:
        top, bottom = np.split(side["images"], 2, axis=2)
        side["labels"] = (top.mean((1, 2, 3)) > bottom.mean((1, 2, 3))).astype(np.int64)
    size = sides[0]["images"].shape[2]
    rows = {name: {column: len(side["images"]) for column in side} for name, side in zip(SIDES, sides, strict=True)}
    return DataSpec("labelled", size, size, 1, ("below", "above"), rows), *map(Columns, sides)


def run(family, data, stop: int | None = None, **config) -> Training:
    torch.manual_seed(0)
    training = Training(family.create({"images": 6400, "batch_size": 16} | config, data[0]), *data[1:])
    for step in training.run():
        if step.images == stop:
            break
    return training


def names(training: Training) -> set[str]:
    return {alarm.name for alarm in training.monitor.alarms}


CODERS = ("autoencoder", "sparse_autoencoder", "denoising_autoencoder", "contractive_autoencoder", "vae", "classifier")


@pytest.mark.parametrize("name", CODERS)
def test_a_healthy_training_is_silent(name):
    training = run(registry.families()[name], splits(600))
    assert not names(training) and len(training.monitor.readings) >= 4
    assert all(found.validation_loss is not None for found in training.monitor.readings)


def test_alarm_identity_for_code_as_large_as_image():
    data = splits(600, noise=0.3)  # of every direction there is something to copy
    training = run(Autoencoder, data, body="linear", latent_dim=128, images=12800)
    (alarm,) = training.monitor.standing
    assert alarm.name == "identity" and alarm.images < 12800 and alarm.evidence["mse_noise"] < 2 * alarm.evidence["mse"]
    assert training.family.warnings(training.finish())  # and it is still so at the end
    penalised = run(Autoencoder, data, body="linear", latent_dim=128, l2_kernel=0.01)
    assert not names(penalised)


def test_a_penalty_that_silences_all_units_is_seen():
    training = run(SparseAutoencoder, splits(200), sparsity="l1", weight=1000, learning_rate=0.1, revive_after=0)
    (alarm,) = training.monitor.standing
    assert alarm.name == "dead-units" and alarm.evidence["dead_units"] > 0.5 * alarm.evidence["units"]


def test_a_rectified_code_that_died_is_seen():
    training = run(Autoencoder, splits(200), body="mlp", code="relu", learning_rate=0.5)
    assert "dead-units" in names(training)


@pytest.mark.parametrize(("beta", "told"), [(200.0, {"posterior-collapse"}), (1.0, set())])
def test_a_collapsed_posterior_is_seen(beta, told):
    training = run(VAE, splits(600), beta=beta)
    assert names(training) == told
    if told:
        assert training.monitor.alarms[0].evidence["kl"] < 1


def test_eight_bits_taken_for_one_are_seen_at_the_first_look():
    spec, train, held = splits(64)
    dark = [Columns({"images": side.columns["images"] // 100}) for side in (train, held)]
    training = run(Autoencoder, (spec, *dark), images=160)
    assert [(alarm.name, alarm.images) for alarm in training.monitor.alarms] == [("unscaled-input", 16)]


OVERFIT = {"body": "mlp", "linear_path": "none", "latent_dim": 16, "images": 4800}


def test_overfitting_is_reported_and_best_weights_are_kept():
    data = splits(12, noise=0.4)
    last, best = (run(Autoencoder, data, keep=keep, **OVERFIT) for keep in ("last", "best"))
    assert names(last) == names(best) == {"overfitting"}
    assert "set keep to best" in last.monitor.standing[0].remedy
    assert "are kept" in best.monitor.standing[0].remedy
    worse, better = last.finish(), best.finish()
    assert better["mse"] < 0.95 * worse["mse"] and better["best_images"] < 4800 and "best_images" not in worse


@pytest.mark.parametrize("stop", [16, 2400])
def test_the_best_weights_survive_a_resume_bit_for_bit(stop):
    data = splits(12, noise=0.4)
    whole = run(Autoencoder, data, **OVERFIT)
    broken = run(Autoencoder, data, stop=stop, **OVERFIT)
    torch.manual_seed(0)
    resumed = Training(Autoencoder.create({"batch_size": 16} | OVERFIT, data[0]), *data[1:])
    resumed.restore(broken.state())
    for _ in resumed.run():
        pass
    assert resumed.best.keys() == whole.best.keys() and whole.best
    assert all(torch.equal(resumed.best[name], value) for name, value in whole.best.items())
    assert resumed.finish() == whole.finish()


def test_a_classifier_of_labels_without_meaning_overfits():
    spec, train, held = splits(40)
    for side in (train, held):
        side.columns["labels"] = np.random.default_rng(1).permutation(side.columns["labels"])
    assert names(run(Classifier, (spec, train, held), body="mlp")) == {"overfitting"}


def test_principal_axes_are_pca_and_help_with_few_images():
    data = splits(60)
    axes = PrincipalAxes((1, 8, 8), 6)
    axes.fit(data[1])
    images = data[2].rows(torch.arange(60), ["images"])["images"]
    error = (axes.decode(axes.encode(images)).clamp(0, 1) - images).square().mean()
    assert float(error) == pytest.approx(pca_mse(data[1], data[2], 6), rel=1e-3)
    chosen = run(Autoencoder, data, body="mlp", latent_dim=6)
    assert chosen.family.config.linear_path == "pca"
    found = chosen.finish()
    assert found["mse"] <= 1.02 * found["mse_pca"]
    assert run(Autoencoder, data, body="mlp", latent_dim=6, linear_path="none").finish()["mse"] > found["mse"]


STUDIED = [{"l1_kernel": 0.1}, {"reconstruction": "bce"}, {"code": "relu"}, {"latent_dim": 40}]


@pytest.mark.parametrize("config", STUDIED)
def test_no_linear_path_for_penalties_or_large_codes(config):
    training = run(Autoencoder, splits(60), body="mlp", images=16, **config)
    assert training.family.config.linear_path == "none"


def test_axes_of_large_images_use_cell_averages():
    axes = PrincipalAxes((3, 128, 131), 256)
    assert axes.cell > 1 and axes.axes.numel() <= MAX_NUMBERS
    images = torch.rand(2, 3, 128, 131)
    assert axes.decode(axes.encode(images)).shape == images.shape


def test_explained_variance_is_measured_on_held_out_images():
    random = Columns({"images": np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), np.uint8)})
    assert explained_variance(random, 32) < 0.6
    assert explained_variance(Columns({"images": waves(200, 0, noise=0)}), 6) > 0.95
    assert explained_variance(Columns({"images": np.zeros((10, 1, 8, 8), np.uint8)}), 4) in (0.0, 1.0)


def test_linear_path_with_other_reconstruction_is_refused():
    with pytest.raises(ConfigError, match="linear_path=pca needs"):
        Autoencoder.create({"linear_path": "pca", "reconstruction": "bce"}, splits(20)[0])


def test_classifier_inherits_axes_and_is_rebuilt_from_its_config():
    data = splits(60)
    donor = run(Autoencoder, data, body="mlp", latent_dim=6, images=320).family.eval()
    torch.manual_seed(1)
    heir = Classifier.create({"images": 64, "batch_size": 16}, data[0])
    heir.init_from(donor)
    images = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(heir.eval().trunk(images), donor.encode(images))
    again = Classifier.create(heir.config.model_dump(), data[0])
    again.load_state_dict(heir.state_dict())
    torch.testing.assert_close(again.eval().logits(images), heir.logits(images))
    child = Autoencoder.create({"images": 64, "body": "mlp", "latent_dim": 6}, data[0])
    child.init_from(donor)
    Training(child, *data[1:])
    torch.testing.assert_close(child.eval().encode(images), donor.encode(images))


@pytest.mark.parametrize("sampler", ["prior", "gaussian", "mixture"])
def test_samples_come_from_the_configured_sampler(sampler):
    training = run(Autoencoder, splits(200), body="mlp", latent_dim=6, images=3200, sampler=sampler)
    found, model = training.finish(), training.family
    codes = model.encode(torch.from_numpy(waves(200, 0)) / 255).detach()
    draws = torch.Generator().manual_seed(0)
    drawn = model.draw(torch.randn(2000, 6, generator=draws), torch.rand(2000, generator=draws))
    wanted = torch.ones(6) if sampler == "prior" else codes.std(0)
    torch.testing.assert_close(drawn.std(0), wanted, rtol=0.2, atol=0)
    assert found["fd"] >= 0 and found["fd_low"] <= found["fd"] <= found["fd_high"] and "precision_floor" in found
