"""The config of the bodies of `gan` and `conditional_gan`: presets, switches, and which of them exclude each other."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from models.families.gans.config import GameConfig, clash, game_clashes, resolve_game
from models.types import ConfigError, DataSpec

Body = Literal["stable", "dcgan", "mlp", "fast"]

COMMON = {"loss": "non_saturating", "r1": 1.0, "latent_dim": 64, "beta1": 0.0, "beta2": 0.99, "learning_rate": 1e-3}
PRESETS: dict[str, dict] = {
    "stable": COMMON | {"generator_norm": "batch", "discriminator_norm": "none", "minibatch_stddev": True},
    "dcgan": COMMON
    | {"r1": 0.0, "latent_dim": 100, "beta1": 0.5, "beta2": 0.999, "learning_rate": 2e-4, "width": 64}
    | {"generator_norm": "batch", "discriminator_norm": "batch", "minibatch_stddev": False},
    "mlp": COMMON | {"r1": 0.0, "latent_dim": 100, "beta1": 0.5, "beta2": 0.999, "learning_rate": 2e-4},
    "fast": COMMON
    | {"loss": "hinge", "r1": 0.0, "latent_dim": 256, "beta1": 0.5, "beta2": 0.999, "learning_rate": 2e-4},
}
ONE_IMAGE = "a gradient penalty asks for the slope at one image, and batch norm mixes several"
CONV = {"downsampling": "stride", "activation": "leaky_relu"}


class BodyConfig(GameConfig):
    """What the networks are made of. Empty fields follow from `body`."""

    body: Body | None = Field(
        None, description="stable: the default; dcgan: the 2016 reference; mlp: the 2014 paper; fast: for few images."
    )
    latent: Literal["normal", "sphere", "uniform"] = Field("normal", description="Where noise is drawn from.")
    generator_norm: Literal["none", "batch", "pixel"] | None = Field(None, description="Norm in G (stable, dcgan).")
    discriminator_norm: Literal["none", "batch", "spectral"] | None = Field(
        None, description="Norm in D; batch norm and gradient penalties exclude each other."
    )
    downsampling: Literal["stride", "average", "max"] | None = Field(
        None, description="How D halves: strides and averages keep gradients, the maximum makes them sparse."
    )
    activation: Literal["leaky_relu", "relu", "maxout"] | None = Field(
        None, description="Non-linearity in D; maxout is the mlp's."
    )
    minibatch_stddev: bool | None = Field(None, description="D sees how much images differ within a batch.")
    generator_dropout: float = Field(0.0, ge=0, lt=1, description="Share of G's channels dropped.")
    dropout_when_sampling: bool = Field(False, description="The same when images are drawn; the latents decide which.")
    replay: int = Field(0, ge=0, le=65536, description="Past fakes kept; half of D's fakes come from them.")


def resolve_bodies(config: BodyConfig, data: DataSpec) -> BodyConfig:
    """The config with its empty fields filled in. Raises ConfigError naming two that exclude each other."""
    body = config.body or default_body(config, data)
    config = config.model_copy(update={"body": body})
    for problem in (*game_clashes(config), *body_clashes(config)):
        raise problem
    preset = {"width": 32 if data.count >= 20_000 else 16, **PRESETS[body]}
    if body in ("stable", "dcgan"):
        preset |= CONV
    if body == "mlp":
        preset |= {"width": max(64, min(1200, 2**24 // data.pixels))}
        preset |= {"activation": "maxout", "discriminator_norm": "none"}
    if preset.get("discriminator_norm") == "batch" and (config.loss == "wasserstein" or config.r1 or config.r2):
        preset["discriminator_norm"] = "none"  # a gradient penalty is per image
    if config.discriminator_norm == "batch":
        preset["r1"] = 0.0
    update = resolve_game(config, data.count, preset)
    if body == "fast":
        update |= {"augment": config.augment or "diff"}
    return config.model_copy(update=update)


def default_body(config: BodyConfig, data: DataSpec) -> Body:
    """Convolutions where there is something to convolve."""
    return "stable" if max(data.height, data.width) >= 8 else "mlp"


def body_clashes(config: BodyConfig) -> Iterator[ConfigError]:
    """Settings that exclude each other in these bodies."""
    body = f"body={config.body}"
    foreign = {"mlp": ["generator_norm", "downsampling", "minibatch_stddev"], "fast": ["generator_norm", *CONV]}
    foreign["fast"] += ["discriminator_norm", "minibatch_stddev"]
    for field in foreign.get(config.body, []):
        if getattr(config, field) is not None:
            yield clash(body, f"{field}={getattr(config, field)}", "this body has none to choose")
    if config.body == "mlp" and config.discriminator_norm == "batch":
        yield clash(body, "discriminator_norm=batch", "its discriminator regularises by dropout")
    if config.body != "mlp" and config.activation == "maxout":
        yield clash(body, "activation=maxout", "maxout belongs to the mlp")
    if config.body == "fast" and config.generator_dropout:
        yield clash(body, f"generator_dropout={config.generator_dropout}", "this generator injects noise instead")
    if config.discriminator_norm == "batch":
        for field in ("r1", "r2", "gradient_penalty"):
            if getattr(config, field):
                yield clash("discriminator_norm=batch", f"{field}={getattr(config, field)}", ONE_IMAGE)
        if config.loss == "wasserstein":
            yield clash("loss=wasserstein", "discriminator_norm=batch", ONE_IMAGE)
    if config.dropout_when_sampling and not config.generator_dropout:
        yield clash("dropout_when_sampling=True", "generator_dropout=0.0", "there is no dropout to keep")
