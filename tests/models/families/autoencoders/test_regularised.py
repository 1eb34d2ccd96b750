"""What keeps a wide code from copying: weight penalties, sparsity, contraction."""

import math

import pytest
import torch
from torch.func import jacrev, vmap

from models.evaluation import metrics
from models.families.autoencoders.autoencoder import Autoencoder, soft_threshold
from models.families.autoencoders.base import reconstruction_mse
from models.families.autoencoders.contractive_autoencoder import ContractiveAutoencoder
from models.families.autoencoders.sparse_autoencoder import SparseAutoencoder
from models.losses import reconstruction as losses
from models.operations.samples import Samples
from models.training.loop import Training
from models.types import ConfigError, DataSpec, InputError
from tests.models.data import dataset

DATA = dataset("plain", (1, 8, 8), 64)
SHORT = {"images": 3200, "batch_size": 16}


def train(family, data=DATA, **config):
    torch.manual_seed(0)
    training = Training(family.create(SHORT | config, data[0]), *data[1:])
    for _ in training.run():
        pass
    return training.family, training.finish()


def jacobian_norms(model, images: torch.Tensor) -> torch.Tensor:
    """(b,): |d code / d image|_F^2, the long way."""
    jacobians = vmap(jacrev(lambda image: model.encode(image[None])[0]))(images)
    return jacobians.flatten(1).square().sum(1)


