"""Claims about the cost of a training step, measured in turns with another loop over the same network, in CPU time.

The peer is pythae 0.1.2 (`pip install --no-deps pythae==0.1.2 cloudpickle imageio tqdm`), its own trainer, model and
loader; nothing of the service depends on it.
"""

import contextlib
import io
import logging
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from models.data import Columns
from models.registry import families
from models.training.loop import Meter, Training
from tests.benchmarks.claims import Found, Row, Subject, at_least, pixels

NETWORK = {"body": "mlp", "hidden": [512], "latent_dim": 20, "likelihood": "bernoulli", "batch_size": 128}
IMAGES = 4096
ROUNDS = 9


def seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def ratio(subject: Subject, ours: Callable[[], object], other: Callable[[], object]) -> tuple[float, float, float]:
    """The median of other / ours over alternating rounds, and the median CPU seconds of both."""
    for run in (ours, other):
        run()
    pairs = []
    for turn in range(ROUNDS):
        if turn >= 3 and subject.left < 0:
            break
        mine, theirs = seconds(ours), seconds(other)
        pairs.append((theirs / mine, mine, theirs))
    return tuple(statistics.median(column) for column in zip(*pairs, strict=True))


def epoch(subject: Subject, config: dict, images: np.ndarray) -> tuple[Training, Callable[[], None]]:
    """One pass of the engine over the images, metered as a worker meters it."""
    torch.manual_seed(subject.seed)
    columns = Columns({"images": images})
    training = Training(families()["vae"].create(config | {"images": 10**7}, subject.spec), columns, columns, 0)
    training.family.train()

    def run() -> None:
        meter = Meter()
        for _ in range(len(images) // training.batch_size):
            meter.add(training.advance().metrics)
        meter.pop_means()

    return training, run


def with_relu(module: nn.Module) -> None:
    """The peer's activation in place of ours, so that both train the same network."""
    for name, child in module.named_children():
        if isinstance(child, nn.SiLU):
            setattr(module, name, nn.ReLU())
        with_relu(child)


def beside_pythae(subject: Subject) -> Found:
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    logging.getLogger("pythae").setLevel(logging.ERROR)
    images = np.array(subject.source.data.train["images"][:IMAGES])
    rows = pixels(Columns({"images": images})).reshape(len(images), *subject.spec.shape)
    model = VAE(VAEConfig(input_dim=subject.spec.shape, latent_dim=20, reconstruction_loss="bce"))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        options = {"output_dir": folder, "per_device_train_batch_size": 128, "learning_rate": 1e-3, "no_cuda": True}
        trainer = BaseTrainer(model, BaseDataset(rows, torch.ones(len(rows))), None, BaseTrainerConfig(**options))
        trainer.prepare_training()
        training, ours = epoch(subject, NETWORK, images)
        with_relu(training.family)
        value, mine, theirs = ratio(subject, ours, lambda: trainer.train_step(1))
    sizes = [sum(parameter.numel() for parameter in one.parameters()) for one in (training.family, model)]
    note = (
        f"VAE {subject.spec.pixels}-512-20 with ReLU, batch 128, Adam, one thread, in turns: {1000 * mine:.0f} against "
        f"{1000 * theirs:.0f} CPU ms for {len(images)} images; {sizes[0]} and {sizes[1]} weights"
    )
    return Found(value, {"pythae": 1.0}, note)


PYTHAE = Row(
    "step-beside-pythae",
    "A training step of the same VAE costs less CPU than pythae's",
    "times faster",
    at_least(1.5),
    beside_pythae,
)


def beside_bare_loop(subject: Subject) -> Found:
    images = np.array(subject.source.data.train["images"][:IMAGES])
    training, ours = epoch(subject, NETWORK, images)
    torch.manual_seed(subject.seed)
    family = families()["vae"].create(NETWORK | {"images": 10**7}, subject.spec).train()
    rows, context = pixels(Columns({"images": images})).reshape(len(images), *subject.spec.shape), training.context()
    optimiser = torch.optim.Adam(family.parameters(), lr=1e-3, fused=True)

    def bare() -> None:
        for indices in torch.randperm(len(rows))[: len(rows) // 128 * 128].split(128):
            loss, _ = family.loss({"images": rows[indices]}, context)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()

    value, mine, theirs = ratio(subject, ours, bare)
    note = (
        f"VAE {subject.spec.pixels}-512-20, batch 128; the bare loop holds its images as floats and reports nothing: "
        f"{1000 * mine:.0f} against {1000 * theirs:.0f} CPU ms for {len(images)} images"
    )
    return Found(value, {"bare loop": 1.0}, note)


BARE = Row(
    "step-beside-bare-loop",
    "The engine trains a VAE nearly as fast as the loop written out by hand",
    "of its speed",
    at_least(0.95),
    beside_bare_loop,
)
