"""Operations against a few exact answers; what holds for all of them is checked over the whole registry."""

import math

import pytest
import torch

from models.capabilities import Decodes, Encodes
from models.evaluation.dataset_view import DatasetView
from models.families.autoencoders.vae import VAE
from models.operations.classify import Classify
from models.operations.core.base import Operation
from models.operations.decode import Decode
from models.operations.encode import Encode
from models.operations.grid import Grid
from models.operations.interpolate import Interpolate, slerp
from models.operations.reconstruct import Reconstruct
from models.operations.samples import Samples
from models.registry import fitting, operations
from models.types import InputError
from tests.models.data import dataset
from tests.tiny import FAMILIES, TinyAutoencoder, TinyClassifier, TinyGenerator, build

PAIRS = [
    pytest.param(kind, operation, id=f"{kind.name}-{operation.name}")
    for kind in FAMILIES.values()
    for operation in operations().values()
    if operation.fits(kind) and not operation.gradients and operation.report is None
]
REQUIRED = {"directions": {"origin": "a", "goal": "c"}, "similar": {"index": 2}}


def ask(operation: Operation, model, inputs=None, **params):
    params = operation.Params(**params)
    rows = operation.rows(model, inputs, params)
    with torch.inference_mode():
        return operation.result(model, rows, operation.compute(model, rows, params), params)


def inputs_for(operation: type[Operation], model, count: int = 3):
    draws = torch.Generator().manual_seed(1)
    if operation.takes == "images":
        return torch.rand(count, *model.data.shape, generator=draws)
    return None if operation.takes == "nothing" else torch.randn(count, model.latent_dim, generator=draws)


def given(kind, operation) -> dict:
    """The parameters that a request has to bring."""
    return REQUIRED.get(operation.name, {}) | ({"label": 1} if issubclass(kind, TinyGenerator) else {})


def furnished(operation: type[Operation], model) -> Operation:
    """With a small dataset beside it, where it looks at one."""
    asked = operation()
    if operation.dataset:
        spec, train, validation = dataset("labelled")
        asked.view = DatasetView(model, "small", spec, {"train": train, "validation": validation})
    return asked


@pytest.mark.parametrize(("kind", "operation"), PAIRS)
def test_every_row_is_answered_from_that_row_alone(kind, operation):
    model = build(kind)
    asked, params = furnished(operation, model), operation.Params(**given(kind, operation))
    rows = asked.rows(model, inputs_for(operation, model), params)
    found = asked.compute(model, rows, params)
    order = torch.arange(len(next(iter(rows.values())))).flip(0)
    turned = asked.compute(model, {name: rows[name][order] for name in rows}, params)
    for name, tensor in found.items():
        assert len(tensor) == len(order)
        torch.testing.assert_close(turned[name][order], tensor)


@pytest.mark.parametrize(("kind", "operation"), PAIRS)
def test_what_an_operation_gives_is_what_it_says(kind, operation):
    model = build(kind)
    result = ask(furnished(operation, model), model, inputs_for(operation, model), **given(kind, operation))
    if operation.gives == "images":
        assert result.images.shape[1:] == model.data.shape
        assert result.images.min() >= 0 and result.images.max() <= 1
    else:
        assert result.images is None
        assert (result.latents is not None) == (operation.gives == "latents")
        assert bool(result.pictures or result.sheets) == (operation.gives == "pictured")


def test_a_model_can_do_what_its_capabilities_allow():
    assert fitting(TinyGenerator) == ["decode", "grid", "interpolate", "neighbours", "project", "samples"]
    assert {"encode", "denoise", "reconstruct", "samples"} <= set(fitting(TinyAutoencoder))
    assert "classify" in fitting(TinyClassifier) and "decode" not in fitting(TinyClassifier)


def test_the_first_samples_do_not_depend_on_how_many_are_drawn():
    model = build(TinyAutoencoder)
    few, many = (ask(Samples(), model, n=n, seed=5) for n in (3, 11))
    assert torch.equal(few.latents, many.latents[:3])
    assert not torch.equal(many.latents, ask(Samples(), model, n=11, seed=6).latents)


def test_samples_are_standard_normal_and_truncation_scales_them():
    drawn = Samples().rows(build(TinyAutoencoder), None, Samples.Params(n=1000, seed=1))
    assert drawn["noise"].mean().abs() < 0.05 and (drawn["noise"].std() - 1).abs() < 0.05
    assert (drawn["uniform"].mean() - 0.5).abs() < 0.03 and drawn["uniform"].max() < 1
    half = Samples().rows(build(TinyAutoencoder), None, Samples.Params(n=1000, seed=1, truncation=0.5))
    assert torch.equal(half["noise"], drawn["noise"] * 0.5)


def test_decoding_the_latents_of_a_sample_gives_the_sample():
    model = build(TinyAutoencoder)
    samples = ask(Samples(), model, n=4)
    assert torch.equal(ask(Decode(), model, samples.latents).images, samples.images)


def test_a_conditional_model_goes_through_its_classes_or_keeps_to_the_one_asked_for():
    model = build(TinyGenerator)
    assert [item["index"] for item in ask(Samples(), model, n=5).facts["items"]] == [0, 1, 2, 0, 1]
    assert {item["label"] for item in ask(Samples(), model, n=5, label="class 2").facts["items"]} == {"class 2"}


