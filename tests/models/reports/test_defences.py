"""Reports on defences, certificates and detectors, over a small classifier of real digits."""

import json

import pytest
import torch

from models.attacks.criteria.detector_evasion import SelectiveLoss, UndetectedMisclassification
from models.families.classifiers.classifier import Classifier
from models.reports.adversarial_detection import AdversarialDetectionParams, AdversarialDetectionReport, auroc
from models.reports.core.base import ReportResult, Subject
from models.reports.defences import DefencesParams, DefencesReport, notes
from models.reports.smoothing import SmoothingParams, SmoothingReport
from models.training.loop import Training
from models.types import ConfigError, DataError
from tests.models.data import dataset
from tests.models.families.classifiers.test_adversarial_training import small_digits

EPS = 0.1


@pytest.fixture(scope="module")
def subject() -> Subject:
    spec, train, validation = small_digits(1000)
    torch.manual_seed(0)
    run = Training(Classifier.create({"epochs": 3, "width": 4, "noise": 0.1}, spec), train, validation)
    for _ in run.run():
        pass
    return Subject(run.family.eval().requires_grad_(False), spec, train, validation, validation, 0)


def follow(report, subject: Subject, params, state=None) -> tuple[ReportResult, list]:
    """The result, and all progress states as a checkpoint holds them."""
    run, states = report().run(subject, params, state), []
    with torch.no_grad():
        while True:
            try:
                step = next(run)
            except StopIteration as end:
                return end.value, states
            assert 0 <= step.done <= step.total
            if step.progress_state is not None:
                states.append(json.loads(json.dumps(step.progress_state)))


DEFENCES = DefencesParams(
    defences=[[{"kind": "bit_depth", "bits": 1}], [{"kind": "median"}, {"kind": "jpeg"}]], images=40, steps=5, eps=EPS
)
SMOOTHING = SmoothingParams(sigma=0.15, n=60, n0=10, images=12, attacked=6, steps=4, draws=2)
LEARNED = AdversarialDetectionParams(
    detector={"kind": "trained", "attacks": ["fgsm"], "images": 64, "eps": EPS},
    images=20,
    methods=["fgsm", "pgd"],
    steps=5,
    eps=EPS,
)
DETECTION = AdversarialDetectionParams(images=30, methods=["fgsm", "ddn"], steps=10, eps=EPS)
CASES = [(DefencesReport, DEFENCES), (SmoothingReport, SMOOTHING), (AdversarialDetectionReport, DETECTION)]


@pytest.fixture(scope="module")
def whole(subject) -> dict:
    """Each report run once: its result and its progress states."""
    return {report: follow(report, subject, params) for report, params in CASES}


