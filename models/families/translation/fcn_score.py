"""Can the input still be read from its translation, by a network that learned from real pairs? (FCN score)

Isola et al. (2017, section 4.2) let a segmenter of real photographs read label maps from generated ones. Here a small
network learns to read any input from real targets; it never sees a translation before it is asked.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from models.data import Columns
from models.evaluation.translation import in_batches, sample
from models.families.translation.networks import Fitted, UNet
from models.losses.adversarial import update
from models.seeds import derive, generator

UPDATES, BATCH, RATE, WIDTH = 300, 8, 2e-3, 16


def reader(train: Columns, source: str, target: str, seed: int, device: torch.device, updates: int) -> Fitted:
    """Learned on `updates` batches of real pairs to give the image of column `source` from that of `target`."""
    column = train.columns[target]
    levels = max(1, min(4, min(column.shape[2:]).bit_length() - 2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "downstream"))
        channels = column.shape[1], train.columns[source].shape[1]
        net = Fitted(UNet(*channels, WIDTH, levels), 2**levels).to(device)
    draws = generator(seed, "downstream")
    optimiser = torch.optim.Adam(net.parameters(), RATE, (0.5, 0.999))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=updates + 1)
    for _ in range(updates):
        pairs = train.rows(torch.randint(len(column), (BATCH,), generator=draws), [source, target])
        with torch.enable_grad():
            wrong = (net(pairs[target].to(device)) - pairs[source].to(device)).abs().mean()
            update(optimiser, wrong)
        schedule.step()
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
    """Mean distance per pixel of unseen inputs from what is read of their translations; and, to judge it by, from what
    is read of their true targets (`real`) and from the mean input (`mean`), which takes no reading.
    """
    net, unseen = reader(train, source, target, seed, device, updates), sample(validation)
    inputs = unseen[source]

    def wrong(images: Tensor) -> float:
        return float((in_batches(net, images) - inputs).abs().mean())

    mean = sample(train)[source].mean(0, keepdim=True)
    return {
        "downstream_l1": wrong(in_batches(translate, inputs)),
        "downstream_real_l1": wrong(unseen[target]),
        "downstream_mean_l1": float((mean - inputs).abs().mean()),
    }
