"""Simulated images made realistic without losing their annotation: SimGAN (Shrivastava et al. 2017), with noise that
makes several real-looking images of one simulated (Bousmalis et al. 2017).
"""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from models.capabilities import Discriminates, Refines
from models.context import StepContext
from models.data import Columns
from models.evaluation.refinement import RATE, image_noise, refinement_report
from models.evaluation.translation import ROWS
from models.families.refiner.discriminators import MultiScaleDiscriminator
from models.families.refiner.label_reader import LabelReader
from models.families.refiner.networks import QuantiseStraightThrough, RefinerNet
from models.family import Config, Family
from models.losses.adversarial import frozen, update
from models.losses.gradient_penalties import zero_centred_penalty
from models.nn.ema import Ema
from models.nn.image_pool import ImagePool
from models.types import Batch, DataError, DataSpec, Metrics

PENALTY_EVERY = 8  # updates of the discriminator between two with its gradient penalty
LESSONS = 3  # of the annotator on one batch while the refiner waits for it
REMEMBERED = 2**26  # numbers that the history holds at most, 256 MB


class RefinerConfig(Config):
    """L_R = mean softplus(-D(R(x, z))) of patches and of whole images + label_weight * cross-entropy of the label read
    in R(x, z) + lambda_self * (mean |R(x, z) - x| + mean displacement).

    All terms are means, whatever the size; `lambda_of_sums` turns published weights into these. Values are compared
    along the displacement, which counts in shares of the image's side. The paper's own form is `noise` 0, `warp` 0,
    `whole` false, `r1` 0 and `label_weight` 0.
    """

    lambda_self: float = Field(0.5, ge=0, le=1e3, description="Weight of staying near the simulated image.")
    warp: float = Field(
        0.15,
        ge=0,
        le=0.5,
        description="Farthest that pixels may be displaced, in shares of the side; 0: only values change (the paper).",
    )
    noise: int = Field(
        16, ge=0, le=512, description="Numbers drawn for each refined image; 0: one refined image for each (the paper)."
    )
    whole: bool = Field(True, description="Also judge images as a whole; false: patches alone (the paper).")
    r1: float = Field(1.0, ge=0, le=1000, description="Weight of the discriminator's gradient penalty on real images.")
    label_weight: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Weight of the label staying readable; empty: 1 where simulated images have labels. 0: the paper.",
    )
    labels_alike: bool = Field(
        True, description="Labels are about as common among real images as among simulated ones; false: unknown."
    )
    width: int = Field(24, ge=4, le=256, description="Channels of the refiner.")
    blocks: int = Field(3, ge=1, le=16, description="Residual blocks of the refiner.")
    refiner_updates: int = Field(1, ge=1, le=50, description="Updates of the refiner for one of the discriminator.")
    warm_up: float = Field(
        0.1, ge=0, le=0.5, description="Share of the run in which the refiner waits for the other networks."
    )
    history_batches: int | None = Field(
        None, ge=1, le=1000, description="Batches of past refined images shown to it again; empty: 50, or 256 MB."
    )


def lambda_of_sums(weight: float, height: int, width: int) -> float:
    """`lambda_self` for a published weight where pixels and D's patches, a quarter of a side's pixels, are summed.

    0.5 at 35x55 with its 9x14 patches is 7.6 (carpedm20/simulated-unsupervised-tensorflow).
    """
    return weight * height * width / (math.ceil(height / 4) * math.ceil(width / 4))


def lambda_of_batch_sums(weight: float, height: int, width: int, batch: int) -> float:
    """`lambda_self` for a published weight of a sum over the pixels of a batch, beside D's loss as a mean.

    1e-4 at 35x55 with batches of 512 is 99 (mjdietzx/SimGAN).
    """
    return weight * height * width * batch


