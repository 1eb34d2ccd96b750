"""Autoencoders against what is known of them, and on real digits."""

import math

import numpy as np
import pytest
import torch

from models.context import StepContext
from models.data import Columns
from models.evaluation import metrics
from models.families.autoencoders.autoencoder import Autoencoder
from models.families.autoencoders.denoising_autoencoder import DenoisingAutoencoder
from models.families.autoencoders.vae import VAE
from models.family import Family
from models.training.loop import Training
from models.types import ConfigError, DataSpec
from tests.models.data import dataset, digits


def train(family: type[Family], data=None, **config) -> tuple[Family, dict[str, float]]:
    spec, training_rows, validation = data or digits()
    torch.manual_seed(0)
    training = Training(family.create(config, spec), training_rows, validation)
    for _ in training.run():
        pass
    return training.family, training.finish()


def plane(count: int = 600, axes: int = 12) -> tuple[DataSpec, Columns, Columns]:
    """Grey 6x6 images with a spectrum that falls off: some of it fits a small code, some does not."""
    draws = np.random.default_rng(0)
    basis = np.linalg.qr(draws.normal(size=(36, axes)))[0] * (60 * 0.7 ** np.arange(axes))
    rows = (128 + draws.normal(size=(count, axes)) @ basis.T).clip(0, 255).astype(np.uint8).reshape(-1, 1, 6, 6)
    columns = Columns({"images": rows})
    return DataSpec("plain", 6, 6, 1, None, {"train": {"images": count}}), columns, columns


def test_linear_autoencoder_converges_to_pca():
    data = plane()
    model, found = train(Autoencoder, data, body="linear", latent_dim=3, epochs=120, learning_rate=0.1)
    assert 1 - 1e-6 <= found["mse"] / found["mse_pca"] < 1.03
    pixels = torch.as_tensor(data[1].columns["images"]).flatten(1).double() / 255
    axes = metrics.principal_axes(pixels - pixels.mean(0), 3)
    decoder = torch.linalg.qr(model.decoder.layers[0].weight.double())[0]
    assert torch.linalg.svdvals(axes @ decoder).min() > 0.99  # the same plane


@pytest.mark.parametrize("likelihood", ["gaussian"])
def test_importance_sampled_likelihood_of_linear_gaussian_vae_is_exact(likelihood):
    spec = plane()[0]
    torch.manual_seed(0)
    model = VAE.create({"body": "linear", "latent_dim": 2, "likelihood": likelihood}, spec).eval()
    weight, sigma = 0.3 * torch.randn(36, 2), 0.4
    with torch.no_grad():
        model.decoder.layers[0].weight.copy_(weight)
        model.log_spread.fill_(math.log(sigma))
        posterior = torch.linalg.inv(torch.eye(2) + weight.T @ weight / sigma**2)  # Bishop, eq. 12.42
        model.encoder.layers[0].weight[:2] = posterior @ weight.T / sigma**2
        model.encoder.layers[0].bias[:2] = -posterior @ weight.T @ model.decoder.layers[0].bias / sigma**2
        model.encoder.layers[0].weight[2:] = 0
        model.encoder.layers[0].bias[2:] = 2 * torch.log(1.3 * posterior.diagonal().sqrt())  # wider than needed
        images = torch.rand(5, 1, 6, 6)
        found = model.importance_nll(images, 4000, torch.Generator().manual_seed(1))
        covariance = weight @ weight.T + sigma**2 * torch.eye(36)
        exact = torch.distributions.MultivariateNormal(model.decoder.layers[0].bias, covariance)
        torch.testing.assert_close(found, -exact.log_prob(images.flatten(1)), atol=0.1, rtol=0)


def test_vae_objectives_minimise_their_own_terms():
    data = dataset("plain", (1, 8, 8), 64)
    short = {"images": 3200, "batch_size": 16, "body": "mlp", "latent_dim": 4}
    parts = {name: train(VAE, data, objective=name, **short)[1] for name in ("elbo", "reconstruction_only", "kl_only")}
    assert parts["kl_only"]["kl"] < 0.05 < parts["elbo"]["kl"] < parts["reconstruction_only"]["kl"]
    assert parts["reconstruction_only"]["reconstruction"] < parts["kl_only"]["reconstruction"]
    assert parts["kl_only"]["active_units"] == 0


def test_beta_lowers_and_free_bits_raise_the_kl():
    data = dataset("plain", (1, 8, 8), 64)
    short = {"images": 3200, "batch_size": 16, "body": "mlp", "latent_dim": 4}
    weak, plain, strong = (train(VAE, data, beta=beta, **short)[1]["kl"] for beta in (0.1, 1, 50))
    assert strong < plain < weak
    free = train(VAE, data, beta=50, free_bits=0.5, **short)[1]["kl"]
    assert free > 0.1 > 100 * strong


