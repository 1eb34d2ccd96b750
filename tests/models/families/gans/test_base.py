"""Updates of G and D: which network learns from what, and the effect of each setting."""

import math

import pytest
import torch

from models.context import StepContext
from models.families.gans.gan import GAN
from models.families.gans.updates import DInput, saturation
from models.nn.ema import Ema
from tests.models.families.gans.tiny import build, columns, spec, train


def context(images: int = 0, step: int = 0, seed: int = 0) -> StepContext:
    return StepContext(images, 32, step, 0, torch.Generator().manual_seed(seed))


def weights(network) -> list[torch.Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def first_update(model) -> tuple[torch.Tensor, torch.Tensor]:
    """D's logits of reals and fakes in the first update, and its metrics."""
    logits = {}
    d_forward = model.d_forward

    def spy(reals, fakes):
        logits["a"], logits["b"], penalties = d_forward(reals, fakes)
        return logits["a"], logits["b"], penalties

    model.d_forward = spy
    metrics = model.step({"images": columns(model.data).head(4)["images"]}, model.optimisers(), context())
    del model.d_forward
    return logits["a"].detach(), logits["b"].detach(), metrics


def test_an_update_of_d_leaves_g_unchanged_and_vice_versa():
    model = build(GAN)
    optimisers = model.optimisers()
    reals, fakes = DInput(torch.rand(4, 1, 8, 8)), DInput(model.generate(4, None, context()))
    before = weights(model.generator)
    model._update_discriminator(reals, DInput(fakes.images.detach()), optimisers["discriminator"], context())
    assert same(before, weights(model.generator)) and all(p.grad is None for p in model.generator.parameters())
    gradients = [p.grad.clone() for p in model.discriminator.parameters()]
    before = weights(model.discriminator)
    model._update_generator(fakes, reals, optimisers["generator"], context())
    assert same(before, weights(model.discriminator))
    assert same(gradients, [p.grad for p in model.discriminator.parameters()])
    assert all(p.requires_grad and p.grad is not None for p in model.generator.parameters())
    assert all(p.requires_grad for p in model.discriminator.parameters())


def test_g_is_updated_after_every_critic_steps_updates_of_d():
    model = build(GAN, critic_steps=3)
    training = train(model, 0)
    changed = []
    for _ in range(6):
        before = weights(model.generator), weights(model.discriminator), weights(model.ema)
        training.advance()
        assert not same(before[1], weights(model.discriminator))
        changed.append((not same(before[0], weights(model.generator)), not same(before[2], weights(model.ema))))
    assert changed == [(False, False), (False, False), (True, True)] * 2


def test_lazy_penalties_have_the_same_total_weight():
    model = build(GAN, penalty_every=3, r1=0.5)
    training = train(model, 0)
    assert ["r1" in training.advance().metrics for _ in range(7)] == [True, False, False] * 2 + [True]
    eager, lazy = (build(GAN, penalty_every=every, r1=0.5, discriminator_optimiser="sgd", beta1=0) for every in (1, 4))
    plain = build(GAN, r1=0, discriminator_optimiser="sgd", beta1=0)
    for each in (eager, lazy, plain):
        first_update(each)
    all_weights = (weights(model.discriminator) for model in (eager, lazy, plain))
    for a, b, c in zip(*all_weights, strict=True):
        torch.testing.assert_close(b - c, 4 * (a - c), atol=1e-6, rtol=1e-3)


def test_game_value_equals_its_formula_in_the_logits():
    a, b, metrics = first_update(build(GAN))
    hand = torch.log(a.sigmoid()).mean() + torch.log(1 - b.sigmoid()).mean()
    torch.testing.assert_close(metrics["value"], hand)
    torch.testing.assert_close(metrics["d_real"], a.sigmoid().mean())
    torch.testing.assert_close(metrics["d_fake"], b.sigmoid().mean())
    assert metrics["loss_discriminator"] == pytest.approx(-hand.item())


def test_label_smoothing_changes_only_the_loss_of_real_images():
    plain, smooth = build(GAN), build(GAN, label_smoothing=0.1)
    a, b, first = first_update(plain)
    again, other, second = first_update(smooth)
    assert torch.equal(a, again) and torch.equal(b, other)
    difference = second["loss_discriminator"] - first["loss_discriminator"]
    torch.testing.assert_close(difference, 0.1 * a.mean(), atol=1e-6, rtol=1e-4)  # t a with t = 0.9 for 1


def test_label_flips_swap_the_requested_fraction():
    model = build(GAN, label_flips=0.25)
    real, fake = model._flips(4000, context())
    assert all(mask.double().mean() == pytest.approx(0.25, abs=0.03) for mask in (real, fake))
    assert not torch.equal(real, fake) and build(GAN)._flips(4, context()) is None


def test_instance_noise_decreases_to_zero_during_training():
    images = torch.zeros(8, 1, 8, 8)
    noisy = build(GAN, instance_noise=0.5, augment="none")
    assert noisy._augmented(DInput(images), context(0)).images.std() == pytest.approx(0.5, abs=0.05)
    assert noisy._augmented(DInput(images), context(16)).images.std() == pytest.approx(0.25, abs=0.03)
    assert noisy._augmented(DInput(images), context(32)).images is images
    assert build(GAN, augment="none")._augmented(DInput(images), context(0)).images is images


@pytest.mark.parametrize("augment", ["diff", "adaptive"])
def test_reals_and_fakes_are_augmented_in_both_updates(augment):
    model, calls = build(GAN, augment=augment), []
    disguised = model._augmented
    model._augmented = lambda shown, now: calls.append(shown.images) or disguised(shown, now)
    model.step({"images": torch.rand(4, 1, 8, 8)}, model.optimisers(), context())
    assert len(calls) == 3 and torch.equal(calls[0], calls[2].detach()) and calls[2].requires_grad


def test_half_of_the_fakes_for_d_come_from_the_replay_pool():
    model = build(GAN, replay=64)
    for value in (0.1, 0.2, 0.3, 0.4):
        model.replay_fakes(DInput(torch.full((16, 1, 8, 8), value)), context())
    shown = model.replay_fakes(DInput(torch.full((40, 1, 8, 8), 0.9)), context()).images
    assert 10 <= int((shown[:, 0, 0, 0] < 0.5).sum()) <= 30
    assert any(name.startswith("replay") for name in model.state_dict())
    assert not any(name.startswith("replay") for name in model.serving_state())


def test_joint_batches_share_batch_norm_statistics():
    reals, fakes = DInput(torch.rand(4, 1, 8, 8)), DInput(-torch.rand(4, 1, 8, 8))
    apart, joint = (build(GAN, discriminator_norm="batch", separate_batches=separate) for separate in (True, False))
    network = apart.discriminator
    assert torch.equal(apart.d_forward(reals, fakes)[0], network(reals.images))
    a, b, _ = joint.d_forward(reals, fakes)
    together = network(torch.cat([reals.images, fakes.images]))
    torch.testing.assert_close(torch.cat([a, b]), together)
    assert not torch.allclose(a, network(reals.images), atol=1e-4)


def test_latents_have_the_requested_distribution():
    noise = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(build(GAN, latent_dim=16).to_latents(noise), noise)
    sphere = build(GAN, latent_dim=16, latent="sphere").to_latents(noise)
    torch.testing.assert_close(sphere.norm(dim=1), torch.full((500,), 4.0))
    uniform = build(GAN, latent_dim=16, latent="uniform").to_latents(noise)
    assert uniform.abs().max() < 1 and uniform.square().mean() == pytest.approx(1 / 3, abs=0.02)


def test_each_network_has_the_requested_optimiser():
    optimisers = build(GAN, discriminator_optimiser="sgd", discriminator_learning_rate=0.05).optimisers()
    assert isinstance(optimisers["discriminator"], torch.optim.SGD) and isinstance(
        optimisers["generator"], torch.optim.Adam
    )
    assert (
        optimisers["discriminator"].param_groups[0]["lr"] == 0.05
        and optimisers["generator"].param_groups[0]["lr"] == 1e-3
    )
    for name in ("generator", "discriminator"):
        model = build(GAN)
        mine = [p for group in model.optimisers()[name].param_groups for p in group["params"]]
        assert [id(p) for p in mine] == [id(p) for p in getattr(model, name).parameters()]


def test_layers_of_d_follow_the_settings():
    images = torch.rand(2, 1, 8, 8)
    layer = {how: build(GAN, downsampling=how).discriminator.convs[0] for how in ("stride", "average", "max")}
    assert layer["stride"].conv.stride == (2, 2)
    wide = layer["average"].conv(images)
    torch.testing.assert_close(layer["average"](images), torch.nn.functional.avg_pool2d(wide, 2))
    torch.testing.assert_close(layer["max"](images), torch.nn.functional.max_pool2d(layer["max"].conv(images), 2))
    assert build(GAN, activation="relu").discriminator.features(images).min() == 0
    assert build(GAN, activation="leaky_relu").discriminator.features(images).min() < 0
    spread = [build(GAN, minibatch_stddev=on).discriminator.last.in_features for on in (True, False)]
    assert spread[0] - spread[1] == 16  # one more 4x4 map


def test_dropout_is_active_in_sampling_only_if_requested():
    latents = torch.randn(3, 64)
    plain, off, on = (
        build(GAN, generator_dropout=rate, dropout_when_sampling=keep).eval()
        for rate, keep in ((0.0, False), (0.5, False), (0.5, True))
    )
    assert torch.equal(plain.decode(latents), off.decode(latents))
    assert not torch.allclose(plain.decode(latents), on.decode(latents), atol=1e-3)
    assert torch.equal(on.decode(latents), on.decode(latents))


def test_spectral_norm_of_every_layer_of_d_is_one():
    model = build(GAN, discriminator_norm="spectral")
    for _ in range(200):
        model.discriminator(torch.rand(4, 1, 8, 8))
    for layer in [*(conv.conv for conv in model.discriminator.convs), model.discriminator.last]:
        assert torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2) == pytest.approx(1, abs=1e-3)


