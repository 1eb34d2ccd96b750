"""The attack operation on segmenters and detectors: facts describe the returned bytes, errors name the field."""

import json

import pytest
import torch

from models.nn.boxes import without_padding
from models.operations.attack import AttackOperation, AttackParams, params_schema
from models.operations.detect_objects import DetectObjects
from models.operations.segment import Segment
from models.registry import attacks
from models.types import ConfigError, InputError
from tests.models.attacks.fields import CLASSES, SIZE, Blobs, Fields, blob_images, scenes
from tests.models.attacks.nets import Victim, cnn, victims

OPERATION = AttackOperation()


def attack(model, images, **params):
    params = AttackParams.model_validate(params)
    model = model.eval().requires_grad_(False)
    rows = OPERATION.rows(model, images, params)
    result = OPERATION.result(model, rows, OPERATION.compute(model, rows, params), params)
    json.dumps(result.facts)
    return result


def plane(value=0, rows=slice(None), inside=0):
    found = torch.full((SIZE, SIZE), inside, dtype=torch.uint8)
    found[rows] = value
    return found


def test_segmentation_facts_describe_the_8_bit_image():
    images, masks = scenes(2, seed=5)
    truth = masks[0].byte()
    loud = {"eps": "24/255", "steps": 10, "control": True, "sweep": [0.02, 0.1]}
    result = attack(Fields(), images[:1], method="segpgd", truth=truth, **loud)
    (item,) = result.facts["items"]
    sent = (result.images * 255).round() / 255
    assert torch.equal(sent, result.images)
    again = Fields().pixel_logits(sent).argmax(1)
    assert item["adversarial"]["pixel_accuracy"] == pytest.approx(float((again == truth).double().mean()))
    assert item["linf_255"] == 24 and item["labels_from"] == "request"
    assert torch.equal(result.pictures["adversarial_mask"], again.byte())
    assert item["adversarial"]["shares"].keys() == set(CLASSES)
    assert item["clean"]["miou"] > item["adversarial"]["miou"]
    for control in ("control", "shuffled"):
        lost = item["clean"]["pixel_accuracy"] - item[control]["pixel_accuracy"]
        assert lost < 0.4 * (item["clean"]["pixel_accuracy"] - item["adversarial"]["pixel_accuracy"])
        assert item[control]["success"] is False
    assert [point["eps"] for point in item["sweep"]] == pytest.approx([5 / 255, 25 / 255])


