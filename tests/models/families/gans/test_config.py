"""Defaults of empty settings, and conflicts, which name both settings."""

import itertools
from typing import get_args

import pytest

from models.families.gans.gan import GAN
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
