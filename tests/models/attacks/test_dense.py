"""Attacks on segmenters and detectors, on masks and detections known in advance."""

import copy

import pytest
import torch
from torch import nn

from models.attacks.core.access import ScoreOracle, WhiteBox
from models.attacks.core.sweep import shuffled
from models.attacks.core.threat import ThreatModel
from models.attacks.cospgd import CosPGD
from models.attacks.criteria.detection import GOALS
from models.attacks.criteria.segmentation import FractionOfPixels
from models.attacks.segpgd import SegPGD
from models.capabilities import DetectsObjects, Segments
from models.evaluation.segmentation import confusion, ious
from models.nn.boxes import detections, overlap, without_padding
from models.registry import attacks
from tests.models.attacks.fields import SIZE, Blobs, Fields, blob_images, scenes

QUICK = {"dag": {"steps": 40, "gamma": "2/255"}, "pgd": {"steps": 8}, "square": {"queries": 25}}
QUICK |= {name: {"steps": 6} for name in ("segpgd", "cospgd", "bim", "mifgsm", "apgd")}
ON_PIXELS = [name for name, kind in attacks().items() if Segments in kind.victims]
ON_BOXES = [name for name, kind in attacks().items() if DetectsObjects in kind.victims]
EPS = 24 / 255


def access_for(attack, model):
    call = {True: lambda net, x: net.detection_maps(x), False: lambda net, x: net.pixel_logits(x)}[
        isinstance(model, DetectsObjects)
    ]
    if attack.access == "gradients":
        return WhiteBox(model.eval().requires_grad_(False), call)
    return ScoreOracle(lambda x: call(model, x))


def run(name, model, x, criterion, *, levels=256, mask=None, seeds=0, **config):
    attack = attacks()[name](**QUICK.get(name, {}) | {"eps": EPS} | config)
    threat = ThreatModel("linf", attack.config.eps, levels, mask)
    return attack.run(access_for(attack, model), x, criterion, threat, seeds, compact=False)


def half(labels, threshold=0.5):
    return FractionOfPixels(labels, threshold=threshold)


@pytest.mark.parametrize("name", ON_PIXELS)
def test_segmentation_success_is_that_of_the_8_bit_images(name):
    x, masks = scenes(4, seed=5)
    model = Fields()
    result = run(name, model, x, half(masks, 0.3))
    pixels = (result.images * 255).round()
    assert torch.equal(pixels / 255, result.images)
    assert (pixels - (x * 255).round()).abs().max() <= 24
    wrong = (model.pixel_logits(pixels / 255).argmax(1) != masks).flatten(1).float().mean(1)
    assert torch.equal(result.success, (wrong >= 0.3) & ~result.initially_wrong)
    before = (model.pixel_logits(x).argmax(1) != masks).float().mean()
    assert wrong.mean() > before + (0.02 if name == "square" else 0.15)


@pytest.mark.parametrize("name", ON_PIXELS)
def test_image_gets_the_same_result_in_any_batch(name):
    x, masks = scenes(4, seed=5)
    seeds, order = torch.arange(4) * 7919, torch.tensor([3, 3, 0, 2])
    together = run(name, Fields(), x, half(masks, 0.4), seeds=seeds)
    other = run(name, Fields(), x[order], half(masks[order], 0.4), seeds=seeds[order])
    for field in ("images", "floats", "success", "queries", "distance"):
        assert torch.equal(getattr(together, field)[order], getattr(other, field)), field