def test_kl_warm_up_starts_at_zero():
    spec, rows, validation = dataset("plain", (1, 8, 8), 64)
    training = Training(VAE.create({"images": 640, "batch_size": 16, "kl_warm_up": 0.5}, spec), rows, validation)
    first = training.advance().metrics
    assert float(first["loss"]) == pytest.approx(float(first["reconstruction"]), rel=1e-6)


@pytest.mark.parametrize("likelihood", ["gaussian", "discretised_logistic"])
def test_colour_images_are_learned_under_their_likelihoods(likelihood):
    data = dataset("plain", (3, 16, 20), 64)
    _, found = train(VAE, data, likelihood=likelihood, images=3200, batch_size=16, latent_dim=16)
    assert found["mse"] < 0.7 * found["mse_mean_image"]
    if likelihood == "discretised_logistic":
        assert 0 < found["bits_per_number"] < 8


def test_samples_of_a_vae_come_from_the_prior_or_the_mixture():
    data = dataset("plain", (1, 8, 8), 64)
    noise, uniform = torch.randn(5, 4), torch.rand(5)
    short = {"images": 320, "batch_size": 16, "latent_dim": 4}
    assert torch.equal(train(VAE, data, sampler="prior", **short)[0].draw(noise, uniform), noise)
    model, found = train(VAE, data, **short)
    assert not torch.equal(model.draw(noise, uniform), noise)
    assert torch.equal(model.draw_from("prior", noise, uniform), noise)
    assert found["fd_prior"] > 0 and found["fd"] != found["fd_prior"]


@pytest.mark.parametrize(("count", "components"), [
    (20, 1), (100, 5), (1000, 10), (4000, 33), (60_000, 100),
])  # fmt: skip
def test_the_mixture_grows_with_the_dataset(count, components):
    spec = DataSpec("plain", 8, 8, 1, columns={"train": {"images": count}})
    assert len(VAE.create({}, spec).mixture.shares) == components
    assert len(VAE.create({"components": 3}, spec).mixture.shares) == 3


@pytest.mark.parametrize("family", [VAE, Autoencoder])
def test_models_of_the_last_release_keep_their_sampler_and_ten_components(family):
    spec = DataSpec("plain", 8, 8, 1, columns={"train": {"images": 4000}})
    model = family.from_stored({"latent_dim": 4}, spec, engine=1)
    assert len(model.mixture.shares) == 10
    assert model.config.sampler == ("prior" if family is VAE else "mixture")


def test_a_conditional_vae_draws_codes_from_the_prior_by_default():
    assert VAE.create({"conditional": True}, dataset("labelled", (1, 8, 8), 32)[0]).config.sampler == "prior"


def test_nll_lies_below_the_elbo_of_the_same_draws_and_has_an_interval():
    _, found = train(VAE, dataset("plain", (1, 8, 8), 64), images=640, batch_size=16, latent_dim=4)
    assert found["nll_low"] < found["nll"] < found["nll_high"]
    assert found["nll"] <= found["nll_nelbo"]


def test_the_importance_weighted_bound_of_one_code_is_the_elbo_and_of_more_is_tighter():
    spec, rows, _ = dataset("plain", (1, 8, 8), 64)
    batch, losses = rows.head(64), []
    for config in ({"kl_warm_up": 0}, {"objective": "iwae", "importance_samples": 1}, {"objective": "iwae"}):
        torch.manual_seed(0)
        model = VAE.create({"images": 640, "latent_dim": 4, "body": "mlp", **config}, spec).train()
        with torch.no_grad():
            draws = [StepContext(640, 640, 1, 0, torch.Generator().manual_seed(seed)) for seed in range(20)]
            losses.append(sum(float(model.loss(batch, draw)[0]) for draw in draws) / len(draws))
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert losses[2] < losses[1]


@pytest.mark.parametrize("body", ["linear", "mlp", "conv", "unet"])
def test_denoiser_adds_noise_in_training_only(body):
    model, _ = train(DenoisingAutoencoder, dataset("plain", (1, 16, 16), 32), images=64, batch_size=16, body=body)
    model.eval()
    image = torch.rand(2, 1, 16, 16)
    assert torch.equal(model.denoise(image), model.denoise(image))
    assert torch.equal(model.encode(image), model.encode(image))


def test_a_conv_body_for_images_too_small_for_it_is_refused():
    with pytest.raises(ConfigError) as caught:
        Autoencoder.create({"body": "conv"}, DataSpec("plain", 4, 3, 1))
    assert caught.value.field == "config/body"


