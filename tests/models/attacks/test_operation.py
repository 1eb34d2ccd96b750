"""The attack operation on classifiers: the facts of its answer, and errors that name the field."""

import json

import pytest
import torch

from models import registry
from models.capabilities import Classifies
from models.operations.attack import AttackOperation, AttackParams, params_schema
from models.types import ConfigError, InputError
from tests.models.attacks.nets import Victim, cnn, digits, victims
from tests.models.attacks.test_contract import QUICK


def attacks() -> dict[str, type]:
    """Attacks on classifiers; the others have tests of their own."""
    return {name: kind for name, kind in registry.attacks().items() if Classifies in kind.victims}


OPERATION = AttackOperation()


def attack(images, model=None, **params):
    model = model or Victim(cnn()).eval()
    params = AttackParams.model_validate(params)
    rows = OPERATION.rows(model, images, params)
    return OPERATION.result(model, rows, OPERATION.compute(model, rows, params), params)


def test_attack_answer_describes_the_returned_bytes():
    images, labels = victims()
    result = attack(images[:8], method="fgsm", eps="32/255", control=True, sweep=True)
    sent = (result.images * 255).round() / 255
    assert torch.equal(sent, result.images)
    again = cnn()(sent).argmax(1)
    for row, item in enumerate(result.facts["items"]):
        assert item["success"] == (int(again[row]) != int(labels[row]))
        assert item["adversarial"]["index"] == int(again[row])
        assert item["clean"]["index"] == int(labels[row])
        assert item["linf_255"] == 32
        assert item["labels_from"] == "model"
        assert item["norms"]["linf"] <= 32 / 255 + 1e-6
        assert item["queries"] == 2
        eps = [point["eps"] for point in item["sweep"]]
        assert eps == sorted(eps)
        assert eps[0] == 0
        flips = [point["eps"] for point in item["sweep"] if point["success"]]
        assert item["flip_eps"] == (flips[0] if flips else None)
    items = result.facts["items"]
    assert sum(item["success"] for item in items) > 4 * sum(item["control"]["success"] for item in items)
    assert result.pictures["perturbation"].shape == images[:8].shape


def test_eps_between_two_levels_is_rounded_down_with_a_note():
    item = attack(victims()[0][:1], method="fgsm", eps=0.1).facts["items"][0]
    assert item["linf_255"] == 25
    assert item["eps"] == pytest.approx(25 / 255)
    assert any("25.5/255" in note and "25/255" in note and "26/255" in note for note in item["notes"])


def test_misclassified_image_is_returned_unchanged():
    images, labels = victims()
    other = (int(labels[0]) + 1) % 10
    result = attack(images[:1], method="fgsm", label=str(other))
    item = result.facts["items"][0]
    assert item["initially_wrong"]
    assert not item["success"]
    assert item["labels_from"] == "request"
    assert item["queries"] == 1
    assert torch.equal(result.images, images[:1])


def test_targeted_success_agrees_with_the_returned_image():
    images, _ = victims()
    result = attack(images[:8], method="fgsm", eps=0.3, target="3")
    for item in result.facts["items"]:
        assert item["success"] == (item["adversarial"]["label"] == "3" and item["clean"]["label"] != "3")


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"method": "nonsense"}, "method"),
        ({"method": "fgsm", "eps": -0.1}, "eps"),
        ({"method": "fgsm", "eps": 1.5}, "eps"),
        ({"method": "fgsm", "eps": "8/254"}, "eps"),
        ({"method": "fgsm", "norm": "l0"}, "norm"),
        ({"method": "fgsm", "label": "17"}, "label"),
        ({"method": "fgsm", "target": "x"}, "target"),
        ({"method": "fgsm", "label": 3, "target": 3}, "target"),
        ({"method": "fgsm", "budget": 0}, "budget"),
        ({"method": "fgsm", "stepz": 3}, "stepz"),
        ({"method": "fgsm", "sweep": [0.1, 3.0]}, "eps"),
    ],
)
def test_errors_name_the_invalid_parameter(params, field):
    with pytest.raises((ConfigError, InputError)) as caught:
        attack(victims()[0][:1], **params)
    assert caught.value.field == field


