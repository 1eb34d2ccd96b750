"""The segmenter: a U-Net (Ronneberger et al. 2015) that classifies every pixel, for images of any size."""

from collections.abc import Iterator
from typing import Any, Literal

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
from models.nn.augment import colour_jitter, flip_pair, shift_pair
from models.nn.unet import UNet
from models.training.published_weights import PublishedWeightsConfig, PublishesAverages
from models.types import Batch, DataError, DataSpec, Metrics

MAX_LISTED_CLASSES = 20
MAX_CLASS_WEIGHT = 10.0
SHIFTED_SIDES = 16  # the default shift is the smaller side divided by this
POWERS = {"none": 0.0, "sqrt": 0.5, "inverse": 1.0}


class SegmenterConfig(PublishedWeightsConfig, Config):
    """L = class-weighted cross-entropy over pixels + dice * (1 - soft Dice coefficient)."""

    learning_rate: float = Field(2e-3, gt=0, le=1, description="Step size of Adam after the warm-up.")
    width: int | None = Field(
        None,
        ge=4,
        le=256,
        description="Channels of the first level. Default: chosen from the dataset (32 from 20 000 images, else 16).",
    )
    levels: int | None = Field(
        None,
        ge=1,
        le=6,
        description="Halvings of the U-Net. Default: chosen from the image size (2 below 24 pixels, else 3).",
    )
    balance: Literal["none", "sqrt", "inverse"] = Field(
        "sqrt",
        description="Class weights of the cross-entropy: the inverse frequency (inverse), its square root (sqrt), or "
        "none.",
    )
    dice: float = Field(
        0.5, ge=0, le=100, description="Weight of the Dice loss, which counts every class equally, whatever its size."
    )
    mirror: bool = Field(True, description="Mirror a random half of the training images and masks left to right.")
    shift: int | None = Field(
        None,
        ge=0,
        le=32,
        description="Largest random shift of training images and masks, in pixels. Default: chosen from the image size "
        "(2 for 32x32).",
    )
    jitter: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Largest random change of contrast, brightness and the balance of channels of training images.",
    )


class Segmenter(Segments, PublishesAverages, OneLoss):
    """The U-Net works on 2x2 cells (pixel unshuffle), without batch statistics."""

    name = "segmenter"
    summary = "Tells which class each pixel belongs to."
    lecture = "Semantic segmentation"
    layouts = ("segmentation",)
    needs = ("images", "masks")
    Config = SegmenterConfig
    default_epochs = 12
    default_batch = 16
    milliseconds = 2.0
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
                f"A segmenter needs 2 to {IGNORED} classes; this dataset has {count}.",
                field="dataset",
                remedy="Import it with layout=segmentation: images/ and masks/ of class indices.",
            )
        width = config.width or (32 if data.count >= 20_000 else 16)
        levels = config.levels or (2 if min(data.height, data.width) < 24 else 3)
        shift = round(min(data.height, data.width) / SHIFTED_SIDES) if config.shift is None else config.shift
        sizes = {"width": width, "levels": levels, "shift": shift}
        return super().resolve_config(config, data).model_copy(update=sizes)

    @classmethod
    def earlier_settings(cls, engine: int, data: DataSpec) -> dict[str, Any]:
        earlier = {"mirror": False, "shift": 0, "jitter": 0.0} if engine < 2 else {}
        return earlier | super().earlier_settings(engine, data)

    def pixel_logits(self, images: Tensor) -> Tensor:
        return self.body((images - 0.5) * 2)

    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        images, masks = self.augment(batch["images"], batch["masks"], context.generator)
        self.seen += torch.bincount(masks.flatten(), minlength=len(self.seen))
        logits = self.pixel_logits(images)
        loss = F.cross_entropy(logits, masks, self._class_weights())
        if self.config.dice:
            loss = loss + self.config.dice * dice_loss(logits, masks)
        return loss, {"pixel_accuracy": (logits.detach().argmax(1) == masks).float().mean()}

    def augment(self, images: Tensor, masks: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Training images (B, C, H, W) and masks (B, H, W), mirrored, shifted and coloured as configured."""
        if self.config.mirror:
            images, masks = flip_pair(images, masks, draws)
        if self.config.shift:
            images, masks = shift_pair(images, masks, self.config.shift, draws)
        if self.config.jitter:
            images = colour_jitter(images, self.config.jitter, draws)
        return images, masks

    def validation_loss(self, probe: Batch, context: StepContext) -> Tensor:
        return F.cross_entropy(self.pixel_logits(probe["images"]), probe["masks"])

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Mean IoU and pixel accuracy, beside always predicting the most frequent class; IoU by class.

        The mean is over the classes that occur in the validation masks or in the predictions.
        """
        table = sum(self._confusion(batch) for batch in spaced_batches(validation, 32))
        masks = (batch["masks"].flatten().cpu() for batch in spaced_batches(train, 256))
        counts = sum(torch.bincount(part, minlength=self._count) for part in masks)
        baseline = torch.zeros_like(table)
        baseline[:, counts.argmax()] = table.sum(1)
        measures = {
            "miou": float(ious(table).nanmean()),
            "miou_majority": float(ious(baseline).nanmean()),
            "pixel_accuracy": pixel_accuracy(table),
            "pixel_accuracy_majority": pixel_accuracy(baseline),
        }
        if self._count <= MAX_LISTED_CLASSES:
            by_class = zip(self.data.classes, ious(table).tolist(), strict=True)
            measures |= {f"iou:{name}": value for name, value in by_class if value == value}
        return measures

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        """Each image, with its true mask overlaid, and with the predicted mask overlaid."""
        images, masks = probe["images"][:16], probe["masks"][:16]
        predictions = self.pixel_logits(images).argmax(1)
        rgb = images.expand(-1, 3, -1, -1)
        return torch.stack([rgb, overlay(images, masks), overlay(images, predictions)], 1).flatten(0, 1)

    def _confusion(self, batch: Batch) -> Tensor:
        predictions = self.pixel_logits(batch["images"].to(self.device)).argmax(1)
        return confusion(predictions.cpu(), batch["masks"].cpu(), self._count)

    @property
    def _count(self) -> int:
        return len(self.data.classes)

    def _class_weights(self) -> Tensor | None:
        """Weights (K,) of the classes from the pixels seen so far; a class with an even share has weight 1."""
        power = POWERS[self.config.balance]
        if not power:
            return None
        frequency = self.seen / self.seen.sum() * (self.seen > 0).sum()
        return frequency.clamp_min(MAX_CLASS_WEIGHT ** (-1 / power)).pow(-power).float()


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """1 - mean over classes of 2 |P & T| / (|P| + |T|), P the softmax over the batch (Milletari et al. 2016, eq. 1)."""
    p = logits.softmax(1)
    truth = F.one_hot(masks, logits.shape[1]).permute(0, 3, 1, 2)
    both, sizes = (p * truth).sum((0, 2, 3)), (p + truth).sum((0, 2, 3))
    present = truth.sum((0, 2, 3)) > 0  # classes that the batch lacks are not counted
    return ((1 - 2 * both / sizes.clamp_min(1e-6)) * present).sum() / present.sum().clamp_min(1)


def spaced_batches(columns: Columns, size: int) -> Iterator[dict[str, Tensor]]:
    """Batches of `size` from at most ROWS evenly spaced images and masks."""
    count = len(columns)
    rows = torch.arange(count) if count <= ROWS else torch.linspace(0, count - 1, ROWS).long()
    for part in rows.split(size):
        yield columns.rows(part, ["images", "masks"])