def test_ema_covers_half_of_the_distance_in_a_half_life():
    source = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(source.weight)
    average = Ema(source, half_life=96, ramp=None)
    torch.nn.init.ones_(source.weight)
    for step in range(12):
        average.update(source, 8, 8 * (step + 1))
    assert average.module.weight.item() == pytest.approx(0.5)


def test_saturating_and_non_saturating_gradient_norms_are_reported():
    model = build(GAN, images=4 * 16)
    training = train(model, 15)
    assert {"gradient_saturating", "gradient_non_saturating"} <= training.advance().metrics.keys()
    b = torch.full((4,), -12.0) + 0 * model.generator(torch.randn(4, 64)).mean((1, 2, 3))
    means = model.generator(torch.randn(4, 64)).mean((1, 2, 3))
    norms = saturation(model.generator, b.detach() + means)
    assert norms["gradient_saturating"] < 1e-3 * norms["gradient_non_saturating"]


def test_ada_probability_rises_while_d_is_confident_and_is_bounded():
    model = build(GAN, augment="adaptive", images=4000)
    ramp = model.adaptive.ramp_images
    for step in range(4):
        model.adaptive.observe(torch.full((4,), 5.0), step)
    assert model.adaptive.p.item() == pytest.approx(16 / ramp)
    for step in range(8):
        model.adaptive.observe(torch.full((4,), -5.0), step)
    assert model.adaptive.p.item() == 0
    images = torch.rand(6, 1, 8, 8)
    assert torch.equal(model.adaptive(images, context().generator), images)  # p = 0 is the identity
    model.adaptive.p.fill_(1)
    assert not torch.allclose(model.adaptive(images, context().generator), images, atol=0.05)


