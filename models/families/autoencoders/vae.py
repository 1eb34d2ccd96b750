"""The variational autoencoder (Kingma & Welling 2014), with beta (Higgins et al. 2017), KL warm-up and free bits."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.capabilities import Conditional, HasPosterior
from models.context import StepContext
from models.data import Columns
from models.diagnosis import Alarm, Inspection
from models.evaluation import metrics
from models.evaluation.fidelity import decode_prior, fidelity_of, in_chunks
from models.families.autoencoders.base import (
    MIN_PROBE,
    WARMED_UP,
    AutoencoderBase,
    AutoencoderBaseConfig,
    build_decoder,
)
from models.losses import reconstruction as losses
from models.nn.encoders import FiLMDecoder
from models.nn.plane import Plane
from models.types import Batch, DataError, DataSpec, Metrics

MAX_LOGVAR = 10.0
MIN_ACTIVE = 0.25  # share of active units below which the posterior has collapsed
MIN_KL = 1.0  # nats below which it has
NLL_SAMPLES, NLL_IMAGES = 64, 1000  # codes per image in the importance-sampled likelihood, and images
NLL_NUMBERS = 80_000_000  # pixels decoded for it, at most
WARM_UP = 0.1  # default of kl_warm_up
KL_START, KL_UNTIL = 4.0, 0.75
"""A conditional model starts with this multiple of beta, which falls to beta at this share of the training.