@pytest.mark.parametrize(("report", "params"), CASES, ids=["defences", "smoothing", "detection"])
def test_resumed_report_gives_the_same_result(subject, whole, report, params):
    first, states = whole[report]
    again, _ = follow(report, subject, params, states[len(states) // 2])
    assert json.dumps([again.facts, again.tables], sort_keys=True) == json.dumps(
        [first.facts, first.tables], sort_keys=True
    )
    assert again.curves == first.curves


def test_adaptive_attack_is_at_least_as_strong_as_the_blind_one(whole):
    result, _ = whole[DefencesReport]
    none, bits, both = result.tables["defences"]
    names = [row["defence"] for row in (none, bits, both)]
    assert names == ["none", "bit_depth(bits=1)", "median + jpeg"]
    assert none["clean"] > 0.7 and none["adaptive"] < none["random_signs"] - 0.2
    assert none["blind"] == none["adaptive"]
    for row in (bits, both):
        assert row["adaptive_low"] <= row["adaptive"] <= row["adaptive_high"]
        assert row["adaptive"] <= row["clean"]
    assert both["adaptive"] <= both["blind"]
    assert result.pictures["defended"].shape == (4 * 4, 1, 14, 14)


def test_obfuscating_defence_gets_a_note():
    rows = [{}, {"defence": "jpeg", "blind": 0.7, "adaptive": 0.2}, {"defence": "tv", "blind": 0.7, "adaptive": 0.6}]
    assert len(notes(rows)) == 1 and "jpeg" in notes(rows)[0]


def test_certified_accuracy_is_at_most_accuracy_under_attack(whole):
    result, _ = whole[SmoothingReport]
    (plot,) = result.curves
    for name, values in plot.series.items():
        assert values == sorted(values, reverse=True), name  # accuracy falls with the radius
        assert all(low <= value <= high for value, (low, high) in zip(values, plot.intervals[name], strict=True))
    rows = result.tables["images"]
    assert result.facts["accuracy_smoothed"] == sum(row["answer"] == row["label"] for row in rows) / 12
    assert all((row["radius"] > 0) == (row["share_at_least"] > 0.5) for row in rows)
    assert not [note for note in result.notes if "certified:" in note]


def test_detector_is_evaluated_on_successful_attacks(whole):
    result, _ = whole[AdversarialDetectionReport]
    rows = {row["attack"]: row for row in result.tables["attacks"]}
    assert list(rows) == ["fgsm", "ddn", "adaptive"]
    assert rows["ddn"]["turned"] >= rows["fgsm"]["turned"] > 0
    assert rows["ddn"]["auroc"] > 0.5
    assert rows["adaptive"]["unnoticed"] >= rows["fgsm"]["unnoticed"]
    assert 0 <= result.facts["clean_suspected"] < 0.4


def test_auroc_is_the_share_of_pairs_in_order():
    assert auroc(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0])) == (2 + 1 + 0.5) / 4


def test_unsuspected_is_both_misclassified_and_below_the_threshold():
    outputs = torch.tensor([[0.0, 1.0, 0.1], [0.0, 1.0, 0.9], [1.0, 0.0, 0.1]])
    margin = UndetectedMisclassification(torch.tensor([0, 0, 0]), threshold=0.5, unit=0.5).margin(outputs)
    assert (margin < 0).tolist() == [True, False, False]


def test_selective_loss_alternates_between_its_two_goals():
    outputs = torch.tensor([[0.0, 1.0, 0.9], [1.0, 0.0, 0.9]], requires_grad=True)
    loss = SelectiveLoss(torch.tensor([0, 0]), threshold=0.5, unit=0.5).loss(outputs)
    (slope,) = torch.autograd.grad(loss.sum(), outputs)
    assert slope[0].tolist() == [0, 0, -2]  # fooled already: what is left is the suspicion
    assert slope[1, 0] < 0 < slope[1, 1] and slope[1, 2] == 0


def test_trained_detector_detects_an_attack_it_did_not_learn_from(subject):
    result, states = follow(AdversarialDetectionReport, subject, LEARNED)
    learned, unseen, adaptive = result.tables["attacks"]
    assert learned["learned_from"] and not unseen["learned_from"] and result.facts["learned_from"] == ["fgsm"]
    assert learned["auroc"] > 0.85 and unseen["auroc"] > 0.75
    assert result.facts["random_signs_suspected"] < learned["suspected"]  # it is no detector of noise
    assert adaptive["unnoticed"] >= unseen["unnoticed"]
    again, _ = follow(AdversarialDetectionReport, subject, LEARNED, states[0])
    assert [again.facts, again.tables] == [result.facts, result.tables]


def test_invalid_stage_is_refused_with_its_position(subject):
    params = DefencesParams(defences=[[{"kind": "median"}], [{"kind": "median"}, {"kind": "jpeg", "quality": 0}]])
    with pytest.raises(ConfigError) as caught:
        follow(DefencesReport, subject, params)
    assert caught.value.field == "params/defences/1/1/quality"


def test_labels_of_other_classes_are_refused(subject):
    spec, train, validation = dataset("labelled", (1, 14, 14))
    other = Subject(subject.model, spec, train, validation, None, 0)
    with pytest.raises(DataError):
        follow(SmoothingReport, other, SMOOTHING)