@pytest.mark.parametrize(
    ("operation", "kind", "inputs", "params", "sentence"),
    [
        (Decode, TinyGenerator, torch.zeros(1, 4), {}, "Required: label"),
        (Decode, TinyGenerator, torch.zeros(1, 4), {"label": 3}, "unknown class"),
        (Decode, TinyAutoencoder, torch.zeros(1, 3), {"label": 0}, "not conditional"),
        (Decode, TinyAutoencoder, torch.zeros(2, 4), {}, "must have shape n x 3"),
        (Decode, TinyAutoencoder, torch.tensor([[0, math.nan, 0]]), {}, "finite"),
        (Interpolate, TinyAutoencoder, torch.zeros(1, 3), {}, "at least 2 anchors"),
        (Interpolate, TinyAutoencoder, torch.zeros(40, 3), {"steps": 128}, "at most 1024"),
        (Interpolate, TinyGenerator, torch.zeros(2, 1, 8, 8), {"label": 0}, "does not encode"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_in_a_sentence(operation, kind, inputs, params, sentence):
    with pytest.raises(InputError, match=sentence):
        ask(operation(), build(kind), inputs, **params)


def test_interpolation_passes_through_every_anchor():
    model, anchors = build(TinyAutoencoder), torch.randn(3, 3)
    for path in ("lerp", "slerp"):
        way = ask(Interpolate(), model, anchors, steps=5, path=path).latents
        assert len(way) == 9
        torch.testing.assert_close(way[[0, 4, 8]], anchors)


def test_slerp_between_orthogonal_codes_stays_on_the_circle_and_lerp_does_not():
    anchors = torch.eye(4)[:2]
    model = build(TinyGenerator)
    arc = ask(Interpolate(), model, anchors, steps=3, label=0).latents
    torch.testing.assert_close(arc[1], torch.tensor([0.5**0.5, 0.5**0.5, 0, 0]))
    chord = ask(Interpolate(), model, anchors, steps=3, label=0, path="lerp").latents
    torch.testing.assert_close(chord[1], torch.tensor([0.5, 0.5, 0, 0]))


@pytest.mark.parametrize("end", [torch.ones(3), -torch.ones(3), torch.zeros(3)])
def test_slerp_without_an_angle_is_lerp(end):
    middle = slerp(torch.ones(3), end, torch.tensor([[0.5]]))
    torch.testing.assert_close(middle, ((torch.ones(3) + end) / 2)[None])


def test_images_as_anchors_are_encoded_first():
    model, images = build(TinyAutoencoder), torch.rand(2, 1, 8, 8)
    way = ask(Interpolate(), model, images, steps=4)
    torch.testing.assert_close(way.latents[[0, -1]], ask(Encode(), model, images).latents)


def test_reconstruction_reports_the_error_of_each_image():
    model, images = build(TinyAutoencoder), torch.rand(2, 1, 8, 8)
    result = ask(Reconstruct(), model, images)
    wanted = [(result.images[row] - images[row]).square().mean().item() for row in range(2)]
    assert [item["mse"] for item in result.facts["items"]] == pytest.approx(wanted)
    assert result.facts["items"][0]["psnr"] == pytest.approx(-10 * math.log10(wanted[0]))


def test_classes_are_listed_best_first_with_the_probabilities_of_the_softmax():
    model, images = build(TinyClassifier), torch.rand(2, 1, 8, 8)
    items = ask(Classify(), model, images, top=2).facts["items"]
    wanted = model.logits(images).softmax(1)
    for row, item in enumerate(items):
        best = item["predictions"]
        assert len(best) == 2 and best[0]["probability"] >= best[1]["probability"]
        assert best[0]["index"] == wanted[row].argmax() and best[0]["label"] == f"class {best[0]['index']}"
        assert best[0]["probability"] == pytest.approx(wanted[row].max().item(), rel=1e-5)


def test_operations_without_needs_met_do_not_fit():
    assert not Decode.fits(TinyClassifier) and not Encode.fits(TinyGenerator)
    assert Reconstruct.needs == (Encodes, Decodes)


def autoencoder_of(**config):
    torch.manual_seed(0)
    model = VAE.create({"latent_dim": 3, "body": "mlp", "hidden": [16], **config}, dataset("plain")[0]).eval()
    model.mixture.fit(5 + 2 * torch.randn(200, 3), torch.Generator().manual_seed(0))
    return model


def test_a_request_chooses_the_sampler_and_the_model_has_a_default():
    model = autoencoder_of()
    drawn = {name: ask(Samples(), model, n=400, sampler=name).latents for name in (None, *model.samplers)}
    assert torch.equal(drawn[None], drawn["mixture"])
    for name, mean, deviation in (("mixture", 5, 2), ("gaussian", 5, 2), ("prior", 0, 1)):
        torch.testing.assert_close(drawn[name].mean(0), torch.full((3,), float(mean)), atol=0.4, rtol=0)
        torch.testing.assert_close(drawn[name].std(0), torch.full((3,), float(deviation)), atol=0.4, rtol=0)
    keys = {Samples().batch_key(Samples.Params(sampler=name)) for name in drawn}
    assert len(keys) == len(drawn)  # requests for different samplers never share a batch


def test_a_grid_of_the_prior_is_centred_at_zero():
    model = autoencoder_of()
    centres = {name: ask(Grid(), model, sampler=name).latents.mean(0) for name in (None, "prior")}
    torch.testing.assert_close(centres[None], model.mixture.centre, atol=1e-4, rtol=0)
    torch.testing.assert_close(centres["prior"], torch.zeros(3), atol=1e-4, rtol=0)


def test_a_sampler_that_the_model_lacks_is_refused():
    for model, sampler in ((build(TinyGenerator), "mixture"), (autoencoder_of(sampler="gaussian"), "mixture")):
        with pytest.raises(InputError) as caught:
            ask(Samples(), model, sampler=sampler)
        assert caught.value.field == "sampler" and "prior" in caught.value.remedy
    model = build(TinyGenerator)
    assert torch.equal(ask(Samples(), model, sampler="prior").latents, ask(Samples(), model).latents)
