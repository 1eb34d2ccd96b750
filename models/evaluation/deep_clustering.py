"""Deep clustering: an encoder and a linear layer learn to name their own clusters, whatever the augmentation.

Self-training as in DEC (Xie et al. 2016, eq. 3) with augmented inputs (Guo et al. 2018, DEC-DA), but with a linear
softmax layer in the place of Student's t around centres, and targets averaged over epochs (Laine & Aila 2017).
"""

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.family import Family
from models.nn.augment import elastic_warp
from models.seeds import generator

SHOWN, LEAST_SHOWN = 120_000, 24_000
"""Augmented images in updates: the first at 784 numbers per image, fewer for larger images."""
BATCH = 256
LEARNING_RATE = 1e-3  # in the first half, then falling linearly to almost zero
GIVEN = 22_000  # images for which the targets are the given clusters; from then on its own
MEMORY = 0.5  # of the averaged predictions, per epoch


class DeepClusters(nn.Module):
    """A copy of the encoder with a linear layer: images (B, C, H, W) -> log-probabilities of clusters (B, K)."""

    def __init__(self, model: Family, codes: Tensor, groups: Tensor):
        """Starts as the classifier of equal spherical Gaussians around the clusters `groups` (N,) of `codes` (N, D)."""
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(True).eval()
        centres = torch.stack([codes[groups == group].mean(0) for group in range(int(groups.max()) + 1)])
        variance = float((codes - centres[groups]).square().mean().clamp_min(1e-12))
        self.head = nn.Linear(codes.shape[1], len(centres))
        with torch.no_grad():
            self.head.weight.copy_(centres / variance)
            self.head.bias.copy_(-0.5 * centres.square().sum(1) / variance)
        self.head.to(model.device)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.model.encode(images)).log_softmax(1)

    @torch.no_grad()
    def predict(self, images: Callable[[Tensor], Tensor], positions: Tensor) -> Tensor:
        """(N, K) probabilities, on the host."""
        return torch.cat([self(images(part).to(self.model.device)).exp().cpu() for part in positions.split(BATCH)])

    def learn(self, images: Callable[[Tensor], Tensor], positions: Tensor, groups: Tensor, seed: int) -> Iterator[int]:
        """Train on the images at `positions` (N,), given first clusters `groups` (N,). Yields the images shown so far.

        Reproducible for a seed.
        """
        count, device = len(positions), self.model.device
        batch, draws = min(BATCH, count), generator(seed, "deep clusters", device=device)
        optimiser = torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)
        total = shown_images(self.model.data.pixels)
        targets = F.one_hot(groups, self.head.out_features).float()
        average, shown = targets, 0
        while shown < total:
            if shown >= GIVEN * total / SHOWN:
                average = MEMORY * average + (1 - MEMORY) * self.predict(images, positions)
                targets = sharpened(average)
            for rows in torch.randperm(count, generator=generator(seed, "order", shown)).split(batch):
                for group in optimiser.param_groups:
                    group["lr"] = LEARNING_RATE * min(1.0, 2.02 - 2 * shown / total)
                warped = elastic_warp(images(positions[rows]).to(device), draws)
                with torch.enable_grad():
                    loss = -(targets[rows].to(device) * self(warped)).sum(1).mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                shown += len(rows)
                yield min(shown, total)


def shown_images(pixels: int) -> int:
    """Length of the training in images of that many numbers. The price of the report `cluster` repeats it."""
    return max(LEAST_SHOWN, round(SHOWN * min(1.0, 784 / pixels)))


def sharpened(q: Tensor) -> Tensor:
    """(N, K) -> (N, K): p_ik proportional to q_ik^2 / sum_i q_ik (Xie et al. 2016, eq. 3)."""
    p = q.square() / q.sum(0).clamp_min(1e-12)
    return p / p.sum(1, keepdim=True)
