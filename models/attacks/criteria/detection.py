"""When a detector counts as fooled: its objects vanish, change their names, or others appear.

Outputs are maps (N, K + 4, h, w) as `DetectsObjects` gives them. The margins are those of the detections that a user
would see, after non-maximum suppression; the losses look at every cell of the maps.
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
"""A logit that no cell has: that of a thing that is not there."""
SLACK = 1.0
"""By how much the losses want a logit beyond the threshold."""


@dataclass(frozen=True)
class OfBoxes(Criterion):
    """`boxes` (N, M, 5) are the true ones: left, top, right, bottom, class, or -1 where there is none.

    `score` is the least probability of a detection, `iou` the least overlap with an object that it is about.
    `targets` (N,), with -1 for none, is the class wanted.
    """

    boxes: Tensor
    targets: Tensor
    score: float = SCORE
    iou: float = OVERLAP

    @property
    def least(self) -> float:
        """The logit of `score`."""
        return math.log(self.score / (1 - self.score))

    @property
    def objects(self) -> Tensor:
        """(N, M): the rows of `boxes` that are objects."""
        return self.boxes[..., 4] >= 0

    def shared(self, boxes: Tensor) -> Tensor:
        """(N, M, P): the overlap of each object with each of the boxes (N, P, 4)."""
        return overlap(self.boxes[..., :4], boxes.detach()) * self.objects[..., None]

    def near(self, maps: Tensor) -> Tensor:
        """(N, M, P): which cells are about which object."""
        return self.shared(maps[:, -4:].flatten(2).mT) >= self.iou

    @abstractmethod
    def loss(self, logits: Tensor) -> Tensor: ...

    def margin_loss(self, logits: Tensor) -> Tensor:
        return self.loss(logits)

    def dag_loss(self, logits: Tensor) -> Tensor:
        """What DAG climbs: the losses count only what is not yet as wanted."""
        return self.loss(logits)


@dataclass(frozen=True)
class NoDetection(OfBoxes):
    """Vanish: no detection of any class on any object."""

    def margin(self, logits: Tensor) -> Tensor:
        """The surest detection on an object over the threshold."""
        boxes, _, sure = candidates(logits)
        return masked(sure, (self.shared(boxes) >= self.iou).any(1)).amax(1) - self.least

    def loss(self, logits: Tensor) -> Tensor:
        """How little the cells on objects rise above the threshold, cubed and summed over cells and classes.

        The highest count most, as in the margin: uncubed, steps at 8/255 left .38 of the precision, cubed .27.
        """
        return -self._over(logits).pow(3).flatten(1).sum(1)

    def dag_loss(self, logits: Tensor) -> Tensor:
        """All alike, or else the largest entry of the gradient, which DAG divides by, outgrows the others."""
        return -self._over(logits).flatten(1).sum(1)

    def _over(self, logits: Tensor) -> Tensor:
        """(N, K, P): how far the cells on objects rise above the threshold."""
        over = torch.relu(logits[:, :-4].flatten(2) - self.least + SLACK)
        return over * self.near(logits).any(1)[:, None]


@dataclass(frozen=True)
class FalseDetections(OfBoxes):
    """Fabricate: as many detections where there is no object as there are objects, at least one."""

    def margin(self, logits: Tensor) -> Tensor:
        """The threshold over the n-th surest detection away from all objects."""
        boxes, kinds, sure = candidates(logits)
        asked = (self.targets[:, None] < 0) | (kinds == self.targets[:, None])
        best = masked(sure, asked & self._away(boxes)).sort(dim=1, descending=True).values
        wanted = self.objects.sum(1).clamp(1, best.shape[1])
        return self.least - best.gather(1, wanted[:, None] - 1)[:, 0]

    def loss(self, logits: Tensor) -> Tensor:
        """How far the cells away from objects are below the threshold, summed; the near ones count most."""
        best = self._kinds(logits).amax(1).flatten(1)
        missing = torch.nn.functional.softplus(self.least + SLACK - best)
        return -(torch.exp(-missing.detach()) * missing * self._away(logits[:, -4:].flatten(2).mT)).sum(1)

    def _kinds(self, maps: Tensor) -> Tensor:
        """The logits of the class wanted, or of all."""
        kinds = torch.arange(maps.shape[1] - 4, device=maps.device)
        unwanted = (self.targets[:, None] >= 0) & (kinds != self.targets[:, None])
        return maps[:, :-4].masked_fill(unwanted[..., None, None], FAR)

    def _away(self, boxes: Tensor) -> Tensor:
        """(N, P): boxes (N, P, 4) with their middle in no object, that overlap with none by `iou`."""
        middle = (boxes[..., :2] + boxes[..., 2:]).detach()[:, None] / 2  # (N, 1, P, 2)
        corner = self.boxes[:, :, None]
        within = ((middle >= corner[..., :2]) & (middle <= corner[..., 2:4])).all(-1) & self.objects[..., None]
        return ~(within | (self.shared(boxes) >= self.iou)).any(1)


@dataclass(frozen=True)
class Mislabelled(OfBoxes):
    """Mislabel: on every object the surest detection has a wrong class, or the class wanted.

    Objects that are of the class wanted do not count, nor do those of `unseen` (N, M), which have no name to change.
    """

    unseen: Tensor | None = None

    def given_clean_outputs(self, clean: Tensor) -> Self:
        """Leaves out the objects that no cell of the clean image is about."""
        return replace(self, unseen=self.objects & ~self.near(clean).any(2))

    def margin(self, logits: Tensor) -> Tensor:
        """Of the object nearest to its truth: its own class, or the threshold, over the surest class wanted."""
        boxes, kinds, sure = candidates(logits)
        near = self.shared(boxes) >= self.iou  # (N, M, P)
        mine = kinds[:, None] == self.boxes[..., 4, None]
        asked = torch.where(self.targets[:, None, None] < 0, ~mine, kinds[:, None] == self.targets[:, None, None])
        own, wanted = (masked(sure[:, None], near & chosen).amax(2) for chosen in (mine, asked))
        return masked(own.clamp_min(self.least) - wanted, self._counted).amax(1)

    def loss(self, logits: Tensor) -> Tensor:
        """How far, on cells of objects, the wanted class is below the object's own and below the threshold, summed.

        An object whose cells have all moved off is about the closest one, which is pulled back onto it: logarithms of
        the overlap it lacks are added.
        """
        own, wanted = self._sides(logits)
        short = torch.relu(own - wanted + SLACK) + torch.relu(self.least + SLACK - wanted)
        boxes = logits[:, -4:].flatten(2).mT
        shared = self.shared(boxes)
        most, closest = shared.max(2)
        lost = self._counted & (most > 0) & (most < self.iou)
        cells = (shared >= self.iou) | (lost[..., None] & (shared == most[..., None]))
        chosen = boxes.gather(1, closest[..., None].expand(-1, -1, 4))
        reached = overlap(self.boxes[..., None, :4], chosen[..., None, :])[..., 0, 0]
        pull = torch.relu(math.log(self.iou) - reached.clamp_min(1e-3).log())
        return -(short * (cells & self._counted[..., None])).flatten(1).sum(1) - (pull * lost).sum(1)

    @property
    def _counted(self) -> Tensor:
        counted = self.objects & (self.boxes[..., 4] != self.targets[:, None])
        return counted if self.unseen is None else counted & ~self.unseen

    def _sides(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """(N, M, P) twice: for each object and cell the logit of its own class, and of the class wanted instead."""
        logits = maps[:, :-4].flatten(2)  # (N, K, P)
        own = self.boxes[..., 4].long().clamp_min(0)[..., None].expand(-1, -1, logits.shape[2])  # (N, M, P)
        mine = logits.gather(1, own)
        # the strongest other class is the second where the own one leads, else the first
        top = logits.topk(min(2, logits.shape[1]), 1)
        second = top.values[:, -1:] if logits.shape[1] > 1 else torch.full_like(top.values, FAR)
        other = torch.where(top.indices[:, :1] == own, second, top.values[:, :1])
        target = self.targets.clamp_min(0)[:, None, None].expand(-1, 1, logits.shape[2])
        return mine, torch.where(self.targets[:, None, None] >= 0, logits.gather(1, target), other)


def masked(values: Tensor, chosen: Tensor) -> Tensor:
    """The chosen values, at least FAR, and FAR for the others."""
    return torch.where(chosen, values, FAR).clamp_min(FAR)


GOALS: dict[str, type[OfBoxes]] = {"vanish": NoDetection, "fabricate": FalseDetections, "mislabel": Mislabelled}
