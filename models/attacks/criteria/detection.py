"""Criteria for object detectors: objects vanish, get a wrong class, or detections appear where there are no objects.

Outputs are maps (N, K + 4, h, w) of `DetectsObjects`. Margins use the detections after non-maximum suppression, losses
use every cell of the maps.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from models.attacks.criteria.classification import Criterion
from models.nn.boxes import OVERLAP, SCORE, candidates, overlap

FAR = -1e4
"""The logit of a detection that does not exist, below that of any cell."""
SLACK = 1.0
"""Losses push a logit this far beyond the threshold."""


@dataclass(frozen=True)
class DetectionCriterion(Criterion):
    """`boxes` (N, M, 5) are the true boxes: left, top, right, bottom, class; class -1 marks padding.

    `score` is the minimum probability of a detection, `iou` the minimum overlap with the object it belongs to.
    `targets` (N,) are target classes, -1 for none.
    """

    boxes: Tensor
    targets: Tensor
    score: float = SCORE
    iou: float = OVERLAP

    @property
    def min_logit(self) -> float:
        """The logit of `score`."""
        return math.log(self.score / (1 - self.score))

    @property
    def objects(self) -> Tensor:
        """(N, M): rows of `boxes` that are objects."""
        return self.boxes[..., 4] >= 0

    def overlaps(self, boxes: Tensor) -> Tensor:
        """(N, M, P): IoU of each object with each of the boxes (N, P, 4)."""
        return overlap(self.boxes[..., :4], boxes.detach()) * self.objects[..., None]

    def near(self, maps: Tensor) -> Tensor:
        """(N, M, P): whether the box of a cell overlaps an object by `iou`."""
        return self.overlaps(maps[:, -4:].flatten(2).mT) >= self.iou

    @abstractmethod
    def loss(self, logits: Tensor) -> Tensor: ...

    def margin_loss(self, logits: Tensor) -> Tensor:
        return self.loss(logits)

    def dag_loss(self, logits: Tensor) -> Tensor:
        """(N,): the loss that DAG increases: the sum over objects that are not yet adversarial."""
        return self.loss(logits)


@dataclass(frozen=True)
class NoDetection(DetectionCriterion):
    """Vanish: no detection of any class overlaps an object."""

    def margin(self, logits: Tensor) -> Tensor:
        """Logit of the most confident detection on an object - threshold."""
        boxes, _, confidence = candidates(logits)
        return masked(confidence, (self.overlaps(boxes) >= self.iou).any(1)).amax(1) - self.min_logit

    def loss(self, logits: Tensor) -> Tensor:
        """-sum((z - threshold + SLACK)+ ^ 3) over classes and cells on objects.

        The cube gives the largest logits the most weight, as in the margin: at 8/255 the attack left .27 of the
        precision, without the cube .38.
        """
        return -self._excess(logits).pow(3).flatten(1).sum(1)

    def dag_loss(self, logits: Tensor) -> Tensor:
        """The loss without the cube, which would dominate the largest entry of the gradient that DAG divides by."""
        return -self._excess(logits).flatten(1).sum(1)

    def _excess(self, logits: Tensor) -> Tensor:
        """(N, K, P): (z - threshold + SLACK)+ of cells on objects, 0 elsewhere."""
        excess = torch.relu(logits[:, :-4].flatten(2) - self.min_logit + SLACK)
        return excess * self.near(logits).any(1)[:, None]


@dataclass(frozen=True)
class FalseDetections(DetectionCriterion):
    """Fabricate: as many detections away from objects as there are objects, at least one."""

    def margin(self, logits: Tensor) -> Tensor:
        """threshold - logit of the n-th most confident detection away from all objects, n = number of objects."""
        boxes, kinds, confidence = candidates(logits)
        allowed = (self.targets[:, None] < 0) | (kinds == self.targets[:, None])
        best = masked(confidence, allowed & self._away(boxes)).sort(dim=1, descending=True).values
        count = self.objects.sum(1).clamp(1, best.shape[1])
        return self.min_logit - best.gather(1, count[:, None] - 1)[:, 0]

    def loss(self, logits: Tensor) -> Tensor:
        """-sum(exp(-s) * s), s = softplus(threshold + SLACK - z), over cells away from objects; exp(-s) is constant."""
        best = self._kinds(logits).amax(1).flatten(1)
        missing = torch.nn.functional.softplus(self.min_logit + SLACK - best)
        return -(torch.exp(-missing.detach()) * missing * self._away(logits[:, -4:].flatten(2).mT)).sum(1)

    def _kinds(self, maps: Tensor) -> Tensor:
        """(N, K, h, w): the logits, with all but the target class at FAR where there is a target."""
        kinds = torch.arange(maps.shape[1] - 4, device=maps.device)
        excluded = (self.targets[:, None] >= 0) & (kinds != self.targets[:, None])
        return maps[:, :-4].masked_fill(excluded[..., None, None], FAR)

    def _away(self, boxes: Tensor) -> Tensor:
        """(N, P): boxes (N, P, 4) whose centre lies in no object and that overlap none by `iou`."""
        middle = (boxes[..., :2] + boxes[..., 2:]).detach()[:, None] / 2  # (N, 1, P, 2)
        corner = self.boxes[:, :, None]
        within = ((middle >= corner[..., :2]) & (middle <= corner[..., 2:4])).all(-1) & self.objects[..., None]
        return ~(within | (self.overlaps(boxes) >= self.iou)).any(1)


@dataclass(frozen=True)
class Mislabelled(DetectionCriterion):
    """Mislabel: the most confident detection on every object has a wrong class, or the target class.

    Objects of the target class do not count, nor do those in `undetected` (N, M), which have no detection to change.
    """

    undetected: Tensor | None = None

    def given_clean_outputs(self, clean: Tensor) -> Self:
        """Drops the objects without a cell on them in the clean image."""
        return replace(self, undetected=self.objects & ~self.near(clean).any(2))

    def margin(self, logits: Tensor) -> Tensor:
        """max over objects of max(own logit, threshold) - largest logit of a wrong (or the target) class."""
        boxes, kinds, confidence = candidates(logits)
        near = self.overlaps(boxes) >= self.iou  # (N, M, P)
        mine = kinds[:, None] == self.boxes[..., 4, None]
        goal = torch.where(self.targets[:, None, None] < 0, ~mine, kinds[:, None] == self.targets[:, None, None])
        own, target = (masked(confidence[:, None], near & classes).amax(2) for classes in (mine, goal))
        return masked(own.clamp_min(self.min_logit) - target, self._counted).amax(1)

    def loss(self, logits: Tensor) -> Tensor:
        """-sum((z_own - z_target + SLACK)+ + (threshold + SLACK - z_target)+) over cells on objects.

        Where no cell overlaps an object by `iou` any more, its closest cell is used and log(iou / overlap) is
        subtracted, which moves that cell back onto the object.
        """
        own, target = self._own_and_target(logits)
        short = torch.relu(own - target + SLACK) + torch.relu(self.min_logit + SLACK - target)
        boxes = logits[:, -4:].flatten(2).mT
        overlaps = self.overlaps(boxes)
        most, closest = overlaps.max(2)
        lost = self._counted & (most > 0) & (most < self.iou)
        cells = (overlaps >= self.iou) | (lost[..., None] & (overlaps == most[..., None]))
        nearest = boxes.gather(1, closest[..., None].expand(-1, -1, 4))
        reached = overlap(self.boxes[..., None, :4], nearest[..., None, :])[..., 0, 0]
        pull = torch.relu(math.log(self.iou) - reached.clamp_min(1e-3).log())
        return -(short * (cells & self._counted[..., None])).flatten(1).sum(1) - (pull * lost).sum(1)

    @property
    def _counted(self) -> Tensor:
        counted = self.objects & (self.boxes[..., 4] != self.targets[:, None])
        return counted if self.undetected is None else counted & ~self.undetected

    def _own_and_target(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """(N, M, P) twice: for each object and cell the logits of its own class and of the target or best other."""
        logits = maps[:, :-4].flatten(2)  # (N, K, P)
        own = self.boxes[..., 4].long().clamp_min(0)[..., None].expand(-1, -1, logits.shape[2])  # (N, M, P)
        mine = logits.gather(1, own)
        # the strongest other class is the second where the own class is the first, else the first
        top = logits.topk(min(2, logits.shape[1]), 1)
        second = top.values[:, -1:] if logits.shape[1] > 1 else torch.full_like(top.values, FAR)
        other = torch.where(top.indices[:, :1] == own, second, top.values[:, :1])
        target = self.targets.clamp_min(0)[:, None, None].expand(-1, 1, logits.shape[2])
        return mine, torch.where(self.targets[:, None, None] >= 0, logits.gather(1, target), other)


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """`values` where `mask`, else FAR; at least FAR everywhere."""
    return torch.where(mask, values, FAR).clamp_min(FAR)


GOALS: dict[str, type[DetectionCriterion]] = {
    "vanish": NoDetection,
    "fabricate": FalseDetections,
    "mislabel": Mislabelled,
}
