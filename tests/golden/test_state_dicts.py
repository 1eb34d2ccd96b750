"""Published models and checkpoints are keyed by names of modules: none may change."""

import lzma
from pathlib import Path

import pytest
import torch

from models import registry
from models.training.loop import Training
from models.types import DataSpec
from tests.models.data import for_family

FILE = Path(__file__).parent / "state_dicts.txt.xz"
ADDED = {"config", "engine"}
"""Facts of checkpoints that release 0.1 did not have."""
IMPORTED = {"vgg": {"plan": [4, 0, 8], "hidden": [8, 8], "grid": 2, "batch_norm": True}, "efficientnet_lite": {}}
"""Kinds of imported models that have networks of their own, and their configs."""


def keys_of(family: str) -> list[str]:
    """`family place key type shape` for every tensor of a model by the defaults of release 0.1, and of its checkpoint
    after one update.
    """
    if family in IMPORTED:
        spec = DataSpec("labelled", 32, 32, 3, ("a", "b"), {})
        model = registry.imported()[family].create(IMPORTED[family], spec)
        return described(family, "model", model.state_dict())
    kind = registry.families()[family]
    spec, train, validation = for_family(kind, (3, 32, 32), 12)
    torch.manual_seed(0)
    model = kind.from_stored({"images": 12, "batch_size": 4}, spec, engine=1)
    training = Training(model, train, validation)
    training.advance()
    state = training.state()
    facts = [f"{family} facts {name}" for name in sorted(state.facts.keys() - ADDED)]
    return described(family, "model", model.state_dict()) + described(family, "checkpoint", state.tensors) + facts


def described(family: str, place: str, tensors: dict[str, torch.Tensor]) -> list[str]:
    return [
        f"{family} {place} {key} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        for key, tensor in sorted(tensors.items())
    ]


@pytest.mark.parametrize("family", [*registry.families(), *IMPORTED])
def test_keys_and_shapes_of_models_and_checkpoints_are_the_recorded_ones(family):
    lines = lzma.decompress(FILE.read_bytes()).decode().splitlines()
    recorded = [line for line in lines if line.startswith(f"{family} ")]
    assert keys_of(family) == recorded or not recorded
