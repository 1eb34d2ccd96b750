"""Fixed batch shapes: models whose kernels betray their company are found out, and served correctly all the same."""

import pytest
import torch
from torch import Tensor

from models.operations.denoise import Denoise
from tests import tiny
from workers.inference.batching import LoadedModel, compute, cut, plan_for

BIG = (8, 1, 2, 4, 16, 32, 64)


class SizeShows(tiny.TinyAutoencoder):
    """Sums in another order in batches of more than 16 or less than 3, as real kernels do."""

    name = "size_shows"

    def denoise(self, images: Tensor) -> Tensor:
        return images * 0.5 + (1e-7 if len(images) in (1, 2, 32, 64) else 0)


class PlaceShows(tiny.TinyAutoencoder):
    """The last row of a batch is computed by another kernel."""

    name = "place_shows"

    def denoise(self, images: Tensor) -> Tensor:
        return images * 0.5 + 1e-7 * (torch.arange(len(images)) == len(images) - 1).float()[:, None, None, None]


class Steady(tiny.TinyAutoencoder):
    """Nothing shows."""

    name = "steady"

    def denoise(self, images: Tensor) -> Tensor:
        return images * 0.5


def loaded(kind, **shape) -> LoadedModel:
    return LoadedModel("digest", tiny.build(kind, **shape), 1, {"denoise": Denoise})


def rows(count: int, model, seed: int = 0) -> dict:
    return {"inputs": torch.rand(count, *model.data.shape, generator=torch.Generator().manual_seed(seed))}


@pytest.mark.parametrize(
    ("kind", "sizes", "shares"), [(Steady, BIG, True), (SizeShows, (8, 4, 16), True), (PlaceShows, (8,), False)]
)
def test_the_plan_reflects_what_changes_bits(kind, sizes, shares):
    host = loaded(kind)
    plan = plan_for(host, Denoise(), Denoise.Params(), rows(1, host.model))
    assert plan.shares is shares
    assert set(plan.sizes) == set(sizes)


@pytest.mark.parametrize("kind", [Steady, SizeShows, PlaceShows, tiny.TinyAutoencoder])
@pytest.mark.parametrize("counts", [(1,), (3, 1, 9), (8, 8), (1,) * 20, (70, 2)])
def test_requests_get_the_same_bits_in_a_batch_as_alone(kind, counts):
    host, params = loaded(kind), Denoise.Params()
    requests = [rows(count, host.model, seed) for seed, count in enumerate(counts)]
    together = compute(host, Denoise(), params, requests)
    for request, found in zip(requests, together, strict=True):
        (alone,) = compute(host, Denoise(), params, [request])
        assert len(found["images"]) == len(request["inputs"])
        assert torch.equal(found["images"], alone["images"])


@pytest.mark.parametrize(("size", "channels", "chunk"), [(28, 1, 8), (64, 1, 8), (64, 3, 4), (128, 3, 2), (256, 3, 1)])
def test_large_images_come_in_smaller_chunks(size, channels, chunk):
    host = loaded(Steady, size=size, channels=channels)
    assert host.chunk == chunk
    plan = plan_for(host, Denoise(), Denoise.Params(), rows(1, host.model))
    assert max(plan.sizes) == (64 if chunk == 8 else chunk)


def test_images_of_a_size_of_their_own_are_done_one_by_one_without_a_trial():
    host = loaded(Steady)
    large = {"inputs": torch.rand(1, 1, 40, 30)}
    assert plan_for(host, Denoise(), Denoise.Params(), large).sizes == (1,)


@pytest.mark.parametrize(
    ("total", "sizes", "batches"),
    [
        (1, (8,), [8]),
        (9, (8,), [8, 8]),
        (20, (8, 16, 32, 64), [16, 8]),
        (28, (8, 16, 32, 64), [32]),
        (130, (4, 8, 16, 32, 64), [64, 64, 4]),
        (3, (1, 2, 4, 8), [4]),
    ],
)
def test_rows_are_cut_into_allowed_sizes(total, sizes, batches):
    found = list(cut(total, sizes))
    assert [size for *_, size in found] == batches
    assert [row for start, stop, _ in found for row in range(start, stop)] == list(range(total))


def test_gradients_are_enabled_only_for_operations_that_need_them():
    host, seen = loaded(Steady), []

    class Looking(Denoise):
        name = "looking"

        def compute(self, model, rows, params):
            seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
            return super().compute(model, rows, params)

    class Differentiating(Looking):
        gradients = True

    compute(host, Looking(), Denoise.Params(), [rows(1, host.model)])
    assert set(seen) == {(True, False)}
    seen.clear()
    compute(host, Differentiating(), Denoise.Params(), [rows(1, host.model)])
    assert set(seen) == {(False, True)}
