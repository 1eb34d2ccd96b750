"""ONNX files that read files, never end or take any memory: refused with reasons, and nobody else notices."""

import os
import time

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from app.core.errors import DeadlineExceeded, InvalidRequest
from app.core.settings import settings
from models import deadline
from models.imported.graph import GraphSpec, Node, image_dependent_shapes
from models.imported.work_limit import TooMuchWork, WorkLimit
from tests.workers.onnx import graphs
from tests.workers.onnx.test_importer import network
from tests.workers.sandbox.test_room import fields_of, linux
from workers.jobs.kinds.import_model import republish, within
from workers.onnx.files import runtime
from workers.onnx.importer import from_onnx
from workers.sandbox.room import NeedsMemory, Raised, Room
from workers.store.models import card_digest, pack

SECRET = b"sixteen letters."


@pytest.fixture
def decoy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / graphs.DECOY).write_bytes(SECRET)


@pytest.fixture
def quick(storage, monkeypatch):
    """Calls of a sealed process end after 3 s."""
    monkeypatch.setenv("ANAMORPH_SANDBOX_SECONDS", "3")
    settings.cache_clear()


@pytest.mark.parametrize("make", graphs.LEAKS, ids=lambda make: make.__name__)
def test_outside_tensors_are_refused_wherever_they_are(decoy, make):
    with pytest.raises(InvalidRequest, match="in a second file") as caught:
        from_onnx(make().SerializeToString(), graphs.CARD)
    assert caught.value.field == "file" and "external_data=False" in caught.value.remedy


@linux
@pytest.mark.parametrize("make", graphs.LEAKS, ids=lambda make: make.__name__)
def test_outside_tensors_cannot_be_read_by_the_runtime(decoy, make):
    room = Room("tests.workers.onnx.unchecked", first=("load", make().SerializeToString(), 1))
    try:
        output = room.call("run", [np.zeros((1, 1, 8, 8), np.float32)])
        assert SECRET not in np.rint(output).clip(0, 255).astype(np.uint8).tobytes()
    except Raised as error:
        assert SECRET.decode() not in error.detail
    room.close()


def test_the_reason_names_the_node():
    with pytest.raises(InvalidRequest, match=r"graph, node 2 \(If\), then_branch, node 0 \(Constant\), value"):
        from_onnx(graphs.constant_in_a_branch().SerializeToString(), graphs.CARD)


@pytest.mark.parametrize(
    "domain", ["com.example", "com.microsoft.nchwc", "ai.onnx.training", "ai.onnx.preview.training"]
)
def test_other_domains_are_refused(domain):
    with pytest.raises(InvalidRequest, match=r"node 5 \(Identity\)"):
        from_onnx(network(domain=domain), {})


def test_operators_that_read_files_are_refused():
    with pytest.raises(InvalidRequest, match=r"com\.microsoft\.EPContext"):
        from_onnx(network(last="EPContext", domain="com.microsoft"), {})


@pytest.mark.parametrize("opset", [0, 9999])
def test_an_unknown_opset_is_refused_with_the_range(opset):
    file = onnx.load_model_from_string(network())
    file.opset_import[0].version = opset
    with pytest.raises(InvalidRequest, match=f"opset {opset}; 1 to {onnx.defs.onnx_opset_version()}"):
        from_onnx(file.SerializeToString(), {})


def test_a_local_function_is_a_black_box():
    function = helper.make_function(
        "local", "Twice", ["i"], ["o"], [helper.make_node("Add", ["i", "i"], ["o"])], [helper.make_opsetid("", 17)]
    )
    file = onnx.load_model_from_string(network(last="Twice", domain="local"))
    file.functions.append(function)
    file.opset_import.append(helper.make_opsetid("local", 1))
    model, _, _ = from_onnx(file.SerializeToString(), {})
    assert model.name == "opaque_classifier"
    expected = from_onnx(network(), {})[0].logits(torch.ones(2, 1, 8, 8)) * 2
    assert torch.allclose(model.logits(torch.ones(2, 1, 8, 8)), expected, atol=1e-4)


