"""CPU time of one update of the GAN families, against the steps of reference implementations.

    python -m tests.benchmarks.gan_steps [--rounds 15] [--rows dcgan growing]

The sides have the same networks and batch and alternate in one process: ours in fp32 and in bf16, and the reference.
The reference side repeats the step of the reference line by line, with its losses, logging and averaging:

dcgan     pytorch/examples dcgan/main.py: D on reals, D on fakes, G through D, whose weights get gradients as well;
          losses and mean outputs read with .item()
sngan     kwotsin/mimicry: G generates new images for D (with a graph that is not used) and for G
growing   facebookresearch/pytorch_GAN_zoo: progressive growing at its last level, WGAN-GP with drift, new images for G,
          average by a loop over the parameters
style     NVlabs/stylegan2-ada-pytorch: D on fakes, D on reals, lazy R1 in a separate pass, new images for G, average by
          a loop over the parameters
"""

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.data import Columns
from models.registry import families
from models.training.loop import Training
from models.types import DataSpec

Step = Callable[[], None]
CONFIGS = {
    "dcgan": ("gan", {"body": "dcgan", "width": 32}),
    "sngan": ("gan", {"loss": "hinge", "discriminator_norm": "spectral", "r1": 0.0, "width": 32}),
    "growing": ("progressive_gan", {"width": 16, "widest": 64, "fade_images": 0, "stabilise_images": 0}),
    "style": ("style_gan", {"width": 16, "widest": 64}),
}
PERIOD = 16
"""Updates per measurement, of which one has the lazy penalty."""


def adam(network: nn.Module, rate: float, betas: tuple[float, float]) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), rate, betas)


def dcgan(g: nn.Module, d: nn.Module, images: Tensor, width: int) -> Step:
    of_d, of_g = adam(d, 2e-4, (0.5, 0.999)), adam(g, 2e-4, (0.5, 0.999))
    criterion = nn.BCELoss()

    def step() -> None:
        d.zero_grad()
        label = torch.full((len(images),), 1.0)
        output = d(images).sigmoid().view(-1)
        real = criterion(output, label)
        real.backward()
        output.mean().item()
        fake = g(torch.randn(len(images), width))
        label.fill_(0.0)
        output = d(fake.detach()).sigmoid().view(-1)
        fake_loss = criterion(output, label)
        fake_loss.backward()
        output.mean().item()
        (real + fake_loss).item()
        of_d.step()
        g.zero_grad()
        label.fill_(1.0)
        output = d(fake).sigmoid().view(-1)
        loss = criterion(output, label)
        loss.backward()
        output.mean().item(), loss.item()
        of_g.step()

    return step


def sngan(g: nn.Module, d: nn.Module, images: Tensor, width: int) -> Step:
    of_d, of_g = adam(d, 2e-4, (0.0, 0.9)), adam(g, 2e-4, (0.0, 0.9))

    def step() -> None:
        d.zero_grad()
        real = d(images)
        fake = g(torch.randn(len(images), width)).detach()
        fake_logits = d(fake)
        loss = F.relu(1 - real).mean() + F.relu(1 + fake_logits).mean()
        loss.backward()
        of_d.step()
        loss.item(), real.sigmoid().mean().item(), fake_logits.sigmoid().mean().item()
        g.zero_grad()
        loss = -d(g(torch.randn(len(images), width))).mean()
        loss.backward()
        of_g.step()
        loss.item()

    return step


def growing(g: nn.Module, d: nn.Module, images: Tensor, width: int) -> Step:
    of_d, of_g = adam(d, 1e-3, (0.0, 0.99)), adam(g, 1e-3, (0.0, 0.99))
    average = copy.deepcopy(g).requires_grad_(False)

    def step() -> None:
        of_d.zero_grad()
        real = d(images)
        loss = -real.sum()
        fake = g(torch.randn(len(images), width)).detach()
        loss = loss + d(fake).sum()
        alpha = torch.rand(len(images), 1).expand(len(images), images[0].numel()).contiguous().view(images.shape)
        between = (alpha * images + (1 - alpha) * fake).requires_grad_()
        (gradient,) = torch.autograd.grad(d(between).sum(), between, create_graph=True, retain_graph=True)
        penalty = 10 * ((gradient.view(len(images), -1).norm(2, dim=1) - 1) ** 2).sum()
        penalty.backward(retain_graph=True)
        loss = loss + 0.001 * (real**2).sum()
        loss.backward()
        of_d.step()
        loss.item(), penalty.item()
        of_d.zero_grad()
        of_g.zero_grad()
        loss = -d(g(torch.randn(len(images), width))).sum()
        loss.backward(retain_graph=True)
        of_g.step()
        loss.item()
        for mine, theirs in zip(average.parameters(), g.parameters(), strict=True):
            mine.data.mul_(0.999).add_(theirs.data, alpha=0.001)

    return step


