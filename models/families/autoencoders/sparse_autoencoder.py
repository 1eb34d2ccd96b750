"""The sparse autoencoder: many units, of which few are active for any one image."""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from models.context import StepContext
from models.data import Columns
from models.diagnosis import Alarm, Inspection
from models.evaluation import metrics
from models.families.autoencoders.base import Coding, CodingConfig, dead_units, default_overcomplete
from models.losses import reconstruction as losses
from models.nn.encoders import Centred, FlatDecoder
from models.types import Batch, ConfigError, DataSpec, Metrics

REVIVE_EVERY = 50
REVIVE_UNTIL = 0.7
"""Share of the run after which a new unit would no longer find its place."""
DEAD_SHARE = 0.1
"""More units than this share may not be idle for long."""
BARELY = 0.1
"""A sigmoid unit is never zero: below this it counts as inactive."""


class SparseAutoencoderConfig(CodingConfig):
    """The loss is the squared error, summed over the numbers of an image, plus the penalty, averaged over the batch."""

    learning_rate: float = Field(2e-3, gt=0, le=1, description="Step size of Adam after the warm-up.")
    body: Literal["auto", "linear", "mlp", "conv"] = Field(
        "auto", description="Encoder; auto: linear, one layer. The decoder is always one layer, a dictionary of images."
    )
    code: Literal["relu", "sigmoid"] | None = Field(None, description="Activation. Empty: sigmoid for kl, else relu.")
    sparsity: Literal["l1", "kl", "top_k"] = Field(
        "l1", description="l1: sum of activities. kl: mean activity near rho. top_k: only the k largest are kept."
    )
    weight: float | None = Field(None, ge=0, le=1000, description="Weight of the penalty. Empty: 0.1 for l1, 3 for kl.")
    rho: float = Field(0.05, gt=0, lt=1, description="Mean activity that kl wants of each unit.")
    k: int | None = Field(None, ge=1, le=4096, description="Units that top_k keeps. Empty: one in 32.")
    revive_after: float = Field(
        5.0, ge=0, le=10**4, description="Epochs without activity after which a unit starts anew; 0: never."
    )


