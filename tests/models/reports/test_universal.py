"""Reports on universal perturbations and on transfer, over a real network on real digits."""

import pytest
import torch

from models.attacks.core.access import WhiteBox
from models.attacks.core.universal import Universal, UniversalConfig
from models.data import Columns
from models.families.classifiers.classifier import Classifier
from models.reports.core.base import Subject
from models.reports.transfer import TransferReport
from models.reports.universal_defence import UniversalDefenceReport
from models.reports.universal_fooling import UniversalFoolingReport
from models.training.loop import Training
from models.types import ConfigError, DataError, DataSpec
from tests.models.attacks.nets import CLASSES, Victim, cnn, digits


def split(start: int, stop: int) -> Columns:
    images, labels = (part[start:stop] for part in digits())
    return Columns({"images": (images * 255).round().byte().numpy(), "labels": labels.numpy()})


def subject(model=None, **more) -> Subject:
    train, test = split(0, 600), split(1297, 1797)
    rows = {"train": {"images": 600, "labels": 600}, "validation": {"images": 500, "labels": 500}}
    data = DataSpec("labelled", 8, 8, 1, CLASSES, rows)
    return Subject(model or Victim(cnn()).eval(), data, train, test, None, seed=1, **more)


def finish(report, who: Subject, **params):
    walk, done = report().run(who, report.Params(**params)), 0
    with torch.no_grad():
        while True:
            try:
                step = next(walk)
            except StopIteration as end:
                return end.value
            assert done <= step.done <= step.total
            done = step.done


def delta() -> torch.Tensor:
    fit = Universal(WhiteBox(cnn()), split(0, 300), UniversalConfig(eps="50/255", steps=40))
    list(fit.run())
    return fit.delta


def test_the_matrix_has_every_pair_with_controls():
    made = {"shift": delta(), "none": torch.zeros(1, 8, 8)}
    result = finish(UniversalFoolingReport, subject(others={"twin": Victim(cnn()).eval()}, perturbations=made),
                   perturbations=["shift", "none"], others=["twin"], images=200)  # fmt: skip
    assert len(result.tables["cells"]) == 4
    rate = result.facts["fooling"]["shift"]
    assert rate["twin"] == rate["this model"] > 0.3 and result.facts["fooling"]["none"]["this model"] == 0
    cell = result.tables["cells"][0]
    assert cell["rate"] > 2 * cell["random_signs"] and cell["interval"][0] < cell["rate"] < cell["interval"][1]
    with pytest.raises(ConfigError, match="shape"):
        finish(UniversalFoolingReport, subject(perturbations={"p": torch.zeros(1, 4, 4)}), perturbations=["p"])


def test_fine_tuning_lowers_the_fooling_rate_of_its_perturbation():
    who = subject()
    model = Classifier.create({"epochs": 6}, who.data)
    training = Training(model, who.train, who.validation, 0)
    for _ in training.run():
        pass
    model.eval().requires_grad_(False)
    result = finish(UniversalDefenceReport, subject(model), eps="50/255", steps=30, epochs=3, images=300, held_out=300)
    facts = result.facts
    assert facts["fooling_after_same"] < 0.6 * facts["fooling_before"]
    assert facts["accuracy_after"] > facts["accuracy_before"] - 0.1
    assert {row["perturbation"] for row in result.tables["measured"]} == {"first", "refitted", "random_signs", "none"}


def test_substitutes_learn_from_counted_labels_and_their_examples_transfer():
    result = finish(TransferReport, subject(), initial=80, rounds=2, budget=200, eps="50/255", images=200, epochs=8)
    facts, rounds = result.facts, result.tables["rounds"]
    assert [row["queries"] for row in rounds] == [80, 160, 200]
    assert facts["agreement"] > 0.7
    assert facts["white_box"] >= facts["transfer"] > 2 * facts["random_signs"]
    again = finish(TransferReport, subject(), initial=80, rounds=2, budget=200, eps="50/255", images=200, epochs=8)
    assert again.facts == facts


def test_too_few_images_or_queries_are_refused():
    with pytest.raises(DataError, match="leaves none"):
        finish(TransferReport, subject(), initial=500)
    with pytest.raises(DataError, match="budget"):
        finish(TransferReport, subject(), initial=80, budget=20)
