"""Planes and maps against what is known of them: PCA, the library's trustworthiness, data without variance."""

import importlib.util
import math

import pytest
import torch

from models.evaluation import embedding
from models.evaluation.dataset_view import DatasetView
from models.families.autoencoders.vae import VAE
from models.nn.plane import Plane
from models.operations.directions import Directions
from models.operations.grid import Grid, quantiles
from models.operations.map import Map, ticks
from models.types import DataError, InputError
from tests.models.data import dataset
from tests.tiny import TinyAutoencoder, TinyGenerator, build


def codes(count: int, width: int, seed: int = 0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=draws) * torch.linspace(3, 0.1, width) + 5


@pytest.mark.parametrize("shape", [(50, 4), (3, 40), (200, 1500)])
def test_the_plane_is_that_of_pca(shape):
    rows = codes(*shape)
    plane = Plane.through(rows)
    _, scales, vectors = torch.linalg.svd((rows - rows.mean(0)).double(), full_matrices=False)
    assert plane.explained == pytest.approx(float(scales[:2].square().sum() / scales.square().sum()), rel=1e-4)
    assert (plane.axes.double() * vectors[:2]).sum(1).abs().tolist() == pytest.approx([1, 1], abs=1e-4)
    assert plane.spread.tolist() == pytest.approx((scales[:2] / shape[0] ** 0.5).tolist(), rel=1e-4)


@pytest.mark.parametrize("width", [1, 2, 3, 12])
def test_a_place_on_the_plane_leads_back_to_itself(width):
    plane = Plane.through(codes(30, width))
    points = torch.tensor([[0.5, -2.0], [1.5, 0.0]]) * torch.tensor([1.0, 1.0 if width > 1 else 0.0])
    torch.testing.assert_close(plane.place(plane.lift(points)), points, atol=1e-5, rtol=1e-5)


def test_codes_of_two_numbers_are_their_own_map():
    rows = codes(9, 2)
    assert torch.equal(Plane.through(rows).place(rows), rows)


@pytest.mark.parametrize("rows", [torch.ones(5, 8), torch.ones(1, 8), torch.zeros(4, 2), torch.ones(3, 1)])
def test_codes_without_variance_have_a_map_of_one_point(rows):
    plane = Plane.through(rows)
    places = plane.place(rows)
    assert torch.isfinite(places).all() and (places == places[0]).all() and plane.explained == 1
    torch.testing.assert_close(plane.lift(places), rows)
    low, high = ticks(places[:, 0], 3)[[0, 2]].tolist()
    assert high - low == pytest.approx(2)


def test_trustworthiness_is_the_librarys():
    from sklearn.manifold import trustworthiness

    rows, places = codes(60, 6), codes(60, 2, seed=1)
    for mapped in (places, rows[:, :2]):
        found = embedding.trustworthiness(rows, mapped, neighbours=7)
        assert found == pytest.approx(trustworthiness(rows.numpy(), mapped.numpy(), n_neighbors=7))
    assert embedding.trustworthiness(rows, rows) == 1
    assert embedding.trustworthiness(rows[:10], rows[:10]) is None


def test_neighbours_that_agree_vote_for_their_class():
    rows = torch.cat([torch.randn(10, 3), torch.randn(10, 3) + 50])
    labels = torch.arange(20) // 10
    assert embedding.leave_one_out(rows, labels) == 1
    assert embedding.leave_one_out(torch.arange(4.0)[:, None], torch.tensor([0, 1, 0, 1]), k=1) == 0