def style(g: nn.Module, d: nn.Module, images: Tensor, width: int) -> Step:
    of_d, of_g = adam(d, 2.5e-3, (0.0, 0.99)), adam(g, 2.5e-3, (0.0, 0.99))
    average = copy.deepcopy(g).requires_grad_(False)
    turns = iter(range(10**9))

    def generate() -> Tensor:
        styles, others = g.mapping(torch.randn(len(images), width)), g.mapping(torch.randn(len(images), width))
        start = torch.randint(1, g.depth, (len(images),)).masked_fill(torch.rand(len(images)) >= 0.9, g.depth)
        return g(g.mixed(styles, others, start))

    def only(network: nn.Module) -> None:
        g.requires_grad_(network is g)
        d.requires_grad_(network is d)

    def step() -> None:
        only(g)
        of_g.zero_grad(set_to_none=True)
        F.softplus(-d(generate())).mean().backward()
        for weight in g.parameters():
            torch.nan_to_num(weight.grad, nan=0, posinf=1e5, neginf=-1e5, out=weight.grad)
        of_g.step()
        only(d)
        of_d.zero_grad(set_to_none=True)
        F.softplus(d(generate())).mean().backward()
        F.softplus(-d(images)).mean().backward()
        if next(turns) % PERIOD == 0:
            real = images.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(d(real).sum(), real, create_graph=True)
            (gradient.square().sum((1, 2, 3)).mean() * 0.5 * PERIOD).backward()
        for weight in d.parameters():
            torch.nan_to_num(weight.grad, nan=0, posinf=1e5, neginf=-1e5, out=weight.grad)
        of_d.step()
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), g.parameters(), strict=True):
                mine.copy_(theirs.lerp(mine, 0.999))
        g.requires_grad_(True)

    return step


REFERENCES = {"dcgan": dcgan, "sngan": sngan, "growing": growing, "style": style}


def sides(name: str, size: int, channels: int, batch: int) -> tuple[Step, Step, Step]:
    """One update of ours in fp32 and in bf16, and of the reference, with networks of the same shape and weights."""
    family, config = CONFIGS[name]
    spec = DataSpec("plain", size, size, channels, None, {"train": {"images": 256}})
    pixels = np.random.default_rng(0).integers(0, 256, (256, *spec.shape), dtype=np.uint8)
    config = config | {"augment": "none", "batch_size": batch, "images": 10**6, "measure_every": 0}

    def built(precision: str) -> Training:
        torch.manual_seed(0)
        model = families()[family].create(config | {"precision": precision}, spec).train()
        training = Training(model, Columns({"images": pixels}), Columns({"images": pixels[:8]}))
        training.monitor.steps = set()  # inspections are not part of the step
        training.grow_to(10**6 - batch)
        return training

    other = built("fp32").family
    images = torch.from_numpy(pixels[:batch]).float() / 127.5 - 1
    width = other.config.latent_dim
    reference = REFERENCES[name](other.generator.train(), other.discriminator.train(), images, width)
    return built("fp32").advance, built("bf16").advance, reference


def compare(name: str, size: int, channels: int, batch: int, rounds: int) -> list[float]:
    """CPU milliseconds per update of each side: medians over alternating rounds of 16 updates."""
    steps = sides(name, size, channels, batch)
    times: list[list[float]] = [[] for _ in steps]
    for step in steps:
        step()
    for _ in range(rounds):
        for step, milliseconds in zip(steps, times, strict=True):
            started = time.process_time()  # CPU time of this process, independent of the load of the machine
            for _ in range(PERIOD):
                step()
            milliseconds.append((time.process_time() - started) / PERIOD * 1000)
    return [statistics.median(milliseconds) for milliseconds in times]


def bench(names: tuple[str, ...] = tuple(REFERENCES), rounds: int = 3, batch: int = 32) -> None:
    torch.set_num_threads(1)
    print("| step | images | fp32, CPU ms | bf16 | reference | reference / fp32 | reference / bf16 |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        size, channels = (64, 3) if name == "dcgan" else (32, 3)
        fp32, bf16, other = compare(name, size, channels, batch, rounds)
        cells = f"{fp32:.0f} | {bf16:.0f} | {other:.0f} | {other / fp32:.2f} | {other / bf16:.2f}"
        print(f"| {name} | {batch} x {size}x{size}x{channels} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=REFERENCES, default=tuple(REFERENCES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    bench(tuple(options.rows), options.rounds, options.batch)


if __name__ == "__main__":
    main()
