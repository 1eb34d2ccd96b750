"""The refiner's start, its schedule, its history, and the weights of its loss."""

import pytest
import torch

from models.families.refiner import Refiner, lambda_of_batch_sums, lambda_of_sums
from models.nn.refiners import LocalJudge, Pictured, Warp
from models.training import Training
from models.types import DataError
from tests.models.data import dataset
from tests.models.test_refinement import world

SHORT = {"images": 200, "batch_size": 8, "width": 8, "blocks": 1, "history_batches": 2}


def build(**config) -> Training:
    torch.manual_seed(0)
    spec, train, validation = world()
    columns = {**spec.columns, "train": {**spec.columns["train"], "a_labels": 90}}
    spec = type(spec)(spec.layout, 12, 12, 1, spec.classes, columns)
    return Training(Refiner.create(SHORT | config, spec), train, validation)


@pytest.mark.parametrize("warp", [0.0, 0.1])
def test_it_starts_as_the_identity(warp):
    images = torch.rand(3, 1, 12, 12)
    torch.testing.assert_close(build(warp=warp).family.refine(images), images, atol=1e-5, rtol=0)


def test_published_weights_become_those_of_means():
    assert lambda_of_sums(0.5, 35, 55) == pytest.approx(7.64, abs=0.01)
    assert lambda_of_sums(0.1, 35, 55) == pytest.approx(1.53, abs=0.01)
    assert lambda_of_batch_sums(1e-4, 35, 55, 512) == pytest.approx(98.6, abs=0.1)


def test_the_weight_of_sums_is_the_same_trade_as_that_of_means():
    """d(sum of D's patches) : d(sum of pixels) and d(mean) : d(mean) part at the same slope."""
    height, width, weight = 12, 20, 0.3
    change = torch.rand(1, 1, height, width)
    patches = torch.rand(1, 1, 3, 5)
    sums, means = patches.sum() + weight * change.sum(), patches.mean()
    means = means + lambda_of_sums(weight, height, width) * change.mean()
    torch.testing.assert_close(sums / patches.numel(), means)


def test_in_the_warm_up_only_the_discriminator_learns():
    training = build(warm_up=0.1)
    model = training.family
    for step in training.run():
        still = not model.refiner.last.weight.detach().any()
        if step.images - 8 < 20:
            assert still, step.images
        else:
            break
    assert not still and int(model.pool.filled) > 0


def test_the_discriminator_may_wait_for_several_updates_of_the_refiner():
    training, judged = build(refiner_updates=3, warm_up=0.0), []
    for step in training.run():
        judged.append("judge" in step.metrics)
        if len(judged) == 7:
            break
    assert judged == [True, False, False, True, False, False, True]


def test_the_history_fills_with_refined_images_and_stays_full():
    training = build()
    pool = training.family.pool
    for done, _ in enumerate(training.run(), start=1):
        assert int(pool.filled) == min(16, 8 * done)
        if done == 4:
            break
    assert pool.images.flatten(1).std(0).max() > 0 and bool((pool.images.flatten(1).abs().sum(1) > 0).all())


def test_labels_are_kept_readable_where_there_are_labels_and_the_reader_is_not_published():
    model = build().family
    assert model.config.label_weight == 1 and not any("annotator" in name for name in model.served_state())
    bare = Refiner.create(SHORT, dataset("unpaired")[0])
    assert bare.config.label_weight == 0 and bare.annotator is None
    with pytest.raises(DataError, match="label_weight"):
        Refiner.create(SHORT | {"label_weight": 1}, dataset("unpaired")[0])


def test_displacement_is_bounded_in_shares_of_the_side_and_moves_what_is_shown():
    warp = Warp(1, 0.25)
    torch.nn.init.constant_(warp.last.bias, 50.0)  # as far as it goes, to the right and down
    image = torch.zeros(1, 1, 16, 16)
    image[..., 8, 8] = 1
    moved, far = (found.detach() for found in warp(image))
    assert far == pytest.approx(0.25) and moved[..., 4, 4] == pytest.approx(1, abs=1e-4)


def test_values_beyond_black_and_white_are_shown_in_8_bits_and_pushed_only_inwards():
    values = torch.tensor([-0.2, -0.2, 0.5004, 1.3, 1.3], requires_grad=True)
    shown = Pictured.apply(values)
    torch.testing.assert_close(shown.detach(), torch.tensor([0, 0, 128 / 255, 1, 1]))
    shown.backward(torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0]))
    assert values.grad.tolist() == [0, -1, 1, 1, 0]  # the step goes against the gradient


def test_the_discriminator_without_a_label_is_the_mean_of_what_it_says_of_all():
    """As probabilities: exp of the logits, where real ones are as common as made ones of every label."""
    torch.manual_seed(0)
    judge, images = LocalJudge(1, 3).requires_grad_(False), torch.rand(2, 1, 12, 12)
    each = torch.stack([judge(images, share.expand(2, -1)) for share in torch.eye(3)])
    torch.testing.assert_close(judge(images).exp(), each.exp().mean(0))
