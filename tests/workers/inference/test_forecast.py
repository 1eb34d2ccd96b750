"""The forecast of a training: its shape, what it grows with, and where its numbers come from."""

import json
import time
from dataclasses import replace

import pytest
import torch

from models.registry import families
from models.training.loop import Training
from models.types import DataSpec
from tests.models.data import digits, for_family
from tests.tiny import facts
from workers.inference import calibration, model_free_calls
from workers.inference.calibration import Calibration, Rate, known_slowness
from workers.inference.model_free_calls import validate_training


@pytest.fixture(autouse=True)
def as_the_reference_machine(monkeypatch):
    monkeypatch.setattr(Calibration, "slowness", 1.0)
    monkeypatch.setattr(Calibration, "device", "cpu")
    monkeypatch.setattr(Calibration, "rates", ())


FACTS = facts(28, 1, 10, 4000)


def checked(config: dict, about: dict = FACTS) -> dict:
    return validate_training({"params": {"family": "autoencoder", "config": config, "facts": about}}, None)["facts"]


def forecast(size: int = 28, **config) -> dict | None:
    return checked(config, facts(size, 1, 10, 4000))["forecast"]


def test_says_how_long_where_and_at_which_effort():
    known = forecast(effort="lesson")
    family, data = families()["autoencoder"], DataSpec.from_facts(FACTS)
    config = family.complete_config({"effort": "lesson"}, data)
    assert (known["effort"], known["device"], known["images"]) == ("lesson", "cpu", config.images)
    assert known["updates"] == -(-config.images // config.batch_size) and known["trainings"] == 0
    low, high = known["seconds"]
    cost = config.images * family.milliseconds_per_image(config, data) / 1000
    assert 0 < low < cost < high
    assert known["parts"].keys() == {"start", "updates", "measuring"}
    assert known["memory_bytes"][0] < known["memory_bytes"][1]
    json.dumps(known)


def test_nothing_is_said_before_the_speed_is_known(monkeypatch):
    monkeypatch.setattr(Calibration, "slowness", None)
    assert forecast() is None


def test_grows_with_length_size_width_and_the_slowness_of_the_machine(monkeypatch):
    base = forecast(images=10_000)
    larger = [forecast(images=20_000), forecast(images=10_000, size=64), forecast(images=10_000, width=64)]
    monkeypatch.setattr(Calibration, "slowness", 3.0)
    for other in (*larger, forecast(images=10_000)):
        assert all(more > less for more, less in zip(other["seconds"], base["seconds"], strict=True))
    for other in larger[1:]:
        assert other["memory_bytes"][1] > base["memory_bytes"][1]


def test_finished_trainings_of_the_same_kind_replace_the_speed_of_the_machine(monkeypatch):
    data = {"channels": 1, "height": 28, "width": 28}
    same = checked({})["config"]
    others = [
        Rate("vae", same, data, "cpu", 1.0), Rate("autoencoder", same, data, "cuda", 1.0),
        Rate("autoencoder", same | {"width": 64}, data, "cpu", 1.0),
        Rate("autoencoder", same, data | {"height": 64}, "cpu", 1.0),
    ]  # fmt: skip
    monkeypatch.setattr(Calibration, "rates", tuple(others))
    assert forecast(images=10_000)["trainings"] == 0
    own = [Rate("autoencoder", same, data, "cpu", rate) for rate in (900.0, 1000.0)]
    monkeypatch.setattr(Calibration, "rates", (*others, *own))
    known = forecast(images=10_000)
    low, high = known["parts"]["updates"]
    assert known["trainings"] == 2 and low <= 10.0 and 10_000 / 900 <= high < 14


@pytest.mark.parametrize("name", families())
def test_every_family_has_a_forecast_of_its_memory(name):
    family = families()[name]
    spec, _, _ = for_family(family, (1, 28, 28))
    spec = replace(spec, columns={side: dict.fromkeys(names, 4000) for side, names in spec.columns.items()})
    state = torch.random.get_rng_state()
    known = model_free_calls.forecast(family, family.complete_config({}, spec), spec)
    assert known["memory_bytes"][0] > 450e6
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.long
@pytest.mark.parametrize(("family", "images"), [("autoencoder", 16_000), ("gan", 3200), ("classifier", 12_000)])
def test_the_forecast_contains_the_time_of_a_training(family, images, monkeypatch, tmp_path):
    """On the machine of the test, by its CPU time: the speed is measured as a worker measures it."""
    spec, train, validation = digits()
    monkeypatch.setattr(Calibration, "slowness", known_slowness(tmp_path / "speed.json")[1])
    config = families()[family].complete_config({"images": images}, spec)
    low, high = model_free_calls.forecast(families()[family], config, spec)["parts"]["updates"]
    training = Training(families()[family].create(config.model_dump(), spec), train, validation)
    started = time.process_time()
    for _ in training.run():
        pass
    assert low <= time.process_time() - started <= high


def test_the_speed_is_measured_once_for_a_machine(tmp_path, monkeypatch):
    device, first = known_slowness(tmp_path / "speed.json")
    monkeypatch.setattr(calibration, "measure", None)
    assert known_slowness(tmp_path / "speed.json") == (device, first) and first > 0


def test_a_damaged_file_of_speeds_is_measured_anew(tmp_path):
    (tmp_path / "speed.json").write_text("{")
    _, slowness = known_slowness(tmp_path / "speed.json")
    assert slowness > 0 and len(json.loads((tmp_path / "speed.json").read_text())) == 1
