"""Quality of the GAN families on real digits.

`python -m tests.benchmarks.gans quality --family gan --images 60000 width=16 loss=hinge` trains on 4 000 of the 5 000
digits and prints the distances beside floors and trivial samplers; `--sheet FILE.png` saves 64 samples.
tests/benchmarks/gan_steps.py measures the time of a step.
"""

import argparse
import json
import time

import numpy as np
import torch
from PIL import Image

from models.registry import families
from models.training.loop import Training
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
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.run(options)


if __name__ == "__main__":
    main()
