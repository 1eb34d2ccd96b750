"""Precision, layout and compilation of updates, in every family; what differs on CUDA is tested with mocks."""

import copy

import pytest
import torch
from torch import nn

from models import family as base
from models.families.autoencoders.contractive_autoencoder import ContractiveAutoencoder
from models.families.autoencoders.vae import VAE
from models.families.classifiers.classifier import Classifier
from models.families.gans.gan import GAN
from models.families.gans.style_gan import StyleGAN
from models.family import Family
from models.training import precision
from models.training.loop import Training
from models.types import ConfigError
from tests.models.data import for_family
from tests.models.test_families import FAMILIES, build

SHAPE = (1, 12, 12)


def updated(family: type[Family], steps: int = 3, **config) -> Training:
    training = build(family, SHAPE, **config)
    training.family.train()
    for _ in range(steps):
        training.advance()
    return training


@pytest.fixture
def products(monkeypatch) -> list[torch.dtype]:
    """The types of the inputs of every convolution and linear layer from now on."""
    seen: list[torch.dtype] = []
    conv, linear = nn.functional.conv2d, nn.functional.linear

    def autocast_type(images: torch.Tensor) -> torch.dtype:
        return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype

    def seen_conv(images, *others, **named):
        seen.append(autocast_type(images))
        return conv(images, *others, **named)

    def seen_linear(rows, *others, **named):
        seen.append(autocast_type(rows))
        return linear(rows, *others, **named)

    monkeypatch.setattr(nn.functional, "conv2d", seen_conv)
    monkeypatch.setattr(nn.functional, "linear", seen_linear)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_changes_the_products_of_updates_and_nothing_else(family):
    plain, fast = updated(family, precision="fp32"), updated(family, precision="bf16")
    states = plain.state(), fast.state()
    assert states[0].tensors.keys() == states[1].tensors.keys()
    for name, tensor in states[1].tensors.items():
        assert tensor.dtype == states[0].tensors[name].dtype, name
        assert tensor.isfinite().all(), name
    assert states[1].facts["config"]["precision"] == "bf16"
    learned = [name for name in states[0].tensors if name.startswith("network/")]
    assert any(not torch.equal(states[0].tensors[name], states[1].tensors[name]) for name in learned)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_bf16_training_equals_an_unbroken_one_bit_for_bit(family):
    part = updated(family, 2, precision="bf16").state()
    whole = updated(family, precision="bf16").state()
    resumed = build(family, SHAPE, precision="bf16")
    resumed.restore(part)
    resumed.family.train()
    resumed.advance()
    for name, tensor in resumed.state().tensors.items():
        assert torch.equal(tensor, whole.tensors[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_inspections_and_snapshots_are_float32(family, products):
    training = updated(family, 1, precision="bf16")
    assert torch.bfloat16 in products
    products.clear()
    training.snapshot()
    training._inspect()
    assert torch.bfloat16 not in products


def test_what_is_differentiated_twice_is_float32(products):
    """R1 and R2 in one batch, gradient penalty, path lengths; the Jacobian of a contractive autoencoder."""
    updated(GAN, 1, precision="bf16", penalty_every=1, r1=1.0, r2=1.0, separate_batches=False, augment="none")
    assert torch.bfloat16 in products
    products.clear()
    updated(ContractiveAutoencoder, 1, precision="bf16", body="mlp", hidden=(8,), latent_dim=4)
    encoder, decoder = products[:2], products[2:4]
    assert torch.bfloat16 not in encoder and torch.bfloat16 in decoder
    model = updated(StyleGAN, 1, precision="bf16", path_length=1.0, path_every=1, latent_dim=8, widest=8).family
    products.clear()
    with precision.full_precision():
        model.generator(torch.randn(2, model.generator.depth, 8, requires_grad=True) * 1.0)
    assert set(products) == {torch.float32}


def test_attacks_in_adversarial_training_are_float32(products):
    config = {"precision": "bf16", "body": "mlp", "hidden": (8,), "latent_dim": 4}
    updated(Classifier, 1, adversarial="free", adversarial_steps=2, **config)
    assert set(products) == {torch.float32}
    products.clear()
    updated(Classifier, 1, adversarial="pgd", adversarial_steps=2, **config)
    assert products.count(torch.bfloat16) == 3  # two layers and the head, once


def test_a_copy_of_a_network_in_training_has_its_own_weights():
    model = updated(VAE, 1, precision="bf16").family
    images = torch.rand(2, *SHAPE)
    other = copy.deepcopy(model.encoder)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    assert not other(images).any() and model.encoder(images).any()
    precision.release(model)
    assert "forward" not in model.encoder.__dict__


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_auto_is_bf16_only_where_the_device_has_it_and_the_family_gains(family, units, monkeypatch):
    spec, *_ = for_family(family, (1, 28, 28))
    monkeypatch.setattr(base, "computes_bf16", lambda device: units)
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(base, "device_type", lambda device=device: device)
        resolved = family.complete_config({}, spec)
        assert resolved.precision == ("bf16" if units and device in family.bf16_on else "fp32")
        monkeypatch.setattr(base, "computes_bf16", lambda device: not units)
        assert family.complete_config(resolved.model_dump(), spec).precision == resolved.precision
        monkeypatch.setattr(base, "computes_bf16", lambda device: units)


def test_auto_is_float32_in_adversarial_training(monkeypatch):
    spec, *_ = for_family(Classifier, (1, 28, 28))
    monkeypatch.setattr(base, "computes_bf16", lambda device: True)
    assert Classifier.complete_config({}, spec).precision == "bf16"
    assert Classifier.complete_config({"adversarial": "pgd"}, spec).precision == "fp32"


def test_a_resumed_training_keeps_the_precision_of_its_start(monkeypatch):
    """The resolved value is in the checkpoint, and a training that goes on elsewhere keeps it."""
    monkeypatch.setattr(base, "computes_bf16", lambda device: True)
    state = updated(VAE, 1).state()
    assert state.facts["config"]["precision"] == "bf16"
    monkeypatch.setattr(base, "computes_bf16", lambda device: False)
    assert VAE.from_stored(state.facts["config"], updated(VAE, 0).family.data, 2).config.precision == "bf16"


@pytest.mark.parametrize("family", FAMILIES)
def test_trainings_of_earlier_releases_stay_float32_on_a_cpu(family, monkeypatch):
    spec, *_ = for_family(family, (1, 28, 28))
    monkeypatch.setattr(base, "computes_bf16", lambda device: True)
    stored = family.stored_config({}, spec, 1)
    assert (stored["precision"], stored["compile"]) == ("fp32", False)


def test_long_trainings_on_cuda_are_compiled_unless_they_must_repeat(monkeypatch):
    spec, *_ = for_family(VAE, (1, 28, 28))
    length = {"images": 64 * base.COMPILED_FROM, "batch_size": 64}
    assert not VAE.complete_config(length, spec).compile
    monkeypatch.setattr(base, "computes_bf16", lambda device: True)
    monkeypatch.setattr(base, "device_type", lambda: "cuda")
    assert VAE.complete_config(length, spec).compile
    assert not VAE.complete_config(length | {"images": 64}, spec).compile
    assert not VAE.complete_config(length | {"deterministic": True}, spec).compile


@pytest.fixture
def accelerated(monkeypatch):
    """As on CUDA, on the CPU; restores the flags of the process."""
    before = torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32
    monkeypatch.setattr(Family, "accelerated", True)
    yield
    torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32 = before
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("family", FAMILIES)
def test_channels_last_gives_the_same_training(family, monkeypatch, accelerated):
    found = updated(family, precision="fp32")
    kernels = [weight for weight in found.family.parameters() if weight.ndim == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)
    monkeypatch.setattr(Family, "accelerated", False)
    plain = updated(family, precision="fp32").state().tensors
    for name, tensor in found.state().tensors.items():
        torch.testing.assert_close(tensor, plain[name], atol=2e-2, rtol=2e-2, msg=name)


@pytest.mark.parametrize("deterministic", [True, False])
def test_kernels_on_cuda(deterministic, accelerated):
    updated(VAE, 1, deterministic=deterministic)
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.benchmark != deterministic
    assert torch.are_deterministic_algorithms_enabled() == deterministic


def test_an_operation_without_a_deterministic_kernel_is_named(monkeypatch):
    def step(*args):
        raise RuntimeError("reflection_pad2d_backward does not have a deterministic implementation, but you set ...")

    monkeypatch.setattr(VAE, "step", step)
    with pytest.raises(ConfigError, match="reflection_pad2d") as caught:
        updated(VAE, 1, deterministic=True)
    assert caught.value.field == "config/deterministic"
    with pytest.raises(RuntimeError, match="reflection_pad2d"):
        updated(VAE, 1)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("number", ["fp32", "bf16"])
@pytest.mark.parametrize("family", [GAN, VAE, ContractiveAutoencoder])
def test_compiled_passes_train_alike(family, number, accelerated, monkeypatch):
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    monkeypatch.setattr(precision, "COMPILER", backend)
    plain = updated(family, precision=number).state().tensors
    assert not calls
    found = updated(family, precision=number, compile=True)
    assert calls
    for name, tensor in plain.items():
        torch.testing.assert_close(found.state().tensors[name], tensor, atol=1e-4, rtol=1e-4, msg=name)
    count = len(calls)
    found.snapshot()
    assert len(calls) == count  # eval mode is not compiled