class Refiner(Refines, Discriminates, Family):
    """Domain A is simulated, domain B real. The refined image keeps its place in A's annotation."""

    name = "refiner"
    summary = "Makes simulated images look like real ones while keeping their labels true."
    lecture = "Refiner"
    layouts = ("unpaired",)
    needs = ("a", "b")
    Config = RefinerConfig
    default_batch = 32
    patch_domains = ("b",)

    def __init__(self, config: RefinerConfig, data: DataSpec):
        super().__init__(config, data)
        self.labels = len(data.classes) if config.label_weight else 0
        self.noise_dim = config.noise
        self.refiner = RefinerNet(data.shape, config.width, config.blocks, config.warp, config.noise)
        self.served = Ema(self.refiner)
        self.judge = MultiScaleDiscriminator(data.shape, self.labels, config.whole)
        self.annotator = LabelReader(data.shape, self.labels, config.labels_alike) if self.labels else None
        self.pool = ImagePool(config.history_batches * config.batch_size, (1, 1, data.pixels + self.labels))

    @classmethod
    def resolve_config(cls, config: RefinerConfig, data: DataSpec) -> RefinerConfig:
        labelled = bool(data.classes) and "a_labels" in data.columns.get("train", {})
        if config.label_weight and not labelled:
            raise DataError(
                "label_weight needs labels of the simulated images, which this dataset lacks",
                field="label_weight",
                remedy="leave it out, or give the folders A and B the same class folders",
            )
        whole = super().resolve_config(config, data)
        fitting = max(1, min(50, REMEMBERED // (data.pixels * whole.batch_size)))
        chosen = {
            "label_weight": config.label_weight if config.label_weight is not None else float(labelled),
            "history_batches": config.history_batches or fitting,
        }
        return whole.model_copy(update=chosen)

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        rate = self.config.learning_rate
        players = {"refiner": self.refiner, "judge": self.judge}
        found = {name: torch.optim.Adam(net.parameters(), rate, (0.5, 0.99)) for name, net in players.items()}
        if self.annotator is not None:
            found["annotator"] = torch.optim.Adam(self.annotator.parameters(), RATE, (0.9, 0.99))
        return found

    def step(self, batch: Batch, optimisers: dict[str, torch.optim.Optimizer], context: StepContext) -> Metrics:
        learns = context.progress >= self.config.warm_up
        metrics, refined = self._update_refiner(batch, optimisers["refiner"], learns, context)
        self.served.update(self.refiner, self.config.batch_size, context.images)
        if self.annotator is not None:
            lesson = batch["a"], batch["a_labels"], batch["b"], context.progress, context.generator
            for _ in range(1 if learns else LESSONS):
                metrics["annotator"] = update(optimisers["annotator"], self.annotator.loss(*lesson))
        if not learns or context.step % self.config.refiner_updates == 0:
            metrics["judge"] = self._update_judge(batch, refined, optimisers["judge"], context)
        return metrics

    def _update_judge(
        self, batch: Batch, refined: Tensor, optimiser: torch.optim.Optimizer, context: StepContext
    ) -> Tensor:
        """Of refined images it is told the label they must have, of real ones what the annotator reads in them."""
        rows = torch.cat([refined.flatten(1), self._shares(batch)], 1)[:, None, None]
        rows = self.pool.exchange(rows, context.generator)[:, 0, 0]
        shown, told = rows.tensor_split([self.data.pixels], 1)
        due = self.config.r1 > 0 and context.step // self.config.refiner_updates % PENALTY_EVERY == 0
        images = batch["b"].detach().requires_grad_(due)
        real = self.judge(images, self.annotator.shares(batch["b"]) if self.annotator is not None else None)
        fake = self.judge(shown.unflatten(1, self.data.shape), told)
        loss = sum(F.softplus(-a).mean() + F.softplus(b).mean() for a, b in zip(real, fake, strict=True))
        if due:
            slope = zero_centred_penalty(sum(logits.flatten(1).mean(1) for logits in real), images)
            return update(optimiser, loss + self.config.r1 / 2 * PENALTY_EVERY * slope)
        return update(optimiser, loss)

    def _shares(self, batch: Batch) -> Tensor:
        """(b, k): the label of each simulated image, one-hot; no columns where labels are not used."""
        if not self.labels:
            return batch["a"].new_zeros(len(batch["a"]), 0)
        return F.one_hot(batch["a_labels"], self.labels).float()

    def _update_refiner(
        self, batch: Batch, optimiser: torch.optim.Optimizer, learns: bool, context: StepContext
    ) -> tuple[Metrics, Tensor]:
        readers = [self.annotator] if self.annotator is not None else []
        images, draws = batch["a"], context.generator
        noise = torch.randn(len(images), self.noise_dim, generator=draws, device=images.device)
        with frozen(self.judge, *readers), torch.set_grad_enabled(learns):
            values, moved = self.refiner.measured(images, noise)
            refined, told = QuantiseStraightThrough.apply(values), self._shares(batch)
            fool = sum(F.softplus(-logits).mean() for logits in self.judge(refined, told))
            loss, found = fool + self.config.lambda_self * moved, {"fool": fool.detach(), "moved": moved.detach()}
            for reader in readers:
                unread = F.cross_entropy(reader(refined), batch["a_labels"])
                loss, found["unread"] = loss + self.config.label_weight * unread, unread.detach()
            if learns:
                update(optimiser, loss)
        return {"loss": loss.detach(), **found}, refined.detach()

    def refine(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        if noise is None:
            noise = images.new_zeros(len(images), self.noise_dim) if self.noise_dim else images.flatten(1)[:, :0]
        return self.served(images, noise).clamp(0, 1)

    def patches(self, *images: Tensor, domain: str) -> Tensor:
        return self.judge.patches(*images)[:, 0]

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """How far images move, and what can be learned from them before and after (models/evaluation/refinement.py).

        `judge_accuracy` is that of the discriminator which the refiner has learned to fool.
        """
        unseen = validation.head(ROWS)
        real = self._judged(unseen["b"], True)
        classes = len(self.data.classes) if self.data.classes else None
        report = refinement_report(self._on_device, train, validation, classes)
        for name, images in (("refined", self._on_device(unseen["a"])), ("raw", unseen["a"])):
            report[f"judge_accuracy_{name}"] = (real + self._judged(images, False)) / 2
        return report

    def _judged(self, images: Tensor, real: bool) -> float:
        right = [len(part) * self.judge.accuracy(part.to(self.device), real) for part in images.split(16)]
        return float(sum(right)) / len(images)

    def _on_device(self, images: Tensor) -> Tensor:
        """Refined images on the host, of images on the host, each with a noise of its own."""
        noise = image_noise(images, self.noise_dim)
        parts = zip(images.split(16), noise.split(16), strict=True)
        return torch.cat([self.refine(part.to(self.device), drawn.to(self.device)).cpu() for part, drawn in parts])

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        """Simulated images, a row of refined ones under each."""
        images = probe["a"][:16]
        noise = image_noise(images.cpu(), self.noise_dim).to(images)
        return torch.stack([images, self.refine(images, noise)], 1).flatten(0, 1)
