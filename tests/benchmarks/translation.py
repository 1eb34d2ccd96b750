"""Time of an update of pix2pix and CycleGAN beside the update of pytorch-CycleGAN-and-pix2pix over the same networks.

The other side is its `optimize_parameters` written out (models/pix2pix_model.py, models/cycle_gan_model.py: two passes
of the discriminators for real and fake, an image pool, Adam as it makes it), with our generators and discriminators in
it, so what differs is the loop; and the precision under auto, what `precision: auto` gives on this machine. Rounds
alternate; CPU time of this process alone is compared.
"""

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.data import Columns
from models.registry import families
from models.training.loop import Training
from models.types import DataSpec

SIZES = ((28, 1, 4), (64, 3, 4))  # side, channels, images in a batch
BETAS = (0.5, 0.999)


class ImagePool:
    """util/image_pool.py: one image after the other."""

    def __init__(self, size: int = 50):
        self.size, self.images = size, []

    def query(self, images: Tensor) -> Tensor:
        shown = []
        for image in images.detach():
            image = image[None]
            if len(self.images) < self.size:
                self.images.append(image)
                shown.append(image)
            elif random.random() > 0.5:
                index = random.randint(0, self.size - 1)
                shown.append(self.images[index].clone())
                self.images[index] = image
            else:
                shown.append(image)
        return torch.cat(shown)


def needs(networks: list[nn.Module], wanted: bool) -> None:
    for network in networks:
        for parameter in network.parameters():
            parameter.requires_grad = wanted


def against(logits: Tensor, real: bool, kind: str) -> Tensor:
    target = torch.tensor(1.0 if real else 0.0).expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits, target) if kind == "bce" else F.mse_loss(logits, target)


def pix2pix(model, batch: dict[str, Tensor]) -> Callable[[], None]:
    generator, judge = model.generators["ab"], model.judges["ab"]
    first, second = (torch.optim.Adam(net.parameters(), lr=2e-4, betas=BETAS) for net in (generator, judge))
    source, target = batch["input"], batch["target"]

    def step() -> None:
        fake = generator(source)
        needs([judge], True)
        second.zero_grad()
        bad = against(judge(torch.cat((source, fake), 1).detach()), False, "bce")
        good = against(judge(torch.cat((source, target), 1)), True, "bce")
        ((bad + good) * 0.5).backward()
        second.step()
        needs([judge], False)
        first.zero_grad()
        fooled = against(judge(torch.cat((source, fake), 1)), True, "bce")
        (fooled + F.l1_loss(fake, target) * 100).backward()
        first.step()

    return step


def cyclegan(model, batch: dict[str, Tensor]) -> Callable[[], None]:
    there, back, of_b, of_a = model.generators["ab"], model.generators["ba"], model.judges["b"], model.judges["a"]
    first = torch.optim.Adam(itertools.chain(there.parameters(), back.parameters()), lr=2e-4, betas=BETAS)
    second = torch.optim.Adam(itertools.chain(of_b.parameters(), of_a.parameters()), lr=2e-4, betas=BETAS)
    a, b, pools = batch["a"], batch["b"], (ImagePool(), ImagePool())

    def step() -> None:
        fake_b, fake_a = there(a), back(b)
        again_a, again_b = back(fake_b), there(fake_a)
        needs([of_a, of_b], False)
        first.zero_grad()
        same = (F.l1_loss(there(b), b) + F.l1_loss(back(a), a)) * 10 * 0.5
        fooled = against(of_b(fake_b), True, "lsgan") + against(of_a(fake_a), True, "lsgan")
        (fooled + same + 10 * (F.l1_loss(again_a, a) + F.l1_loss(again_b, b))).backward()
        first.step()
        needs([of_a, of_b], True)
        second.zero_grad()
        for judge, real, fake, pool in ((of_b, b, fake_b, pools[0]), (of_a, a, fake_a, pools[1])):
            shown = pool.query(fake)
            ((against(judge(real), True, "lsgan") + against(judge(shown), False, "lsgan")) * 0.5).backward()
        second.step()

    return step


def measure(name: str, side: int, channels: int, size: int, rounds: int) -> list[float]:
    """CPU milliseconds of our update in fp32, in `precision: auto`, and of theirs: medians of alternating rounds."""
    names = ("input", "target") if name == "pix2pix" else ("a", "b")
    layout = "paired" if name == "pix2pix" else "unpaired"
    spec = DataSpec(layout, side, side, channels, columns={"train": dict.fromkeys(names, 64)})
    pixels = np.random.default_rng(0).integers(0, 256, (64, *spec.shape), dtype=np.uint8)
    columns = Columns(dict.fromkeys(names, pixels))
    # the networks, losses and batches of the paper
    config = {"batch_size": size, "images": 10**6, "effort": "full"}
    fp32, auto, theirs = (
        families()[name].create(config | {"precision": precision}, spec) for precision in ("fp32", "auto", "fp32")
    )
    batch = {column: torch.from_numpy(pixels[:size]).float() / 255 for column in names}
    other = {"pix2pix": pix2pix, "cyclegan": cyclegan}[name](theirs.train(), batch)
    trainings = [Training(model.train(), columns, columns) for model in (fp32, auto)]
    for training in trainings:
        training.monitor.steps = set()  # inspections are not part of the step
    times: dict[Callable, list[float]] = {step: [] for step in (*(one.advance for one in trainings), other)}
    for step in times:
        step(), step()
    for _ in range(rounds):
        for step, taken in times.items():
            started = time.process_time()
            step()
            taken.append(time.process_time() - started)
    return [statistics.median(taken) * 1000 for taken in times.values()]


def bench(rounds: int = 7) -> None:
    print("| family | images | fp32, CPU ms | auto | theirs | theirs / fp32 | theirs / auto |")
    print("|---|---|---|---|---|---|---|")
    for name, (side, channels, size) in itertools.product(("pix2pix", "cyclegan"), SIZES):
        fp32, auto, theirs = measure(name, side, channels, size, rounds)
        shape, ratios = f"{size} x {side}x{side}x{channels}", f"{theirs / fp32:.2f} | {theirs / auto:.2f}"
        print(f"| {name} | {shape} | {fp32:.0f} | {auto:.0f} | {theirs:.0f} | {ratios} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench(options.rounds)