EVERYTHING = {
    "replay": 8,
    "augment": "adaptive",
    "generator_dropout": 0.2,
    "dropout_when_sampling": True,
    "instance_noise": 0.3,
    "label_flips": 0.1,
    "critic_steps": 2,
    "penalty_every": 3,
    "discriminator_norm": "spectral",
}


@pytest.mark.parametrize("config", [EVERYTHING, {"body": "fast"}, {"loss": "wasserstein", "body": "mlp"}])
@pytest.mark.parametrize("steps", [3, 4])
def test_a_resumed_training_equals_an_unbroken_one(config, steps):
    whole = train(build(GAN, **config)).state()
    part = train(build(GAN, **config), steps).state()
    resumed = train(build(GAN, seed=9, **config), 0)
    resumed.restore(part)
    train(resumed.family, training=resumed)
    end = resumed.state()
    assert end.facts == whole.facts and end.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(end.tensors[name], tensor) for name, tensor in whole.tensors.items())


@pytest.mark.parametrize("size", [(8, 8, 1), (9, 13, 3), (28, 28, 1), (8, 40, 3)])
@pytest.mark.parametrize("body", ["stable", "dcgan", "mlp", "fast"])
def test_every_architecture_takes_any_size_and_rows_are_independent(body, size):
    model = build(GAN, spec(*size), body=body, images=8)
    train(model).finish()
    served = build(GAN, spec(*size), seed=5, body=body, images=8).load_for_serving(model.serving_state())
    latents, images = torch.randn(5, model.latent_dim), torch.rand(5, *model.data.shape)
    samples = served.decode(latents)
    assert samples.shape == (5, size[2], size[0], size[1]) and samples.min() >= 0 and samples.max() <= 1
    torch.testing.assert_close(served.decode(latents[2:3]), samples[2:3])
    torch.testing.assert_close(served.d_logits(images[2:3]), served.d_logits(images)[2:3])


