"""The config of adversarial families: the game, the tricks, and which of them exclude each other."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from models.family import Config
from models.losses.adversarial import LossName, smooths
from models.types import ConfigError

Optimiser = Literal["adam", "sgd", "rmsprop"]


class GameConfig(Config):
    """How the two players train. Every trick is a field of its own; what is empty follows from the others."""

    learning_rate: float | None = Field(None, gt=0, le=1, description="Step size of both optimisers at the start.")
    latent_dim: int | None = Field(None, ge=1, le=2048, description="Numbers of noise per image.")
    width: int | None = Field(None, ge=4, le=2048, description="Channels (mlp: units) that scale both networks.")
    loss: LossName | None = Field(None, description="What the players minimise; minimax is the one that saturates.")
    r1: float | None = Field(None, ge=0, le=1000, description="Weight of the gradient penalty on real images.")
    r2: float | None = Field(None, ge=0, le=1000, description="The same on generated images.")
    gradient_penalty: float | None = Field(
        None, ge=0, le=1000, description="Weight of (|gradient| - 1)^2 between real and generated images."
    )
    drift: float | None = Field(None, ge=0, le=10, description="Weight of the squared logits of real images.")
    penalty_every: int | None = Field(None, ge=1, le=256, description="Updates from one R1/R2 to the next (lazy).")
    critic_steps: int | None = Field(None, ge=1, le=100, description="Updates of D for each one of G.")
    generator_optimiser: Optimiser = Field("adam", description="Optimiser of G.")
    discriminator_optimiser: Optimiser = Field("adam", description="Optimiser of D; ganhacks pairs SGD with Adam.")
    discriminator_learning_rate: float | None = Field(None, gt=0, le=1, description="Step size of D where it differs.")
    beta1: float | None = Field(None, ge=0, lt=1, description="First-moment decay of Adam; momentum of SGD.")
    beta2: float | None = Field(None, ge=0, lt=1, description="Second-moment decay of Adam and RMSprop.")
    ema_half_life: float | None = Field(
        None, ge=0, le=10**8, description="Half-life in images of the averaged generator."
    )
    label_smoothing: float = Field(0.0, ge=0, le=0.5, description="Real images count as 1 minus this (one-sided).")
    label_flips: float = Field(0.0, ge=0, le=0.5, description="Share of labels swapped in D's lessons.")
    instance_noise: float = Field(
        0.0, ge=0, le=2, description="Noise added to what D sees at the start, none at the end."
    )
    separate_batches: bool = Field(True, description="D sees real and generated images in separate batches.")
    augment: Literal["none", "diff", "adaptive"] | None = Field(
        None, description="Augmentation of what D sees; on by default for small datasets."
    )
    measure_every: int | None = Field(
        None,
        ge=0,
        le=10**9,
        description="Images from one measurement of FD, KID, precision and recall to the next; 0: only at the end; "
        "empty: eight along the way, of as many samples as a small part of the training pays for.",
    )
    compile: bool = Field(
        False,
        description="Compile both networks on CUDA: takes minutes once, for long trainings; penalties stay eager.",
    )
    auto_remedy: bool = Field(
        False, description="Alarms are answered: more augmentation, a slower D, or the best generator measured so far."
    )


def clash(first: str, second: str, why: str) -> ConfigError:
    """The error for two settings that exclude each other, each given as `field=value`."""
    field = second.split("=")[0]
    return ConfigError(f"{first} and {second} clash: {why}", field=field, remedy=f"change {first} or {second}")


def game_clashes(config: GameConfig) -> Iterator[ConfigError]:
    """What is wrong with a config whatever the networks are; empty fields clash with nothing."""
    loss = f"loss={config.loss}"
    if config.loss and not smooths(config.loss):
        for field in ("label_smoothing", "label_flips"):
            if getattr(config, field):
                yield clash(loss, f"{field}={getattr(config, field)}", "this loss has no targets to change")
    if config.loss and config.loss != "wasserstein" and config.gradient_penalty:
        yield clash(loss, f"gradient_penalty={config.gradient_penalty}", "it holds a Wasserstein critic's slope at 1")
    if config.loss == "wasserstein":
        if config.gradient_penalty == 0:
            yield clash(loss, "gradient_penalty=0.0", "without it the critic's slope is unbounded")
        for field in ("r1", "r2"):
            if getattr(config, field):
                yield clash(loss, f"{field}={getattr(config, field)}", "a slope cannot be held at 1 and at 0")
    if config.loss == "relativistic" and config.drift:
        yield clash(loss, f"drift={config.drift}", "only differences of logits count, so none drifts alone")


def resolve_game(config: GameConfig, count: int, preset: dict) -> dict:
    """Values for the empty fields: from the loss where it decides, else from `preset`, else the common ones."""
    chosen = {field: value for field, value in preset.items() if getattr(config, field) is None}
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
        "discriminator_learning_rate": config.learning_rate or preset["learning_rate"],
        "ema_half_life": 10_000 * config.batch_size / 32,
        "augment": "diff" if count < 2000 else "none",
    }
    return chosen | {field: value for field, value in common.items() if getattr(config, field) is None}
