"""The frame carries what the largest families need: shown on a family made of every trouble at once."""

import pytest
import torch

from models.training.loop import Training
from tests.models.data import dataset
from tests.models.training.two_networks import GROWS_AT, TwoNetworks

LENGTH, BATCH = 48, 4


def build(seed: int = 3) -> Training:
    spec, train, validation = dataset("unpaired", (3, 9, 11))
    torch.manual_seed(seed)
    return Training(TwoNetworks.create({"images": LENGTH, "batch_size": BATCH}, spec), train, validation, seed)


@pytest.fixture(scope="module")
def undisturbed():
    training = build()
    states, curve = [training.state()], []
    for step in training.run():
        states.append(training.state())
        curve.append({name: float(value) for name, value in step.metrics.items()})
    return states, curve


@pytest.mark.parametrize("done", range(LENGTH // BATCH + 1))
def test_resumed_training_equals_unbroken_training_bit_for_bit(undisturbed, done):
    states, curve = undisturbed
    resumed = build()
    torch.manual_seed(1000 + done)
    resumed.restore(states[done])
    assert [{name: float(value) for name, value in step.metrics.items()} for step in resumed.run()] == curve[done:]
    final = resumed.state()
    assert final.facts == states[-1].facts and final.tensors.keys() == states[-1].tensors.keys()
    assert all(torch.equal(final.tensors[name], tensor) for name, tensor in states[-1].tensors.items())


def test_growth_keeps_optimiser_moments_of_old_parameters(undisturbed):
    states, curve = undisturbed
    first_after = next(index for index, values in enumerate(curve) if values["blocks"] == 2)
    assert first_after * BATCH == GROWS_AT
    before, after = states[first_after].tensors, states[first_after + 2].tensors
    key = "optimiser/generator/generator.blocks.{}.weight/step"
    assert int(after[key.format(0)]) == int(before[key.format(0)]) + 1
    assert key.format(1) not in before and int(after[key.format(1)]) == 1


def test_domains_are_shuffled_independently_by_epoch(undisturbed):
    training = build()
    for name in ("a", "b"):
        rows = len(training.train.columns[name])
        seen = torch.cat([training.train.batch(3, start, BATCH)[name] for start in range(0, rows - BATCH + 1, BATCH)])
        assert len(torch.unique(seen.flatten(1), dim=0)) == len(seen)


def test_published_model_drops_history_and_serves_grown_network():
    training = build()
    for _ in training.run():
        pass
    training.finish()
    state = training.family.serving_state()
    assert not [name for name in state if name.startswith("pool.")] and "generator.blocks.1.weight" in state
    assert len(training.family.generator.blocks) == 2


def test_two_seeds_are_two_runs():
    curves = []
    for seed in (3, 4):
        training = build(3)
        training.seed = seed
        curves.append([float(step.metrics["critic"]) for step in training.run()])
    assert curves[0] != curves[1]
