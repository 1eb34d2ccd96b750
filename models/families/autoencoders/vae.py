"""The variational autoencoder (Kingma & Welling 2014), with beta (Higgins et al. 2017), KL warm-up and free bits."""

import math
from collections.abc import Iterator
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.capabilities import Conditional, HasPosterior
from models.context import StepContext
from models.data import Columns
from models.diagnosis import Alarm, Inspection
from models.evaluation import metrics
from models.families.autoencoders.base import FEW, SETTLED, Coding, CodingConfig, decoder
from models.losses import reconstruction as losses
from models.nn.film import Told
from models.nn.plane import Plane
from models.types import Batch, DataError, DataSpec, Metrics

LOGVAR = 10.0
COLLAPSED, ONE_NAT = 0.25, 1.0
"""Below this share of active units, or this KL term in nats, the decoder ignores the code."""
NLL_SAMPLES = 64
NLL_NUMBERS = 80_000_000
WARM_UP = 0.1
DEAR, DEAR_UNTIL = 4.0, 0.75
"""After 1250 updates on 4000 digits .94 of samples are of the class asked for, with half the training .87; never dear,
after 500 updates .83, and told the class at one layer alone .68.
"""
RECOGNITION = 10.0  # nats of the loss for one of telling the label: it shares the encoder with far larger terms


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
    kl_warm_up: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the training over which beta rises from zero. Empty: a tenth; for a conditional model "
        "beta falls instead, from four times its height over three quarters, so that the label is minded first.",
    )
    free_bits: float = Field(0.0, ge=0, le=10, description="Nats per latent dimension that cost nothing.")
    conditional: bool = Field(
        False, description="Decode for a class: decode, samples and the like take a label, codes need not tell it."
    )
    sampler: Literal["prior", "gaussian", "mixture"] = Field(
        "prior",
        description="Where samples come from: the standard normal prior, or one normal distribution or ten, fitted to "
        "the codes after training.",
    )