def test_a_file_with_too_many_nodes_is_refused():
    nodes = [helper.make_node("Identity", ["x"], [f"y{number}"]) for number in range(50_001)]
    with pytest.raises(InvalidRequest, match="too many parts"):
        from_onnx(graphs.model(nodes).SerializeToString(), graphs.CARD)


def test_a_black_box_answers_as_in_this_process():
    """To the bit: the same threads and options."""
    from workers.onnx.files import session

    content = network(last="Gelu", domain="com.microsoft")
    images = np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)
    (expected,) = session(content).run(None, {"x": images})
    assert np.array_equal(runtime(content)(images), expected)


def test_an_endless_graph_ends_the_import_with_a_reason(quick):
    with pytest.raises(InvalidRequest, match="did not end within 3 s") as caught:
        from_onnx(graphs.endless().SerializeToString(), graphs.CARD)
    assert caught.value.status == 422 and caught.value.remedy


def test_an_endless_call_is_a_504_and_the_next_one_is_answered(quick):
    model, _, _ = from_onnx(graphs.endless_from_the_image().SerializeToString(), graphs.CARD)
    assert model.name == "opaque_classifier"
    dark = model.logits(torch.zeros(2, 1, 8, 8))
    with pytest.raises(DeadlineExceeded):
        model.logits(torch.ones(1, 1, 8, 8))
    assert torch.equal(model.logits(torch.zeros(2, 1, 8, 8)), dark)


def test_an_endless_call_ends_when_nobody_waits(storage):
    model, _, _ = from_onnx(graphs.endless_from_the_image().SerializeToString(), graphs.CARD)
    until = time.monotonic() + 0.5

    def check():
        if time.monotonic() > until:
            raise deadline.Abandoned("nobody waits")

    with deadline.checking(check), pytest.raises(deadline.Abandoned):
        model.logits(torch.ones(1, 1, 8, 8))
    assert model.logits(torch.zeros(1, 1, 8, 8)).shape == (1, 16)


@linux
@pytest.mark.parametrize("size", [10**9, 10**11, 2**40, 2**61])
def test_a_huge_constant_ends_the_import_with_a_reason(size):
    before = fields_of(os.getpid())["VmRSS"]
    with pytest.raises(InvalidRequest, match=r"more than 2 GiB|cannot run this graph"):
        from_onnx(graphs.huge(size).SerializeToString(), graphs.CARD)
    assert fields_of(os.getpid())["VmRSS"] < before + (64 << 10)


@linux
def test_a_huge_tensor_from_the_image_costs_the_call_alone():
    model, _, found = from_onnx(graphs.huge_from_the_image(10**10).SerializeToString(), graphs.CARD)
    assert model.name == "opaque_classifier"
    assert "depends on the values of the image" in found["warnings"][0]
    dark, before = model.logits(torch.zeros(1, 1, 8, 8)), fields_of(os.getpid())["VmRSS"]
    with pytest.raises(NeedsMemory, match="more than 2 GiB"):
        model.logits(torch.ones(1, 1, 8, 8))
    assert torch.equal(model.logits(torch.zeros(1, 1, 8, 8)), dark)
    assert fields_of(os.getpid())["VmRSS"] < before + (64 << 10)


