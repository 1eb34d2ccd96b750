"""Defaults of empty settings, and conflicts, which name both settings."""

import itertools
from typing import get_args

import pytest

from models.families.gans.gan import GAN
from models.families.gans.progressive_gan import ProgressiveGAN
from models.families.gans.style_gan import StyleGAN
from models.losses.adversarial import LossName
from models.types import ConfigError
from tests.models.families.gans.tiny import build, spec

ARCHITECTURES = ("stable", "dcgan", "mlp", "fast")


@pytest.mark.parametrize(("body", "loss"), list(itertools.product(ARCHITECTURES, get_args(LossName))))
def test_resolving_a_config_twice_changes_nothing(body, loss):
    config = GAN.resolve_config(GAN.Config(body=body, loss=loss), spec(28))
    assert GAN.resolve_config(config, spec(28)) == config
    assert config.critic_steps == (5 if loss == "wasserstein" else 1)
    assert (config.gradient_penalty > 0) == (loss == "wasserstein")
    assert config.learning_rate and config.discriminator_learning_rate == config.learning_rate


def test_an_empty_config_is_the_stable_preset():
    config = GAN.resolve_config(GAN.Config(), spec(28, count=4000))
    assert (config.body, config.loss, config.r1, config.penalty_every) == ("stable", "non_saturating", 1.0, 16)
    assert (config.beta1, config.beta2, config.learning_rate, config.latent_dim) == (0.0, 0.99, 1e-3, 64)
    assert config.augment == "none" and (config.effort, config.images) == ("lesson", round(75_000 / GAN.milliseconds))


def test_defaults_depend_on_count_and_size_of_the_images():
    assert GAN.resolve_config(GAN.Config(), spec(28, count=500)).augment == "diff"
    assert GAN.resolve_config(GAN.Config(augment="none"), spec(28, count=500)).augment == "none"
    assert GAN.resolve_config(GAN.Config(), spec(6, count=500)).body == "mlp"


def test_a_default_gives_way_to_a_conflicting_explicit_setting():
    assert GAN.resolve_config(GAN.Config(body="dcgan", r1=2.0), spec(28)).discriminator_norm == "none"
    assert GAN.resolve_config(GAN.Config(discriminator_norm="batch"), spec(28)).r1 == 0


@pytest.mark.parametrize(
    ("config", "first", "second"),
    [
        ({"loss": "wasserstein", "label_smoothing": 0.1}, "loss=wasserstein", "label_smoothing=0.1"),
        ({"loss": "relativistic", "label_flips": 0.1}, "loss=relativistic", "label_flips=0.1"),
        ({"loss": "hinge", "gradient_penalty": 10}, "loss=hinge", "gradient_penalty=10.0"),
        ({"loss": "wasserstein", "gradient_penalty": 0}, "loss=wasserstein", "gradient_penalty=0.0"),
        ({"loss": "wasserstein", "r1": 1}, "loss=wasserstein", "r1=1.0"),
        ({"loss": "wasserstein", "discriminator_norm": "batch"}, "loss=wasserstein", "discriminator_norm=batch"),
        ({"loss": "relativistic", "drift": 0.1}, "loss=relativistic", "drift=0.1"),
        ({"r1": 1, "discriminator_norm": "batch"}, "discriminator_norm=batch", "r1=1.0"),
        ({"body": "mlp", "downsampling": "max"}, "body=mlp", "downsampling=max"),
        ({"body": "mlp", "discriminator_norm": "batch"}, "body=mlp", "discriminator_norm=batch"),
        ({"body": "dcgan", "activation": "maxout"}, "body=dcgan", "activation=maxout"),
        ({"body": "fast", "minibatch_stddev": True}, "body=fast", "minibatch_stddev=True"),
        ({"dropout_when_sampling": True}, "dropout_when_sampling=True", "generator_dropout=0.0"),
    ],
)
def test_conflicting_settings_are_named(config, first, second):
    with pytest.raises(ConfigError) as caught:
        build(GAN, **config)
    assert f"{first} and {second} exclude each other" in caught.value.detail
    assert caught.value.field == "config/" + second.split("=")[0] and caught.value.remedy


def test_an_unknown_setting_is_refused_by_name():
    with pytest.raises(ConfigError) as caught:
        build(GAN, soft_labels=True)
    assert caught.value.field == "config/soft_labels"


@pytest.mark.parametrize(("family", "short", "long"), [(StyleGAN, 0.01, 0.0025), (ProgressiveGAN, 0.006, 0.001)])
def test_the_learning_rate_of_equalized_layers_follows_from_the_length(family, short, long):
    def rate(images, **config):
        return family.resolve_config(family.Config(images=images, **config), spec(28)).learning_rate

    rates = [rate(images) for images in (20_000, 100_000, 300_000, 1_000_000, 3_000_000, 25_000_000)]
    assert rates[:2] == [short, short] and rates[4:] == [long, long]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == 4
    assert rate(20_000, learning_rate=0.3) == 0.3


@pytest.mark.parametrize("family", [StyleGAN, ProgressiveGAN])
def test_configs_of_the_release_before_keep_its_networks_and_rates(family):
    earlier = family.from_stored({"images": 64}, spec(16), 1).config
    assert (earlier.effort, earlier.low_pass) == ("full", False)
    assert earlier.learning_rate == {"style_gan": 0.0025, "progressive_gan": 0.001}[family.name]
    if family is StyleGAN:
        assert (earlier.mixing, earlier.discriminator) == (0.9, "residual")
    else:
        assert (earlier.loss, earlier.gradient_penalty) == ("wasserstein", 10)
    now = family.from_stored({"images": 64}, spec(16), 2).config
    assert now.low_pass and now.loss == "non_saturating" and now.r1 == 1.0 and now.learning_rate > earlier.learning_rate


def test_style_gan_mixes_styles_in_long_trainings_and_has_its_own_discriminator_at_full():
    def chosen(**config):
        found = StyleGAN.resolve_config(StyleGAN.Config(**config), spec(28))
        assert StyleGAN.resolve_config(found, spec(28)) == found
        return found.mixing, found.discriminator

    assert chosen(effort="lesson", images=30_000) == (0.0, "plain")
    assert chosen(effort="good", images=300_000) == (0.9, "plain")
    assert chosen(effort="full") == (0.9, "residual")
    rates = [build(StyleGAN, discriminator=kind).config.discriminator_learning_rate for kind in ("plain", "residual")]
    assert rates == [0.001, 0.01]
    assert chosen(effort="lesson", mixing=0.5, discriminator="residual") == (0.5, "residual")


@pytest.mark.parametrize("family", [GAN, StyleGAN, ProgressiveGAN])
def test_short_trainings_have_small_batches(family):
    def batch(count=4000, **config):
        return family.resolve_config(family.Config(**config), spec(28, count=count)).batch_size

    assert [batch(effort=effort) for effort in ("lesson", "good", "full")] == [16, 32, 64]
    assert batch(effort="lesson", batch_size=48) == 48 and batch(effort="full", count=10) == 10