def test_a_snapshot_uses_the_same_latents_and_changes_no_state():
    model = build(GAN)
    training = train(model, 3)
    before = training.state()
    first, second = training.snapshot(), training.snapshot()
    assert torch.equal(first, second) and len(first) == 64
    assert all(torch.equal(before.tensors[name], tensor) for name, tensor in training.state().tensors.items())


def test_learning_rate_is_constant_then_decreases_to_a_tenth():
    model = build(GAN)
    assert [round(model.schedule(progress), 6) for progress in (0, 0.5, 0.75, 1)] == [1, 1, 0.55, 0.1]
    assert math.isclose(model.schedule(0.25), 1)


class LeCam(GAN):
    """A GAN with a further term of D: the squared logits (a form of the regularisation of Tseng et al. 2021)."""

    name = "lecam"

    def d_penalties(self, reals, fakes, a, b, context):
        lecam = a.square().mean() + b.square().mean()
        return super().d_penalties(reals, fakes, a, b, context) | {"lecam": (0.5, lecam)}


def test_a_family_varies_one_term_of_d_by_one_method():
    plain, varied = build(GAN), build(LeCam)
    (a, b, _), (_, _, metrics) = first_update(plain), first_update(varied)
    torch.testing.assert_close(metrics["lecam"], a.square().mean() + b.square().mean())
    assert "r1" in metrics and not same(weights(plain.discriminator), weights(varied.discriminator))


class CriticGAN(GAN):
    """A GAN whose G minimises the Wasserstein loss, whatever the loss of D."""

    name = "critic_gan"

    def g_adversarial_loss(self, b, reals):
        return -b.mean()


def test_a_family_varies_the_loss_of_g_by_one_method():
    plain, varied = build(GAN), build(CriticGAN)
    first_update(plain)
    metrics = first_update(varied)[2]
    assert metrics["loss_generator"] != 0 and same(weights(plain.discriminator), weights(varied.discriminator))
    assert not same(weights(plain.generator), weights(varied.generator))