@pytest.mark.parametrize("code", ["sigmoid", "relu", "linear"])
def test_contraction_of_one_layer_is_exact_jacobian_norm(code):
    torch.manual_seed(0)
    model = ContractiveAutoencoder.create({"code": code, "latent_dim": 20}, DATA[0])
    images = torch.rand(5, 1, 8, 8)
    norms = model.contraction(model.encode(images), images, torch.Generator())
    torch.testing.assert_close(norms, jacobian_norms(model, images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("body", ["mlp", "conv"])
def test_deep_contraction_is_unbiased_estimate_of_jacobian_norm(body):
    torch.manual_seed(0)
    model = ContractiveAutoencoder.create({"body": body, "latent_dim": 6, "code": "linear"}, DATA[0])
    images = torch.rand(2, 1, 8, 8, requires_grad=True)
    draws = torch.Generator().manual_seed(0)
    found = losses.hutchinson_contraction(model.encode(images), images, draws, probes=800)
    torch.testing.assert_close(found, jacobian_norms(model, images.detach()), rtol=0.1, atol=0)


def test_one_random_direction_is_exact_for_one_unit():
    torch.manual_seed(0)
    model = ContractiveAutoencoder.create({"body": "mlp", "latent_dim": 1}, DATA[0])
    images = torch.rand(4, 1, 8, 8, requires_grad=True)
    found = losses.hutchinson_contraction(model.encode(images), images, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, jacobian_norms(model, images.detach()), rtol=1e-4, atol=0)


@pytest.mark.parametrize("body", ["linear", "mlp"])
def test_the_penalty_contracts(body):
    free, tight = (train(ContractiveAutoencoder, body=body, latent_dim=32, contraction=c)[1] for c in (0.0, 1.0))
    assert tight["contraction"] < 0.5 * free["contraction"]


def test_tied_decoder_uses_encoder_weights():
    model = ContractiveAutoencoder.create({"latent_dim": 20, "code": "linear"}, DATA[0])
    weight, codes = model.encoder.last.weight, torch.randn(3, 20)
    torch.testing.assert_close(model.decoder_output(codes), (codes @ weight).unflatten(1, (1, 8, 8)))
    assert sum(parameter.numel() for parameter in model.parameters()) == weight.numel() + 20 + 64
    assert ContractiveAutoencoder.create({"body": "mlp"}, DATA[0]).config.tied is False
    with pytest.raises(ConfigError, match="tied=true needs"):
        ContractiveAutoencoder.create({"body": "mlp", "tied": True}, DATA[0])


def test_a_soft_threshold_shrinks_by_its_size_and_makes_zeros():
    weights = torch.tensor([-1.0, -0.1, 0.0, 0.05, 2.0])
    soft_threshold([weights], 0.1)
    torch.testing.assert_close(weights, torch.tensor([-0.9, 0.0, 0.0, 0.0, 1.9]))


def test_l1_makes_exact_zeros_of_kernels_and_leaves_biases():
    model, found = train(Autoencoder, body="mlp", latent_dim=8, l1_kernel=1.0)
    assert found["zero_weights"] > 0.3
    assert all((bias != 0).float().mean() > 0.9 for bias in model.biases)
    _, plain = train(Autoencoder, body="mlp", latent_dim=8)
    assert "zero_weights" not in plain and plain["mse"] < found["mse"]


@pytest.mark.parametrize("kind", ["kernel", "bias"])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_each_penalty_shrinks_its_own_weights(norm, kind):
    def size(model):
        return sum(float(item.detach().abs().sum()) for item in (model.kernels if kind == "kernel" else model.biases))

    free, held = (train(Autoencoder, body="mlp", latent_dim=8, **{f"{norm}_{kind}": w})[0] for w in (0.0, 1.0))
    assert size(held) < 0.7 * size(free)


def test_an_over_complete_code_without_a_penalty_is_caught_copying():
    model, found = train(Autoencoder, body="linear", latent_dim=128, images=20_000)
    assert found["mse_noise"] < 2 * found["mse"] or found["mse"] < 1e-4
    small, measured = train(Autoencoder, body="linear", latent_dim=4)
    assert small.warnings(measured) == []
    assert model.warnings({"mse": 0.01, "mse_noise": 0.015})[0].startswith("The model copies its input")
    assert model.warnings({"mse": 0.01, "mse_noise": 0.05}) == []


def test_activity_divergence_of_known_values():
    activity = torch.tensor([0.05, 0.5])
    expected = [0.0, 0.05 * math.log(0.1) + 0.95 * math.log(1.9)]
    torch.testing.assert_close(losses.activity_divergence(activity, 0.05), torch.tensor(expected))


@pytest.mark.parametrize("sparsity", ["l1", "top_k"])
def test_the_columns_of_a_dictionary_have_length_one(sparsity):
    model, _ = train(SparseAutoencoder, sparsity=sparsity, latent_dim=96)
    lengths = model.decoder.layers[0].weight.norm(dim=0)
    torch.testing.assert_close(lengths, torch.ones(96))


def test_more_weight_means_fewer_active_units():
    l1 = {"sparsity": "l1", "revive_after": 0}
    counts = [train(SparseAutoencoder, weight=weight, **l1)[1]["l0"] for weight in (0.0, 0.1, 1.0)]
    assert counts[0] > counts[1] > counts[2]


def test_top_k_keeps_at_most_k_the_largest():
    torch.manual_seed(0)
    model = SparseAutoencoder.create({"sparsity": "top_k", "k": 5, "latent_dim": 40}, DATA[0])
    images = torch.rand(7, 1, 8, 8)
    codes, everything = model.encode(images), model.code(model.encoder(images))
    assert ((codes > 0).sum(1) <= 5).all()
    torch.testing.assert_close(codes.sum(1), everything.topk(5, 1).values.sum(1))


def test_kl_brings_the_mean_activity_to_rho():
    model, _ = train(SparseAutoencoder, sparsity="kl", rho=0.1, weight=30.0, latent_dim=64)
    images = DATA[1].head(64)["images"]
    assert model.encode(images).mean().item() == pytest.approx(0.1, abs=0.03)


def test_a_unit_that_never_fires_starts_anew():
    def dead_unit(revive_after: float):
        torch.manual_seed(0)
        training = Training(
            SparseAutoencoder.create(SHORT | {"sparsity": "l1", "revive_after": revive_after}, DATA[0]), *DATA[1:]
        )
        with torch.no_grad():
            training.family.encoder.last.bias[3] = -1e3
        for _ in training.run():
            pass
        codes = training.family.encode(DATA[1].head(64)["images"])
        return bool((codes[:, 3] > 0).any()), training.finish()

    assert dead_unit(0)[0] is False
    alive, found = dead_unit(2)
    assert alive and found["revived_units"] >= 1


def test_many_dead_units_are_remarked_upon_with_the_remedy():
    model = SparseAutoencoder.create({"latent_dim": 100}, DATA[0])
    assert "revive_after" in model.warnings({"dead_units": 50})[0]
    assert model.warnings({"dead_units": 5}) == []


@pytest.mark.parametrize(
    "config", [{"sparsity": "kl", "code": "relu"}, {"sparsity": "top_k", "k": 64, "latent_dim": 9}]
)
def test_settings_that_contradict_each_other_are_refused(config):
    with pytest.raises(ConfigError):
        SparseAutoencoder.create(config, DATA[0])


@pytest.mark.parametrize(("shape", "k"), [((1, 28, 28), 32), ((3, 32, 32), 40), ((1, 8, 8), 8)])
def test_a_sparse_code_keeps_few_units_by_default(shape, k):
    config = SparseAutoencoder.create({}, DataSpec("plain", *shape[1:], shape[0])).config
    assert (config.sparsity, config.k) == ("top_k", k)
    assert SparseAutoencoder.from_stored({}, DataSpec("plain", 8, 8, 1), engine=1).config.sparsity == "l1"


def test_a_model_without_components_draws_no_samples():
    model, found = train(SparseAutoencoder, images=320, components=0)
    assert model.samplers == () and "fd" not in found
    with pytest.raises(InputError) as caught:
        Samples().rows(model, None, Samples.Params())
    assert caught.value.field == "model"
    old = SparseAutoencoder.from_stored({}, DATA[0], engine=1)
    assert len(Samples().rows(old, None, Samples.Params(n=3))["noise"]) == 3


def test_a_small_contractive_code_starts_at_pca_and_stays_as_good():
    data = dataset("plain", (1, 12, 12), 96)
    model = ContractiveAutoencoder.create({"latent_dim": 8, "images": 16, "batch_size": 16}, data[0])
    assert (model.config.tied, model.config.reconstruction) == (False, "mse")
    model.before_training(data[1])
    pca = metrics.pca_mse(data[1], data[2], 8)
    with torch.no_grad():
        assert reconstruction_mse(model, data[2]) < 1.1 * pca
    assert train(ContractiveAutoencoder, data, latent_dim=8)[1]["mse"] < 1.1 * pca


def test_contractive_models_of_the_last_release_keep_their_tied_weights():
    old = ContractiveAutoencoder.from_stored({"latent_dim": 8}, DATA[0], engine=1).config
    assert (old.tied, old.reconstruction, old.contraction) == (True, "bce", 0.1)
