"""The detector: centres of objects as peaks of a map for each class, and at each place a box (Zhou et al. 2019)."""

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
from models.nn.boxes import LIMIT, Precision, detections, draw
from models.nn.residual import Residual, norm
from models.types import Batch, DataError, DataSpec, Metrics

LISTED = 20
FOCUS, SPARE = 2.0, 4.0
"""Exponents of the loss at centres (Lin et al. 2017) and of its mercy near them."""
RARE = 0.02
"""Probability that an untrained network gives every cell."""


class DetectorConfig(Config):
    """The loss is the focal loss of the maps, plus `boxes` times the L1 loss of the boxes at the true centres."""

    learning_rate: float = Field(2e-3, gt=0, le=1, description="Step size of Adam after the warm-up.")
    width: int | None = Field(None, ge=4, le=256, description="Channels of the first stage. Empty: from the data.")
    levels: int | None = Field(None, ge=1, le=6, description="Halvings below the grid. Empty: from the size.")
    stride: int | None = Field(
        None, ge=1, le=8, description="Side of a cell: 1, 2, 4 or 8 pixels. Empty: from the size."
    )
    boxes: float = Field(2.0, ge=0, le=1000, description="Weight of the boxes in the loss.")


class Detector(DetectsObjects, OneLoss):
    """A pyramid down and up again to a grid of `stride` pixels. No anchors, and no batch statistics.

    Boxes are distances from a cell's middle to the four edges, in units that the sizes of the first boxes decide.
    """

    name = "detector"
    summary = "Finds objects: a box, a class and a probability for each."
    lecture = "Object detection"
    layouts = ("detection",)
    needs = ("images", "boxes")
    Config = DetectorConfig
    default_epochs = 20
    default_batch = 16
    warm_up = 100
    clip = 5.0

    def __init__(self, config: DetectorConfig, data: DataSpec):
        super().__init__(config, data)
        widths = [config.width * min(4, 2**level) for level in range(config.levels + 1)]
        self.cell = config.stride * 2**config.levels
        self.enter = nn.Conv2d(data.channels * config.stride**2, widths[0], 3, 1, 1)
        self.first = Residual(widths[0])
        self.down = nn.ModuleList([stage(fine, coarse) for fine, coarse in pairwise(widths)])
        self.up = nn.ModuleList([nn.Conv2d(coarse, 4 * fine, 1) for fine, coarse in pairwise(widths)])
        self.after = nn.ModuleList([Residual(width) for width in widths[:-1]])
        self.leave = nn.Sequential(norm(widths[0]), nn.SiLU())
        self.heat = head(widths[0], len(data.classes))
        self.edges = head(widths[0], 4)
        nn.init.constant_(self.heat[-1].bias, math.log(RARE / (1 - RARE)))
        self.register_buffer("scale", torch.tensor(float(min(data.height, data.width)) / 8))

    @classmethod
    def resolve_config(cls, config: DetectorConfig, data: DataSpec) -> DetectorConfig:
        if not data.classes:
            raise DataError(
                "a detector needs the classes of the objects",
                field="dataset",
                remedy="import the dataset with the layout detection: images/ and boxes.csv",
            )
        side = min(data.height, data.width)
        stride = config.stride or (1 if side < 24 else 2 if side < 96 else 4)
        if stride not in (1, 2, 4, 8):
            raise DataError("stride is 1, 2, 4 or 8", field="stride")
        width = config.width or (32 if data.count >= 20_000 or stride > 2 else 16)
        levels = config.levels or max(1, min(4, round(math.log2(side / stride / 4))))
        return (
            super().resolve_config(config, data).model_copy(update={"width": width, "levels": levels, "stride": stride})
        )

    def detection_maps(self, images: Tensor) -> Tensor:
        heat, edges = self._heads(images)
        rows, columns = self._middles(edges)
        left, top, right, bottom = (edges * self.scale).unbind(1)
        boxes = torch.stack([columns - left, rows - top, columns + right, rows + bottom], 1)
        limit = boxes.new_tensor([self.data.width, self.data.height] * 2)[:, None, None]
        return torch.cat([heat, boxes.clamp_min(0).minimum(limit)], 1)

    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        heat, edges = self._heads(batch["images"])
        boxes = batch["boxes"]
        there = boxes[..., 4] >= 0  # (b, M)
        rows, columns = self._middles(edges)
        bells, places = self._targets(boxes, there, rows[:, 0], columns[0])
        count = there.sum().clamp_min(1)
        focal = focal_loss(heat, bells).sum() / count
        wanted = torch.stack(
            [
                columns.flatten()[places] - boxes[..., 0], rows.flatten()[places] - boxes[..., 1],
                boxes[..., 2] - columns.flatten()[places], boxes[..., 3] - rows.flatten()[places],
            ],
            1,
        ) / self.scale  # (b, 4, M)  # fmt: skip
        given = edges.flatten(2).gather(2, places[:, None].expand(-1, 4, -1))
        distance = ((given - wanted).abs().mean(1) * there).sum() / count
        return focal + self.config.boxes * distance, {"focal": focal.detach(), "edges": distance.detach()}

    def validation_loss(self, probe: Batch, context: StepContext) -> Tensor:
        return self.loss(probe, context)[0]

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Mean average precision at an overlap of .5, and averaged from .5 to .95; by class at .5.

        Beside it that of the training data's mean boxes, answered alike for every image.
        """
        measured, trivial = Precision(len(self.data.classes)), Precision(len(self.data.classes))
        usual = usual_boxes(train, len(self.data.classes))
        for batch in validation.batches(32, LISTED * 100):
            found = detections(self.detection_maps(batch["images"].to(self.device)), score=0.01).cpu()
            for row, truth in zip(found, batch["boxes"].cpu(), strict=True):
                measured.add(row, truth)
                trivial.add(usual, truth)
        table = measured.by_class()[:, 0].tolist()
        by_class = {f"ap50:{name}": value for name, value in zip(self.data.classes, table, strict=True)}
        named = by_class if len(by_class) <= LISTED else {}
        return (
            measured.summary()
            | {"map50_usual_boxes": trivial.summary()["map50"]}
            | {name: value for name, value in named.items() if value == value}
        )

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        """Each image with its true boxes, and with those found."""
        images, paint = probe["images"][:16], hues(len(self.data.classes))
        found = detections(self.detection_maps(images))
        pairs = draw(images, probe["boxes"][:16], paint), draw(images, found, paint)
        return torch.stack(pairs, 1).flatten(0, 1)

    def _heads(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(b, K, h, w) logits and (b, 4, h, w) distances to left, top, right and bottom, in units of `scale`."""
        height, width = images.shape[2:]
        padding = (0, -width % self.cell, 0, -height % self.cell)
        cells = F.pixel_unshuffle(F.pad((images - 0.5) * 2, padding, mode="replicate"), self.config.stride)
        kept = [self.first(self.enter(cells))]
        for down in self.down:
            kept.append(down(kept[-1]))
        maps = kept.pop()
        for up, after, fine in zip(reversed(self.up), reversed(self.after), reversed(kept), strict=True):
            maps = after(F.pixel_shuffle(up(maps), 2) + fine)
        size = -(-height // self.config.stride), -(-width // self.config.stride)
        maps = self.leave(maps)[:, :, : size[0], : size[1]]
        return self.heat(maps), F.softplus(self.edges(maps) + 0.5)

    def _middles(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """(h, w) twice: row and column of the middle of each cell, in pixels."""
        sides = ((torch.arange(side, device=maps.device) + 0.5) * self.config.stride for side in maps.shape[2:])
        return torch.meshgrid(*sides, indexing="ij")

    def _targets(self, boxes: Tensor, there: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Bells (b, K, h, w) of height 1 at the centres, as wide as the boxes; and the cells of the centres (b, M)."""
        across, down = (boxes[..., 0] + boxes[..., 2]) / 2, (boxes[..., 1] + boxes[..., 3]) / 2
        column = (across / self.config.stride).long().clamp(0, len(columns) - 1)
        row = (down / self.config.stride).long().clamp(0, len(rows) - 1)
        spread = [((boxes[..., 2 + axis] - boxes[..., axis]) / 6).clamp_min(self.config.stride / 3) for axis in (0, 1)]
        bell = torch.exp(
            -0.5 * ((columns - columns[column][..., None]) / spread[0][..., None]).square()[..., None, :]
            - 0.5 * ((rows - rows[row][..., None]) / spread[1][..., None]).square()[..., None]
        )  # (b, M, h, w)
        kinds = torch.arange(len(self.data.classes), device=boxes.device)
        mine = (boxes[..., 4, None] == kinds) & there[..., None]  # (b, M, K)
        bells = torch.stack([(bell * chosen[..., None, None]).amax(1) for chosen in mine.unbind(2)], 1)
        return bells, (row * len(columns) + column) * there


def stage(fine: int, coarse: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(fine, coarse, 3, 2, 1), Residual(coarse))


def head(width: int, answers: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.SiLU(), nn.Conv2d(width, answers, 1))


def focal_loss(logits: Tensor, bells: Tensor) -> Tensor:
    """Of each cell (Law & Deng 2018, eq. 1): cross-entropy with less weight where it is easy or near a centre."""
    chances = logits.sigmoid()
    centre = bells >= 1 - 1e-4
    at = (1 - chances) ** FOCUS * F.logsigmoid(logits)
    off = (1 - bells) ** SPARE * chances**FOCUS * F.logsigmoid(-logits)
    return -torch.where(centre, at, off)


def usual_boxes(train: Columns, classes: int) -> Tensor:
    """(LIMIT, 6): the mean box of each class, each as probable as the class is frequent."""
    rows = torch.cat([batch["boxes"].cpu().flatten(0, 1) for batch in train.batches(1024)])
    rows = rows[rows[:, 4] >= 0]
    found = torch.zeros(LIMIT, 6)
    found[:, 4] = -1
    counts = torch.bincount(rows[:, 4].long(), minlength=classes)
    for place, kind in enumerate(counts.argsort(descending=True, stable=True)[:LIMIT].tolist()):
        if counts[kind]:
            mean = rows[rows[:, 4] == kind][:, :4].mean(0)
            found[place] = torch.cat([mean, torch.tensor([float(kind), float(counts[kind] / counts.sum())])])
    return found