class SparseAutoencoder(Coding):
    """Under l1 and top_k the columns of the decoder have length one: else codes shrink and the penalty is void."""

    name = "sparse_autoencoder"
    summary = "Describes images by few active units out of many."
    lecture = "Sparse autoencoders"
    Config = SparseAutoencoderConfig

    def __init__(self, config: SparseAutoencoderConfig, data: DataSpec):
        super().__init__(config, data)
        self.encoder = Centred(self.encoder, data.shape)
        self.decoder = FlatDecoder(config.latent_dim, data.shape)
        self.register_buffer("idle", torch.zeros(config.latent_dim))
        self.register_buffer("revived", torch.zeros((), dtype=torch.int64))
        self.patience = config.revive_after * max(data.count, 1)
        self._normalise()
        if config.sparsity == "kl":  # begins as active as it shall be
            nn.init.constant_(self.encoder.last.bias, math.log(config.rho / (1 - config.rho)))
        if config.body == "linear":  # each unit starts by looking for what it draws
            self.encoder.last.weight.data.copy_(self.decoder.layers[0].weight.data.T)

    @classmethod
    def resolve_config(cls, config: SparseAutoencoderConfig, data: DataSpec) -> SparseAutoencoderConfig:
        latent_dim = config.latent_dim or default_overcomplete(data, most=2048)
        k = config.k or max(1, latent_dim // 32)
        if config.sparsity == "top_k" and k > latent_dim:
            raise ConfigError(f"k is {k}, and there are {latent_dim} units", field="k", remedy="lower k")
        wanted = {
            "latent_dim": latent_dim,
            "k": k,
            "body": "linear" if config.body == "auto" else config.body,
            "code": config.code or ("sigmoid" if config.sparsity == "kl" else "relu"),
            "weight": {"l1": 0.1, "kl": 3.0, "top_k": 0.0}[config.sparsity] if config.weight is None else config.weight,
        }
        if config.sparsity == "kl" and wanted["code"] != "sigmoid":
            raise ConfigError("kl measures activities between 0 and 1", field="code", remedy="use code sigmoid")
        return super().resolve_config(config.model_copy(update=wanted), data)

    def before_training(self, train: Columns) -> None:
        """Units describe how an image differs from the mean (Bricken et al. 2023): else all of them see its brightness
        first, and the penalty then silences them together."""
        if self.initialised_from is None:
            mean = metrics.mean_image(train).to(self.device)
            self.encoder.mean.copy_(mean)
            self.decoder.layers[0].bias.data.copy_(mean.flatten())

    def encode(self, images: Tensor) -> Tensor:
        codes = super().encode(images)
        if self.config.sparsity != "top_k":
            return codes
        kept = codes.topk(self.config.k, 1)
        return torch.zeros_like(codes).scatter(1, kept.indices, kept.values)

    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        images = batch["images"]
        codes = self.encode(images)
        error = losses.squared_error(self.decoder(codes), images).mean()
        active = self.active(codes.detach())
        self.idle.add_(len(images)).mul_(~active.any(0))
        found = {"reconstruction": error.detach(), "l0": active.sum(1).float().mean()}
        return error + self.config.weight * self._penalty(codes), found

    def validation_loss(self, probe: Batch, context: StepContext) -> Tensor:
        codes = self.encode(probe["images"])
        error = losses.squared_error(self.decoder(codes), probe["images"]).mean()
        return error + self.config.weight * self._penalty(codes)

    def diagnose(self, look: Inspection) -> Iterator[Alarm]:
        """Units idle for an epoch, where they are revived for half as long again as it takes to be noticed."""
        wait = max(1.5 * self.patience + REVIVE_EVERY * self.config.batch_size * bool(self.patience), self.data.count)
        dead = int((self.idle > wait).sum())
        if dead > DEAD_SHARE * self.latent_dim:
            yield dead_units(dead, self.latent_dim, f"none of the last {math.ceil(wait)} training images")

    def active(self, codes: Tensor) -> Tensor:
        """(b, d) booleans."""
        return codes > (BARELY if self.config.code == "sigmoid" else 0)

    def _penalty(self, codes: Tensor) -> Tensor:
        if self.config.sparsity == "kl":
            return losses.activity_divergence(codes.mean(0), self.config.rho).sum()
        return codes.abs().sum(1).mean()

    def step(self, batch: Batch, optimisers: dict[str, Optimizer], context: StepContext) -> Metrics:
        found = super().step(batch, optimisers, context)
        if self.patience and context.step % REVIVE_EVERY == REVIVE_EVERY - 1 and context.progress < REVIVE_UNTIL:
            self._revive(batch["images"], optimisers["adam"], context.generator)
        self._normalise()
        return found

    @torch.no_grad()
    def _normalise(self) -> None:
        if self.config.sparsity != "kl":
            weight = self.decoder.layers[0].weight  # (pixels, units)
            weight.div_(weight.norm(dim=0).clamp_min(1e-8))

    @torch.no_grad()
    def _revive(self, images: Tensor, adam: Optimizer, draws: torch.Generator) -> None:
        """Point the units that have been idle too long at what is drawn badly (after Bricken et al. 2023).

        Each draws what is missing from one image of the batch, and looks for it weakly; its moments start anew.
        """
        dead = self.idle > self.patience
        missing = (images - self.decoder(self.encode(images))).flatten(1)
        chosen = torch.multinomial(missing.square().sum(1) + 1e-12, self.latent_dim, True, generator=draws)
        drawn = nn.functional.normalize(missing[chosen])
        linear = self.config.body == "linear"
        sought = drawn if linear else nn.functional.normalize(self.encoder.features(images)[chosen])
        last, dictionary = self.encoder.last, self.decoder.layers[0]
        strength = 0.2 * (last.weight.norm(dim=1) * ~dead).sum() / (~dead).sum().clamp_min(1)
        fresh = (last.weight, sought * strength, 0), (last.bias, torch.zeros_like(last.bias), 0)
        for parameter, value, axis in (*fresh, (dictionary.weight, drawn.T, 1)):
            mask = dead.view(-1, 1) if parameter.ndim > 1 and axis == 0 else dead
            parameter.copy_(torch.where(mask, value, parameter))
            for slot in ("exp_avg", "exp_avg_sq"):
                adam.state[parameter][slot].mul_(~mask)
        self.revived += dead.sum()
        self.idle.mul_(~dead)

    def fair_axes(self, validation: Columns) -> int:
        return max(1, min(self.data.pixels, round(self._l0(validation))))

    def _l0(self, split: Columns) -> float:
        """Units active for an image, on average."""
        return float(metrics.gather(split, lambda x: self.active(self.encode(x)).sum(1).double(), self.device).mean())

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Adds the units active per image, as many as the axes of PCA here, and the units no training image moves."""
        found = super().evaluate(train, validation, context) | {"l0": self._l0(validation)}
        ever = torch.zeros(self.latent_dim, dtype=torch.bool)
        for images in metrics.spread(train):
            ever |= self.active(self.encode(images.to(self.device))).any(0).cpu()
        return found | {"dead_units": int((~ever).sum()), "revived_units": int(self.revived)}

    def warnings(self, measured: dict[str, float]) -> list[str]:
        dead = measured["dead_units"]
        found = dead_units(dead, self.latent_dim, "no training image")
        return [found.sentence] if dead > DEAD_SHARE * self.latent_dim else []
