"""The quality command: any dataset of a service, uploaded or built in, a verdict by the row's target, a kept record."""

import json
from argparse import Namespace

import pytest

from app.core.store.keys import LOCAL
from tests.benchmarks import claims, quality
from tests.benchmarks.claims import Found, Row
from tests.workers import trainings

OPTIONS = {"dataset": "mine", "seed": 0, "minutes": 0.05, "images": 64, "record": True, "trace": True}


@pytest.fixture
def uploaded(place, monkeypatch, tmp_path):
    monkeypatch.setattr(quality, "RECORDS", tmp_path / "records")
    trainings.store_dataset("mine", count=30, tenant=LOCAL)
    return tmp_path / "records"


def test_a_row_trains_on_an_uploaded_dataset_within_its_budget(uploaded, capsys):
    def measure(subject: claims.Subject) -> Found:
        run = subject.trained("autoencoder", {"body": "mlp", "latent_dim": 2, "epochs": 100})
        assert run.training.images <= 64 + run.training.batch_size
        return Found(run.measured["mse"], {"mean image": run.measured["mse_mean_image"]}, run.note, run.short)

    row = Row("tiny", "learns something", "MSE", claims.at_most_times(0.0, "mean image"), measure)
    assert quality.attempt([row], Namespace(**OPTIONS))
    assert "NOT REACHED (budget ended it early)" in capsys.readouterr().out
    record = json.loads((uploaded / "tiny@mine.json").read_text())
    assert record["short"] and record["images"] == {"train": 30, "validation": 10} and record["value"] > 0


def test_a_short_measurement_does_not_replace_a_full_one(uploaded):
    found = {"short": False, "value": 1.0}
    row = Row("once", "is", "1", claims.at_least(1), lambda subject: Found(**found))
    for found in ({"short": False, "value": 1.0}, {"short": True, "value": 0.5}):  # noqa: B007
        assert quality.attempt([row], Namespace(**OPTIONS))
    assert json.loads((uploaded / "once@mine.json").read_text())["value"] == 1.0


def test_a_row_that_fails_or_does_not_suit_says_so(uploaded, capsys):
    def broken(subject: claims.Subject) -> Found:
        raise RuntimeError("no such thing")

    row = Row("broken", "is", "1", claims.at_least(1), broken)
    assert not quality.attempt([row], Namespace(**OPTIONS | {"trace": False}))
    unsuited = Row("wide", "is", "1", claims.at_least(1), broken, suits=lambda spec: spec.width > 100)
    assert quality.attempt([unsuited], Namespace(**OPTIONS))
    shown = capsys.readouterr().out
    assert "could not be measured: RuntimeError: no such thing" in shown and "not about such a dataset" in shown
    assert not uploaded.exists()
