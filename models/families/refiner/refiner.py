"""Refines simulated images without changing their labels: SimGAN (Shrivastava et al. 2017), with a noise input that
gives several refined images of one simulated image (Bousmalis et al. 2017).
"""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.capabilities import Discriminates, Refines
from models.context import StepContext
from models.data import Columns
from models.evaluation.refinement import RATE, image_noise, refinement_report
from models.evaluation.translation import ROWS
from models.families.refiner.discriminators import MultiScaleDiscriminator
from models.families.refiner.label_reader import LabelReader
from models.families.refiner.networks import QuantiseStraightThrough, RefinerNet
from models.family import LONGER_CPU_SECONDS, Config, Family
from models.losses.adversarial import frozen, update
from models.losses.gradient_penalties import zero_centred_penalty
from models.nn.ema import Ema
from models.nn.image_pool import ImagePool
from models.training.precision import learned_passes
from models.types import Batch, DataError, DataSpec, Metrics

PENALTY_EVERY = 8  # D updates for one with the gradient penalty, whose weight is multiplied by this
WARM_UP_UPDATES = 3  # annotator updates per step during the refiner_learns-up
HISTORY_NUMBERS = 2**26  # maximum numbers in the history of refined images: 256 MB


class RefinerConfig(Config):
    """L_R = mean softplus(-D(R(x, z))) over patches and whole images + label_weight * cross-entropy of the annotator on
    R(x, z) + lambda_self * (mean |R(x, z) - x| + mean displacement).

    All terms are means; `lambda_of_sums` converts published weights of sums. Pixel values are compared after the
    displacement, which is a fraction of the image's side. The original SimGAN is `noise` 0, `warp` 0, `whole` false,
    `r1` 0 and `label_weight` 0.
    """

    lambda_self: float = Field(0.5, ge=0, le=1e3, description="Weight of the distance to the simulated image.")
    warp: float = Field(
        0.15,
        ge=0,
        le=0.5,
        description="Maximum displacement of pixels, as a fraction of the side; 0: only values change (SimGAN).",
    )
    noise: int = Field(
        16,
        ge=0,
        le=512,
        description="Size of the noise vector of each refined image; 0: the result is deterministic (SimGAN).",
    )
    whole: bool = Field(
        True, description="Use a discriminator on whole images as well; false: on patches alone (SimGAN)."
    )
    r1: float = Field(
        1.0, ge=0, le=1000, description="Weight of the discriminator's R1 gradient penalty on real images."
    )
    label_weight: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Weight of the annotator's cross-entropy on refined images; 0: no annotator (SimGAN). Default: 1 "
        "if the simulated images have labels (2 at effort lesson), else 0.",
    )
    labels_alike: bool = Field(
        True,
        description="Assume that labels are about as frequent in real as in simulated images; false: no assumption.",
    )
    width: int | None = Field(
        None, ge=4, le=256, description="Channels of the refiner. Default: 16 at effort lesson, else 24."
    )
    judge_width: int | None = Field(
        None,
        ge=3,
        le=512,
        description="Channels of the first layer of the patch discriminator. Default: 48 at effort lesson, else 96.",
    )
    blocks: int = Field(3, ge=1, le=16, description="Residual blocks of the refiner.")
    refiner_updates: int = Field(1, ge=1, le=50, description="Refiner updates per discriminator update.")
    warm_up: float = Field(
        0.1,
        ge=0,
        le=0.5,
        description="Fraction of the run at the start in which only discriminator and annotator are trained.",
    )
    history_batches: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Batches in the history of refined images for the discriminator. Default: 50, or fewer to stay "
        "within 256 MB.",
    )


def lambda_of_sums(weight: float, height: int, width: int) -> float:
    """`lambda_self` for a published weight of losses summed over pixels and over D's (height/4) x (width/4) patches.

    0.5 at 35x55 with 9x14 patches gives 7.6 (carpedm20/simulated-unsupervised-tensorflow).
    """
    return weight * height * width / (math.ceil(height / 4) * math.ceil(width / 4))


def lambda_of_batch_sums(weight: float, height: int, width: int, batch: int) -> float:
    """`lambda_self` for a published weight of a sum over the pixels of a batch, where D's loss is a mean.

    1e-4 at 35x55 with batches of 512 gives 99 (mjdietzx/SimGAN).
    """
    return weight * height * width * batch


