"""The refiner's start, its schedule, its history, and the weights of its loss."""

import pytest
import torch

from models.evaluation.refinement import image_noise
from models.export import graph
from models.families.refiner.discriminators import MultiScaleDiscriminator
from models.families.refiner.networks import QuantiseStraightThrough, Warp
from models.families.refiner.refiner import Refiner, lambda_of_batch_sums, lambda_of_sums
from models.operations.refine import Refine
from models.training.loop import Training
from models.types import DataError, InputError
from tests.models.data import dataset
from tests.models.reports.test_refinement import world

SHORT = {"images": 200, "batch_size": 8, "width": 8, "blocks": 1, "history_batches": 2}


def build(**config) -> Training:
    torch.manual_seed(0)
    spec, train, validation = world()
    columns = {**spec.columns, "train": {**spec.columns["train"], "a_labels": 90}}
    spec = type(spec)(spec.layout, 12, 12, 1, spec.classes, columns)
    return Training(Refiner.create(SHORT | config, spec), train, validation)


PAPER = {"noise": 0, "warp": 0.0, "whole": False, "r1": 0.0, "label_weight": 0.0}


@pytest.mark.parametrize("config", [{}, PAPER])
def test_it_starts_as_the_identity(config):
    images = torch.rand(3, 1, 12, 12)
    model = build(**config).family
    for noise in (None, torch.randn(3, model.noise_dim)):
        torch.testing.assert_close(model.refine(images, noise), images, atol=1e-5, rtol=0)


def refiner(**config) -> Refiner:
    """One whose last layers say something."""
    model = build(**config).family.eval().requires_grad_(False)
    for layer in (net := model.served.module).warp.last, net.warp.fine, net.last:
        torch.nn.init.normal_(layer.weight, 0, 0.2)
    return model


def asked(model, images: torch.Tensor, **params) -> torch.Tensor:
    operation, given = Refine(), Refine.Params(**params)
    rows = operation.rows(model, images, given)
    return operation.result(model, rows, operation.compute(model, rows, given), given).images


def test_noise_gives_several_refined_images_and_is_independent_of_the_batch():
    model, images = refiner(), torch.rand(2, 1, 12, 12)
    forms = asked(model, images, n=3)
    assert forms.shape == (6, 1, 12, 12) and (forms[0] - forms[1]).abs().max() > 0.01
    torch.testing.assert_close(asked(model, images.flip(0)), forms[::3].flip(0))
    torch.testing.assert_close(asked(model, images[:1], n=2), forms[:2])
    assert (asked(model, images, seed=1) - forms[::3]).abs().max() > 0.01
    with pytest.raises(InputError, match="one refined form"):
        asked(build(**PAPER).family, images, n=2)


def test_an_exported_refiner_takes_noise_where_the_model_has_any():
    assert set(graph(refiner(), "refiner").inputs) == {"images", "noise"}
    assert set(graph(build(**PAPER).family, "refiner").inputs) == {"images"}


def test_all_tiles_of_a_large_image_are_refined_by_one_noise():
    model, images = refiner(), torch.rand(2, 1, 12, 30)
    rows = Refine().rows(model, images, Refine.Params(n=2))
    whose = rows["places"][:, 0]
    assert all(len(rows["noise"][whose == form].unique(dim=0)) == 1 for form in range(4))
    assert len(rows["noise"].unique(dim=0)) == 4 and asked(model, images).shape == images.shape


def test_the_noise_of_an_image_follows_from_what_it_shows():
    images = torch.rand(3, 2, 5, 5)
    noise = image_noise(images, 4)
    assert torch.equal(image_noise(images[[2, 0]] + 1e-4 / 255, 4), noise[[2, 0]]) and len(noise.unique()) == 12
    assert not torch.equal(image_noise(images, 4, seed=1), noise) and image_noise(images, 0).shape == (3, 0)


def test_any_shape_is_bent_and_the_history_of_large_images_is_bounded():
    for shape in ((3, 8, 8), (1, 9, 40), (3, 50, 33)):
        warp, images = Warp(shape, 0.1, 2), torch.rand(2, *shape)
        torch.nn.init.normal_(warp.last.weight)
        moved, far = warp(images, torch.randn(2, 2))
        assert moved.shape == images.shape and 0 < float(far.detach()) <= 0.1
    spec = dataset("unpaired", (3, 256, 256))[0]
    config = Refiner.resolve_config(Refiner.Config(), spec)
    assert config.history_batches * config.batch_size * spec.pixels <= 2**26
    assert Refiner.resolve_config(config, spec) == config