The label then carries what it can before the code does: after 1250 updates on 4000 digits 94 % of samples are of the
class asked for (87 % after half of them), 83 % after 500 updates without it, 68 % with the label at one layer only.
"""
LABEL_WEIGHT = 10.0  # of the label's cross-entropy, in nats: it shares the encoder with far larger terms


class VaeConfig(AutoencoderBaseConfig):
    """The loss is -ELBO in nats: summed over pixels and latent dimensions, averaged over the batch."""

    code: Literal["linear"] = Field("linear", description="The mean of the posterior has no activation.")
    likelihood: Literal["bernoulli", "gaussian", "discretised_logistic"] | None = Field(
        None,
        description="p(image | code). gaussian: one sigma for all pixels, fitted in closed form. Default: bernoulli "
        "for grey images, gaussian for colour.",
    )
    objective: Literal["elbo", "iwae", "reconstruction_only", "kl_only"] = Field(
        "elbo",
        description="Loss. elbo: -ELBO. iwae: the tighter importance-weighted bound. The others are single terms of "
        "the -ELBO, which show what each does to the codes.",
    )
    importance_samples: int = Field(5, ge=1, le=64, description="Codes per image under iwae.")
    beta: float = Field(1.0, ge=0, le=1000, description="Weight of the KL term after its warm-up.")
    kl_warm_up: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Fraction of the training over which beta rises from zero. Default: 0.1; for a conditional model "
        "beta falls instead, from four times its value over three quarters of the training, so that the label is "
        "learned first.",
    )
    free_bits: float = Field(0.0, ge=0, le=10, description="Nats per latent dimension that the KL term ignores.")
    conditional: bool = Field(
        False, description="Decode for a class label: decode and samples take a label, codes need not contain it."
    )
    sampler: Literal["mixture", "gaussian", "prior"] | None = Field(
        None,
        description="Distribution of the codes of samples; a request may name another. prior: the standard normal. "
        "gaussian, mixture: one Gaussian or several, fitted to the codes after training. Default: mixture; for a "
        "conditional model prior, because its codes are drawn independently of the label.",
    )


class VAE(Conditional, HasPosterior, AutoencoderBase):
    """`encode` gives the posterior mean. `log_spread` is the log of sigma, or of the scale of the logistic.

    With `conditional` the decoder is p(image | code, label) (Sohn et al. 2015) and the posterior still q(code | image);
    a linear layer on the encoder's features learns to predict the label, so that an image alone can be reconstructed.
    """

    name = "vae"
    summary = "Learns a smooth space of codes to draw new images from."
    lecture = "Variational autoencoders"
    Config = VaeConfig
    bf16_on = ("cpu", "cuda")
    outputs = 2
    takes_labels = False

    def __init__(self, config: VaeConfig, data: DataSpec):
        super().__init__(config, data)
        self.register_buffer("log_spread", torch.tensor(math.log(0.25)))
        self.takes_labels = self.infers_labels = config.conditional
        if config.conditional:
            self.head = nn.Linear(self.encoder.last.in_features, len(data.classes))

    def build_networks(self) -> tuple[nn.Module, nn.Module]:
        encoder, decoder = super().build_networks()
        if self.config.conditional:
            classes = len(self.data.classes)
            wider = self.config.model_copy(update={"latent_dim": self.config.latent_dim + classes})
            decoder = FiLMDecoder(build_decoder(wider, self.data.shape), classes)
        return encoder, decoder

    @classmethod
    def resolve_config(cls, config: VaeConfig, data: DataSpec) -> VaeConfig:
        if config.conditional and not (data.classes and "labels" in data.columns.get("train", {"labels": 1})):
            raise DataError(
                "a conditional vae needs labels, which this dataset lacks", "conditional", "leave conditional out"
            )
        config = super().resolve_config(config, data)
        likelihood = config.likelihood or ("bernoulli" if data.channels == 1 else "gaussian")
        sampler = config.sampler or ("prior" if config.conditional else "mixture")
        return config.model_copy(update={"likelihood": likelihood, "sampler": sampler})

    @classmethod
    def earlier_settings(cls, engine: int, data: DataSpec) -> dict[str, Any]:
        return ({"sampler": "prior"} if engine < 2 else {}) | super().earlier_settings(engine, data)

    # Codes and images

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.encoder(images).chunk(2, 1)
        return mean, logvar.clamp(-MAX_LOGVAR, MAX_LOGVAR)

    def encode(self, images: Tensor) -> Tensor:
        return self.posterior(images)[0]

    def deterministic_encoder(self) -> nn.Module:
        encoder = super().deterministic_encoder()
        last, dimensions = encoder.last, self.latent_dim
        last.weight, last.bias = nn.Parameter(last.weight[:dimensions]), nn.Parameter(last.bias[:dimensions])
        return encoder

    def decoder_output(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """(b, latent_dim), for a conditional model labels (b,) -> (b, c, h, w), before `to_pixels`."""
        if not self.takes_labels:
            return self.decoder(codes)
        # as long as a code usually is: otherwise the decoder learns to read the class from the code first
        one_hot = F.one_hot(labels, len(self.data.classes)).to(codes) * math.sqrt(self.latent_dim)
        return self.decoder(torch.cat([codes, one_hot], 1), labels)

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.to_pixels(self.decoder_output(latents, labels))

    def to_pixels(self, output: Tensor) -> Tensor:
        return output.sigmoid() if self.config.likelihood == "bernoulli" else output.clamp(0, 1)

    def plane(self, sampler: str | None = None) -> Plane:
        by_default = self.config.sampler if self.latent_dim <= 2 else None
        return super().plane(sampler or by_default)

    def label_logits(self, images: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, classes), for a conditional model."""
        return self.head(self.encoder.features(images))

    def infer_labels(self, images: Tensor) -> Tensor:
        return self.label_logits(images).argmax(1)

    def labels_for_decoding(self, batch: Batch) -> Tensor | None:
        """The labels (b,) of a batch, inferred where it has none; None for a model that is not conditional."""
        if not self.takes_labels:
            return None
        return batch["labels"] if "labels" in batch else self.infer_labels(batch["images"])

    # The objective

    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        """L = E_q[-log p(x | z)] + beta KL(q(z | x) || p(z)), one z per image (Higgins et al. 2017, eq. 4).

        In eval mode, as validation loss: with the final beta, and without the loss of the predicted label.
        """
        images, settings = batch["images"], self.config
        mean, logvar = self.posterior(images)
        noise = torch.randn(mean.shape, generator=context.generator, device=mean.device)
        codes = mean + noise * (0.5 * logvar).exp()
        output = self.decoder_output(codes, self.labels_for_decoding(batch))
        if self.training:
            self._fit_spread(output.detach(), images, context)
        nll, kl = self.nll_term(output, images), self.kl_term(mean, logvar, codes)
        beta = self.beta(context.progress) if self.training else settings.beta
        if settings.objective == "iwae":
            labels = self.labels_for_decoding(batch)
            total = self.importance_nll(images, settings.importance_samples, context.generator, labels).mean()
        else:
            total = {"elbo": nll + beta * kl, "reconstruction_only": nll, "kl_only": kl}[settings.objective]
        reconstruction, divergence = nll.detach(), losses.gaussian_kl(mean.detach(), logvar.detach()).sum(1).mean()
        measured = {"nelbo": reconstruction + divergence, "reconstruction": reconstruction, "kl": divergence}
        if self.takes_labels and self.training:
            label_loss = F.cross_entropy(self.label_logits(images), batch["labels"])
            total, measured["label_loss"] = total + LABEL_WEIGHT * label_loss, label_loss.detach()
        return total, measured

    def nll_term(self, output: Tensor, images: Tensor) -> Tensor:
        """(): -log p(x | z) in nats, the mean over the batch."""
        return self.reconstruction_nll(output, images).mean()

    def kl_term(self, mean: Tensor, logvar: Tensor, codes: Tensor) -> Tensor:
        """(): what beta weighs, for posteriors (b, latent_dim) and codes drawn from them: the KL divergence in nats.

        With free bits: sum_j max(free_bits, mean_b KL_j) (Kingma et al. 2016, eq. 15).
        """
        divergence = losses.gaussian_kl(mean, logvar)  # (b, d)
        if self.config.free_bits:
            return divergence.mean(0).clamp_min(self.config.free_bits).sum()
        return divergence.sum(1).mean()

    def beta(self, progress: float) -> float:
        """Weight of the KL term at `progress` in [0, 1]."""
        if self.takes_labels and self.config.kl_warm_up is None:
            return self.config.beta * (1 + (KL_START - 1) * max(0.0, 1 - progress / KL_UNTIL))
        share = self.kl_warm_up_share
        return self.config.beta * min(1.0, progress / share if share else 1.0)

    @property
    def kl_warm_up_share(self) -> float:
        """Share of the training after which beta has its final value."""
        if self.config.kl_warm_up is not None:
            return self.config.kl_warm_up
        return KL_UNTIL if self.takes_labels else WARM_UP

    def reconstruction_nll(self, output: Tensor, images: Tensor) -> Tensor:
        """(b,): -log p(image | code) in nats, from the decoder's output.

        bernoulli: cross-entropy of soft pixels. gaussian: a density on [0, 1]. discretised_logistic: a probability of
        8-bit pixels, the only one whose values can be compared across likelihoods and, as bits per number, image sizes.
        """
        if self.config.likelihood == "bernoulli":
            return losses.bernoulli(output, images)
        if self.config.likelihood == "gaussian":
            return losses.gaussian(output, self.log_spread, images)
        return losses.discretised_logistic(output, self.log_spread, images)

    @torch.no_grad()
    def _fit_spread(self, output: Tensor, images: Tensor, context: StepContext) -> None:
        """Move `log_spread` towards the optimum of this batch: a running mean over about 20 updates."""
        if self.config.likelihood == "bernoulli":
            return
        optimum = losses.optimal_log_sigma((output - images).square().sum(), images.numel())
        if self.config.likelihood == "discretised_logistic":
            optimum = optimum - math.log(math.pi / math.sqrt(3))  # a logistic of scale s has sigma s * pi / sqrt(3)
        self.log_spread.lerp_(optimum, 1.0 if context.step == 0 else 0.05)

    # Evaluation

    def negative_elbo(self, images: Tensor, noise: Tensor) -> Tensor:
        mean, logvar = self.posterior(images)
        labels, deviation = self.labels_for_decoding({"images": images}), (0.5 * logvar).exp()
        bound = losses.gaussian_kl(mean, logvar).sum(1)
        for draw in noise:  # one at a time: memory does not grow with the number of draws
            output = self.decoder_output(mean + draw * deviation, labels)
            bound = bound + self.reconstruction_nll(output, images) / len(noise)
        return bound

    def importance_nll(
        self, images: Tensor, samples: int, generator: torch.Generator, labels: Tensor | None = None
    ) -> Tensor:
        """(b,): -log mean_s p(x | z_s) p(z_s) / q(z_s | x), z_s from q (Burda et al. 2016, eq. 8)."""
        return math.log(samples) - self.log_weights(images, samples, generator, labels).logsumexp(0)

    def log_weights(
        self, images: Tensor, samples: int, generator: torch.Generator, labels: Tensor | None = None
    ) -> Tensor:
        """(s, b): log p(x | z_s) p(z_s) / q(z_s | x), z_s from q, for labels (b,), by default those of the images."""
        mean, logvar = self.posterior(images)
        noise = torch.randn((samples, *mean.shape), generator=generator, device=mean.device)  # (s, b, d)
        codes = mean + noise * (0.5 * logvar).exp()
        log_ratio = (-0.5 * codes.square() + 0.5 * (noise.square() + logvar)).sum(2)  # log p(z) - log q(z | x)
        labels = self.labels_for_decoding({"images": images}) if labels is None else labels
        output = self.decoder_output(codes.flatten(0, 1), None if labels is None else labels.repeat(samples))
        target = images.expand(samples, *images.shape).flatten(0, 1)
        return log_ratio - self.reconstruction_nll(output, target).unflatten(0, (samples, -1))

    def diagnose(self, inspection: Inspection) -> Iterator[Alarm]:
        """Posterior collapse: codes that do not depend on the image (Bowman et al. 2016)."""
        images = inspection.probe["images"]
        if inspection.context.progress < max(WARMED_UP, self.kl_warm_up_share) or len(images) < MIN_PROBE:
            return
        mean, logvar = self.posterior(images)
        active, kl = metrics.active_units(mean), float(losses.gaussian_kl(mean, logvar).sum(1).mean())
        if active < MIN_ACTIVE * self.latent_dim or kl < MIN_KL:
            yield Alarm(
                "posterior-collapse",
                f"The code hardly depends on the image: {active} of {self.latent_dim} units vary with it, and it "
                f"carries {kl:.2g} nats.",
                "Lower beta, raise kl_warm_up or free_bits, or ask for fewer units with latent_dim.",
                {"active_units": active, "units": self.latent_dim, "kl": kl},
            )

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """-ELBO with one draw for each image, its terms, and the importance-sampled -log p of 1,000 images; the FD of
        samples from the prior where that is not the default.

        For a conditional model also the accuracy of inferred labels, on images and on its own samples for a label.
        """
        sums = torch.zeros(2, dtype=torch.float64)
        means, rows = [], 0
        for images in metrics.spaced_rows(validation):
            images = images.to(self.device)
            mean, logvar = self.posterior(images)
            noise = torch.randn(mean.shape, generator=context.generator, device=mean.device)
            labels = self.labels_for_decoding({"images": images})
            nll = self.reconstruction_nll(self.decoder_output(mean + noise * (0.5 * logvar).exp(), labels), images)
            sums += torch.stack([nll, losses.gaussian_kl(mean, logvar).sum(1)]).double().sum(1).cpu()
            means.append(mean.cpu())
            rows += len(images)
        reconstruction, kl = (sums / rows).tolist()
        measured = {"nelbo": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}
        measured["active_units"] = metrics.active_units(torch.cat(means))
        measured |= self._likelihood(validation, context)
        if self.config.likelihood == "discretised_logistic":
            measured["bits_per_number"] = measured["nelbo"] / (self.data.pixels * math.log(2))
        measured |= super().evaluate(train, validation, context)
        measured |= self._label_accuracies(validation, context) if self.takes_labels else {}
        return measured | (self._prior_fidelity(train, validation, context) if self.config.sampler != "prior" else {})

    def _prior_fidelity(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """The FD of samples from the standard normal prior."""
        fidelity = fidelity_of(train, validation, self.device, self.data)
        samples = in_chunks(lambda count: decode_prior(self, count, context.generator, "prior"), fidelity.count)
        return {f"{name}_prior": value for name, value in fidelity.distances(samples).items() if name == "fd"}

    def _likelihood(self, validation: Columns, context: StepContext) -> dict[str, float]:
        """Importance-sampled -log p of 8 to 1,000 images with a 90 % interval, and the -ELBO of the same draws."""
        cost = NLL_SAMPLES * self.data.pixels
        rows = min(NLL_IMAGES, max(8, NLL_NUMBERS // cost))
        images = torch.cat(list(metrics.spaced_rows(validation, limit=rows)))
        parts = images.split(max(1, NLL_NUMBERS // 20 // cost))
        weights = [self.log_weights(part.to(self.device), NLL_SAMPLES, context.generator).cpu() for part in parts]
        logs = torch.cat(weights, 1).double()  # (s, n)
        nll = math.log(NLL_SAMPLES) - logs.logsumexp(0)
        half = 1.645 * float(nll.std(correction=0)) / math.sqrt(len(nll))
        measured = {"nll": float(nll.mean()), "nll_low": float(nll.mean()) - half, "nll_high": float(nll.mean()) + half}
        return measured | {"nll_nelbo": -float(logs.mean()), "nll_images": float(len(nll))}

    def _label_accuracies(self, validation: Columns, context: StepContext) -> dict[str, float]:
        pairs = zip(metrics.spaced_rows(validation), metrics.spaced_rows(validation, "labels"), strict=True)
        correct = [
            (self.infer_labels(images.to(self.device)).cpu() == labels.cpu()).double() for images, labels in pairs
        ]
        noise = torch.randn(256, self.latent_dim, generator=context.generator, device=self.device)
        labels = self.example_labels(len(noise)).to(self.device)
        uniform = torch.rand(len(noise), generator=context.generator, device=self.device)
        samples = self.decode(self.draw(noise, uniform, labels), labels)
        agreement = (self.infer_labels(samples) == labels).double().mean()
        return {"label_accuracy": float(torch.cat(correct).mean()), "obedience": float(agreement)}
