"""Conditional GANs: how the condition enters both networks, labels of samples, class agreement."""

import numpy as np
import pytest
import torch

from models.context import StepContext
from models.data import Columns
from models.families.gans.condition_agreement import class_agreement
from models.families.gans.conditional_gan import ConditionalGAN
from models.families.gans.conditioning import ClassCondition, NumberCondition
from models.families.gans.updates import DInput
from models.operations.decode import Decode
from models.operations.samples import Samples
from models.training.loop import Training
from models.types import ConfigError, DataError, DataSpec, InputError
from tests.models.families.gans.tiny import build, spec, train

CLASSES = spec(classes=3)
NUMBERS = DataSpec("attributes", 8, 8, 1, None, {"train": {"images": 24, "targets": 24}})


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained_on_numbers(**config):
    model = build(ConditionalGAN, NUMBERS, **config)
    rng = np.random.default_rng(0)
    data = {
        "images": rng.integers(0, 256, (24, 1, 8, 8), dtype=np.uint8),
        "targets": (10 + 4 * np.arange(24, dtype=np.float32)),
    }
    training = Training(model, Columns(data), Columns(data), 0)
    return model, train(model, training=training)


def test_projection_discriminator_equals_the_formula_of_the_paper():
    model = build(ConditionalGAN, CLASSES).eval()
    network, images, labels = model.discriminator, torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 1, 0])
    h = network.features(images)
    embedding = network.projection.weight.T[labels]  # (b, c)
    wanted = network.last(network.stddev(h).flatten(1))[:, 0] + (embedding * h.sum((2, 3))).sum(1)
    torch.testing.assert_close(network(images, model.condition(labels)), wanted)


def test_conditional_batch_norm_passes_the_label_to_g():
    model = build(ConditionalGAN, CLASSES).eval()
    latents, labels = torch.randn(1, model.latent_dim).expand(3, -1), torch.arange(3)
    assert torch.equal(*model.decode(latents, labels)[:2])  # all gains and shifts start at 0
    for network in (model.ema.module, model.generator):
        for stage in network.stages:
            torch.nn.init.normal_(stage.norm.shift.weight, generator=draws())
    images = model.decode(latents, labels)
    assert (images[0] - images[1]).abs().max() > 0.05 and (images[1] - images[2]).abs().max() > 0.05


@pytest.mark.parametrize("body", ["stable", "mlp"])
def test_a_concatenated_label_changes_g_and_d(body):
    model = build(ConditionalGAN, CLASSES, body=body, conditioning="concatenation").eval()
    images, labels = torch.rand(1, 1, 8, 8), torch.arange(3)
    made = model.decode(torch.randn(1, model.latent_dim).expand(3, -1), labels)
    logits = model.discriminator(images.expand(3, -1, -1, -1), model.condition(labels))
    assert not torch.allclose(made[0], made[1], atol=1e-4) and len(logits.unique()) == 3


def test_gains_of_conditional_batch_norm_get_gradients():
    model = build(ConditionalGAN, CLASSES)
    train(model, 2)
    assert all(stage.norm.gain.weight.abs().max() > 0 for stage in model.generator.stages)


def test_labels_of_fakes_follow_the_batch_or_are_uniform():
    labels = torch.tensor([0] * 90 + [1] * 10)
    common = ClassCondition(2, balanced=False).for_fakes(labels, draws())
    assert torch.equal(common.bincount(), labels.bincount()) and not torch.equal(common, labels)
    even = ClassCondition(2, balanced=True).for_fakes(labels, draws())
    assert 30 < int(even.sum()) < 70


def test_sampled_labels_have_the_frequencies_of_the_training_data():
    condition = ClassCondition(3, balanced=False)
    condition.fit(Columns({"labels": np.array([0] * 60 + [2] * 40)}))
    assert condition.marginal.tolist() == pytest.approx([0.6, 0, 0.4])
    drawn = condition.from_uniform(torch.arange(1000) / 1000)
    assert drawn.bincount(minlength=3).tolist() == [600, 0, 400]


def test_class_frequencies_in_training_are_those_of_the_batches_so_far():
    condition = ClassCondition(3, balanced=False)
    condition.observe(torch.tensor([0, 0]))
    condition.observe(torch.tensor([1, 1, 2, 0, 0, 0]))
    assert condition.marginal.tolist() == pytest.approx([5 / 8, 2 / 8, 1 / 8])


def test_numbers_are_standardised_over_all_batches_so_far():
    condition, numbers = NumberCondition(balanced=False), torch.randn(600, generator=draws()) * 3 + 50
    for part in numbers.split(50):
        condition.observe(part)
    features = condition(numbers)
    assert features.shape == (600, 7)
    assert features[:, 0].mean().abs() < 1e-2 and features[:, 0].std() == pytest.approx(1, abs=1e-2)
    torch.testing.assert_close(features[:, 1:4].square() + features[:, 4:].square(), torch.ones(600, 3))


