"""The detector: object centres are peaks of a heat map per class (CenterNet, Zhou et al. 2019)."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.capabilities import DetectsObjects
from models.context import StepContext
from models.data import Columns
from models.evaluation.segmentation import hues
from models.family import Config, OneLoss
from models.nn.boxes import LIMIT, Precision, detections, draw_boxes
from models.nn.resnet import ResidualBlock, norm
from models.training.published_weights import PublishedWeightsConfig, PublishesAverages
from models.types import Batch, DataError, DataSpec, Metrics

MAX_LISTED_CLASSES = 20
FOCAL_ALPHA, FOCAL_BETA = 2.0, 4.0
"""Exponents of the focal loss: for easy cells (Lin et al. 2017), and for cells near a centre (Law & Deng 2018)."""
PRIOR = 0.02
"""Probability of an object at every cell before training."""


class DetectorConfig(PublishedWeightsConfig, Config):
    """L = focal loss of the heat maps + boxes * L1 of the boxes at the true centres."""

    learning_rate: float = Field(2e-3, gt=0, le=1, description="Step size of Adam after the warm-up.")
    width: int | None = Field(
        None,
        ge=4,
        le=256,
        description="Channels of the first stage. Default: chosen from the dataset (16, or 32 for 20 000 images or "
        "large strides).",
    )
    levels: int | None = Field(
        None, ge=1, le=6, description="Halvings below the grid. Default: chosen from the image size."
    )
    stride: int | None = Field(
        None,
        ge=1,
        le=8,
        description="Side of a grid cell in pixels: 1, 2, 4 or 8. Default: chosen from the image size (1 below 24 "
        "pixels, 2 below 96, "
        "else 4).",
    )
    boxes: float = Field(2.0, ge=0, le=1000, description="Weight of the box term in the loss.")


class Detector(DetectsObjects, PublishesAverages, OneLoss):
    """A feature pyramid on a grid of `stride` pixels, without anchors and batch statistics.

    Boxes are distances from a cell's centre to the four edges, in units of an eighth of the smaller image side.
    """

    name = "detector"
    summary = "Finds objects: a box, a class and a probability for each."
    lecture = "Object detection"
    layouts = ("detection",)
    needs = ("images", "boxes")
    Config = DetectorConfig
    default_epochs = 20
    default_batch = 16
    milliseconds = 1.5
    warm_up = 100
    clip = 5.0

    def __init__(self, config: DetectorConfig, data: DataSpec):
        super().__init__(config, data)
        widths = [config.width * min(4, 2**level) for level in range(config.levels + 1)]
        self.cell = config.stride * 2**config.levels
        self.enter = nn.Conv2d(data.channels * config.stride**2, widths[0], 3, 1, 1)
        self.first = ResidualBlock(widths[0])
        self.down = nn.ModuleList([stage(fine, coarse) for fine, coarse in pairwise(widths)])
        self.up = nn.ModuleList([nn.Conv2d(coarse, 4 * fine, 1) for fine, coarse in pairwise(widths)])
        self.after = nn.ModuleList([ResidualBlock(width) for width in widths[:-1]])
        self.leave = nn.Sequential(norm(widths[0]), nn.SiLU())
        self.heat = head(widths[0], len(data.classes))
        self.edges = head(widths[0], 4)
        nn.init.constant_(self.heat[-1].bias, math.log(PRIOR / (1 - PRIOR)))
        self.register_buffer("scale", torch.tensor(float(min(data.height, data.width)) / 8))

    @classmethod
    def resolve_config(cls, config: DetectorConfig, data: DataSpec) -> DetectorConfig:
        if not data.classes:
            raise DataError(
                "A detector needs boxes with classes, which this dataset lacks.",
                field="dataset",
                remedy="Import it with layout=detection: images/ and boxes.csv.",
            )
        side = min(data.height, data.width)
        stride = config.stride or (1 if side < 24 else 2 if side < 96 else 4)
        if stride not in (1, 2, 4, 8):
            raise DataError(f"stride must be 1, 2, 4 or 8; you sent {stride}.", field="stride")
        width = config.width or (32 if data.count >= 20_000 or stride > 2 else 16)
        levels = config.levels or max(1, min(4, round(math.log2(side / stride / 4))))
        sizes = {"width": width, "levels": levels, "stride": stride}
        return super().resolve_config(config, data).model_copy(update=sizes)

    def forward_passes(self) -> list[tuple[nn.Module, str]]:
        return [(self, "_heads")]

    def detection_maps(self, images: Tensor) -> Tensor:
        heat, edges = self._heads(images)
        rows, columns = self._cell_centres(edges)
        left, top, right, bottom = (edges * self.scale).unbind(1)
        boxes = torch.stack([columns - left, rows - top, columns + right, rows + bottom], 1)
        limit = boxes.new_tensor([self.data.width, self.data.height] * 2)[:, None, None]
        return torch.cat([heat, boxes.clamp_min(0).minimum(limit)], 1)

    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        heat, edges = self._heads(batch["images"])
        boxes = batch["boxes"]
        present = boxes[..., 4] >= 0  # (B, M)
        rows, columns = self._cell_centres(edges)
        targets, places = self._targets(boxes, present, rows[:, 0], columns[0])
        count = present.sum().clamp_min(1)
        focal = focal_loss(heat, targets).sum() / count
        distances = torch.stack(
            [
                columns.flatten()[places] - boxes[..., 0], rows.flatten()[places] - boxes[..., 1],
                boxes[..., 2] - columns.flatten()[places], boxes[..., 3] - rows.flatten()[places],
            ],
            1,
        ) / self.scale  # (B, 4, M)  # fmt: skip
        predicted = edges.flatten(2).gather(2, places[:, None].expand(-1, 4, -1))
        box_l1 = ((predicted - distances).abs().mean(1) * present).sum() / count
        return focal + self.config.boxes * box_l1, {"focal": focal.detach(), "edges": box_l1.detach()}

    def validation_loss(self, probe: Batch, context: StepContext) -> Tensor:
        return self.loss(probe, context)[0]

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Mean average precision at IoU .5 and averaged over .5 to .95 (COCO), and by class at .5.

        Baseline: the mean box of each class in the training data, the same for every image.
        """
        precision, baseline = Precision(len(self.data.classes)), Precision(len(self.data.classes))
        boxes = mean_boxes(train, len(self.data.classes))
        for batch in validation.batches(32, MAX_LISTED_CLASSES * 100):
            predictions = detections(self.detection_maps(batch["images"].to(self.device)), score=0.01).cpu()
            for row, truth in zip(predictions, batch["boxes"].cpu(), strict=True):
                precision.add(row, truth)
                baseline.add(boxes, truth)
        table = precision.by_class()[:, 0].tolist()
        by_class = {f"ap50:{name}": value for name, value in zip(self.data.classes, table, strict=True)}
        listed = by_class if len(by_class) <= MAX_LISTED_CLASSES else {}
        return (
            precision.summary()
            | {"map50_usual_boxes": baseline.summary()["map50"]}
            | {name: value for name, value in listed.items() if value == value}
        )

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        """Each image with its true boxes, and with the detected ones."""
        images, paint = probe["images"][:16], hues(len(self.data.classes))
        predictions = detections(self.detection_maps(images))
        pairs = draw_boxes(images, probe["boxes"][:16], paint), draw_boxes(images, predictions, paint)
        return torch.stack(pairs, 1).flatten(0, 1)

    def _heads(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, h, w) logits and (B, 4, h, w) distances to left, top, right and bottom, in units of `scale`."""
        height, width = images.shape[2:]
        padding = (0, -width % self.cell, 0, -height % self.cell)
        cells = F.pixel_unshuffle(F.pad((images - 0.5) * 2, padding, mode="replicate"), self.config.stride)
        pyramid = [self.first(self.enter(cells))]
        for down in self.down:
            pyramid.append(down(pyramid[-1]))
        maps = pyramid.pop()
        for up, after, fine in zip(reversed(self.up), reversed(self.after), reversed(pyramid), strict=True):
            maps = after(F.pixel_shuffle(up(maps), 2) + fine)
        size = -(-height // self.config.stride), -(-width // self.config.stride)
        maps = self.leave(maps)[:, :, : size[0], : size[1]]
        return self.heat(maps), F.softplus(self.edges(maps) + 0.5)

    def _cell_centres(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """(h, w) twice: row and column of the centre of each cell, in pixels."""
        sides = ((torch.arange(side, device=maps.device) + 0.5) * self.config.stride for side in maps.shape[2:])
        return torch.meshgrid(*sides, indexing="ij")

    def _targets(self, boxes: Tensor, present: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Target heat maps (B, K, h, w) with a Gaussian of height 1 at each centre; and the centres' cells (B, M).

        The standard deviation is a sixth of the box, at least a third of a cell (Zhou et al. 2019, sec. 3).
        """
        across, down = (boxes[..., 0] + boxes[..., 2]) / 2, (boxes[..., 1] + boxes[..., 3]) / 2
        column = (across / self.config.stride).long().clamp(0, len(columns) - 1)
        row = (down / self.config.stride).long().clamp(0, len(rows) - 1)
        sigma = [((boxes[..., 2 + axis] - boxes[..., axis]) / 6).clamp_min(self.config.stride / 3) for axis in (0, 1)]
        gaussian = torch.exp(
            -0.5 * ((columns - columns[column][..., None]) / sigma[0][..., None]).square()[..., None, :]
            - 0.5 * ((rows - rows[row][..., None]) / sigma[1][..., None]).square()[..., None]
        )  # (B, M, h, w)
        classes = torch.arange(len(self.data.classes), device=boxes.device)
        of_class = (boxes[..., 4, None] == classes) & present[..., None]  # (B, M, K)
        heat = torch.stack([(gaussian * mask[..., None, None]).amax(1) for mask in of_class.unbind(2)], 1)
        return heat, (row * len(columns) + column) * present