def test_default_values_of_foreign_settings_are_accepted():
    schema = params_schema(registry.attacks()["pgd"])
    filled = {name: spec["default"] for name, spec in schema["properties"].items() if "default" in spec}
    images = victims()[0][:2]
    assert attack(images, **(filled | {"steps": 2})).facts["items"]
    with pytest.raises(ConfigError) as caught:
        attack(images, **(filled | {"steps": 2, "aim": [[1]]}))
    assert caught.value.field == "aim"


def test_model_with_nonfinite_outputs_is_not_called_robust():
    class Broken(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10] * torch.nan

    with pytest.raises(InputError, match="finite"):
        attack(victims()[0][:1], Victim(Broken()).eval(), method="fgsm")


def test_rows_of_different_requests_share_a_batch():
    images = digits()[0][:8]
    model = Victim(cnn()).eval()
    requests = [
        AttackParams.model_validate({"method": "fgsm", "eps": eps, "seed": seed, "label": label})
        for seed, (eps, label) in enumerate([(0.1, None), (0.2, 3), (0.3, None)])
    ]
    assert len({OPERATION.batch_key(params) for params in requests}) == 1
    parts = [OPERATION.rows(model, images[i : i + 2], params) for i, params in enumerate(requests)]
    together = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    padded = {name: tensor[torch.arange(8).clamp(max=5)] for name, tensor in together.items()}
    shared = OPERATION.compute(model, padded, requests[0])
    for place, (part, params) in enumerate(zip(parts, requests, strict=True)):
        alone = OPERATION.compute(
            model, {name: tensor[torch.arange(8).clamp(max=1)] for name, tensor in part.items()}, params
        )
        for name, tensor in alone.items():
            assert torch.equal(tensor[:2], shared[name][2 * place : 2 * place + 2]), name


@pytest.mark.parametrize("name", attacks())
def test_every_attack_answers_a_request(name):
    images, labels = victims()
    params = QUICK.get(name, {}) | {"seed": 5, "control": True, "sweep": [0.02, "20/255"]}
    result = attack(images[:2], method=name, **params)
    json.dumps(result.facts)
    for row, item in enumerate(result.facts["items"]):
        assert item["clean"]["index"] == int(labels[row])
        assert item["adversarial"]["index"] == int(cnn()(result.images[row : row + 1]).argmax(1))
        assert item["success"] == (item["adversarial"]["index"] != int(labels[row]))
        assert 0 < item["adversarial"]["probability"] <= 1
        assert len(item["sweep"]) == 2
        assert item["control"]["probability"] <= 1
        assert item["eps"] is None or not attacks()[name].minimal
        assert item["queries"] >= 1


def test_padding_copies_cost_no_queries():
    shown = []

    class Counting(torch.nn.Module):
        def forward(self, x):
            shown.append(len(x))
            return cnn()(x)

    model = Victim(Counting()).eval()
    params = AttackParams.model_validate({"method": "nes", "steps": 3, "samples": 10, "eps": "4/255"})
    rows = OPERATION.rows(model, victims()[0][:1], params)
    padded = {name: tensor[torch.zeros(8, dtype=torch.int64)] for name, tensor in rows.items()}
    found = OPERATION.compute(model, padded, params)
    assert sum(shown) <= 8 * (1 + 3 + 2) + 3 * 10
    assert all(torch.equal(tensor[0], tensor[7]) for tensor in found.values())


def test_sweep_of_minimum_norm_attack_uses_one_run():
    images, _ = victims()
    item = attack(images[:1], method="deepfool", sweep=True).facts["items"][0]
    far = item["norms"]["l2"]
    assert all(point["success"] == (point["eps"] >= far - 1e-5) for point in item["sweep"])
    assert item["eps"] is None


def test_attack_schema_lists_common_and_own_settings():
    for kind in attacks().values():
        schema = params_schema(kind)
        assert {"method", "label", "target", "seed", "control", "sweep", "eps"} <= set(schema["properties"])
        assert schema["additionalProperties"] is False