def test_networks_are_narrower_in_a_lesson_and_as_before_in_stored_models():
    spec = dataset("unpaired", (1, 28, 28))[0]
    for config, widths in (
        ({"effort": "lesson"}, (16, 48)),
        ({"effort": "full"}, (24, 96)),
        (Refiner.stored_config({}, spec, 1), (24, 96)),
        ({"effort": "lesson", "width": 20, "judge_width": 30}, (20, 30)),
    ):
        complete = Refiner.complete_config(config, spec)
        assert (complete.width, complete.judge_width) == widths
        assert Refiner.resolve_config(complete, spec) == complete


def test_published_weights_become_those_of_means():
    assert lambda_of_sums(0.5, 35, 55) == pytest.approx(7.64, abs=0.01)
    assert lambda_of_sums(0.1, 35, 55) == pytest.approx(1.53, abs=0.01)
    assert lambda_of_batch_sums(1e-4, 35, 55, 512) == pytest.approx(98.6, abs=0.1)


def test_weights_of_sums_and_of_means_give_the_same_ratio():
    """d(sum of D's patches) : d(sum of pixels) and d(mean) : d(mean) part at the same slope."""
    height, width, weight = 12, 20, 0.3
    change = torch.rand(1, 1, height, width)
    patches = torch.rand(1, 1, 3, 5)
    sums, means = patches.sum() + weight * change.sum(), patches.mean()
    means = means + lambda_of_sums(weight, height, width) * change.mean()
    torch.testing.assert_close(sums / patches.numel(), means)


def test_refiner_is_not_trained_during_the_warm_up():
    training = build(warm_up=0.1)
    model = training.family
    for step in training.run():
        still = not (model.refiner.last.weight.detach().any() or model.refiner.warp.last.weight.detach().any())
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


def test_annotator_is_trained_with_labels_and_not_published():
    model = build().family
    assert model.config.label_weight == 2 and not any("annotator" in name for name in model.serving_state())
    bare = Refiner.create(SHORT, dataset("unpaired")[0])
    assert bare.config.label_weight == 0 and bare.annotator is None
    with pytest.raises(DataError, match="label_weight"):
        Refiner.create(SHORT | {"label_weight": 1}, dataset("unpaired")[0])


def test_displacement_is_bounded_by_a_fraction_of_the_side():
    warp = Warp((1, 16, 16), 0.25, 0)
    torch.nn.init.constant_(warp.last.bias, 50.0)  # as far as it goes, to the right and down
    image = torch.zeros(1, 1, 16, 16)
    image[..., 8, 8] = 1
    moved, far = (found.detach() for found in warp(image, torch.zeros(1, 0)))
    assert far == pytest.approx(0.25) and moved[..., 4, 4] == pytest.approx(1, abs=1e-4)


def test_quantiser_rounds_to_8_bits_and_blocks_outward_gradients():
    values = torch.tensor([-0.2, -0.2, 0.5004, 1.3, 1.3], requires_grad=True)
    shown = QuantiseStraightThrough.apply(values)
    torch.testing.assert_close(shown.detach(), torch.tensor([0, 0, 128 / 255, 1, 1]))
    shown.backward(torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0]))
    assert values.grad.tolist() == [0, -1, 1, 1, 0]  # the step goes against the gradient


def test_discriminator_without_label_is_the_mean_over_labels():
    """As probabilities: exp of the logits, where real ones are as common as made ones of every label."""
    torch.manual_seed(0)
    judge, images = MultiScaleDiscriminator((1, 12, 12), 3, whole=True).requires_grad_(False), torch.rand(2, 1, 12, 12)
    shares = [judge(images, share.expand(2, -1)) for share in torch.eye(3)]
    for logits, *each in zip(judge(images), *shares, strict=True):
        torch.testing.assert_close(logits.exp(), torch.stack(each).exp().mean(0))


def test_accuracy_is_the_mean_over_both_discriminators():
    judge = MultiScaleDiscriminator((1, 12, 12), 0, whole=True).requires_grad_(False)
    images = torch.rand(2, 1, 12, 12)
    for layer, bias in (judge.patches.last, 9.0), (judge.whole.last, -9.0):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.constant_(layer.bias, bias)
    assert judge.accuracy(images, real=True) == judge.accuracy(images, real=False) == 0.5
    assert len(MultiScaleDiscriminator((1, 12, 12), 0, whole=False)(images)) == 1
