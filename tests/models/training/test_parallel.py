"""Trainings on two devices, which are two processes on the CPU, against the same training on one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from models.family import Config
from models.registry import families
from models.training.checkpoint import State
from models.training.loop import Training
from models.training.parallel import ParallelTraining, for_ranks
from models.training.ranks import Ranks, RowDraws
from tests.models.training.second_rank import CPU, new_training, parameters

ROOT = Path(__file__).parents[3]
SMALL = {"batch_size": 8, "images": 64, "precision": "fp32"}
NO_BATCH_NORM = {
    "vae": {"body": "mlp", "hidden": [16], "latent_dim": 4},
    "autoencoder": {"body": "mlp", "hidden": [16], "latent_dim": 4},
    "denoising_autoencoder": {"body": "mlp", "hidden": [16]},
    "classifier": {"body": "mlp", "hidden": [16], "dropout": 0.5, "flip": True, "shift": 2, "noise": 0.1},
    "gan": {"body": "mlp", "width": 8, "loss": "non_saturating", "r1": 1.0, "augment": "diff", "measure_every": 0},
    "pix2pix": {"width": 4},
}


@pytest.fixture(scope="module")
def pair():
    """This process as the first of two ranks, and a function that starts a training in both."""
    store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    command = [sys.executable, "-m", "tests.models.training.second_rank", str(store.port)]
    other = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, text=True)
    ranks = Ranks.join(store, 0, 2, CPU)

    def start(name: str, config: dict, state: State | None = None) -> ParallelTraining:
        training = new_training(ParallelTraining, name, config)
        other.stdin.write(json.dumps([name, config]) + "\n")
        other.stdin.flush()
        if state:
            training.restore(state)
        training.join(ranks)
        return training

    yield start
    ranks.leave()
    other.stdin.close()
    assert other.wait(120) == 0


def curve(training: Training, steps: int = 8) -> list[dict[str, float]]:
    training.family.train()
    return [{name: float(value) for name, value in training.advance().metrics.items()} for _ in range(steps)]


def assert_close(ours: list[dict[str, float]], alone: list[dict[str, float]]) -> None:
    """To 1e-5; but for accuracies, where the last bits of a logit decide."""
    for one, other in zip(ours, alone, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value == pytest.approx(other[name], rel=1e-5, abs=0.2 if name == "accuracy" else 1e-5), name


def end(training: ParallelTraining) -> None:
    """Ends the training at the second rank, which must have the same parameters as the first one."""
    training.dismiss()
    first, second = training.ranks.collect(parameters(training))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("name", NO_BATCH_NORM)
def test_two_ranks_learn_what_one_learns_from_the_whole_batch(pair, name):
    config = SMALL | NO_BATCH_NORM[name]
    together = pair(name, config)
    curves = curve(together), curve(new_training(Training, name, config))
    end(together)
    assert_close(*curves)


@pytest.mark.parametrize("name", ["vae", "denoising_autoencoder", "classifier"])
def test_a_batch_in_parts_learns_what_the_whole_batch_does(name):
    """Gradient accumulation; draws and dropout are those of the whole batch."""
    config = SMALL | {"batch_size": 16} | NO_BATCH_NORM[name]
    parts, whole = (new_training(Training, name, config) for _ in range(2))
    parts.family.accumulate = 4
    assert_close(curve(parts), curve(whole))


def test_a_batch_in_parts_on_two_ranks_learns_what_the_whole_batch_does(pair):
    config = SMALL | {"batch_size": 16} | NO_BATCH_NORM["classifier"]
    together = pair("classifier", config | {"accumulate": 2})
    curves = curve(together), curve(new_training(Training, "classifier", config))
    end(together)
    assert_close(*curves)


STATEFUL = {
    # batch norm, a pool of past fakes, adaptive augmentation, remedies: each rank has its own buffers
    "gan": {"body": "dcgan", "width": 4, "replay": 6, "r1": 0.0, "augment": "adaptive", "auto_remedy": True}
    | {"measure_every": 0},
    "cyclegan": {"width": 4, "pool": 4, "generator": "unet"},
    "sparse_autoencoder": {"body": "linear", "latent_dim": 8},
    "classifier": {"width": 4, "adversarial": "free", "balance": "inverse"},
}


@pytest.mark.parametrize("name", STATEFUL)
def test_a_resumed_training_on_two_ranks_is_exact(pair, name):
    config = SMALL | STATEFUL[name]
    unbroken = pair(name, config)
    curve(unbroken, 5)
    saved = unbroken.state()
    rest = curve(unbroken, 3)
    final = unbroken.state()
    end(unbroken)
    second = {key for key in final.tensors if key.startswith("rank1/")}
    assert bool(second) == bool(list(unbroken.family.buffers()))
    resumed = pair(name, config, saved)
    assert curve(resumed, 3) == rest
    again = resumed.state()
    end(resumed)
    assert again.facts == final.facts and again.tensors.keys() == final.tensors.keys()
    assert all(torch.equal(value, again.tensors[key]) for key, value in final.tensors.items())


@pytest.mark.parametrize("name", sorted(set(families()) - {*NO_BATCH_NORM, *STATEFUL}))
def test_every_family_learns_on_two_ranks(pair, name):
    training = pair(name, SMALL)
    curve(training, 3)
    end(training)


def test_the_batch_of_all_ranks_has_equal_parts():
    assert for_ranks(Config(batch_size=9), 2).batch_size == 10
    assert for_ranks(Config(batch_size=2), 4).batch_size == 8
    assert for_ranks(Config(batch_size=64), 2).batch_size == 64


@pytest.mark.parametrize("shape", [(4, 3), (2, 4), (8, 3, 2), (2, 4, 1), (2, 3)])
def test_draws_are_the_rows_of_the_whole_batch(shape):
    """Of two ranks with four rows each; stacked batches are cut one by one, a part of a batch likewise."""
    axis = next((axis for axis, length in enumerate(shape) if length % 4 == 0), 0)
    larger = [length * (2 if place == axis else 1) for place, length in enumerate(shape)]
    whole = torch.rand(larger, generator=torch.Generator().manual_seed(5))
    parts = []
    for rank in range(2):
        generator = torch.Generator().manual_seed(5)
        with RowDraws(rank, 2, 4, generator):
            parts.append(torch.rand(*shape, generator=generator))
    if shape[axis] == 8:
        whole = whole.unflatten(0, (2, 2, 4))
        assert torch.equal(whole[:, 0].flatten(0, 1), parts[0]) and torch.equal(whole[:, 1].flatten(0, 1), parts[1])
    else:
        assert torch.equal(whole, torch.cat(parts, axis))


def test_other_draws_are_left_alone():
    """Those from a generator of their own, and those that have nothing to do with the batch."""
    own, shared = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    with RowDraws(1, 2, 4, torch.Generator()):
        assert torch.equal(torch.rand(4, generator=own), torch.rand(4, generator=shared.manual_seed(1)))
    generator = torch.Generator().manual_seed(1)
    with RowDraws(1, 2, 4, generator):
        assert torch.equal(
            torch.randint(3, (5, 7), generator=generator), torch.randint(3, (5, 7), generator=own.manual_seed(1))
        )


OPTIMISER_STEPS = {"models/family.py", "models/losses/adversarial.py", "models/families/gans/updates.py"}


def test_gradients_are_averaged_wherever_a_training_updates_weights():
    """`average_gradients` stands in every file of families that steps an optimiser."""
    files = [
        ROOT / "models/family.py",
        *(ROOT / "models/losses").rglob("*.py"),
        *(ROOT / "models/families").rglob("*.py"),
    ]
    stepping = {str(file.relative_to(ROOT)) for file in files if "optimiser.step()" in file.read_text()}
    assert stepping == OPTIMISER_STEPS
    assert all("average_gradients(" in (ROOT / file).read_text() for file in stepping)
