"""The settings that all GAN families share: optimisers, losses, penalties, tricks, and which exclude each other."""

import math
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from models.family import Config
from models.losses.adversarial import LossName, smooths
from models.types import ConfigError

SHORT, LONG = 100_000, 3_000_000
"""Images between which the default learning rate of equalized layers falls."""
Optimiser = Literal["adam", "sgd", "rmsprop"]


class GANConfig(Config):
    """How G and D are trained. An empty setting is filled in by `fill_training_settings`."""

    learning_rate: float | None = Field(
        None, gt=0, le=1, description="Initial learning rate of both optimisers. Default: chosen from the architecture."
    )
    latent_dim: int | None = Field(
        None, ge=1, le=2048, description="Number of latent dimensions. Default: chosen from the architecture."
    )
    width: int | None = Field(
        None,
        ge=4,
        le=2048,
        description="Channels (units, for mlp) of the finest level; scales both networks. Default: chosen from the "
        "architecture and the dataset.",
    )
    loss: LossName | None = Field(
        None,
        description="Adversarial loss of both networks. minimax is the loss of 2014, whose gradient vanishes for the "
        "generator. Default: chosen from the architecture.",
    )
    r1: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="Weight of the squared gradient norm of D at real images (R1). Default: chosen from the loss and "
        "the architecture.",
    )
    r2: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="Weight of the squared gradient norm of D at generated images (R2). Default: that of r1 with "
        "loss=relativistic, else 0.",
    )
    gradient_penalty: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="Weight of (gradient norm - 1)^2 of D between real and generated images (WGAN-GP). Default: 10 "
        "with loss=wasserstein, else 0.",
    )
    drift: float | None = Field(
        None,
        ge=0,
        le=10,
        description="Weight of the mean squared logit of real images. Default: 0.001 for progressive_gan with "
        "loss=wasserstein, else 0.",
    )
    penalty_every: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Updates of D from one R1 or R2 penalty to the next; the weight grows accordingly. Default: 1 with "
        "loss=relativistic, else 16.",
    )
    critic_steps: int | None = Field(
        None,
        ge=1,
        le=100,
        description="Updates of D for each update of G. Default: chosen from the loss (wasserstein: 5, or 1 for "
        "progressive_gan and style_gan; else 1).",
    )
    generator_optimiser: Optimiser = Field("adam", description="Optimiser of G.")
    discriminator_optimiser: Optimiser = Field("adam", description="Optimiser of D.")
    discriminator_learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Initial learning rate of D. Default: learning_rate (0.001 with discriminator=plain of style_gan).",
    )
    beta1: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Decay of Adam's first moment; momentum of SGD. Default: chosen from the architecture.",
    )
    beta2: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Decay of the second moment of Adam and RMSprop. Default: chosen from the architecture.",
    )
    ema_half_life: float | None = Field(
        None,
        ge=0,
        le=10**8,
        description="Half-life, in images, of the average over generator weights that is served. Default: 10,000 at "
        "batch_size 32, proportional to batch_size.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, le=0.5, description="Train D with the target 1 minus this for real images (one-sided smoothing)."
    )
    label_flips: float = Field(0.0, ge=0, le=0.5, description="Fraction of labels flipped when training D.")
    instance_noise: float = Field(
        0.0,
        ge=0,
        le=2,
        description="Standard deviation of the noise added to D's inputs in [-1, 1] at the start; falls linearly to 0.",
    )
    separate_batches: bool = Field(
        True, description="Pass real and generated images through D in separate batches (matters for batch norm)."
    )
    augment: Literal["none", "diff", "adaptive"] | None = Field(
        None,
        description="Augmentation of D's inputs: diff is DiffAugment, adaptive is ADA. Default: chosen from the "
        "dataset (diff below 2,000 images or with body=fast, else none).",
    )
    measure_every: int | None = Field(
        None,
        ge=0,
        le=10**9,
        description="Images from one measurement of FD, KID, precision and recall to the next; 0: only at the end. "
        "Default: eight measurements of few samples in a training of 8,192 images or more, else only at the end.",
    )
    auto_remedy: bool = Field(
        False,
        description="Respond to alarms automatically: more augmentation, a lower learning rate of D, or a return to "
        "the best generator measured.",
    )


def conflict(first: str, second: str, why: str) -> ConfigError:
    """The error for two settings that exclude each other, each given as `field=value`."""
    field = second.split("=")[0]
    return ConfigError(
        f"{first} and {second} exclude each other: {why}", field=field, remedy=f"change {first} or {second}"
    )


def training_conflicts(config: GANConfig) -> Iterator[ConfigError]:
    """Conflicts that do not depend on the networks; an empty setting conflicts with nothing."""
    loss = f"loss={config.loss}"
    if config.loss and not smooths(config.loss):
        for field in ("label_smoothing", "label_flips"):
            if getattr(config, field):
                yield conflict(loss, f"{field}={getattr(config, field)}", "this loss has no targets to change")
    if config.loss and config.loss != "wasserstein" and config.gradient_penalty:
        why = "the penalty holds the gradient norm of a Wasserstein critic at 1"
        yield conflict(loss, f"gradient_penalty={config.gradient_penalty}", why)
    if config.loss == "wasserstein":
        if config.gradient_penalty == 0:
            yield conflict(loss, "gradient_penalty=0.0", "without it the critic's gradient is unbounded")
        for field in ("r1", "r2"):
            if getattr(config, field):
                why = "gradient_penalty holds the gradient norm at 1, this one at 0"
                yield conflict(loss, f"{field}={getattr(config, field)}", why)
    if config.loss == "relativistic" and config.drift:
        yield conflict(
            loss, f"drift={config.drift}", "this loss depends on differences of logits only, which do not drift"
        )


def fill_training_settings(config: GANConfig, count: int, preset: dict) -> dict:
    """Values for the empty settings: from the loss where it decides, else from `preset`, else the common ones."""
    update = {field: value for field, value in preset.items() if getattr(config, field) is None}
    loss = config.loss or preset["loss"]
    paired, critic = loss == "relativistic", loss == "wasserstein"
    r1 = config.r1 if config.r1 is not None else 0.0 if critic else preset["r1"]
    common = {
        "loss": loss,
        "r1": r1,
        "r2": r1 if paired else 0.0,
        "gradient_penalty": 10.0 if critic else 0.0,
        "drift": preset.get("drift", 0.0) if critic else 0.0,
        "penalty_every": 1 if paired else preset.get("penalty_every", 16),
        "critic_steps": preset.get("critic_steps", 5) if critic else 1,
        "discriminator_learning_rate": preset.get("discriminator_learning_rate")
        or config.learning_rate
        or preset["learning_rate"],
        "ema_half_life": 10_000 * config.batch_size / 32,
        "augment": "diff" if count < 2000 else "none",
    }
    return update | {field: value for field, value in common.items() if getattr(config, field) is None}


def rate_for(config: GANConfig, short: float, long: float) -> float:
    """Learning rate of equalized layers: `short` up to 100,000 images, `long` from 3 million, a power law between.

    Their weights start as N(0, 1), so an update of Adam moves them by `learning_rate` of their size: at the
    papers' rate, chosen for 10 to 25 million images, a short training ends near its start.
    """
    way = math.log(min(max(config.images, SHORT), LONG) / SHORT) / math.log(LONG / SHORT)
    return float(f"{short * (long / short) ** way:.3g}")