@pytest.mark.parametrize("name", ON_PIXELS)
def test_pixels_outside_the_mask_keep_their_bytes(name):
    x, masks = scenes(2, seed=5)
    mask = torch.zeros(2, 1, SIZE, SIZE)
    mask[:, :, :, : SIZE // 2] = 1
    result = run(name, Fields(), x, half(masks), mask=mask)
    assert torch.equal(result.images[..., SIZE // 2 :], x[..., SIZE // 2 :])
    assert not torch.equal(result.images, x)


@pytest.mark.parametrize("name", ON_PIXELS)
def test_ignored_pixels_do_not_change_success(name):
    x, masks = scenes(2, seed=5)
    some = masks.clone()
    some[:, SIZE // 2 :] = 255
    result = run(name, Fields(), x, half(some, 0.2))
    wrong = (Fields().pixel_logits(result.images).argmax(1) != masks)[:, : SIZE // 2].flatten(1).float().mean(1)
    assert torch.equal(result.success, (wrong >= 0.2) & ~result.initially_wrong)


@pytest.mark.parametrize("name", [name for name in ON_PIXELS if name not in ("square", "fgsm")])
def test_mask_limits_the_changed_pixels(name):
    x, masks = scenes(2, seed=5)
    aim = torch.full_like(masks, 2)
    steps = 150 if name == "dag" else 20
    result = run(name, Fields(), x, FractionOfPixels(masks, aim, 0.9), eps=0.4, steps=steps)
    assert result.success.all()
    assert ((Fields().pixel_logits(result.images).argmax(1) == 2).flatten(1).float().mean(1) >= 0.9).all()


@pytest.mark.parametrize("name", ON_PIXELS)
def test_segmenter_is_unchanged_by_the_attack(name):
    x, masks = scenes(2, seed=5)
    model = Fields(copy.deepcopy(Fields().net).requires_grad_(True).train())
    state = copy.deepcopy(model.state_dict())
    attack = attacks()[name](**QUICK.get(name, {}) | {"eps": EPS})
    box = WhiteBox(model, lambda net, images: net.pixel_logits(images))
    attack.run(box, x, half(masks), attack.threat(256))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(part.requires_grad and part.grad is None for part in model.parameters())
    assert model.training


def test_weights_of_segpgd_and_cospgd_match_the_papers():
    logits = torch.tensor([[[[2.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.5, 0.0]]]])  # (1, 2, 2, 2)
    labels = torch.tensor([[[0, 0], [1, 0]]])
    rows = type("AttackRun", (), {"criterion": FractionOfPixels(labels)})()
    # right: (0,0), (1,0) and, with equal logits and the first class winning, (1,1); wrong: (0,1)
    found = SegPGD(steps=4).weights(rows, logits, share=2 / 4)
    assert found.tolist() == [[[0.75, 0.25], [0.75, 0.75]]]
    chances = logits.softmax(1)[0]
    wanted = torch.tensor(
        [[chances[labels[0, i, j], i, j] / chances[:, i, j].norm() for j in range(2)] for i in range(2)]
    )
    assert torch.allclose(CosPGD().weights(rows, logits, 0.3)[0], wanted)
    aimed = type("AttackRun", (), {"criterion": FractionOfPixels(labels, 1 - labels)})()
    away = torch.tensor(
        [[1 - chances[1 - labels[0, i, j], i, j] / chances[:, i, j].norm() for j in range(2)] for i in range(2)]
    )
    assert torch.allclose(CosPGD().weights(aimed, logits, 0.3)[0], away)


@pytest.mark.parametrize("kind", [SegPGD, CosPGD])
def test_first_steps_of_segpgd_and_cospgd_follow_their_formulas(kind):
    x, masks = scenes(2, seed=5)
    model, steps, eps = Fields(), 4, 8 / 255
    last = {}
    attack = kind(eps=eps, steps=steps, step=0.01, random_start=False, stop_early=False)
    attack.run(
        access_for(attack, model),
        x,
        half(masks, 1.0),
        attack.threat(),
        on_step=lambda _, t: last.update(x=t.state.x),
        compact=False,
    )
    image = x.clone()
    for number in range(steps):
        leaf = image.clone().requires_grad_()
        logits = model.pixel_logits(leaf)
        entropy, lam = nn.functional.cross_entropy(logits, masks, reduction="none"), number / (2 * steps)
        if kind is SegPGD:
            weight = torch.where(logits.argmax(1) == masks, 1 - lam, lam)
        else:
            onehot = nn.functional.one_hot(masks, 3).permute(0, 3, 1, 2).float()
            weight = nn.functional.cosine_similarity(logits.softmax(1), onehot, dim=1).detach()
        (gradient,) = torch.autograd.grad((weight * entropy).sum(), leaf)
        image = torch.clamp(image + 0.01 * gradient.sign(), (x - eps).clamp_min(0), (x + eps).clamp_max(1))
    assert torch.allclose(last["x"], image, atol=1e-6)


def test_decaying_steps_beat_constant_steps():
    x, masks = scenes(24, seed=5)
    net, spoilt = Fields(), {}
    for name, step in (("shorter", None), ("even", 2.5 * EPS / 20)):
        images = run("cospgd", net, x, half(masks, 0.99), steps=20, step=step).images
        spoilt[name] = float((net.pixel_logits(images).argmax(1) != masks).float().mean())
    assert spoilt["shorter"] > spoilt["even"] + 0.003


def test_dag_stops_by_its_rule_or_returns_its_best_image():
    x, masks = scenes(3, seed=5)
    free = run("dag", Fields(), x, FractionOfPixels(masks), eps=None, steps=200)
    assert free.success.all()
    left = (Fields().pixel_logits(free.images).argmax(1) == masks).flatten(1).float().mean(1)
    assert (left <= 0.01).all()
    short = run("dag", Fields(), x, FractionOfPixels(masks), eps=None, steps=15)
    partial = (Fields().pixel_logits(short.images).argmax(1) == masks).float().mean()
    clean = (Fields().pixel_logits(x).argmax(1) == masks).float().mean()
    assert not short.success.any()
    assert left.mean() < partial < clean - 0.1


def test_shuffled_perturbation_does_a_fraction_of_the_harm():
    x, masks = scenes(8, seed=5)
    result = run("dag", Fields(), x, FractionOfPixels(masks), eps=None, steps=12)
    control = shuffled(x, result.images, ThreatModel("linf", None, 256), torch.arange(8))
    clean, alike, spoilt = (
        float(ious(confusion(Fields().pixel_logits(images).argmax(1), masks, 3)).nanmean())
        for images in (x, control, result.images)
    )
    assert clean - alike < 0.25 * (clean - spoilt)


def test_shuffled_perturbation_stays_inside_the_mask():
    x = torch.full((2, 3, 6, 6), 0.5)
    mask = torch.zeros(2, 1, 6, 6)
    mask[0, :, :3], mask[1, :, :, 4:] = 1, 1
    changed = x + mask * torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.1
    found = shuffled(x, changed, ThreatModel("linf", None, None, mask), torch.tensor([3, 4]))
    assert torch.equal(found * (1 - mask), x * (1 - mask))
    for row in range(2):
        assert torch.allclose(*((part[row] - x[row]).flatten().sort().values for part in (found, changed)), atol=1e-6)
    assert not torch.equal(found, changed)


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("name", ON_BOXES)
def test_detector_success_agrees_with_its_detections(goal, name):
    x, boxes = blob_images()
    model = Blobs()
    criterion = GOALS[goal](boxes, torch.full((3,), -1))
    loud = {"eps": 0.5, **({} if name in ("fgsm", "square", "dag") else {"steps": 30})}
    loud |= {"steps": 120} if name == "dag" else {"queries": 200} if name == "square" else {}
    result = run(name, model, x, criterion, **loud)
    found = detections(model.detection_maps(result.images))
    for row in range(3):
        truth, rows = without_padding(boxes[row]), without_padding(found[row])
        near = overlap(rows[:, :4], truth[:, :4]) >= 0.5
        if not result.success[row]:
            continue
        if goal == "vanish":
            assert not near.any()
        elif goal == "fabricate":
            assert (~near.any(1)).sum() >= len(truth)
        else:
            best = [rows[near[:, place]][0] for place in range(len(truth))]
            assert all(int(one[4]) != int(true[4]) for one, true in zip(best, truth, strict=True))
    if name not in ("square", "fgsm"):
        assert result.success.all()


def test_objects_of_the_target_class_do_not_count():
    x, boxes = blob_images()
    criterion = GOALS["mislabel"](boxes, torch.full((3,), 1))
    result = run("pgd", Blobs(), x, criterion, eps=0.5, steps=40)
    assert result.success[0] and result.success[2]
    first = without_padding(detections(Blobs().detection_maps(result.images))[0])[0]
    assert int(first[4]) == 1 and overlap(first[None, :4], boxes[0, :1, :4]) >= 0.5
    assert result.initially_wrong[1]  # its only object is of that class already


def test_mislabel_loss_moves_closest_cell_back_onto_the_object():
    maps = torch.full((1, 6, 1, 2), -3.0)
    maps[0, 2:, 0] = torch.tensor([[0.0, 0, 4, 1], [9.0, 9, 12, 12]]).T  # the first overlaps the object by a quarter
    maps.requires_grad_()
    criterion = GOALS["mislabel"](torch.tensor([[[0.0, 0, 4, 4, 0]]]), torch.tensor([-1]))
    (slope,) = torch.autograd.grad(criterion.loss(maps).sum(), maps)
    assert float(criterion.margin(maps.detach())) > 1e3 and not slope[..., 1].any()
    assert slope[0, 1, 0, 0] > 0 > slope[0, 0, 0, 0] and slope[0, 5, 0, 0] > 0  # the other class up, the box longer
    kept = criterion.given_clean_outputs(maps.detach())
    assert float(kept.margin(maps.detach())) < 0 and not kept.loss(maps).any()


def test_detections_are_the_same_in_any_batch():
    x, _ = blob_images()
    maps = Blobs().detection_maps(x)
    assert torch.equal(detections(maps)[[2, 0]], detections(maps[[2, 0]]))