class Refiner(Refines, Discriminates, Family):
    """Domain A is simulated, domain B real. A refined image keeps the label of its simulated image."""

    name = "refiner"
    summary = "Makes simulated images look like real ones while keeping their labels true."
    lecture = "Refiner"
    layouts = ("unpaired",)
    needs = ("a", "b")
    Config = RefinerConfig
    default_batch = 32
    milliseconds = 3.8
    reference_width = 16
    cpu_seconds = LONGER_CPU_SECONDS
    patch_domains = ("b",)

    def __init__(self, config: RefinerConfig, data: DataSpec):
        super().__init__(config, data)
        self.labels = len(data.classes) if config.label_weight else 0
        self.noise_dim = config.noise
        self.refiner = RefinerNet(data.shape, config.width, config.blocks, config.warp, config.noise)
        self.served = Ema(self.refiner)
        self.judge = MultiScaleDiscriminator(data.shape, self.labels, config.whole, config.judge_width)
        self.annotator = LabelReader(data.shape, self.labels, config.labels_alike) if self.labels else None
        self.pool = ImagePool(config.history_batches * config.batch_size, (1, 1, data.pixels + self.labels))

    @classmethod
    def resolve_config(cls, config: RefinerConfig, data: DataSpec) -> RefinerConfig:
        labelled = bool(data.classes) and "a_labels" in data.columns.get("train", {})
        if config.label_weight and not labelled:
            raise DataError(
                f"label_weight is {config.label_weight}, but the simulated images (a) of this dataset have no labels",
                field="label_weight",
                remedy="leave it out, or give the folders A and B the same class folders",
            )
        resolved = super().resolve_config(config, data)
        batches = max(1, min(50, HISTORY_NUMBERS // (data.pixels * resolved.batch_size)))
        lesson = resolved.effort == "lesson"
        label_weight = (2.0 if lesson else 1.0) if labelled else 0.0
        defaults = {
            "label_weight": label_weight if config.label_weight is None else config.label_weight,
            "history_batches": config.history_batches or batches,
            "width": config.width or (16 if lesson else 24),
            "judge_width": config.judge_width or (48 if lesson else 96),
        }
        return resolved.model_copy(update=defaults)

    def forward_passes(self) -> list[tuple[nn.Module, str]]:
        return [*learned_passes(self), (self.refiner, "refine")]

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        rate = self.config.learning_rate
        networks = {"refiner": self.refiner, "judge": self.judge}
        optimisers = {name: torch.optim.Adam(net.parameters(), rate, (0.5, 0.99)) for name, net in networks.items()}
        if self.annotator is not None:
            optimisers["annotator"] = torch.optim.Adam(self.annotator.parameters(), RATE, (0.9, 0.99))
        return optimisers

    def step(self, batch: Batch, optimisers: dict[str, torch.optim.Optimizer], context: StepContext) -> Metrics:
        refiner_learns = context.progress >= self.config.warm_up
        metrics, refined = self._update_refiner(batch, optimisers["refiner"], refiner_learns, context)
        self.served.update(self.refiner, self.config.batch_size, context.images)
        if self.annotator is not None:
            inputs = batch["a"], batch["a_labels"], batch["b"], context.progress, context.generator
            for _ in range(1 if refiner_learns else WARM_UP_UPDATES):
                metrics["annotator"] = update(optimisers["annotator"], self.annotator.loss(*inputs))
        if not refiner_learns or context.step % self.config.refiner_updates == 0:
            metrics["judge"] = self._update_discriminator(batch, refined, optimisers["judge"], context)
        return metrics

    def _update_discriminator(
        self, batch: Batch, refined: Tensor, optimiser: torch.optim.Optimizer, context: StepContext
    ) -> Tensor:
        """One step on real images and on refined ones, partly from the history (section 2.3); returns the loss.

        The labels are those of the simulated images, and for real images the annotator's label probabilities.
        """
        rows = torch.cat([refined.flatten(1), self._one_hot_labels(batch)], 1)[:, None, None]
        rows = self.pool.exchange(rows, context.generator)[:, 0, 0]
        pixels, labels = rows.tensor_split([self.data.pixels], 1)
        due = self.config.r1 > 0 and context.step // self.config.refiner_updates % PENALTY_EVERY == 0
        images = batch["b"].detach().requires_grad_(due)
        real = self.judge(images, self.annotator.label_probs(batch["b"]) if self.annotator is not None else None)
        fake = self.judge(pixels.unflatten(1, self.data.shape), labels)
        loss = self.d_loss(real, fake)
        if due:
            penalty = zero_centred_penalty(sum(logits.flatten(1).mean(1) for logits in real), images)
            return update(optimiser, loss + self.config.r1 / 2 * PENALTY_EVERY * penalty)
        return update(optimiser, loss)

    def d_loss(self, real: list[Tensor], refined: list[Tensor]) -> Tensor:
        """The loss of D, from the logits of each discriminator for real and for refined images."""
        # L_D = -sum log D(R(x)) - sum log(1 - D(y)), with D = sigmoid(-logit)  (Shrivastava et al. 2017, eq. 2)
        return sum(F.softplus(-a).mean() + F.softplus(b).mean() for a, b in zip(real, refined, strict=True))

    def r_adv(self, refined: list[Tensor]) -> Tensor:
        """The adversarial loss of R, from the logits of each discriminator for refined images."""
        # l_real = -log(1 - D(R(x))), with D = sigmoid(-logit)  (eq. 3)
        return sum(F.softplus(-logits).mean() for logits in refined)

    def _one_hot_labels(self, batch: Batch) -> Tensor:
        """(b, k): one-hot labels of the simulated images; k = 0 without an annotator."""
        if not self.labels:
            return batch["a"].new_zeros(len(batch["a"]), 0)
        return F.one_hot(batch["a_labels"], self.labels).float()

    def _update_refiner(
        self, batch: Batch, optimiser: torch.optim.Optimizer, refiner_learns: bool, context: StepContext
    ) -> tuple[Metrics, Tensor]:
        """One step of the refiner, unless `refiner_learns` is false; returns the metrics and the refined images."""
        annotators = [self.annotator] if self.annotator is not None else []
        images, draws = batch["a"], context.generator
        noise = torch.randn(len(images), self.noise_dim, generator=draws, device=images.device)
        with frozen(self.judge, *annotators), torch.set_grad_enabled(refiner_learns):
            values, psi = self.refiner.refine(images, noise)
            refined = QuantiseStraightThrough.apply(values)
            realism = self.r_adv(self.judge(refined, self._one_hot_labels(batch)))
            # L_R = sum l_real + lambda * |psi(R(x)) - psi(x)|_1  (eq. 1 and 4)
            loss = realism + self.config.lambda_self * psi
            metrics = {"fool": realism.detach(), "moved": psi.detach()}
            for annotator in annotators:
                label_loss = F.cross_entropy(annotator(refined), batch["a_labels"])
                loss, metrics["unread"] = loss + self.config.label_weight * label_loss, label_loss.detach()
            if refiner_learns:
                update(optimiser, loss)
        return {"loss": loss.detach(), **metrics}, refined.detach()

    def refine(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        if noise is None:
            noise = images.new_zeros(len(images), self.noise_dim) if self.noise_dim else images.flatten(1)[:, :0]
        return self.served(images, noise).clamp(0, 1)

    def patches(self, *images: Tensor, domain: str) -> Tensor:
        return self.judge.patches(*images)[:, 0]

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """The measures of models/evaluation/refinement.py, and the accuracy of the discriminator (`judge_accuracy`)."""
        unseen = validation.head(ROWS)
        real = self._discriminator_accuracy(unseen["b"], True)
        classes = len(self.data.classes) if self.data.classes else None
        report = refinement_report(self._refine_on_host, train, validation, classes)
        for name, images in (("refined", self._refine_on_host(unseen["a"])), ("raw", unseen["a"])):
            report[f"judge_accuracy_{name}"] = (real + self._discriminator_accuracy(images, False)) / 2
        return report

    def _discriminator_accuracy(self, images: Tensor, real: bool) -> float:
        """Accuracy of the discriminator on images on the host that are all real, or all refined or raw."""
        right = [len(part) * self.judge.accuracy(part.to(self.device), real) for part in images.split(16)]
        return float(sum(right)) / len(images)

    def _refine_on_host(self, images: Tensor) -> Tensor:
        """Refined images on the host of images on the host, each with its own noise."""
        noise = image_noise(images, self.noise_dim)
        parts = zip(images.split(16), noise.split(16), strict=True)
        return torch.cat([self.refine(part.to(self.device), z.to(self.device)).cpu() for part, z in parts])

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        """(2 n, c, h, w): each simulated image, followed by its refined image."""
        images = probe["a"][:16]
        noise = image_noise(images.cpu(), self.noise_dim).to(images)
        return torch.stack([images, self.refine(images, noise)], 1).flatten(0, 1)
