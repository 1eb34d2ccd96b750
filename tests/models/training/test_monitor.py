"""The training monitor: alarms come once, clear, return, are treated, survive a resume; a healthy training has none."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.context import StepContext
from models.data import Columns
from models.diagnosis import Alarm, Inspection, Reading
from models.family import Config, OneLoss
from models.training.loop import Training
from models.training.monitor import general, inspection_plan
from models.types import DataSpec
from tests.models.data import dataset

NOTHING = Columns({})


class WaryConfig(Config):
    auto_remedy: bool = False


class Wary(OneLoss):
    """Complains at the looks in `ill`; a treatment adds one to a buffer."""

    name, summary, Config = "wary", "for tests", WaryConfig
    ill: tuple[int, ...] = ()

    def __init__(self, config, data):
        super().__init__(config, data)
        self.last = nn.Linear(data.pixels, data.pixels)
        self.register_buffer("doses", torch.zeros((), dtype=torch.int64))

    def loss(self, batch, context):
        return (self.last(batch["images"].flatten(1)) - batch["images"].flatten(1)).square().sum(1).mean(), {}

    def validation_loss(self, probe, context):
        return self.loss(probe, context)[0]

    def diagnose(self, look):
        assert not self.training and not torch.is_grad_enabled()
        if len(look.before) in self.ill:
            yield Alarm("queasy", "It is queasy.", "Let it rest.", {"look": len(look.before)})

    def auto_remedy(self, alarm, look):
        self.doses += 1
        return f"dose {int(self.doses)}" if self.doses <= 2 else None


def training(ill=(), **config) -> Training:
    spec, train, validation = dataset("plain")
    torch.manual_seed(0)
    model = Wary.create({"images": 400, "batch_size": 4} | config, spec)
    model.ill = ill
    return Training(model, train, validation)


def notices(run: Training) -> list[tuple]:
    return [(notice.kind, notice.images) for step in run.run() for notice in step.notices]


def test_an_alarm_is_raised_once_and_again_when_it_has_cleared():
    run = training(ill=(1, 2, 3))
    told, looks = notices(run), sorted(run.monitor.steps)
    assert told == [("alarm", looks[1] * 4), ("alarm_cleared", looks[4] * 4)]
    again = training(ill=(0, 3))
    kinds = [kind for kind, _ in notices(again)]
    assert kinds == ["alarm", "alarm_cleared", "alarm", "alarm_cleared"]
    assert [alarm.cleared is None for alarm in again.monitor.alarms] == [False, False]


def test_a_standing_alarm_says_cause_and_remedy_with_numbers():
    run = training(ill=tuple(range(50)))
    notices(run)
    (alarm,) = run.monitor.standing
    assert alarm.sentence == "It is queasy. Let it rest." and alarm.evidence == {"look": 0.0} and alarm.images == 4


@pytest.mark.parametrize("asked", [False, True])
def test_a_family_treats_itself_only_when_asked(asked):
    run = training(ill=(1, 2, 3), auto_remedy=asked)
    told = [kind for kind, _ in notices(run)]
    assert told == (["alarm", "alarm_treated", "alarm_cleared"] if asked else ["alarm", "alarm_cleared"])
    assert int(run.family.doses) == 3 * asked and run.monitor.alarms[0].treated == ("dose 2" if asked else None)


@pytest.mark.parametrize("stop", [3, 30, 60])
def test_resumed_training_has_same_alarms_readings_and_weights(stop):
    whole = training(ill=(1, 2, 4), auto_remedy=True)
    told = notices(whole)
    first = training(ill=(1, 2, 4), auto_remedy=True)
    before = [(notice.kind, notice.images) for _ in range(stop) for notice in first.advance().notices]
    second = training(ill=(1, 2, 4), auto_remedy=True)
    second.restore(first.state())
    assert before + notices(second) == told
    assert second.monitor.state() == whole.monitor.state()
    assert torch.equal(second.family.last.weight, whole.family.last.weight)
    assert int(second.family.doses) == int(whole.family.doses)


def test_looks_cost_at_most_a_fiftieth_of_long_trainings():
    for total, batch, rows in ((20_000, 32, 48), (80_000, 32, 1000), (1_200_000, 64, 10_000), (20_000, 8, 5)):
        steps, probe = inspection_plan(total, batch, rows)
        assert -(-total // batch) in steps and 1 in steps and len(steps) >= 5 and probe <= rows
        assert len(steps) * probe / 3 < 0.02 * total, (total, rows)


def one_look(images: Tensor) -> list[str]:
    context = StepContext(64, 640, 8, 0, torch.Generator())
    return [
        alarm.name for alarm in general(Inspection(Reading(64, {}), (), {"images": images}, context, NOTHING, NOTHING))
    ]


def test_images_that_use_little_of_the_range_are_unscaled():
    draws = torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert one_look(draws / 255) == ["unscaled-input"] == one_look(0.5 + draws / 10)
    assert one_look(draws) == [] == one_look(draws * 0.4)


def test_images_that_are_all_the_same_are_pointed_out():
    assert one_look(torch.rand(1, 1, 6, 6).expand(8, 1, 6, 6)) == ["constant-images"]
    assert one_look(torch.zeros(8, 1, 6, 6)) == ["constant-images"]


class Guesses(Wary):
    """Learns labels that have nothing to do with the images: by heart, if at all."""

    def loss(self, batch, context):
        return nn.functional.cross_entropy(self.last(batch["images"].flatten(1)), batch["labels"]), {}


def overfit(count: int) -> list[str]:
    draws = np.random.default_rng(0)
    splits = [
        {"images": draws.integers(0, 256, (rows, 1, 8, 8), np.uint8), "labels": draws.integers(0, 3, rows)}
        for rows in (count, 60)
    ]
    spec = DataSpec("labelled", 8, 8, 1, ("a", "b", "c"), {"train": {"images": count}})
    torch.manual_seed(0)
    config = {"images": 8000, "batch_size": 8, "learning_rate": 0.01}
    run = Training(Guesses.create(config, spec), *map(Columns, splits))
    return [alarm.name for step in run.run() for alarm in run.monitor.alarms if step.images == run.total]


def test_overfitting_is_seen_on_few_images_and_not_on_many():
    assert overfit(20) == ["overfitting"]
    assert overfit(2000) == []


def test_a_rising_loss_alone_is_not_overfitting():
    probe = {"images": torch.rand(8, 1, 8, 8)}
    context = StepContext(64, 640, 8, 0, torch.Generator())
    found = [Reading(n, {"loss": loss}, held) for n, loss, held in ((1, 9, 9), (2, 5, 5), (3, 6, 7), (4, 6, 8))]
    look = Inspection(Reading(5, {"loss": 6.0}, 9.0), tuple(found), probe, context, NOTHING, NOTHING)
    assert list(general(look)) == []
    fallen = Inspection(Reading(5, {"loss": 4.0}, 9.0), tuple(found), probe, context, NOTHING, NOTHING)
    assert [alarm.name for alarm in general(fallen)] == ["overfitting"]
