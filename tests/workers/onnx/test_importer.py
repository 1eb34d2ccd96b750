"""Models from elsewhere: they answer as their files did, give gradients where they can, are refused with reasons."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save
from torch import nn

from app.core.errors import InvalidRequest
from app.core.store import blobs
from models.attacks.core.access import WhiteBox
from models.imported.vgg import VGG
from models.operations.attack import AttackOperation
from models.registry import imported
from models.types import DataSpec, InputError, ModelError
from tests.workers import trainings
from tests.workers.onnx.test_exporter import published
from workers.jobs.kinds import import_model
from workers.onnx.files import runtime
from workers.onnx.importer import from_onnx
from workers.store.models import load_model, model_key

CARD = {"labels": ["cat", "dog", "emu"], "mean": 0.5, "std": [0.25]}


def network(ending: str | None = None, batch: int | str = "n", last: str = "Identity", domain: str = "") -> bytes:
    """Convolution, batch norm, pooling, a dense layer, and perhaps a softmax or another ending."""
    draws = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(draws.standard_normal(shape).astype(np.float32) * 0.5, name)

    weights = [constant("k", 4, 1, 3, 3), constant("b", 4), constant("s", 4), constant("m", 4), constant("w", 3, 64)]
    weights += [numpy_helper.from_array(np.full(4, 2, np.float32), "v")]
    nodes = [
        helper.make_node("Conv", ["x", "k", "b"], ["c"], pads=[0, 0, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"]),
        helper.make_node("LeakyRelu", ["n"], ["r"], alpha=0.2),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["g"], transB=1),
        helper.make_node(last, ["g"], ["h"], domain=domain),
        *([helper.make_node(ending, ["h"], ["y"], axis=1)] if ending else []),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 1, 8, 8])
    y = helper.make_tensor_value_info("y" if ending else "h", TensorProto.FLOAT, [batch, 3])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=opsets)
    model.ir_version = 8
    return model.SerializeToString()


def test_a_graph_answers_in_torch_as_in_the_runtime_and_has_a_gradient():
    model, facts, found = from_onnx(network(), CARD)
    assert model.name == "graph_classifier" and facts["classes"] == CARD["labels"] and not found["warnings"]
    images = torch.rand(5, 1, 8, 8)
    wanted = runtime(network())(((images - 0.5) / 0.25).numpy())
    assert np.allclose(model.logits(images).numpy(), wanted, atol=1e-4)
    leaf, outputs = WhiteBox(model, lambda net, x: net.logits(x), shape=model.data.shape).outputs_with_graph(images)
    assert bool(WhiteBox.gradient(leaf, outputs.sum()).any())


@pytest.mark.parametrize("batch", [1, "n"])
def test_a_softmax_is_noticed_and_taken_off(batch):
    model, _, found = from_onnx(network("Softmax", batch), {"output": "logits"})
    assert len(found["warnings"]) == 2 and "probabilities" in found["warnings"][0]
    images = torch.rand(4, 1, 8, 8)
    answers = model.logits(images)
    assert not torch.allclose(answers.sum(1), torch.ones(4), atol=1e-2)
    rows = np.concatenate([runtime(network("Softmax", batch))(image[None].numpy()) for image in images])
    assert np.allclose(answers.softmax(1).numpy(), rows, atol=1e-5)


def test_what_has_no_gradient_is_a_black_box_and_says_why():
    content = network(last="Gelu", domain="com.microsoft")
    model, _, found = from_onnx(content, CARD)
    assert model.name == "opaque_classifier" and "com.microsoft.Gelu" in found["warnings"][0]
    with pytest.raises(InvalidRequest, match=r"com\.microsoft\.Gelu") as caught:
        from_onnx(content, CARD | {"white_box": True})
    assert caught.value.field == "card/white_box"
    operation, images = AttackOperation(), torch.rand(2, 1, 8, 8)
    black = operation.Params(method="square", budget=20)
    assert operation.compute(model, operation.rows(model, images, black), black)["images"].shape == images.shape
    white = operation.Params(method="fgsm")
    with pytest.raises(InputError, match="no gradient"):
        operation.compute(model, operation.rows(model, images, white), white)
    flat, _, found = from_onnx(network(last="Sign"), {})
    assert flat.name == "opaque_classifier" and "no gradient" in found["warnings"][0]


@pytest.mark.parametrize(
    ("change", "card", "field", "words"),
    [
        ({}, {"labels": ["a", "b"]}, "card/labels", "must have 3 labels"),
        ({}, {"height": 9}, "card/height", "must be 8, as in the graph"),
        ({}, {"layout": "nhwc"}, "card/layout", "takes 8"),
        ({}, {"output": "softmax"}, "card/output", "not probabilities"),
        ({}, {"task": "segmenter"}, "card/task", "one map per class"),
        ({"last": "Log"}, {}, "file", "not finite"),
        ({"last": "Nothing"}, {}, "file", "not an ONNX file"),
    ],
)
def test_a_card_that_contradicts_the_graph_names_the_field(change, card, field, words):
    with pytest.raises(InvalidRequest, match=words) as caught:
        from_onnx(network(**change), card)
    assert caught.value.field == field


def test_hostile_files_are_refused():
    model = onnx.load_model_from_string(network())
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "/etc/passwd")
    model.graph.initializer[0].ClearField("raw_data")
    for content, words in ((b"\x08garbage", "not an ONNX file"), (model.SerializeToString(), "in a second file")):
        with pytest.raises(InvalidRequest, match=words) as caught:
            from_onnx(content, {})
        assert caught.value.remedy


def run(name: str, content: bytes, card: dict, kind: str) -> dict:
    blobs.put("uploads/one", content, create_only=False)
    spec = {"name": name, "format": kind, "card": card, "upload": "uploads/one"}
    job = trainings.attempt(trainings.accept(kind="model", **spec))
    result = import_model.run_import(job)
    trainings.finish(job, result)
    return result.value


def test_a_black_box_is_stored_and_loaded_like_any_model(place):
    value = run("box", network(last="Gelu", domain="com.microsoft"), CARD, "onnx")
    model = load_model(value["version"])
    assert not value["white_box"] and model.data.classes == tuple(CARD["labels"])
    assert bool(torch.isfinite(model.logits(torch.rand(3, 1, 8, 8))).all())


def test_an_exported_model_imports_under_its_digest_unless_changed(place):
    digest, model = published(body="mlp")
    weights = blobs.get(model_key(digest, "weights.safetensors"))
    card = json.loads(blobs.get(model_key(digest, "card.json")))
    assert run("mine", weights, card, "safetensors")["version"] == digest
    other = run("theirs", weights, card, "safetensors")["version"]
    images = torch.rand(2, 1, 8, 8)
    assert other != digest and torch.equal(load_model(other).encode(images), model.encode(images))
    with pytest.raises(InvalidRequest, match="digest"):
        run("mine", weights, card | {"parameters": 1}, "safetensors")


def test_vgg_weights_are_read_by_their_names_at_any_size(place):
    plan = (4, 0, 8, 8, 0)
    config = {"plan": plan, "hidden": (16, 16), "grid": 2}
    data = DataSpec("labelled", 20, 12, 3, ("a", "b"))
    torch.manual_seed(0)
    small = VGG.create(config, data).eval()
    state = {name: tensor.contiguous() for name, tensor in small.state_dict().items()}
    assert {"features.0.weight", "features.3.weight", "features.5.weight", "classifier.6.bias"} <= state.keys()
    card = {"height": 20, "width": 12, "labels": ["a", "b"]}
    value = run("vgg", save(state), card, "safetensors")
    model, images = load_model(value["version"]), torch.rand(2, 3, 20, 12)
    assert model.config.plan == plan and torch.allclose(model.logits(images), small.logits(images), atol=1e-6)
    with pytest.raises(ModelError, match="conv1"):
        run("vgg", save(state | {"conv1.weight": torch.zeros(2)}), card, "safetensors")
    with pytest.raises(InvalidRequest, match="height"):
        run("vgg", save(state), {}, "safetensors")


def test_vgg19_has_the_plan_of_its_paper():
    plan = [64, 64, 0, 128, 128, 0, *[256] * 4, 0, *[512] * 4, 0, *[512] * 4, 0]
    with torch.device("meta"):
        layers = VGG.create({"plan": plan}, DataSpec("labelled", 224, 224, 3, tuple(map(str, range(1000)))))
    names = layers.state_dict()
    assert "features.34.weight" in names and names["classifier.0.weight"].shape == (4096, 25088)
    assert sum(parameter.numel() for parameter in layers.parameters()) == 143_667_240
    assert isinstance(layers.features[36], nn.MaxPool2d)


def test_efficientnet_lite_knows_a_cat(place):
    data = pytest.importorskip("skimage.data")
    value = import_model.run_import(
        trainings.attempt(trainings.accept(kind="model", builtin="efficientnet-lite0"))
    ).value
    model, photo = load_model(value["version"]), torch.from_numpy(data.chelsea().copy()).permute(2, 0, 1)[None] / 255
    photo = nn.functional.interpolate(photo[:, :, :, 75:375], (224, 224), mode="bilinear", antialias=True)
    best = model.data.classes[int(model.logits(photo).argmax())]
    assert "cat" in best and set(imported()) >= {"vgg", "efficientnet_lite", "graph_classifier"}
