"""The variational autoencoder (Kingma & Welling 2014), with beta (Higgins et al. 2017), KL warm-up and free bits."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models import losses, metrics
from models.coding import Coding, CodingConfig
from models.data import Columns
from models.moment import Moment
from models.plane import Plane
from models.types import Batch, DataSpec, Metrics

LOGVAR = 10.0
NLL_SAMPLES = 64
NLL_NUMBERS = 80_000_000


class VaeConfig(CodingConfig):
    """The loss is -ELBO in nats: summed over pixels and latent dimensions, averaged over the batch."""

    code: Literal["linear"] = Field("linear", description="The mean of the posterior has no activation.")
    likelihood: Literal["bernoulli", "gaussian", "discretised_logistic"] | None = Field(
        None,
        description="p(image | code). gaussian: one sigma, always optimal. Empty: bernoulli for grey, else gaussian.",
    )
    objective: Literal["elbo", "reconstruction_only", "kl_only"] = Field(
        "elbo", description="Which terms to descend; the incomplete ones show what each term does to the codes."
    )
    beta: float = Field(1.0, ge=0, le=1000, description="Weight of the KL term at its full height.")
    kl_warm_up: float = Field(0.1, ge=0, le=1, description="Share of the training over which beta rises from zero.")
    free_bits: float = Field(0.0, ge=0, le=10, description="Nats per latent dimension that cost nothing.")
    sampler: Literal["prior", "mixture"] = Field(
        "prior", description="Where samples come from: the standard normal prior, or a mixture fitted to the codes."
    )


class VAE(Coding):
    """`encode` gives the posterior mean. `log_spread` is the log of sigma, or of the scale of the logistic."""

    name = "vae"
    summary = "Learns a smooth space of codes to draw new images from."
    lecture = "Variational autoencoders"
    Config = VaeConfig
    outputs = 2

    def __init__(self, config: VaeConfig, data: DataSpec):
        super().__init__(config, data)
        self.register_buffer("log_spread", torch.tensor(math.log(0.25)))

    @classmethod
    def resolve(cls, config: VaeConfig, data: DataSpec) -> VaeConfig:
        config = super().resolve(config, data)
        likelihood = config.likelihood or ("bernoulli" if data.channels == 1 else "gaussian")
        return config.model_copy(update={"likelihood": likelihood})

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (b, latent_dim) of q(code | image)."""
        mean, logvar = self.encoder(images).chunk(2, 1)
        return mean, logvar.clamp(-LOGVAR, LOGVAR)

    def encode(self, images: Tensor) -> Tensor:
        return self.posterior(images)[0]

    def code_encoder(self) -> nn.Module:
        found = super().code_encoder()
        last, dimensions = found.last, self.latent_dim
        last.weight, last.bias = nn.Parameter(last.weight[:dimensions]), nn.Parameter(last.bias[:dimensions])
        return found

    def pixels(self, output: Tensor) -> Tensor:
        return output.sigmoid() if self.config.likelihood == "bernoulli" else output.clamp(0, 1)

    def draw(self, noise: Tensor, uniform: Tensor) -> Tensor:
        return noise if self.config.sampler == "prior" else super().draw(noise, uniform)

    def plane(self) -> Plane:
        if self.config.sampler == "prior" and self.latent_dim <= 2:
            return Plane.standard(self.latent_dim, self.device)
        return super().plane()

    def loss(self, batch: Batch, moment: Moment) -> tuple[Tensor, Metrics]:
        images, settings = batch["images"], self.config
        mean, logvar = self.posterior(images)
        noise = torch.randn(mean.shape, generator=moment.generator, device=mean.device)
        output = self.decoder(mean + noise * (0.5 * logvar).exp())
        self._fit_spread(output.detach(), images, moment)
        surprise = self.surprise(output, images).mean()
        divergence = losses.gaussian_kl(mean, logvar)  # (b, d)
        paid = (
            divergence.mean(0).clamp_min(settings.free_bits).sum() if settings.free_bits else divergence.sum(1).mean()
        )
        beta = settings.beta * min(1.0, moment.progress / settings.kl_warm_up if settings.kl_warm_up else 1.0)
        total = {"elbo": surprise + beta * paid, "reconstruction_only": surprise, "kl_only": paid}[settings.objective]
        kl = divergence.detach().sum(1).mean()
        return total, {"nelbo": surprise.detach() + kl, "reconstruction": surprise.detach(), "kl": kl}

    def surprise(self, output: Tensor, images: Tensor) -> Tensor:
        """(b,): -log p(image | code) in nats, from the decoder's output.

        bernoulli: cross-entropy of soft pixels. gaussian: a density on [0, 1]. discretised_logistic: a probability of
        8-bit pixels, the only one whose values compare between likelihoods and sizes as bits per number.
        """
        if self.config.likelihood == "bernoulli":
            return losses.bernoulli(output, images)
        if self.config.likelihood == "gaussian":
            return losses.gaussian(output, self.log_spread, images)
        return losses.discretised_logistic(output, self.log_spread, images)

    @torch.no_grad()
    def _fit_spread(self, output: Tensor, images: Tensor, moment: Moment) -> None:
        """Follow the optimal sigma of the batches, averaged over about 20 updates."""
        if self.config.likelihood == "bernoulli":
            return
        optimum = losses.optimal_log_sigma((output - images).square().sum(), images.numel())
        if self.config.likelihood == "discretised_logistic":
            optimum = optimum - math.log(math.pi / math.sqrt(3))  # a logistic of scale s has sigma s * pi / sqrt(3)
        self.log_spread.lerp_(optimum, 1.0 if moment.step == 0 else 0.05)

    def evaluate(self, train: Columns, validation: Columns, moment: Moment) -> dict[str, float]:
        """-ELBO with one draw for each image, its parts, and the importance-sampled -log p of the first images."""
        parts = torch.zeros(2, dtype=torch.float64)
        means, rows = [], 0
        for images in metrics.spread(validation):
            images = images.to(self.device)
            mean, logvar = self.posterior(images)
            noise = torch.randn(mean.shape, generator=moment.generator, device=mean.device)
            surprise = self.surprise(self.decoder(mean + noise * (0.5 * logvar).exp()), images)
            parts += torch.stack([surprise, losses.gaussian_kl(mean, logvar).sum(1)]).double().sum(1).cpu()
            means.append(mean.cpu())
            rows += len(images)
        reconstruction, kl = (parts / rows).tolist()
        found = {"nelbo": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}
        found["active_units"] = metrics.active_units(torch.cat(means))
        found["nll"] = self._nll(validation, moment)
        if self.config.likelihood == "discretised_logistic":
            found["bits_per_number"] = found["nelbo"] / (self.data.pixels * math.log(2))
        return found | super().evaluate(train, validation, moment)

    def _nll(self, validation: Columns, moment: Moment) -> float:
        """Mean importance-sampled -log p of 8 to 100 images: the ELBO made tighter by 64 draws for each."""
        cost = NLL_SAMPLES * self.data.pixels
        rows = min(100, max(8, NLL_NUMBERS // cost))
        images = torch.cat(list(metrics.spread(validation, limit=rows))).to(self.device)
        parts = images.split(max(1, NLL_NUMBERS // 20 // cost))
        return float(torch.cat([self.nll(part, NLL_SAMPLES, moment.generator) for part in parts]).mean())

    def nll(self, images: Tensor, samples: int, draws: torch.Generator) -> Tensor:
        """(b,): -log mean_s p(x | z_s) p(z_s) / q(z_s | x), z_s from q (Burda et al. 2016, eq. 8)."""
        mean, logvar = self.posterior(images)
        noise = torch.randn((samples, *mean.shape), generator=draws, device=mean.device)  # (s, b, d)
        codes = mean + noise * (0.5 * logvar).exp()
        log_ratio = (-0.5 * codes.square() + 0.5 * (noise.square() + logvar)).sum(2)  # log p(z) - log q(z | x)
        output = self.decoder(codes.flatten(0, 1))
        target = images.expand(samples, *images.shape).flatten(0, 1)
        surprise = self.surprise(output, target).unflatten(0, (samples, -1))
        return math.log(samples) - (log_ratio - surprise).logsumexp(0)
