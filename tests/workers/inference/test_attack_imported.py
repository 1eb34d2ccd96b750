"""Models that came as ONNX, attacked over HTTP: white boxes through the converter, black boxes by asking alone."""

import base64
import io

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from app.core.store.database import transaction
from models.data import Columns
from models.reports.core.base import Subject
from models.reports.robustness import RobustnessReport
from models.types import ConfigError, DataSpec
from tests.workers.inference.test_over_http import anyio_backend, client, gray, saved  # noqa: F401
from tests.workers.onnx.test_importer import CARD, network
from workers.onnx.importer import from_onnx
from workers.store import model_rows
from workers.store import models as artifacts

pytestmark = pytest.mark.anyio
JSON = {"Accept": "application/json"}
FOREIGN = {"last": "Gelu", "domain": "com.microsoft"}


def painter(ending: str | None = None) -> bytes:
    """A convolution that gives three maps, and perhaps an operator that nobody differentiates."""
    weights = np.random.default_rng(0).standard_normal((3, 1, 3, 3)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "k"], ["y" if ending is None else "c"], pads=[1, 1, 1, 1])]
    if ending:
        nodes.append(helper.make_node(ending, ["c"], ["y"], domain="com.microsoft"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 8, 8])
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weights, "k")])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 8
    return model.SerializeToString()


MODELS = {
    "white": (network(), CARD),
    "black": (network(**FOREIGN), CARD),
    "soft": (network("Softmax", **FOREIGN), CARD),
    "masks": (painter(), CARD | {"task": "segmenter"}),
    "sealed-masks": (painter("Gelu"), CARD | {"task": "segmenter"}),
}


@pytest.fixture
def front(client):  # noqa: F811
    for name, (content, card) in MODELS.items():
        model, facts, _ = from_onnx(content, card)
        _, published = artifacts.publish(model, facts, {"name": name, "seed": 0, "metrics": {}})
        with transaction() as conn:
            model_rows.register(conn, tenant="local", card=published, job_id=None)
    return client


async def attack(front, model: str, **query) -> dict:
    answer = await front.post(f"/v1/models/{model}/attack", params=query, content=saved(gray()), headers=JSON)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("model", "query"),
    [
        ("white", {"method": "pgd", "eps": "60/255"}),
        ("black", {"method": "square", "eps": "60/255", "budget": 80}),
        ("soft", {"method": "square", "eps": "60/255", "budget": 80}),
        ("soft", {"method": "hopskipjump", "budget": 80}),
    ],
)
async def test_what_is_said_is_true_of_the_bytes_sent(front, model, query):
    told = await attack(front, model, **query)
    again = await front.post(f"/v1/models/{model}/classify", json={"image": told["image"]})
    assert again.json()["predictions"][0]["label"] == told["adversarial"]["label"]
    assert told["success"] == (told["adversarial"]["label"] != told["clean"]["label"])
    assert 0 < told["queries"] <= query.get("budget", 100)


@pytest.mark.parametrize(
    ("model", "method"), [("black", "fgsm"), ("soft", "ddn"), ("black", "autoattack"), ("sealed-masks", "segpgd")]
)
async def test_a_white_box_attack_on_a_black_box_is_refused_and_says_what_works(front, model, method):
    answer = await front.post(f"/v1/models/{model}/attack", params={"method": method}, content=saved(gray()))
    problem = answer.json()
    assert answer.status_code == 422 and answer.headers["content-type"] == "application/problem+json"
    assert "gradient" in problem["detail"] and problem["errors"][0]["pointer"] == "method", problem
    assert "square" in problem["remedy"]


async def test_segpgd_beats_noise_on_an_imported_segmenter(front):
    told = await attack(front, "masks", method="segpgd", eps="100/255", control="true")
    left = {name: told[name]["pixel_accuracy"] for name in ("adversarial", "control")}
    assert left["adversarial"] < left["control"] <= 1, told
    sent = np.asarray(Image.open(io.BytesIO(base64.b64decode(told["image"]))), np.int16)
    assert 0 < np.abs(sent - np.asarray(gray(), np.int16)).max() <= 100


@torch.no_grad()
def test_a_report_on_a_black_box_model_says_what_it_could_not_measure():
    model, facts, _ = from_onnx(network(**FOREIGN), CARD)
    images = (np.random.default_rng(1).random((12, 1, 8, 8)) * 255).astype(np.uint8)
    labels = model.logits(torch.from_numpy(images) / 255).argmax(1).numpy()
    rows = Columns({"images": images, "labels": labels})
    spec = DataSpec("labelled", 8, 8, 1, tuple(facts["classes"]), {"validation": {"images": 12, "labels": 12}})

    def report(*attacks):
        subject = Subject(model, spec, rows, rows, None, 0)
        run = RobustnessReport().run(subject, RobustnessReport.Params(attacks=list(attacks), eps=[0, 0.3]))
        while True:
            try:
                next(run)
            except StopIteration as end:
                return end.value

    found = report({"method": "square", "queries": 40})
    assert found.facts["robust_accuracy"][0] == 1 > found.facts["robust_accuracy"][1]
    unmeasured = {flag["name"] for flag in found.facts["trust"]["flags"] if flag["raised"] is None}
    assert {"zero_gradient", "unbounded_fails", "restart_spread"} <= unmeasured
    assert found.facts["trust"]["confidence"] == "low"
    with pytest.raises(ConfigError, match="fgsm needs gradients") as caught:
        report("square", "fgsm")
    assert caught.value.field == "params/attacks/1" and "square" in caught.value.remedy