def test_mask_and_pixels_are_independent():
    images, _ = scenes(1, seed=5)
    left = plane(255, (slice(None), slice(SIZE // 2)))
    top = plane(1, slice(4))
    result = attack(Fields(), images, method="pgd", eps=0.3, steps=20, mask=left, pixels=top, threshold=0.3)
    assert torch.equal(result.images[..., SIZE // 2 :], images[..., SIZE // 2 :])
    item = result.facts["items"][0]
    before, after = (Fields().pixel_logits(x).argmax(1)[0, :4] for x in (images, result.images))
    assert item["adversarial"]["pixel_accuracy"] == pytest.approx(float((before == after).double().mean()))
    assert item["success"] == (float((before != after).double().mean()) >= 0.3)


@pytest.mark.parametrize("aim", ["target", "aim"])
def test_target_class_may_be_one_for_all_pixels_or_one_per_pixel(aim):
    images, _ = scenes(1, seed=5)
    given = {"target": "disc"} if aim == "target" else {"aim": plane(2, inside=2)}
    result = attack(Fields(), images, method="cospgd", eps=0.4, steps=20, threshold=0.8, **given)
    item = result.facts["items"][0]
    assert item["success"] and item["adversarial"]["pixels_on_target"] >= 0.8
    assert item["adversarial"]["shares"]["disc"] == item["adversarial"]["pixels_on_target"]


def test_mask_limits_attacks_on_classifiers():
    images, _ = victims(1)
    mask = torch.zeros(8, 8, dtype=torch.uint8)
    mask[:4] = 1
    result = attack(Victim(cnn()), images, method="pgd", eps=0.5, mask=mask)
    assert torch.equal(result.images[:, :, 4:], images[:, :, 4:]) and not torch.equal(result.images, images)


def test_requests_with_different_planes_share_a_batch():
    images, masks = scenes(2, seed=5)
    model = Fields().eval().requires_grad_(False)
    common = {"method": "segpgd", "steps": 4, "eps": 0.1}
    asked = [AttackParams(**common, truth=mask.byte(), seed=seed) for seed, mask in enumerate(masks)]
    assert len({OPERATION.batch_key(params) for params in asked}) == 1
    parts = [OPERATION.rows(model, images[row : row + 1], params) for row, params in enumerate(asked)]
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    together = OPERATION.compute(model, joined, asked[0])
    for row, (part, params) in enumerate(zip(parts, asked, strict=True)):
        twice = {name: tensor.expand(2, *tensor.shape[1:]) for name, tensor in part.items()}
        assert torch.equal(OPERATION.compute(model, twice, params)["images"][0], together["images"][row])


def test_vanish_lists_the_remaining_detections():
    images, boxes = blob_images()
    given = [["red", *boxes[2, 0, :4].tolist()], [1, *boxes[2, 1, :4].tolist()]]
    result = attack(Blobs(), images[2:], method="pgd", eps=0.5, boxes=given, control=True, sweep=[0.1])
    item = result.facts["items"][0]
    assert item["clean"]["found"] == item["clean"]["objects"] == 2 and item["clean"]["map50"] == 1
    assert item["success"] and item["adversarial"]["found"] == 0
    assert item["control"]["found"] == 2
    assert {box["label"] for box in item["clean"]["detections"]} == {"red", "blue"}
    assert result.pictures["clean_boxes"].shape == result.pictures["adversarial_boxes"].shape == (1, 3, SIZE, SIZE)


def test_missing_boxes_default_to_the_models_detections():
    images, _ = blob_images()
    item = attack(Blobs(), images[:1], method="fgsm", eps=0.3).facts["items"][0]
    assert item["labels_from"] == "model" and item["clean"]["objects"] == 1
    empty = torch.full((1, 3, SIZE, SIZE), 51 / 255)
    result = attack(Blobs(), empty, method="pgd", eps=0.3)
    assert torch.equal(result.images, empty) and result.facts["items"][0]["initially_wrong"]
    made = attack(Blobs(), empty, method="pgd", eps=0.5, goal="fabricate", target="blue").facts["items"][0]
    assert made["success"] and {box["label"] for box in made["adversarial"]["detections"]} == {"blue"}


def test_mislabel_skips_and_counts_undetected_objects():
    images, boxes = blob_images()
    seen, missed = ["red", *boxes[0, 0, :4].tolist()], ["blue", 0, 14, 16, 16]
    how = {"method": "pgd", "eps": 0.5, "goal": "mislabel"}
    both = attack(Blobs(), images[:1], boxes=[seen, missed], **how).facts["items"][0]
    assert both["success"] and both["clean"]["objects"] == 2 and both["clean"]["left_out"] == 1
    assert both["adversarial"]["detections"][0]["label"] == "blue" and "left out" in " ".join(both["notes"])
    alone = attack(Blobs(), images[:1], boxes=[seen], **how).facts["items"][0]
    assert alone["clean"]["left_out"] == 0 and "left out" not in " ".join(alone["notes"])
    none = attack(Blobs(), images[:1], boxes=[missed], **how)
    assert torch.equal(none.images, images[:1]) and none.facts["items"][0]["initially_wrong"]
    notes = " ".join(none.facts["items"][0]["notes"])
    assert "none can be mislabelled" in notes and "left out" not in notes and "goal is reached" not in notes


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"method": "deepfool"}, "method"),
        ({"method": "segpgd", "label": 1}, "label"),
        ({"method": "segpgd", "goal": "vanish"}, "goal"),
        ({"method": "segpgd", "mask": torch.ones(3, 4, dtype=torch.uint8)}, "mask"),
        ({"method": "segpgd", "mask": plane()}, "mask"),
        ({"method": "segpgd", "truth": plane(3)}, "truth"),
        ({"method": "segpgd", "aim": plane(9)}, "aim"),
        ({"method": "segpgd", "target": "tree"}, "target"),
        ({"method": "segpgd", "target": 1, "truth": plane(1)}, "target"),
        ({"method": "segpgd", "target": 1, "aim": plane(1)}, "target"),
        ({"method": "segpgd", "truth": plane(255)}, "pixels"),
        ({"method": "segpgd", "budget": 0}, "budget"),
        ({"method": "dag", "gamma": 0}, "gamma"),
    ],
)
def test_segmenter_errors_name_the_invalid_parameter(params, field):
    with pytest.raises((ConfigError, InputError)) as caught:
        attack(Fields(), scenes(1)[0], **params)
    assert caught.value.field == field
    if params["method"] == "deepfool":
        assert "segpgd" in caught.value.remedy and "deepfool" not in caught.value.remedy


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"method": "segpgd"}, "method"),
        ({"method": "pgd", "truth": plane()}, "truth"),
        ({"method": "pgd", "boxes": [["red", 0, 0, 17, 4]]}, "boxes"),
        ({"method": "pgd", "boxes": [["red", 4, 0, 4, 4]]}, "boxes"),
        ({"method": "pgd", "boxes": [["green", 0, 0, 4, 4]]}, "boxes"),
        ({"method": "pgd", "boxes": [["red", 0, 0, 4, 4]], "goal": "mislabel", "target": "red"}, "target"),
        ({"method": "pgd", "goal": "vanish", "target": "red"}, "target"),
    ],
)
def test_detector_errors_name_the_invalid_parameter(params, field):
    with pytest.raises((ConfigError, InputError)) as caught:
        attack(Blobs(), blob_images()[0][:1], **params)
    assert caught.value.field == field


