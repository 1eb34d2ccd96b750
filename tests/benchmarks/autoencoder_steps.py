"""CPU time of one update of the autoencoders, beside a bare loop and the loop of pythae, over the same networks.

    python -m tests.benchmarks.autoencoder_steps [--rounds 9]

pythae's side is its BaseTrainer.train_step written out (clementchadebec/benchmark_VAE): a DataLoader that collates
single images, its model's forward pass and loss, an Adam that is not fused, and a loss that is read in every update.
The bare loop has its images as floats in memory, a fused Adam and our loss. The sides take turns, 8 updates each; the
CPU time of this process is compared. auto is what `precision: auto` gives on this machine.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.data import Columns
from models.family import OneLoss
from models.registry import families
from models.training.loop import Training
from models.types import DataSpec

UPDATES = 8
ROWS = [
    ("vae", {"body": "conv", "batch_size": 64}, 28, 1),
    ("vae", {"body": "mlp", "batch_size": 64}, 28, 1),
    ("vae", {"body": "mlp", "batch_size": 128}, 28, 1),
    ("vae", {"body": "conv", "batch_size": 64}, 64, 3),
    ("autoencoder", {"body": "conv", "batch_size": 64}, 28, 1),
    ("autoencoder", {"body": "mlp", "batch_size": 128}, 28, 1),
]
COUNT = 2048


class Images(Dataset):
    """pythae.data.datasets.BaseDataset: images and labels as tensors, row by row."""

    def __init__(self, images: Tensor):
        self.images, self.labels = images, torch.ones(len(images))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"data": self.images[index], "labels": self.labels[index]}


def pythae(model: OneLoss, images: Tensor, size: int) -> Callable[[], None]:
    """BaseTrainer.train_step and the forward pass of VAE or AE around our encoder and decoder."""
    loader = DataLoader(Images(images), batch_size=size, shuffle=True, drop_last=True)
    adam = torch.optim.Adam([*model.encoder.parameters(), *model.decoder.parameters()], lr=1e-3)
    variational = model.name == "vae"

    def batches() -> Iterator[dict[str, Tensor]]:
        while True:
            yield from loader

    def forward(x: Tensor) -> Tensor:
        if not variational:
            return F.mse_loss(model.decoder(model.encoder(x)).reshape(size, -1), x.reshape(size, -1))
        mean, log_var = model.encoder(x).chunk(2, 1)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(log_var)
        output = torch.sigmoid(model.decoder(z))
        error = F.binary_cross_entropy(output.reshape(size, -1), x.reshape(size, -1), reduction="none").sum(-1)
        divergence = -0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp(), dim=-1)
        return (error + divergence).mean()

    feed, total = batches(), [0.0]

    def step() -> None:
        loss = forward(next(feed)["data"])
        adam.zero_grad()
        loss.backward()
        adam.step()
        total[0] += loss.item()
        if total[0] != total[0]:
            raise ArithmeticError("NaN detected in train loss")

    return step


def bare(training: Training, images: Tensor) -> Callable[[], None]:
    """The loop that anybody would write first."""
    model, size, context = training.family, training.batch_size, training.context()
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        batch = {"images": images[torch.randint(len(images), (size,))]}
        loss, _ = model.loss(batch, context)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()

    return step


def measure(family: str, config: dict, side: int, channels: int, rounds: int) -> dict[str, float]:
    """CPU milliseconds of an update on each side: medians over alternating rounds."""
    spec = DataSpec("plain", side, side, channels, columns={"train": {"images": COUNT}})
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, *spec.shape), dtype=np.uint8)
    columns, images = Columns({"images": pixels}), torch.from_numpy(pixels).float() / 255

    def built(precision: str) -> Training:
        torch.manual_seed(0)
        model = families()[family].create(config | {"images": 10**6, "precision": precision}, spec)
        training = Training(model.train(), columns, columns)
        training.monitor.steps = set()  # inspections are not part of the step
        return training

    fp32, auto, others = built("fp32"), built("auto"), [built("fp32") for _ in range(2)]
    sides = {"fp32": fp32.advance, "auto": auto.advance, "bare": bare(others[0], images)}
    sides["pythae"] = pythae(others[1].family, images, config["batch_size"])
    times: dict[str, list[float]] = {name: [] for name in sides}
    for step in sides.values():
        step(), step()
    for _ in range(rounds):
        for name, step in sides.items():
            started = time.process_time()
            for _ in range(UPDATES):
                step()
            times[name].append((time.process_time() - started) / UPDATES * 1000)
    return {name: statistics.median(taken) for name, taken in times.items()}


def bench(rounds: int = 9) -> None:
    torch.set_num_threads(1)
    print("| step | fp32, CPU ms | auto | bare | pythae | bare / fp32 | pythae / fp32 | pythae / auto |")
    print("|---|---|---|---|---|---|---|---|")
    for family, config, side, channels in ROWS:
        ms = measure(family, config, side, channels, rounds)
        ratios = [ms["bare"] / ms["fp32"], ms["pythae"] / ms["fp32"], ms["pythae"] / ms["auto"]]
        name = f"{family} {config['body']}, {config['batch_size']} x {side}x{side}x{channels}"
        cells = [*(f"{value:.1f}" for value in ms.values()), *(f"{ratio:.2f}" for ratio in ratios)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    bench(parser.parse_args().rounds)