class VAE(HasPosterior, Coding):
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
    def create(cls, config: dict, data: DataSpec) -> Self:
        kind = ConditionalVAE if config.get("conditional") is True and cls is VAE else cls
        return super(VAE, kind).create(config, data)

    @classmethod
    def resolve_config(cls, config: VaeConfig, data: DataSpec) -> VaeConfig:
        if config.conditional and not (data.classes and "labels" in data.columns.get("train", {"labels": 1})):
            raise DataError(
                "a conditional vae needs labels, which this dataset lacks", "conditional", "leave conditional out"
            )
        config = super().resolve_config(config, data)
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

    def plane(self) -> Plane:
        if self.config.sampler == "prior" and self.latent_dim <= 2:
            return Plane.standard(self.latent_dim, self.device)
        return super().plane()

    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        images, settings = batch["images"], self.config
        mean, logvar = self.posterior(images)
        noise = torch.randn(mean.shape, generator=context.generator, device=mean.device)
        output = self.output(mean + noise * (0.5 * logvar).exp(), self.labels_of(batch))
        self._fit_spread(output.detach(), images, context)
        surprise = self.surprise(output, images).mean()
        divergence = losses.gaussian_kl(mean, logvar)  # (b, d)
        paid = (
            divergence.mean(0).clamp_min(settings.free_bits).sum() if settings.free_bits else divergence.sum(1).mean()
        )
        total = {
            "elbo": surprise + self.beta(context.progress) * paid,
            "reconstruction_only": surprise,
            "kl_only": paid,
        }[settings.objective]
        kl = divergence.detach().sum(1).mean()
        return total, {"nelbo": surprise.detach() + kl, "reconstruction": surprise.detach(), "kl": kl}

    def beta(self, progress: float) -> float:
        """Weight of the KL term at `progress` in [0, 1]."""
        return self.config.beta * min(1.0, progress / self.steady if self.steady else 1.0)

    @property
    def steady(self) -> float:
        """Share of the training after which the KL term has its weight."""
        return WARM_UP if self.config.kl_warm_up is None else self.config.kl_warm_up

    def output(self, codes: Tensor, labels: Tensor | None) -> Tensor:
        """What the decoder gives for codes (b, latent_dim), without a final activation."""
        return self.decoder(codes)

    def labels_of(self, batch: Batch) -> Tensor | None:
        """The labels (b,) that a conditional model decodes a batch for."""
        return None

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
    def _fit_spread(self, output: Tensor, images: Tensor, context: StepContext) -> None:
        """Follow the optimal sigma of the batches, averaged over about 20 updates."""
        if self.config.likelihood == "bernoulli":
            return
        optimum = losses.optimal_log_sigma((output - images).square().sum(), images.numel())
        if self.config.likelihood == "discretised_logistic":
            optimum = optimum - math.log(math.pi / math.sqrt(3))  # a logistic of scale s has sigma s * pi / sqrt(3)
        self.log_spread.lerp_(optimum, 1.0 if context.step == 0 else 0.05)

    def validation_loss(self, probe: Batch, context: StepContext) -> Tensor:
        """What is descended, with beta at its full height."""
        images, settings = probe["images"], self.config
        mean, logvar = self.posterior(images)
        noise = torch.randn(mean.shape, generator=self.fixed(context), device=mean.device)
        output = self.output(mean + noise * (0.5 * logvar).exp(), self.labels_of(probe))
        surprise = self.surprise(output, images).mean()
        kl = losses.gaussian_kl(mean, logvar).mean(0).clamp_min(settings.free_bits).sum()
        parts = {"elbo": surprise + settings.beta * kl, "reconstruction_only": surprise, "kl_only": kl}
        return parts[settings.objective]

    def diagnose(self, look: Inspection) -> Iterator[Alarm]:
        """Codes that say nothing about the image (Bowman et al. 2016)."""
        images = look.probe["images"]
        if look.context.progress < max(SETTLED, self.steady) or len(images) < FEW:
            return
        mean, logvar = self.posterior(images)
        active, kl = metrics.active_units(mean), float(losses.gaussian_kl(mean, logvar).sum(1).mean())
        if active < COLLAPSED * self.latent_dim or kl < ONE_NAT:
            yield Alarm(
                "posterior-collapse",
                f"The code hardly depends on the image: {active} of {self.latent_dim} units vary with it, and it "
                f"carries {kl:.2g} nats.",
                "Lower beta, raise kl_warm_up or free_bits, or ask for fewer units with latent_dim.",
                {"active_units": active, "units": self.latent_dim, "kl": kl},
            )

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """-ELBO with one draw for each image, its parts, and the importance-sampled -log p of the first images."""
        parts = torch.zeros(2, dtype=torch.float64)
        means, rows = [], 0
        for images in metrics.spread(validation):
            images = images.to(self.device)
            mean, logvar = self.posterior(images)
            noise = torch.randn(mean.shape, generator=context.generator, device=mean.device)
            output = self.output(mean + noise * (0.5 * logvar).exp(), self.labels_of({"images": images}))
            surprise = self.surprise(output, images)
            parts += torch.stack([surprise, losses.gaussian_kl(mean, logvar).sum(1)]).double().sum(1).cpu()
            means.append(mean.cpu())
            rows += len(images)
        reconstruction, kl = (parts / rows).tolist()
        found = {"nelbo": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}
        found["active_units"] = metrics.active_units(torch.cat(means))
        found["nll"] = self._nll(validation, context)
        if self.config.likelihood == "discretised_logistic":
            found["bits_per_number"] = found["nelbo"] / (self.data.pixels * math.log(2))
        return found | super().evaluate(train, validation, context)

    def _nll(self, validation: Columns, context: StepContext) -> float:
        """Mean importance-sampled -log p of 8 to 100 images: the ELBO made tighter by 64 draws for each."""
        cost = NLL_SAMPLES * self.data.pixels
        rows = min(100, max(8, NLL_NUMBERS // cost))
        images = torch.cat(list(metrics.spread(validation, limit=rows))).to(self.device)
        parts = images.split(max(1, NLL_NUMBERS // 20 // cost))
        return float(torch.cat([self.nll(part, NLL_SAMPLES, context.generator) for part in parts]).mean())

    def negative_elbo(self, images: Tensor, noise: Tensor) -> Tensor:
        mean, logvar = self.posterior(images)
        labels, spread = self.labels_of({"images": images}), (0.5 * logvar).exp()
        found = losses.gaussian_kl(mean, logvar).sum(1)
        for draw in noise:  # one by one: memory does not grow with the draws
            found = found + self.surprise(self.output(mean + draw * spread, labels), images) / len(noise)
        return found

    def nll(self, images: Tensor, samples: int, draws: torch.Generator) -> Tensor:
        """(b,): -log mean_s p(x | z_s) p(z_s) / q(z_s | x), z_s from q (Burda et al. 2016, eq. 8)."""
        mean, logvar = self.posterior(images)
        noise = torch.randn((samples, *mean.shape), generator=draws, device=mean.device)  # (s, b, d)
        codes = mean + noise * (0.5 * logvar).exp()
        log_ratio = (-0.5 * codes.square() + 0.5 * (noise.square() + logvar)).sum(2)  # log p(z) - log q(z | x)
        labels = self.labels_of({"images": images})
        output = self.output(codes.flatten(0, 1), None if labels is None else labels.repeat(samples))
        target = images.expand(samples, *images.shape).flatten(0, 1)
        surprise = self.surprise(output, target).unflatten(0, (samples, -1))
        return math.log(samples) - (log_ratio - surprise).logsumexp(0)


class ConditionalVAE(Conditional, VAE):
    """p(image | code, label) (Sohn et al. 2015), with q(code | image): what the label tells, the code need not.

    A layer on the encoder's features learns to recognise the label, so that an image alone can be drawn again.
    """

    infers_labels = True

    def __init__(self, config: VaeConfig, data: DataSpec):
        super().__init__(config, data)
        wider = config.model_copy(update={"latent_dim": config.latent_dim + len(data.classes)})
        self.decoder = Told(decoder(wider, data.shape), len(data.classes))
        self.head = nn.Linear(self.encoder.last.in_features, len(data.classes))

    def output(self, codes: Tensor, labels: Tensor) -> Tensor:
        # as long as a code usually is, or the decoder learns to read the class from the code before it minds the label
        told = F.one_hot(labels, len(self.data.classes)).to(codes) * math.sqrt(self.latent_dim)
        return self.decoder(torch.cat([codes, told], 1), labels)

    def beta(self, progress: float) -> float:
        """Codes are dear at first: what the label says for nothing is then not said by the code."""
        if self.config.kl_warm_up is not None:
            return super().beta(progress)
        return self.config.beta * (1 + (DEAR - 1) * max(0.0, 1 - progress / DEAR_UNTIL))

    @property
    def steady(self) -> float:
        return DEAR_UNTIL if self.config.kl_warm_up is None else self.config.kl_warm_up

    def decode(self, latents: Tensor, labels: Tensor) -> Tensor:
        return self.pixels(self.output(latents, labels))

    def draw(self, noise: Tensor, uniform: Tensor, labels: Tensor) -> Tensor:
        return super().draw(noise, uniform)

    def guess(self, images: Tensor) -> Tensor:
        """(b, classes): logits of the label."""
        return self.head(self.encoder.features(images))

    def infer_labels(self, images: Tensor) -> Tensor:
        return self.guess(images).argmax(1)

    def labels_of(self, batch: Batch) -> Tensor:
        return batch["labels"] if "labels" in batch else self.infer_labels(batch["images"])

    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        """The conditional -ELBO, and the cross-entropy of the recognised label."""
        total, found = super().loss(batch, context)
        wrong = F.cross_entropy(self.guess(batch["images"]), batch["labels"])
        return total + RECOGNITION * wrong, {**found, "label_loss": wrong.detach()}

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Adds how often labels are recognised, in images and in the model's own samples for them."""
        found = super().evaluate(train, validation, context)
        pairs = zip(metrics.spread(validation), metrics.spread(validation, "labels"), strict=True)
        right = [(self.infer_labels(images.to(self.device)).cpu() == labels.cpu()).double() for images, labels in pairs]
        noise = torch.randn(256, self.latent_dim, generator=context.generator, device=self.device)
        wanted = self.example_labels(len(noise)).to(self.device)
        obeyed = self.infer_labels(self.decode(self.draw(noise, noise.new_zeros(len(noise)), wanted), wanted)) == wanted
        return found | {"label_accuracy": float(torch.cat(right).mean()), "obedience": float(obeyed.double().mean())}