def test_embedding_separates_groups_and_is_deterministic():
    rows = torch.cat([codes(20, 5), codes(20, 5, 1) + 40])
    places = embedding.embed("tsne", rows)
    assert torch.equal(places, embedding.embed("tsne", rows))
    assert embedding.leave_one_out(places, torch.arange(40) // 20) == 1
    assert embedding.embed("tsne", torch.ones(8, 3)).abs().max() == 0


@pytest.mark.skipif(importlib.util.find_spec("umap") is None, reason="an optional extra: anamorph[umap]")
def test_umap_keeps_groups_apart_and_repeats_itself():
    rows = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    rows[:30] += 6
    places = embedding.embed("umap", rows)
    assert torch.equal(places, embedding.embed("umap", rows))
    assert embedding.leave_one_out(places, torch.arange(60) // 30) == 1


def test_a_grid_of_two_numbers_stands_at_gaussian_quantiles():
    spec = dataset("labelled")[0]
    model = VAE.create({"latent_dim": 2, "hidden": [8]}, spec).eval()
    params = Grid.Params(rows=3, columns=5, tail=0.1)
    rows = Grid().rows(model, None, params)
    normal = torch.distributions.Normal(0, 1)
    assert normal.cdf(rows["inputs"][:5, 0]).tolist() == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9], abs=1e-5)
    assert normal.cdf(rows["inputs"][::5, 1]).tolist() == pytest.approx([0.9, 0.5, 0.1], abs=1e-5)
    assert quantiles(1, 0.2).tolist() == [0]
    with pytest.raises(InputError, match="at most 1024"):
        Grid().rows(model, None, Grid.Params(rows=64, columns=64))


def test_a_grid_of_longer_codes_lies_on_the_plane_of_the_training_codes():
    spec, train, _ = dataset("labelled", count=200)
    model = VAE.create({"latent_dim": 8, "hidden": [16]}, spec).eval()
    model.mixture.fit(model.encode(train.head(200)["images"]).detach(), torch.Generator().manual_seed(0))
    rows = Grid().rows(model, None, Grid.Params(rows=2, columns=2, tail=0.25))["inputs"]
    wanted = Plane.through(model.encode(train.head(200)["images"]).detach())
    away = (rows - wanted.centre) - (rows - wanted.centre) @ wanted.axes.T @ wanted.axes
    assert away.norm() < 1e-3 * (rows - rows.mean(0)).norm()
    half = math.sqrt(2) * torch.erfinv(torch.tensor(0.5))
    assert wanted.place(rows).abs().mean(0).tolist() == pytest.approx((half * wanted.spread).tolist(), rel=1e-3)


def test_a_conditional_generator_shows_one_class_on_its_grid():
    model = build(TinyGenerator)
    rows = Grid().rows(model, None, Grid.Params(rows=2, columns=2))
    assert rows["labels"].tolist() == [0] * 4
    assert Grid().rows(model, None, Grid.Params(rows=2, columns=2, label=2))["labels"].tolist() == [2] * 4


def test_a_dataset_without_labels_or_images_is_refused_by_name():
    model, (plain, train, validation) = build(TinyAutoencoder), dataset("plain")
    sides = {"train": train, "validation": validation}
    view = DatasetView(model, "plain", plain, sides)
    asked = Directions()
    asked.view = view
    with pytest.raises(InputError, match="no labels") as caught:
        asked.rows(model, torch.zeros(1, 3), Directions.Params(origin=0, goal=1))
    assert caught.value.field == "dataset"
    spec, train, validation = dataset("paired")
    with pytest.raises(DataError, match="no column images"):
        DatasetView(model, "pairs", spec, {"train": train, "validation": validation})


@pytest.mark.parametrize("value", [0, 128])
def test_constant_images_have_a_map(value):
    spec, train, validation = dataset("labelled")
    for side in (train, validation):
        side.columns["images"] = side.columns["images"] * 0 + value
    model, asked = build(TinyAutoencoder), Map()
    asked.view = DatasetView(model, "flat", spec, {"train": train, "validation": validation})
    params = Map.Params(atlas=2)
    rows = asked.rows(model, None, params)
    with torch.inference_mode():
        result = asked.result(model, rows, asked.compute(model, rows, params), params)
    places = {(round(item["x"], 3), round(item["y"], 3)) for item in result.facts["items"]}
    assert len(places) == 1 and result.sheets["atlas"].tiles.shape == (4, 1, 8, 8)