def test_an_autoencoder_of_large_enough_images_is_residual_and_shifts_them():
    spec = DataSpec("plain", 28, 28, 1, columns={"train": {"images": 4000}})
    new = Autoencoder.create({"effort": "full"}, spec).config
    assert (new.body, new.shift, new.images) == ("resnet", 1, 100_000)
    small = Autoencoder.create({"effort": "full"}, DataSpec("plain", 8, 8, 1)).config
    assert (small.body, small.shift) == ("mlp", 0)
    old = Autoencoder.from_stored({}, spec, engine=1).config
    assert (old.body, old.shift) == ("conv", 0)


def test_a_shift_moves_input_and_target_together_in_training_only():
    spec, rows, _ = dataset("plain", (1, 24, 24), 32)
    model = Autoencoder.create({"body": "conv", "latent_dim": 4, "linear_path": "none", "shift": 4}, spec)
    context = StepContext(0, 640, 0, 0, torch.Generator().manual_seed(0))
    seen = []
    model.encode = lambda images: seen.append(images) or torch.zeros(len(images), 4)
    model.image_error = lambda output, images: seen.append(images) or images.flatten(1).sum(1)
    batch = rows.head(4)
    model.train().loss(batch, context)
    model.eval().loss(batch, context)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], batch["images"])
    assert torch.equal(seen[2], batch["images"]) and torch.equal(seen[3], batch["images"])


@pytest.mark.parametrize("family", [Autoencoder, VAE])
def test_a_residual_body_learns_at_any_size(family):
    data = dataset("plain", (3, 14, 21), 64)
    model, found = train(family, data, body="resnet", width=8, latent_dim=16, images=3200, batch_size=16)
    assert found["mse"] < 0.7 * found["mse_mean_image"]
    served = family.create(model.config.model_dump(), data[0]).load_for_serving(model.serving_state())
    images = data[2].head(3)["images"]
    torch.testing.assert_close(served.encode(images), model.eval().encode(images))


def test_a_conditional_vae_decodes_with_a_residual_body():
    spec = dataset("labelled", (1, 12, 12), 32)[0]
    model = VAE.create({"conditional": True, "body": "resnet", "width": 4, "latent_dim": 3}, spec).eval()
    codes = torch.randn(1, 3).expand(2, 3)
    images = model.decode(codes, torch.tensor([0, 1]))
    assert images.shape == (2, 1, 12, 12) and not torch.equal(images[0], images[1])


@pytest.mark.parametrize(("dark", "loss"), [(0.9, "bce"), (0.2, "mse")])
def test_a_denoiser_chooses_its_loss_from_the_pixels(dark, loss):
    draws = np.random.default_rng(0)
    images = draws.integers(60, 200, (40, 1, 12, 12)) * (draws.random((40, 1, 12, 12)) > dark)
    columns = Columns({"images": images.astype(np.uint8)})
    spec = DataSpec("plain", 12, 12, 1, None, {"train": {"images": 40}})
    model = DenoisingAutoencoder.create({"images": 32, "batch_size": 16}, spec)
    Training(model, columns, columns)
    assert model.config.reconstruction == loss
    again = DenoisingAutoencoder.create(model.config.model_dump(), spec)
    Training(again, Columns({"images": 255 - images.astype(np.uint8) // 2}), columns)
    assert again.config.reconstruction == loss  # settled once


def test_denoisers_of_the_last_release_keep_loss_and_width():
    spec = DataSpec("plain", 28, 28, 1, columns={"train": {"images": 4000}})
    old = DenoisingAutoencoder.from_stored({}, spec, engine=1).config
    assert (old.reconstruction, old.width) == ("mse", 16)
    widths = [DenoisingAutoencoder.create({"effort": effort}, spec).config.width for effort in ("lesson", "good")]
    assert widths == [16, 32]


def test_wide_codes_can_be_sampled():
    data = dataset("plain", (1, 8, 8), 32)
    model, found = train(Autoencoder, data, images=64, batch_size=16, latent_dim=500, body="mlp")
    images = model.decode(model.draw(torch.randn(4, 500), torch.rand(4)))
    assert images.shape == (4, 1, 8, 8) and math.isfinite(found["mse"])


def test_codes_of_real_digits_beat_pca_of_the_same_size():
    _, found = train(Autoencoder, epochs=6)
    assert found["mse"] <= 0.6 * found["mse_pca"]
    assert found["knn_accuracy"] >= 0.9


def test_the_bound_of_a_vae_on_real_digits():
    _, found = train(VAE, epochs=9)
    assert found["nelbo"] <= 112
    assert found["nll"] < found["nelbo"]
    assert found["active_units"] >= 16


def test_denoiser_restores_half_of_the_pixels_of_digits():
    _, found = train(DenoisingAutoencoder, epochs=3, noise="masking", p=0.5)
    assert found["psnr_noisy"] == pytest.approx(12.5, abs=0.3)
    assert found["psnr_gain"] >= 5
    assert found["psnr_gain"] > found["psnr_gain_median_filter"]