def test_sampled_numbers_have_the_distribution_of_the_training_data():
    condition = NumberCondition(balanced=False)
    condition.fit(Columns({"targets": np.array([3.0, 1.0, 2.0, 4.0, 5.0])}))
    assert condition.from_uniform(torch.tensor([0.0, 0.25, 0.5, 0.625])).tolist() == pytest.approx(
        [1, 2, 3, 3.5], abs=1e-5
    )


def test_replayed_fakes_keep_their_label():
    model = build(ConditionalGAN, CLASSES, replay=64)
    for _ in range(12):
        labels = torch.randint(3, (16,))
        images = (labels.float() / 4)[:, None, None, None].expand(16, 1, 8, 8)
        shown = model.replay_fakes(DInput(images, model.condition(labels)), StepContext(0, 1, 0, 0, draws()))
        torch.testing.assert_close(shown.images[:, 0, 0, 0] * 4, shown.condition.argmax(1).float())
    assert not torch.equal(shown.images, images)


def test_logits_without_a_label_marginalise_over_labels():
    for conditioning in ("projection", "concatenation"):
        model = build(ConditionalGAN, CLASSES, conditioning=conditioning).eval()
        model.condition.marginal.copy_(torch.tensor([0.5, 0.25, 0.25]))
        images = torch.rand(4, 1, 8, 8)
        each = [model.discriminator(images, model.condition(torch.full((4,), label))) for label in range(3)]
        odds = sum(share * logits.exp() for share, logits in zip((0.5, 0.25, 0.25), each, strict=True))
        torch.testing.assert_close(model.d_logits(images), odds.log())


def test_samples_follow_label_and_labels():
    model, operation = build(ConditionalGAN, CLASSES).eval(), Samples()

    def items(**params):
        asked = operation.Params(n=4, **params)
        rows = operation.rows(model, None, asked)
        return [
            item["index"]
            for item in operation.result(model, rows, operation.compute(model, rows, asked), asked).facts["items"]
        ]

    assert (
        items() == [0, 1, 2, 0] and items(label="class 2") == [2] * 4 and items(labels=["class 2", 0]) == [2, 0, 2, 0]
    )
    with pytest.raises(InputError, match="unknown class"):
        items(label=3)
    with pytest.raises(InputError, match="cannot be combined"):
        items(label=1, labels=[1])


def test_a_model_of_targets_decodes_for_a_number():
    model, training = trained_on_numbers()
    training.finish()
    model.eval()
    asked = Decode.Params(label="37.5")
    rows = Decode().rows(model, torch.randn(2, model.latent_dim), asked)
    assert rows["labels"].tolist() == [37.5, 37.5]
    assert Decode().compute(model, rows, asked)["images"].shape == (2, 1, 8, 8)
    assert model.example_labels(9).tolist() == pytest.approx([10 + 92 * (i + 0.5) / 9 for i in range(9)], abs=1e-3)
    for nonsense in ("old", "nan", "1e99"):
        with pytest.raises(InputError, match="number"):
            model.label(nonsense)


def test_class_agreement_by_hand():
    class Measure:
        net = torch.nn.Module()
        count = 4
        validation_images = torch.zeros(4, 1, 1, 1)

        def class_logits(self, images):
            return torch.eye(2)[images[:, 0, 0, 0].long()]

    Measure.net.content = torch.nn.Linear(1, 2)
    found = torch.tensor([0.0, 0, 1, 0])[:, None, None, None]
    validation = Columns({"labels": np.array([0, 0, 0, 1])})
    facts = class_agreement(Measure(), validation, found, torch.tensor([0, 0, 1, 1]))
    assert facts == pytest.approx(
        {"class_agreement": 0.75, "class_agreement_worst": 0.5, "class_agreement_real": 0.75, "label_entropy": 0.5}
    )


@pytest.mark.parametrize(
    ("config", "first", "second"),
    [
        ({"body": "mlp", "conditioning": "projection"}, "body=mlp", "conditioning=projection"),
        ({"generator_norm": "pixel", "conditioning": "projection"}, "generator_norm=pixel", "conditioning=projection"),
    ],
)
def test_conflicting_conditioning_settings_are_named(config, first, second):
    with pytest.raises(ConfigError, match=f"{first} and {second} exclude each other"):
        build(ConditionalGAN, CLASSES, **config)


def test_a_dataset_without_the_condition_is_refused():
    with pytest.raises(DataError, match="labels"):
        build(ConditionalGAN, spec(), condition="labels")
    with pytest.raises(DataError, match="targets"):
        build(ConditionalGAN, spec())


@pytest.mark.parametrize("config", [{}, {"replay": 8, "conditioning": "concatenation", "balanced": True}])
def test_a_resumed_training_equals_an_unbroken_one(config):
    whole = train(build(ConditionalGAN, CLASSES, **config)).state()
    part = train(build(ConditionalGAN, CLASSES, **config), 3).state()
    resumed = train(build(ConditionalGAN, CLASSES, seed=9, **config), 0)
    resumed.restore(part)
    found = train(resumed.family, training=resumed).state()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in whole.tensors.items())
    model, _ = trained_on_numbers()
    assert model.condition.moments[0] == 32