def test_attack_schema_lists_settings_of_its_victims():
    listed = {name: set(params_schema(kind)["properties"]) for name, kind in attacks().items()}
    assert {"truth", "pixels", "aim"} <= listed["segpgd"] and not {"label", "boxes", "goal"} & listed["segpgd"]
    assert {"label", "truth", "boxes", "mask"} <= listed["pgd"]
    assert not {"truth", "boxes"} & listed["deepfool"] and {"mask", "label"} <= listed["deepfool"]


def test_segmentation_answer_has_class_indices_shares_and_input_size():
    images, masks = scenes(1, size=20, seed=5)
    model = Fields().eval()
    params = Segment.Params()
    rows = Segment().rows(model, images, params)
    result = Segment().result(model, rows, Segment().compute(model, rows, params), params)
    assert result.images.dtype == torch.uint8 and result.images.shape == (1, 20, 20)
    assert (result.images.long() == masks).float().mean() > 0.9
    shares = result.facts["items"][0]["shares"]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["disc"] == pytest.approx(float((result.images == 2).double().mean()))
    over = Segment().result(model, rows, Segment().compute(model, rows, params), Segment.Params(picture="overlay"))
    ground = (result.images == 0)[:, None].expand_as(images)
    assert torch.allclose(over.images[ground], images[ground], atol=1e-6) and not torch.equal(over.images, images)


def test_detected_objects_are_listed_and_drawn():
    images, boxes = blob_images()
    model, params = Blobs().eval(), DetectObjects.Params()
    rows = DetectObjects().rows(model, images, params)
    result = DetectObjects().result(model, rows, DetectObjects().compute(model, rows, params), params)
    for item, truth in zip(result.facts["items"], boxes, strict=True):
        found = sorted((one["index"], *one["box"]) for one in item["detections"])
        assert found == sorted((int(row[4]), *row[:4].tolist()) for row in without_padding(truth))
    assert not torch.equal(result.images, images)
