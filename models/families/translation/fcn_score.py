"""FCN score: how well a network trained on real pairs predicts the input from its translation.

Isola et al. (2017, section 4.2) segment generated photographs with a network trained on real ones. Here a small U-Net
learns to predict any input from its real target and is then applied to translations, which it has never seen.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from models.data import Columns
from models.evaluation.translation import evenly_spaced, in_batches
from models.families.translation.networks import PaddedGenerator, UNet
from models.nn.fit import fit_small
from models.seeds import derive, generator

UPDATES, BATCH, RATE, WIDTH = 300, 8, 2e-3, 16


def reader(train: Columns, source: str, target: str, seed: int, device: torch.device, updates: int) -> PaddedGenerator:
    """A U-Net trained on `updates` batches of real pairs to predict the image of column `source` from `target`."""
    column = train.columns[target]
    levels = max(1, min(4, min(column.shape[2:]).bit_length() - 2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "downstream"))
        channels = column.shape[1], train.columns[source].shape[1]
        net = PaddedGenerator(UNet(*channels, WIDTH, levels), 2**levels).to(device)
    draws = generator(seed, "downstream")

    def l1() -> Tensor:
        pairs = train.rows(torch.randint(len(column), (BATCH,), generator=draws), [source, target])
        return (net(pairs[target].to(device)) - pairs[source].to(device)).abs().mean()

    for _ in fit_small(net.parameters(), l1, updates, RATE):
        pass
    return net.requires_grad_(False)


def downstream_score(
    translate: Callable[[Tensor], Tensor],
    train: Columns,
    validation: Columns,
    source: str,
    target: str,
    seed: int,
    device: torch.device,
    updates: int = UPDATES,
) -> dict[str, float]:
    """Mean L1 per pixel between unseen inputs and those predicted from their translations.

    Baselines: predicted from the true targets (`real`), and the mean training input (`mean`).
    """
    net, unseen = reader(train, source, target, seed, device, updates), evenly_spaced(validation)
    inputs = unseen[source]

    def l1(images: Tensor) -> float:
        return float((in_batches(net, images) - inputs).abs().mean())

    mean = evenly_spaced(train)[source].mean(0, keepdim=True)
    return {
        "downstream_l1": l1(in_batches(translate, inputs)),
        "downstream_real_l1": l1(unseen[target]),
        "downstream_mean_l1": float((mean - inputs).abs().mean()),
    }
