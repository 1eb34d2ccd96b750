"""Outputs that are not finite never become a label, a radius, a rate or a vote: they are refused, or counted apart."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models import registry
from models.attacks.core.access import LabelOracle, ScoreOracle, WhiteBox
from models.attacks.core.universal import Universal, UniversalConfig, measure
from models.attacks.criteria.classification import Misclassified
from models.attacks.square import Square
from models.capabilities import UNDECIDED, counting_nonfinite, finite_rows, misclassified, predicted_classes
from models.data import Columns
from models.defences.randomized_smoothing import certify, count_votes
from models.evaluation.confidence import lower_bound
from models.families.classifiers.classifier import Classifier
from models.families.dense.detector import Detector
from models.families.dense.segmenter import Segmenter
from models.operations.certify import Certify
from models.reports.core.base import Subject
from models.reports.segmentation_attack import SegmentationAttack
from models.training.loop import Training
from models.types import DataError, DataSpec, InputError
from tests.models.attacks.fields import Fields
from tests.models.attacks.nets import CLASSES, Victim, cnn, digits
from tests.models.families.classifiers.test_adversarial_training import small_digits
from tests.models.reports.test_dense import segments
from tests.models.reports.test_robustness import subject

BRIGHT = 0.35
"""Mean above which the logits overflow; about one digit in six is that bright."""


class Overflows(torch.nn.Module):
    """The logits of a network, not finite for bright images: some NaN, some infinite."""

    def __init__(self, net: torch.nn.Module, limit: float = BRIGHT):
        super().__init__()
        self.net, self.limit = net, limit

    def forward(self, x):
        bright = x.mean((1, 2, 3)) > self.limit
        wrong = torch.where(x[:, 0, 0, 0] > 0.5, torch.nan, torch.inf)
        return torch.where(bright[:, None], wrong[:, None], self.net(x))


def bright_rows(images: torch.Tensor) -> torch.Tensor:
    return images.mean((1, 2, 3)) > BRIGHT


@pytest.fixture(scope="module")
def learned() -> Subject:
    """A classifier of a few digits, which can be defended."""
    spec, train, validation = small_digits(400)
    torch.manual_seed(0)
    run = Training(Classifier.create({"epochs": 2, "width": 4, "noise": 0.0}, spec), train, validation)
    for _ in run.run():
        pass
    return Subject(run.family.eval().requires_grad_(False), spec, train, validation, validation, 0)


@pytest.fixture
def overflowing(learned, monkeypatch) -> tuple[Subject, Tensor]:
    """The subject, whose model has no finite output for the brighter half of the images, and their means."""
    images = learned.validation.columns["images"]
    means = torch.from_numpy(images).float().mean((1, 2, 3)) / 255
    limit, plain = float(means.quantile(0.7)), Classifier.logits

    def logits(self, x):
        bright = x.mean((1, 2, 3)) > limit
        return torch.where(bright[:, None], torch.nan, plain(self, x))

    monkeypatch.setattr(Classifier, "logits", logits)
    return learned, means > limit


def test_predicted_class_of_a_row_that_is_not_finite_is_undecided():
    logits = torch.tensor([[1.0, 2.0], [torch.nan, 9.0], [torch.inf, 0.0], [-torch.inf, 0.0], [3.0, 1.0]])
    assert predicted_classes(logits).tolist() == [1, UNDECIDED, UNDECIDED, UNDECIDED, 0]
    assert misclassified(logits, torch.tensor([0, 0, 1, 0, 0])).tolist() == [True, False, False, False, False]
    maps = logits.view(5, 2, 1, 1).expand(-1, -1, 2, 3)
    assert predicted_classes(maps)[:, 0, 0].tolist() == [1, UNDECIDED, UNDECIDED, UNDECIDED, 0]
    assert finite_rows(torch.tensor([1.0, torch.nan])).tolist() == [True, False]
    assert finite_rows(torch.zeros(0, 3)).tolist() == []


def test_rows_that_are_not_finite_are_counted_where_asked():
    with counting_nonfinite(2) as count:
        finite_rows(torch.tensor([torch.nan, 1.0, torch.inf]))
        predicted_classes(torch.ones(3, 2))
    assert count == [4]
    finite_rows(torch.tensor([torch.nan]))
    assert count == [4]


def test_copies_without_finite_output_abstain_and_count_against_the_class():
    seen = []

    def voter(images):
        logits = torch.tensor([[2.0, 1.0]]).repeat(len(images), 1)
        logits[::2] = torch.nan
        seen.append(len(images))
        return logits

    votes = count_votes(voter, torch.zeros(1, 4, 4), 0.25, torch.tensor(3), 128, 2, "votes")
    assert votes.tolist() == [64, 0]
    guess, radius, bound = certify(votes[None], votes[None], 128, 0.25, 0.001)
    assert bound.item() == pytest.approx(lower_bound(np.array([64]), 128, 0.001)[0])
    assert guess.item() == -1 and radius.item() == 0


def test_certificate_without_any_finite_vote_is_an_abstention():
    model, operation = Victim(Overflows(cnn(), -1.0)).eval(), Certify()
    params = operation.Params(n=50, n0=10)
    rows = operation.rows(model, digits()[0][:1], params)
    item = operation.answer(model, rows, operation.compute(model, rows, params), params).facts["items"][0]
    assert item["abstained"] and item["label"] is None and item["radius_l2"] == 0
    assert item["share"] == 0 and item["not_finite"] == 50
    json.dumps(item, allow_nan=False)


def families() -> dict:
    segments = DataSpec("segmentation", 8, 8, 1, ("ground", "thing"), {})
    return {
        "classify": Victim(cnn()).eval(),
        "segment": Segmenter.create({"width": 4}, segments).eval(),
        "detect-objects": Detector.create({"width": 4}, DataSpec("detection", 16, 16, 1, ("a", "b"), {})).eval(),
    }


@pytest.mark.parametrize("name", ["classify", "segment", "detect-objects"])
def test_operation_refuses_outputs_that_are_not_finite(name, monkeypatch):
    model = families()[name]
    operation = registry.operations()[name]()
    method = {"classify": "logits", "segment": "pixel_logits", "detect-objects": "detection_maps"}[name]
    plain = getattr(type(model), method)

    def broken(self, images):
        outputs = plain(self, images)
        outputs[1] = torch.nan
        return outputs

    params = operation.Params()
    images = torch.rand(3, *model.data.shape, generator=torch.Generator().manual_seed(0))
    rows = operation.rows(model, images, params)
    with torch.no_grad():
        operation.answer(model, rows, operation.compute(model, rows, params), params)
        monkeypatch.setattr(type(model), method, broken)
        outputs = operation.compute(model, rows, params)
    with pytest.raises(InputError, match="not finite for 1 of 3 inputs; the first is number 1"):
        operation.answer(model, rows, outputs, params)


@pytest.mark.parametrize("report", ["robustness", "smoothing", "defences", "transfer", "adversarial_detection"])
def test_report_leaves_images_without_finite_output_out_of_its_rates(report, overflowing):
    who, bright = overflowing
    kind = registry.reports()[report]
    quick = {
        "robustness": {"attacks": ["fgsm"], "eps": ["8/255"], "images": 1000},
        "smoothing": {"n": 20, "n0": 5, "sigma": 0.01, "images": 1000, "attacked": 0},
        "defences": {"defences": [[{"kind": "bit_depth"}]], "method": "fgsm", "images": 1000},
        "transfer": {"initial": 10, "rounds": 1, "epochs": 1, "substitutes": 1, "method": "fgsm"},
        "adversarial_detection": {"methods": ["fgsm"], "steps": 2, "images": 30},
    }[report]
    with torch.no_grad(), counting_nonfinite() as count:
        walk = kind().run(who, kind.Params(**quick), None)
        while True:
            try:
                next(walk)
            except StopIteration as end:
                result = end.value
                break
    assert count[0] > 0
    text = json.dumps([result.facts, result.tables], default=str)
    assert "NaN" not in text and "Infinity" not in text
    if report in ("robustness", "smoothing", "defences"):
        assert result.facts["images"] == int((~bright).sum())
    if report == "robustness":
        assert [row["answer"] for row in result.tables["images"]].count(None) == int(bright.sum())
        assert 0.3 < result.facts["clean_accuracy"] < 1
    if report == "transfer":
        assert result.facts["random_signs"] < 0.5


def test_pixels_of_an_image_without_finite_output_are_in_no_mean_iou(monkeypatch):
    who, plain, params = segments(6), Fields.pixel_logits, SegmentationAttack.Params(attacks=["fgsm"], eps=["2/255"])
    images = who.validation.columns["images"].astype(np.float32) / 255
    limit = float(np.quantile(images.mean((1, 2, 3)), 0.5))
    few = Columns({name: rows[images.mean((1, 2, 3)) <= limit] for name, rows in who.validation.columns.items()})

    def broken(self, x):
        return plain(self, x).where((x.mean((1, 2, 3)) <= limit)[:, None, None, None], torch.nan)

    def clean_miou(subject: Subject) -> float:
        walk = SegmentationAttack().run(subject, params, None)
        with torch.no_grad():
            while True:
                try:
                    next(walk)
                except StopIteration as end:
                    return end.value.facts["clean_miou"]

    expected = clean_miou(replace(who, validation=few))
    monkeypatch.setattr(Fields, "pixel_logits", broken)
    assert clean_miou(who) == pytest.approx(expected)


def test_report_on_a_model_that_is_never_finite_fails():
    who = subject(Overflows(cnn(), -1.0), 12)
    kind = registry.reports()["smoothing"]
    with pytest.raises(DataError, match="not finite for any of the 12 images"), torch.no_grad():
        list(kind().run(who, kind.Params(), None))


def test_universal_perturbation_ignores_images_without_finite_output():
    images = digits()[0][:80]
    failing = int(bright_rows(images).sum())
    columns = Columns({"images": (images * 255).round().byte().numpy()})
    access = WhiteBox(Victim(Overflows(cnn())).eval(), lambda net, x: net.logits(x))
    fit = Universal(access, columns, UniversalConfig(steps=4, batch_size=80), 0)
    for _ in fit.run():
        pass
    assert bool(torch.isfinite(fit.raw).all()) and bool(fit.raw.any())
    rates = measure(access, columns, {"none": torch.zeros_like(fit.raw), "delta": fit.delta})
    assert rates["none"].total == 80 - failing and rates["none"].changed == 0
    assert rates["delta"].total <= 80 and int(rates["delta"].answers.sum()) == rates["delta"].total


def test_label_oracle_gives_no_label_without_finite_scores():
    model = Victim(Overflows(cnn())).eval()
    images = digits()[0][:40]
    scores = LabelOracle(model.logits).outputs(images)
    assert torch.equal(~torch.isfinite(scores).all(1), bright_rows(images))
    bright = images[bright_rows(images)]
    run = Square(queries=5).run(ScoreOracle(model.logits), bright, Misclassified(torch.zeros(len(bright)).long()))
    assert bool(run.nonfinite.all()) and not bool(run.success.any())


def test_detector_threshold_ignores_scores_that_are_not_finite():
    kind = registry.detectors()["squeezing"]
    detector = kind(kind.Config(), DataSpec("labelled", 8, 8, 1, CLASSES))
    detector.calibrate(torch.tensor([0.1, 0.2, torch.nan, 0.3]))
    assert 0.2 < detector.threshold <= 0.3
    detector.calibrate(torch.tensor([torch.nan]))
    assert detector.threshold is None
