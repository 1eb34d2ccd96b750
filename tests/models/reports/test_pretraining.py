"""The report on what an encoder is worth: equal terms for all methods, and it goes on where it was stopped."""

import numpy as np
import pytest
import torch

from models.families.autoencoders.autoencoder import Autoencoder
from models.families.autoencoders.denoising_autoencoder import DenoisingAutoencoder
from models.reports.core.base import Subject
from models.reports.pretraining import METHODS, PretrainingReport, balanced_rows, new_training, planned_trainings
from models.types import DataError, DataSpec
from tests.models.training.test_alarms import run, splits

FAST = {"labels": [10, 40], "images": 320, "batch_size": 16, "seeds": 2, "learning_rate": 0.01}


def subject(kind=Autoencoder, **config) -> Subject:
    data = splits(120)
    model = run(kind, data, latent_dim=6, **({"body": "mlp", "images": 3200} | config)).family
    return Subject(model.eval().requires_grad_(False), *data, None, seed=0)


def follow(who: Subject, state=None, stop: int | None = None, **params):
    """The result, all progress states, and the steps of progress."""
    report, progress, states = PretrainingReport(), [], []
    steps = report.run(who, report.Params(**(FAST | params)), state)
    while True:
        try:
            with torch.no_grad():
                step = next(steps)
        except StopIteration as end:
            return end.value, states, progress
        progress.append((step.done, step.total))
        states += [step.progress_state] if step.progress_state is not None else []
        if stop is not None and len(states) == stop:
            return None, states, progress


def test_every_method_is_tried_at_every_number_of_labels_with_every_seed():
    result, states, progress = follow(subject())
    table = result.tables["accuracy"]
    assert [(row["labels"], row["method"]) for row in table] == [(n, way) for n in (10, 40, 120) for way in METHODS]
    assert all(0 <= row["lowest"] <= row["accuracy"] <= row["highest"] <= 1 and row["seeds"] == 2 for row in table)
    assert progress == sorted(progress) and progress[-1][0] == progress[-1][1] and len(states) == 18
    (curve,) = result.curves
    assert curve.x == [10, 40, 120] and set(curve.series) == set(METHODS) == set(curve.intervals) and curve.log_x
    last = {row["method"]: row["accuracy"] for row in table[-3:]}
    assert result.facts["gain_probe:120"] == pytest.approx(last["probe"] - last["scratch"])
    assert last["fine_tuned"] > 0.8 > result.facts["accuracy_majority"] - 0.2


def test_resumed_report_gives_the_same_result():
    who = subject()
    whole, *_ = follow(who)
    _, states, _ = follow(who, stop=7)
    resumed, rest, _ = follow(who, state=states[-1])
    assert resumed == whole and len(rest) == 18 - 7


KINDS = [(Autoencoder, "mlp"), (DenoisingAutoencoder, "mlp"), (Autoencoder, "linear")]


@pytest.mark.parametrize(("kind", "body"), KINDS)
def test_the_methods_differ_in_the_start_and_in_what_learns_alone(kind, body):
    who, params = subject(kind, images=64, body=body), PretrainingReport.Params(**FAST)
    trainings = {method: new_training(who, params, 40, method, 0) for method in METHODS}
    rows = {method: training.train.columns["images"] for method, training in trainings.items()}
    assert all(np.array_equal(rows["scratch"], other) for other in rows.values()) and len(rows["probe"]) == 40
    assert len({training.total for training in trainings.values()}) == 1
    images = torch.rand(4, 1, 8, 8)
    codes = {method: training.family.trunk(images) for method, training in trainings.items()}
    torch.testing.assert_close(codes["probe"], who.model.encode(images))
    assert torch.equal(codes["probe"], codes["fine_tuned"]) and not torch.allclose(codes["scratch"], codes["probe"])
    for training in trainings.values():
        training.advance()
    moved = {method: not torch.equal(t.family.eval().trunk(images), codes[method]) for method, t in trainings.items()}
    trainings["fine_tuned"].advance()  # a head of zeros passes no gradient on, so the body moves from the second update
    assert not moved["probe"] and not torch.equal(trainings["fine_tuned"].family.trunk(images), codes["fine_tuned"])


def test_few_labels_are_balanced_over_the_classes():
    labels = np.array([0] * 90 + [1] * 6 + [2] * 4)
    assert np.bincount(labels[balanced_rows(labels, 9, 0)]).tolist() == [3, 3, 3]
    assert np.bincount(labels[balanced_rows(labels, 30, 1)]).tolist() == [20, 6, 4]
    assert not np.array_equal(balanced_rows(labels, 9, 0), balanced_rows(labels, 9, 1))
    assert np.array_equal(balanced_rows(labels, 100, 5), np.arange(100))


def test_datasets_with_too_few_labels_are_refused():
    who = subject(images=64)
    plain = DataSpec("plain", 8, 8, 1, None, who.data.columns)
    with pytest.raises(DataError, match="at least 2 classes"):
        PretrainingReport.check(who.model, plain)
    with pytest.raises(DataError, match="at least 2; you sent 1"):
        list(planned_trainings(who, PretrainingReport.Params(labels=[1])))
    numbers = [count for count, *_ in planned_trainings(who, PretrainingReport.Params(labels=[100, 1000], seeds=1))]
    assert numbers == [100] * 3 + [120] * 3  # what there is not is left out
