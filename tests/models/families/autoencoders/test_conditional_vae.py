"""The conditional VAE decodes for a label, infers labels of images, and supports every operation of the plain VAE."""

import pytest
import torch

from models.catalog import capabilities
from models.data import Columns
from models.evaluation.dataset_view import DatasetView
from models.families.autoencoders.vae import VAE
from models.operations.encode import Encode
from models.registry import families, operations
from models.training.loop import Training
from models.types import DataError, DataSpec, InputError
from tests.models.data import dataset

SMALL = {"latent_dim": 2, "hidden": [32], "body": "mlp", "learning_rate": 0.01, "batch_size": 16}


def ask(operation, model, inputs=None, **params):
    params = operation.Params(**params)
    rows = operation.rows(model, inputs, params)
    with torch.inference_mode():
        return operation.result(model, rows, operation.compute(model, rows, params), params)


@pytest.fixture(scope="module")
def data() -> tuple[DataSpec, Columns, Columns]:
    return dataset("labelled", count=288)


@pytest.fixture(scope="module")
def trained(data) -> tuple[VAE, dict]:
    spec, train, validation = data
    torch.manual_seed(0)
    training = Training(
        families()["vae"].create(SMALL | {"conditional": True, "images": 6400}, spec), train, validation, 1
    )
    for _ in training.run():
        pass
    measured = training.finish()
    return training.family.eval().requires_grad_(False), measured


def test_only_models_with_the_setting_are_conditional(data):
    plain, conditional = (VAE.create(SMALL | {"conditional": setting}, data[0]) for setting in (False, True))
    assert "Conditional" not in capabilities(VAE) and capabilities(plain) == capabilities(VAE)
    assert set(capabilities(conditional)) == {*capabilities(VAE), "Conditional"}
    again = VAE.create(conditional.config.model_dump(mode="json"), data[0])
    again.load_for_serving({name: tensor.clone() for name, tensor in conditional.serving_state().items()})
    with pytest.raises(InputError, match="not conditional"):
        ask(operations()["samples"](), plain, n=1, label=1)


def test_conditional_without_labels_is_refused():
    with pytest.raises(DataError, match="needs labels") as caught:
        VAE.create(SMALL | {"conditional": True}, dataset("plain")[0])
    assert caught.value.field == "config/conditional"


def test_samples_have_their_label_and_labels_are_inferred(trained):
    model, measured = trained
    assert measured["label_accuracy"] >= 0.6  # chance is a third, and the classes overlap
    assert measured["obedience"] >= 0.9
    brightness = ask(operations()["samples"](), model, n=12, labels=[0, 1, 2]).images.mean((1, 2, 3))
    means = brightness.view(4, 3).mean(0)  # the data are brighter with each class
    assert means[0] + 0.1 < means[1] and means[1] + 0.1 < means[2]


def test_label_changes_the_image_and_not_the_code(trained, data):
    model, images = trained[0], data[2].head(3)["images"]
    decode, reconstruct = operations()["decode"](), operations()["reconstruct"]()
    codes = model.encode(images)
    one, other = (ask(decode, model, codes, label=label).images for label in ("a", 2))
    assert (one - other).abs().mean() > 0.05
    with pytest.raises(InputError, match="Required: label"):
        ask(decode, model, codes)
    told = ask(reconstruct, model, images, label=1).images
    torch.testing.assert_close(told, model.decode(codes, torch.tensor([1, 1, 1])))
    for_itself = ask(reconstruct, model, images).images
    torch.testing.assert_close(for_itself, model.decode(codes, model.infer_labels(images)))


@pytest.mark.parametrize("name", sorted(name for name, item in operations().items() if item.fits(VAE)))
def test_every_operation_supports_a_conditional_vae(name, trained, data):
    model, images = trained[0], data[2].head(2)["images"]
    operation = operations()[name]()
    if operation.report is not None:
        return
    if operation.dataset:
        operation.view = DatasetView(model, "small", data[0], {"train": data[1], "validation": data[2]})
    inputs = {"nothing": None, "latents": torch.zeros(2, 2), "either": torch.zeros(2, 2), "images": images}
    extra = {"directions": {"origin": "a", "goal": "c"}, "similar": {"index": 2}, "project": {"steps": 2}}
    extra = extra.get(name, {}) | (
        {"label": 1} if operation.takes in ("latents", "either") and name != "search" else {}
    )
    params = operation.Params(**extra)
    rows = operation.rows(model, inputs[operation.takes], params)
    found = operation.compute(model, rows, params)
    result = operation.result(model, rows, {key: value.detach() for key, value in found.items()}, params)
    assert result.images is not None or result.facts or result.latents is not None


def test_encode_samples_the_posterior_by_seed(trained, data):
    model, images = trained[0], data[2].head(3)["images"]
    mean = ask(Encode(), model, images).latents
    one, same, other = (ask(Encode(), model, images, sample=True, seed=seed).latents for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other) and torch.equal(mean, model.encode(images))
    torch.testing.assert_close(ask(Encode(), model, images[:1], sample=True, seed=1).latents, one[:1])
    draws = torch.stack([ask(Encode(), model, images, sample=True, seed=seed).latents for seed in range(400)])
    wanted, logvar = model.posterior(images)
    torch.testing.assert_close(draws.mean(0), wanted, atol=0.25, rtol=0)
    torch.testing.assert_close(draws.std(0), (0.5 * logvar).exp(), rtol=0.15, atol=0.01)
    coder = families()["autoencoder"].create({}, data[0])
    with pytest.raises(InputError, match="no posterior") as caught:
        ask(Encode(), coder, images, sample=True)
    assert caught.value.field == "sample"