def stage(fine: int, coarse: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(fine, coarse, 3, 2, 1), ResidualBlock(coarse))


def head(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.SiLU(), nn.Conv2d(width, outputs, 1))


def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """(B, K, h, w) twice -> the same shape (Law & Deng 2018, eq. 1), with p = sigmoid(logits):

    -(1 - p)^alpha log p at centres, -(1 - target)^beta p^alpha log(1 - p) elsewhere.
    """
    p = logits.sigmoid()
    centre = targets >= 1 - 1e-4
    at_centre = (1 - p) ** FOCAL_ALPHA * F.logsigmoid(logits)
    elsewhere = (1 - targets) ** FOCAL_BETA * p**FOCAL_ALPHA * F.logsigmoid(-logits)
    return -torch.where(centre, at_centre, elsewhere)


def mean_boxes(train: Columns, classes: int) -> Tensor:
    """(LIMIT, 6): the mean box of each class, with the frequency of the class as its probability."""
    rows = torch.cat([batch["boxes"].cpu().flatten(0, 1) for batch in train.batches(1024)])
    rows = rows[rows[:, 4] >= 0]
    boxes = torch.zeros(LIMIT, 6)
    boxes[:, 4] = -1
    counts = torch.bincount(rows[:, 4].long(), minlength=classes)
    for place, kind in enumerate(counts.argsort(descending=True, stable=True)[:LIMIT].tolist()):
        if counts[kind]:
            mean = rows[rows[:, 4] == kind][:, :4].mean(0)
            boxes[place] = torch.cat([mean, torch.tensor([float(kind), float(counts[kind] / counts.sum())])])
    return boxes
