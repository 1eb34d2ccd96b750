"""Bright images do not silence a sparse autoencoder, and large ones do not fill the memory."""

import numpy as np
import pytest

from models.data import Columns
from models.families.autoencoders.contractive_autoencoder import ContractiveAutoencoder
from models.families.autoencoders.sparse_autoencoder import SparseAutoencoder
from models.training.loop import Training
from models.types import DataSpec


def bright(count: int, seed: int) -> Columns:
    """Dark discs on a bright ground: (count, 1, 12, 12) uint8."""
    draws = np.random.default_rng(seed)
    rows, columns = np.mgrid[:12, :12]
    centres = draws.uniform(2, 10, (count, 2, 1, 1))
    inside = (rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2 < 9
    return Columns({"images": np.where(inside, 60, 230)[:, None].astype(np.uint8)})


def test_units_stay_alive_on_a_bright_ground():
    train, validation = bright(256, 0), bright(64, 1)
    data = DataSpec("plain", 12, 12, 1, columns={"train": {"images": 256}, "validation": {"images": 64}})
    training = Training(
        SparseAutoencoder.create({"images": 3840, "latent_dim": 256, "sparsity": "l1"}, data), train, validation
    )
    for _ in training.run():
        pass
    assert training.family.encoder.mean.mean() > 0.5
    measured = training.finish()
    assert measured["dead_units"] < 26
    assert measured["mse"] < measured["mse_mean_image"] / 2


@pytest.mark.parametrize("family", [SparseAutoencoder, ContractiveAutoencoder])
@pytest.mark.parametrize(("side", "channels"), [(28, 1), (64, 3), (256, 3)])
def test_an_empty_config_is_affordable_whatever_the_size(family, side, channels):
    data = DataSpec("plain", side, side, channels, columns={"train": {"images": 300}})
    units = family.complete_config({}, data).latent_dim
    assert units * data.pixels <= 2**25 and units >= min(data.pixels, 64)
