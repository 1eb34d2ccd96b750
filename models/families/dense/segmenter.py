"""The segmenter: a U-Net (Ronneberger et al. 2015) that gives every pixel a class, in images of any size."""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from models.capabilities import Segments
from models.context import StepContext
from models.data import Columns
from models.evaluation.metrics import ROWS
from models.evaluation.segmentation import IGNORED, confusion, ious, overlay, pixel_accuracy
from models.family import Config, OneLoss
from models.nn.unet import UNet
from models.types import Batch, DataError, DataSpec, Metrics

LISTED = 20
RAREST = 10.0
"""Most that a pixel of a rare class may weigh."""
POWERS = {"none": 0.0, "sqrt": 0.5, "inverse": 1.0}


class SegmenterConfig(Config):
    """The loss is cross-entropy, its pixels weighted by class, plus `dice` times the soft Dice loss of the classes."""

    learning_rate: float = Field(2e-3, gt=0, le=1, description="Step size of Adam after the warm-up.")
    width: int | None = Field(None, ge=4, le=256, description="Channels at the top. Empty: from the data.")
    levels: int | None = Field(None, ge=1, le=6, description="Halvings on the way down. Empty: from the size.")
    balance: Literal["none", "sqrt", "inverse"] = Field(
        "sqrt", description="How much more a pixel of a rare class weighs: by the root of its rarity, or all of it."
    )
    dice: float = Field(0.5, ge=0, le=100, description="Weight of the Dice loss, which counts classes, not pixels.")
    mirror: bool = Field(False, description="Mirror half of the training images and masks left to right.")


class Segmenter(Segments, OneLoss):
    """Works at half resolution inside, with the pixels of each 2x2 cell as channels. Keeps no batch statistics."""

    name = "segmenter"
    summary = "Tells which class each pixel belongs to."
    lecture = "Semantic segmentation"
    layouts = ("segmentation",)
    needs = ("images", "masks")
    Config = SegmenterConfig
    default_epochs = 12
    default_batch = 16
    warm_up = 50
    clip = 1.0

    def __init__(self, config: SegmenterConfig, data: DataSpec):
        super().__init__(config, data)
        self.body = UNet(data.channels, len(data.classes), config.width, config.levels)
        self.register_buffer("seen", torch.zeros(len(data.classes), dtype=torch.float64))

    @classmethod
    def resolve_config(cls, config: SegmenterConfig, data: DataSpec) -> SegmenterConfig:
        count = len(data.classes or ())
        if not 2 <= count <= IGNORED:
            raise DataError(
                f"a segmenter needs 2 to {IGNORED} classes; this dataset has {count}",
                field="dataset",
                remedy="import it with the layout segmentation: images/ and masks/ of class indices",
            )
        width = config.width or (32 if data.count >= 20_000 else 16)
        levels = config.levels or (2 if min(data.height, data.width) < 24 else 3)
        return super().resolve_config(config, data).model_copy(update={"width": width, "levels": levels})

    def pixel_logits(self, images: Tensor) -> Tensor:
        return self.body((images - 0.5) * 2)

    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        images, masks = batch["images"], batch["masks"]
        if self.config.mirror:
            turned = torch.rand(len(images), generator=context.generator, device=images.device) < 0.5
            images = torch.where(turned[:, None, None, None], images.flip(3), images)
            masks = torch.where(turned[:, None, None], masks.flip(2), masks)
        self.seen += torch.bincount(masks.flatten(), minlength=len(self.seen))
        logits = self.pixel_logits(images)
        entropy = F.cross_entropy(logits, masks, self._weights())
        loss = entropy + self.config.dice * dice_loss(logits, masks) if self.config.dice else entropy
        return loss, {"pixel_accuracy": (logits.detach().argmax(1) == masks).float().mean()}

    def validation_loss(self, probe: Batch, context: StepContext) -> Tensor:
        return F.cross_entropy(self.pixel_logits(probe["images"]), probe["masks"])

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Mean IoU and pixel accuracy beside those of always answering the most frequent class; IoU by class.

        The mean is over the classes that occur in the validation masks or in the answers.
        """
        table = sum(self._table(batch) for batch in spaced(validation, 32))
        masks = (batch["masks"].flatten().cpu() for batch in spaced(train, 256))
        counts = sum(torch.bincount(part, minlength=self._count) for part in masks)
        trivial = torch.zeros_like(table)
        trivial[:, counts.argmax()] = table.sum(1)
        found = {
            "miou": float(ious(table).nanmean()),
            "miou_majority": float(ious(trivial).nanmean()),
            "pixel_accuracy": pixel_accuracy(table),
            "pixel_accuracy_majority": pixel_accuracy(trivial),
        }
        if self._count <= LISTED:
            by_class = zip(self.data.classes, ious(table).tolist(), strict=True)
            found |= {f"iou:{name}": value for name, value in by_class if value == value}
        return found

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        """Each image, its mask over it, and the answer over it."""
        images, masks = probe["images"][:16], probe["masks"][:16]
        answers = self.pixel_logits(images).argmax(1)
        shown = images.expand(-1, 3, -1, -1)
        return torch.stack([shown, overlay(images, masks), overlay(images, answers)], 1).flatten(0, 1)

    def _table(self, batch: Batch) -> Tensor:
        answers = self.pixel_logits(batch["images"].to(self.device)).argmax(1)
        return confusion(answers.cpu(), batch["masks"].cpu(), self._count)

    @property
    def _count(self) -> int:
        return len(self.data.classes)

    def _weights(self) -> Tensor | None:
        """Weights of the classes from the pixels seen so far; 1 is that of a class with an even share."""
        power = POWERS[self.config.balance]
        if not power:
            return None
        share = self.seen / self.seen.sum() * (self.seen > 0).sum()
        return share.clamp_min(RAREST ** (-1 / power)).pow(-power).float()


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """1 less the mean over classes of 2 |P & T| / (|P| + |T|), with P the softmax over the batch (Milletari 2016)."""
    chances = logits.softmax(1)
    truth = F.one_hot(masks, logits.shape[1]).permute(0, 3, 1, 2)
    both, sizes = (chances * truth).sum((0, 2, 3)), (chances + truth).sum((0, 2, 3))
    there = truth.sum((0, 2, 3)) > 0  # a class that the batch lacks says nothing
    return ((1 - 2 * both / sizes.clamp_min(1e-6)) * there).sum() / there.sum().clamp_min(1)


def spaced(columns: Columns, size: int) -> Iterator[dict[str, Tensor]]:
    """At most ROWS images and masks, evenly spaced, `size` at a time."""
    count = len(columns)
    rows = torch.arange(count) if count <= ROWS else torch.linspace(0, count - 1, ROWS).long()
    for part in rows.split(size):
        yield columns.rows(part, ["images", "masks"])