@pytest.mark.parametrize(
    ("op", "inputs"),
    [("ConstantOfShape", ["p"]), ("Expand", ["c", "p"]), ("Tile", ["c", "p"]), ("Range", ["c", "p", "c"]),
     ("Resize", ["c", "", "p"]), ("Resize", ["c", "", "", "p"]), ("Pad", ["c", "p"]), ("Reshape", ["c", "p"]),
     ("Slice", ["c", "c", "p"]), ("ReduceSum", ["c", "p"]), ("Upsample", ["c", "p"])],
)  # fmt: skip
def test_shapes_that_pixels_give_are_noticed(op, inputs):
    pixels = Node(op="Cast", inputs=("x",), outputs=("p",), attributes={"to": 7})
    spec = GraphSpec(nodes=(pixels, Node(op=op, inputs=tuple(inputs), outputs=("y",))), tensors=("c",), input="x",
                     output="y", opset=13)  # fmt: skip
    assert image_dependent_shapes(spec) == [op]
    shape = pixels.model_copy(update={"op": "Shape"})
    assert image_dependent_shapes(spec.model_copy(update={"nodes": (shape, spec.nodes[1])})) == []


def test_work_is_refused_before_it_is_done():
    row = torch.zeros(1 << 20)
    with WorkLimit(1 << 30), pytest.raises(TooMuchWork, match="GiB at the operator"):
        row[:, None] + row
    with WorkLimit(1 << 30), pytest.raises(TooMuchWork, match="GiB at the operator"):
        torch.zeros(1).expand(1 << 40).clone()
    with WorkLimit(1 << 30), pytest.raises(TooMuchWork, match="GiB at the operator"):
        torch.arange(1 << 40)
    with WorkLimit(1 << 30), pytest.raises(TooMuchWork, match="operations"):
        torch.zeros(1 << 13, 1 << 13) @ torch.zeros(1 << 13, 1 << 13)
    with WorkLimit(1 << 30), pytest.raises(TooMuchWork, match="operations"):
        torch.nn.functional.avg_pool2d(torch.zeros(1, 1, 4096, 4096), 2047, 1)
    with WorkLimit(1 << 30):
        torch.nn.functional.conv2d(torch.zeros(1, 3, 224, 224), torch.zeros(64, 3, 7, 7), stride=2)


def test_a_white_box_that_would_take_any_memory_is_a_black_box():
    """2^20 numbers doubled six times: more than small images may take each, though the runtime can."""
    nodes = [helper.make_node("ConstantOfShape", ["n"], ["d0"])]
    nodes += [helper.make_node("Concat", [f"d{step}", f"d{step}"], [f"d{step + 1}"], axis=0) for step in range(6)]
    nodes += [helper.make_node("ReduceMean", ["d6"], ["mean"], keepdims=0)]
    nodes += [helper.make_node("Reshape", ["x", "s"], ["flat"]), helper.make_node("Add", ["flat", "mean"], ["q"])]
    file = graphs.model(nodes, [graphs.constant([1, 64], "s"), graphs.constant([1 << 20], "n")])
    file.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 64
    model, _, found = from_onnx(file.SerializeToString(), graphs.CARD)
    assert model.name == "opaque_classifier" and "GiB at the operator cat" in found["warnings"][0]


def test_a_card_made_by_hand_brings_no_unchecked_file(place, decoy):
    """A foreign file in the form in which this software exports its models: anybody can compute such a digest."""
    content = graphs.initializer_in_a_branch().SerializeToString()
    weights = pack({"file": torch.frombuffer(bytearray(content), dtype=torch.uint8)})
    data = {"layout": "labelled", **graphs.CARD, "classes": [str(label) for label in range(16)], "columns": {}}
    card = {"engine": 1, "family": "opaque_classifier", "name": "mine", "config": {}, "data": data}
    card["digest"] = card_digest(weights, card)
    with pytest.raises(InvalidRequest, match="in a second file"):
        republish(weights, card, "mine")


def test_an_import_that_takes_too_long_or_is_canceled_ends_at_once():
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    with deadline.checking(within(1, lambda: None)), pytest.raises(InvalidRequest, match="did not end within 1 s"):
        from_onnx(graphs.endless().SerializeToString(), graphs.CARD)
    with deadline.checking(within(60, stop)), pytest.raises(Stop):
        from_onnx(graphs.endless().SerializeToString(), graphs.CARD)
