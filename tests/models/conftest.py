"""Trainings of these tests compute the same numbers on every machine."""

import pytest

from models import family


@pytest.fixture(autouse=True)
def auto_precision_is_float32(monkeypatch):
    monkeypatch.setattr(family, "computes_bf16", lambda device: False)
