"""Quality and speed of the adversarial families on real digits.

`python -m tests.benchmarks.gans quality --family gan --images 60000 width=16 loss=hinge` trains on 4 000 of the 5 000
digits and prints the distances beside floors and trivial samplers; `--sheet FILE.png` keeps 64 samples.
`python -m tests.benchmarks.gans speed` compares the time of a step with a plain loop over the same DCGAN.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from models.data import Columns
from models.registry import families
from models.training import Training
from models.types import DataSpec
from tests.models.data import digits


def setting(text: str) -> tuple[str, object]:
    """`name=value`, the value as JSON where it is JSON."""
    name, value = text.split("=", 1)
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def quality(options: argparse.Namespace) -> None:
    spec, train, validation = digits()
    torch.manual_seed(options.seed)
    config = {"images": options.images, **dict(options.settings)}
    model = families()[options.family].create(config, spec)
    training = Training(model, train, validation, seed=options.seed)
    started, traced = time.process_time(), {}
    for step in training.run():
        traced |= step.metrics
        if training.step % options.every == 0:
            shown = "  ".join(f"{name} {float(value):.3f}" for name, value in traced.items())
            print(f"{step.images:>8} images  {time.process_time() - started:6.0f} s  {shown}", flush=True)
    trained = time.process_time() - started
    measured = training.finish()
    print(f"| {'cpu_seconds':<26} | {trained:10.1f} |")
    for name, value in measured.items():
        print(f"| {name:<26} | {value:10.4f} |")
    if options.sheet:
        sheet = training.snapshot()[:, 0].reshape(8, 8, *spec.shape[1:]).permute(0, 2, 1, 3)
        pixels = (sheet.reshape(8 * spec.height, -1).numpy() * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(options.sheet)


def plain_dcgan(generator, discriminator, images: torch.Tensor, width: int):
    """One update as the usual DCGAN script does it: real, fake, and generator passes, each with its backward."""
    optimisers = [torch.optim.Adam(player.parameters(), 2e-4, (0.5, 0.999)) for player in (discriminator, generator)]

    def step() -> None:
        discriminator.zero_grad()
        ones, zeros = torch.ones(len(images)), torch.zeros(len(images))
        F.binary_cross_entropy_with_logits(discriminator(images), ones).backward()
        fakes = generator(torch.randn(len(images), width))
        F.binary_cross_entropy_with_logits(discriminator(fakes.detach()), zeros).backward()
        optimisers[0].step()
        generator.zero_grad()
        F.binary_cross_entropy_with_logits(discriminator(fakes), ones).backward()
        optimisers[1].step()

    return step


def median_seconds(step, rounds: int) -> float:
    step()
    times = []
    for _ in range(rounds):
        started = time.process_time()  # of this process alone, whatever else the machine does
        step()
        times.append(time.process_time() - started)
    return statistics.median(times)


def speed(options: argparse.Namespace) -> None:
    print("| size | ours, CPU ms | plain loop, CPU ms | ratio |\n|---|---|---|---|")
    for size, channels, width in ((28, 1, 32), (64, 3, 16)):
        spec = DataSpec("plain", size, size, channels, None, {"train": {"images": 256}})
        pixels = np.random.default_rng(0).integers(0, 256, (256, *spec.shape), dtype=np.uint8)
        config = {"body": "dcgan", "width": width, "augment": "none", "batch_size": 64, "images": 10**6}
        torch.manual_seed(0)
        ours, plain = (families()["gan"].create(config, spec) for _ in range(2))
        training = Training(ours, Columns({"images": pixels}), Columns({"images": pixels[:8]}))
        images = torch.from_numpy(pixels[:64]).float() / 127.5 - 1
        bare = plain_dcgan(plain.generator.train(), plain.discriminator.train(), images, plain.config.latent_dim)
        found = [median_seconds(step, options.rounds) * 1000 for step in (training.advance, bare)]
        print(f"| {size}x{size}x{channels} | {found[0]:.0f} | {found[1]:.0f} | {found[0] / found[1]:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("quality")
    one.set_defaults(run=quality)
    one.add_argument("--family", default="gan")
    one.add_argument("--images", type=int, default=60_000)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--every", type=int, default=200)
    one.add_argument("--sheet")
    one.add_argument("settings", nargs="*", type=setting)
    two = commands.add_parser("speed")
    two.set_defaults(run=speed)
    two.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.run(options)


if __name__ == "__main__":
    main()
