"""The settings of the networks of `gan` and `conditional_gan`: presets per architecture, and conflicts."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from models.families.gans.config import GANConfig, conflict, fill_training_settings, training_conflicts
from models.types import ConfigError, DataSpec

Architecture = Literal["stable", "dcgan", "mlp", "fast"]

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
PER_IMAGE = "a gradient penalty needs the gradient at single images, and batch norm mixes images"
CONV = {"downsampling": "stride", "activation": "leaky_relu"}


class NetworkConfig(GANConfig):
    """The networks of `gan` and `conditional_gan`. The defaults of empty settings depend on `body`."""

    body: Architecture | None = Field(
        None,
        description="Architecture of both networks. stable: convolutions; dcgan: Radford et al. 2016; mlp: fully "
        "connected, Goodfellow et al. 2014; fast: FastGAN, for few images. Default: chosen from the dataset (mlp below "
        "8 pixels, else stable).",
    )
    latent: Literal["normal", "sphere", "uniform"] = Field("normal", description="Distribution of the latents.")
    generator_norm: Literal["none", "batch", "pixel"] | None = Field(
        None, description="Normalisation in G, for body=stable and dcgan. Default: batch."
    )
    discriminator_norm: Literal["none", "batch", "spectral"] | None = Field(
        None,
        description="Normalisation in D; batch excludes gradient penalties. Default: batch for body=dcgan without "
        "gradient penalties, else none.",
    )
    downsampling: Literal["stride", "average", "max"] | None = Field(
        None,
        description="How D halves images, for body=stable and dcgan. Max pooling makes the gradients sparse. Default: "
        "stride.",
    )
    activation: Literal["leaky_relu", "relu", "maxout"] | None = Field(
        None, description="Activation in D; maxout only for body=mlp. Default: maxout for body=mlp, else leaky_relu."
    )
    minibatch_stddev: bool | None = Field(
        None,
        description="Give D the standard deviation over the batch as a feature, for body=stable and dcgan. Default: "
        "true for body=stable.",
    )
    generator_dropout: float = Field(0.0, ge=0, lt=1, description="Fraction of G's channels dropped in training.")
    dropout_when_sampling: bool = Field(
        False, description="Keep this dropout when sampling; the mask follows from the latents."
    )
    replay: int = Field(
        0,
        ge=0,
        le=65536,
        description="Size of a pool of earlier generated images, which are half of those that D learns from; 0: none.",
    )


def resolve_networks(config: NetworkConfig, data: DataSpec) -> NetworkConfig:
    """The config with its empty settings filled in. Raises ConfigError naming two that exclude each other."""
    architecture = config.body or default_architecture(config, data)
    config = config.model_copy(update={"body": architecture})
    for problem in (*training_conflicts(config), *network_conflicts(config)):
        raise problem
    preset = {"width": 32 if data.count >= 20_000 else 16, **PRESETS[architecture]}
    if architecture in ("stable", "dcgan"):
        preset |= CONV
    if architecture == "mlp":
        preset |= {"width": max(64, min(1200, 2**24 // data.pixels))}
        preset |= {"activation": "maxout", "discriminator_norm": "none"}
    if preset.get("discriminator_norm") == "batch" and (config.loss == "wasserstein" or config.r1 or config.r2):
        preset["discriminator_norm"] = "none"  # a gradient penalty is per image
    if config.discriminator_norm == "batch":
        preset["r1"] = 0.0
    update = fill_training_settings(config, data.count, preset)
    if architecture == "fast":
        update |= {"augment": config.augment or "diff"}
    return config.model_copy(update=update)


def default_architecture(config: NetworkConfig, data: DataSpec) -> Architecture:
    """Convolutions from 8 pixels on the longer side, else fully connected."""
    return "stable" if max(data.height, data.width) >= 8 else "mlp"


def network_conflicts(config: NetworkConfig) -> Iterator[ConfigError]:
    """Settings that exclude each other in these architectures."""
    architecture = f"body={config.body}"
    unsupported = {"mlp": ["generator_norm", "downsampling", "minibatch_stddev"], "fast": ["generator_norm", *CONV]}
    unsupported["fast"] += ["discriminator_norm", "minibatch_stddev"]
    for field in unsupported.get(config.body, []):
        if getattr(config, field) is not None:
            yield conflict(
                architecture, f"{field}={getattr(config, field)}", "this architecture does not have this setting"
            )
    if config.body == "mlp" and config.discriminator_norm == "batch":
        yield conflict(architecture, "discriminator_norm=batch", "its discriminator is regularised by dropout")
    if config.body != "mlp" and config.activation == "maxout":
        yield conflict(architecture, "activation=maxout", "only body=mlp has maxout")
    if config.body == "fast" and config.generator_dropout:
        yield conflict(
            architecture, f"generator_dropout={config.generator_dropout}", "its generator adds noise instead"
        )
    if config.discriminator_norm == "batch":
        for field in ("r1", "r2", "gradient_penalty"):
            if getattr(config, field):
                yield conflict("discriminator_norm=batch", f"{field}={getattr(config, field)}", PER_IMAGE)
        if config.loss == "wasserstein":
            yield conflict("loss=wasserstein", "discriminator_norm=batch", PER_IMAGE)
    if config.dropout_when_sampling and not config.generator_dropout:
        yield conflict("dropout_when_sampling=True", "generator_dropout=0.0", "there is no dropout")
