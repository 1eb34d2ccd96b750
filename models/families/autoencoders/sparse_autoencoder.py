"""The sparse autoencoder: many units, of which few are active for an image."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from models.context import StepContext
from models.data import Columns
from models.diagnosis import Alarm, Inspection
from models.evaluation import metrics
from models.families.autoencoders.base import AutoencoderBase, AutoencoderBaseConfig, dead_units, default_overcomplete
from models.losses import reconstruction as losses
from models.nn.encoders import MeanCentred, MLPDecoder
from models.training.ranks import follow_first
from models.types import Batch, ConfigError, DataSpec, Metrics

REVIVE_EVERY = 50  # updates
REVIVE_UNTIL = 0.7  # share of the training after which a restarted unit would not recover
MAX_IDLE = 0.1  # share of the units that may be inactive for long
MAX_DEFAULT_K = 40
MIN_ACTIVITY = 0.1  # of a sigmoid unit, which is never zero, to count as active


class SparseAutoencoderConfig(AutoencoderBaseConfig):
    """The loss is the squared error, summed over the numbers of an image, plus the penalty, averaged over the batch."""

    learning_rate: float = Field(2e-3, gt=0, le=1, description="Step size of Adam after the warm-up.")
    body: Literal["auto", "linear", "mlp", "conv"] = Field(
        "auto", description="Architecture of the encoder. auto: linear. The decoder is always one linear layer."
    )
    code: Literal["relu", "sigmoid"] | None = Field(
        None, description="Activation of the code. Default: sigmoid for sparsity=kl, else relu."
    )
    sparsity: Literal["l1", "kl", "top_k"] = Field(
        "top_k",
        description="top_k: no penalty; only the k largest activities are kept (Makhzani & Frey 2014). l1: penalty on "
        "the sum of the activities. kl: on the KL divergence of the mean activity of each unit from rho.",
    )
    weight: float | None = Field(
        None, ge=0, le=1000, description="Weight of the penalty. Default: 0.1 for l1, 3 for kl."
    )
    rho: float = Field(0.05, gt=0, lt=1, description="Target mean activity of each unit under kl.")
    k: int | None = Field(
        None, ge=1, le=4096, description="Active units per image under top_k. Default: latent_dim / 32, 8 to 40."
    )
    revive_after: float = Field(
        5.0, ge=0, le=10**4, description="Epochs without activity after which a unit is reinitialised (0 = never)."
    )


class SparseAutoencoder(AutoencoderBase):
    """L = |x - decode(z)|^2 + weight * penalty(z).

    Under l1 and top_k the columns of the decoder have unit length; otherwise codes could shrink to avoid the penalty.
    """

    name = "sparse_autoencoder"
    summary = "Describes images by few active units out of many."
    lecture = "Sparse autoencoders"
    Config = SparseAutoencoderConfig

    def __init__(self, config: SparseAutoencoderConfig, data: DataSpec):
        super().__init__(config, data)
        self.register_buffer("idle", torch.zeros(config.latent_dim))
        self.register_buffer("revived", torch.zeros((), dtype=torch.int64))
        self.max_idle = config.revive_after * max(data.count, 1)
        self._normalise()
        if config.sparsity == "kl":  # the mean activity starts at rho
            nn.init.constant_(self.encoder.last.bias, math.log(config.rho / (1 - config.rho)))
        if config.body == "linear":  # tied weights at the start
            self.encoder.last.weight.data.copy_(self.decoder.layers[0].weight.data.T)

    def build_networks(self) -> tuple[nn.Module, nn.Module]:
        encoder = super().build_networks()[0]
        return MeanCentred(encoder, self.data.shape), MLPDecoder(self.config.latent_dim, self.data.shape)

    @classmethod
    def resolve_config(cls, config: SparseAutoencoderConfig, data: DataSpec) -> SparseAutoencoderConfig:
        latent_dim = config.latent_dim or default_overcomplete(data, most=2048)
        k = config.k or max(1, min(MAX_DEFAULT_K, max(latent_dim // 32, min(8, latent_dim // 4))))
        if config.sparsity == "top_k" and k > latent_dim:
            raise ConfigError(f"k must be at most latent_dim ({latent_dim}); you sent {k}", field="k", remedy="lower k")
        resolved = {
            "latent_dim": latent_dim,
            "k": k,
            "body": "linear" if config.body == "auto" else config.body,
            "code": config.code or ("sigmoid" if config.sparsity == "kl" else "relu"),
            "weight": {"l1": 0.1, "kl": 3.0, "top_k": 0.0}[config.sparsity] if config.weight is None else config.weight,
        }
        if config.sparsity == "kl" and resolved["code"] != "sigmoid":
            raise ConfigError(
                f"sparsity=kl needs activities in [0, 1], code=sigmoid; you sent code={config.code}",
                field="code",
                remedy="use code=sigmoid",
            )
        return super().resolve_config(config.model_copy(update=resolved), data)

    @classmethod
    def earlier_settings(cls, engine: int, data: DataSpec) -> dict[str, Any]:
        return ({"sparsity": "l1"} if engine < 2 else {}) | super().earlier_settings(engine, data)

    def before_training(self, train: Columns) -> None:
        """Encode the difference from the mean image (Bricken et al. 2023).

        Otherwise all units first respond to the brightness, and the penalty then switches them off together.
        """
        if self.initialised_from is None:
            mean = metrics.mean_image(train).to(self.device)
            self.encoder.mean.copy_(mean)
            self.decoder.layers[0].bias.data.copy_(mean.flatten())

    def encode(self, images: Tensor) -> Tensor:
        codes = super().encode(images)
        if self.config.sparsity != "top_k":
            return codes
        largest = codes.topk(self.config.k, 1)
        return torch.zeros_like(codes).scatter(1, largest.indices, largest.values)

    def regularisation_term(self, codes: Tensor, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        active = self.active(codes.detach())
        if self.training:
            self.idle.add_(len(images)).mul_(~active.any(0))
        return self.config.weight * self._penalty(codes), {"l0": active.sum(1).float().mean()}

    def diagnose(self, inspection: Inspection) -> Iterator[Alarm]:
        """Units idle for an epoch and, if idle units are reinitialised, for 1.5 times the images before that."""
        wait = max(1.5 * self.max_idle + REVIVE_EVERY * self.config.batch_size * bool(self.max_idle), self.data.count)
        dead = int((self.idle > wait).sum())
        if dead > MAX_IDLE * self.latent_dim:
            yield dead_units(dead, self.latent_dim, f"none of the last {math.ceil(wait)} training images")

    def active(self, codes: Tensor) -> Tensor:
        """(b, d): which units count as active."""
        return codes > (MIN_ACTIVITY if self.config.code == "sigmoid" else 0)

    def _penalty(self, codes: Tensor) -> Tensor:
        if self.config.sparsity == "kl":
            return losses.activity_divergence(codes.mean(0), self.config.rho).sum()
        return codes.abs().sum(1).mean()

    def step(self, batch: Batch, optimisers: dict[str, Optimizer], context: StepContext) -> Metrics:
        measured = super().step(batch, optimisers, context)
        if self.max_idle and context.step % REVIVE_EVERY == REVIVE_EVERY - 1 and context.progress < REVIVE_UNTIL:
            self._revive(batch["images"], optimisers["adam"], context.generator)
        self._normalise()
        return measured

    @torch.no_grad()
    def _normalise(self) -> None:
        if self.config.sparsity != "kl":
            weight = self.decoder.layers[0].weight  # (pixels, units)
            weight.div_(weight.norm(dim=0).clamp_min(1e-8))

    @torch.no_grad()
    def _revive(self, images: Tensor, adam: Optimizer, generator: torch.Generator) -> None:
        """Reinitialise units that have been idle too long (after Bricken et al. 2023).

        Decoder column: the normalised residual of an image of the batch, drawn in proportion to its squared error.
        Encoder row: the same direction at a fifth of the mean norm. The moments of Adam are set to zero.
        """
        dead = self.idle > self.max_idle
        residuals = (images - self.decoder(self.encode(images))).flatten(1)
        rows = torch.multinomial(residuals.square().sum(1) + 1e-12, self.latent_dim, True, generator=generator)
        columns = nn.functional.normalize(residuals[rows])
        linear = self.config.body == "linear"
        inputs = columns if linear else nn.functional.normalize(self.encoder.features(images)[rows])
        last, dictionary = self.encoder.last, self.decoder.layers[0]
        strength = 0.2 * (last.weight.norm(dim=1) * ~dead).sum() / (~dead).sum().clamp_min(1)
        rows_of_encoder = (last.weight, inputs * strength, 0), (last.bias, torch.zeros_like(last.bias), 0)
        changed = (*rows_of_encoder, (dictionary.weight, columns.T, 1))
        for parameter, value, axis in changed:
            mask = dead.view(-1, 1) if parameter.ndim > 1 and axis == 0 else dead
            parameter.copy_(torch.where(mask, value, parameter))
            for slot in ("exp_avg", "exp_avg_sq"):
                adam.state[parameter][slot].mul_(~mask)
        self.revived += dead.sum()
        self.idle.mul_(~dead)
        follow_first([self.revived, self.idle, *self.parameters()])  # the rows of a rank chose them
        follow_first(adam.state[parameter][slot] for parameter, _, _ in changed for slot in ("exp_avg", "exp_avg_sq"))

    def pca_rank(self, validation: Columns) -> int:
        return max(1, min(self.data.pixels, round(self._l0(validation))))

    def _l0(self, split: Columns) -> float:
        """Mean number of active units per image."""
        return float(metrics.gather(split, lambda x: self.active(self.encode(x)).sum(1).double(), self.device).mean())

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Adds the mean number of active units (the rank of the PCA baseline) and the number of dead units."""
        measured = super().evaluate(train, validation, context) | {"l0": self._l0(validation)}
        ever = torch.zeros(self.latent_dim, dtype=torch.bool)
        for images in metrics.spaced_rows(train):
            ever |= self.active(self.encode(images.to(self.device))).any(0).cpu()
        return measured | {"dead_units": int((~ever).sum()), "revived_units": int(self.revived)}

    def warnings(self, measured: dict[str, float]) -> list[str]:
        dead = measured["dead_units"]
        alarm = dead_units(dead, self.latent_dim, "no training image")
        return [alarm.sentence] if dead > MAX_IDLE * self.latent_dim else []
