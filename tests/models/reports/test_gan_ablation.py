"""The factorial experiment: orthogonal design, effects by hand, resuming."""

import numpy as np
import pytest

from models.families.gans.gan import GAN
from models.registry import reports
from models.reports.core.base import Subject
from models.reports.gan_ablation import SWITCHES, GanAblationReport, config_with, design, effects, summarise, trials
from models.types import ConfigError
from tests.models.families.gans.tiny import build, columns

Params = GanAblationReport.Params


def subject(**config) -> Subject:
    model = build(GAN, **config).eval().requires_grad_(False)
    return Subject(model, model.data, columns(model.data), columns(model.data, 1), None, seed=0)


def finish(run):
    steps = []
    while True:
        try:
            steps.append(next(run))
        except StopIteration as end:
            return steps, end.value


@pytest.mark.parametrize(("count", "runs"), [(1, 2), (2, 4), (3, 4), (4, 8), (7, 8)])
def test_the_design_is_orthogonal_and_balanced(count, runs):
    table = design(count)
    assert table.shape == (runs, count) and set(table.flatten()) == {-1, 1}
    assert np.array_equal(table.T @ table, runs * np.eye(count)) and not table.sum(0).any()


def test_effects_and_their_intervals_by_hand():
    signs = np.tile(design(3), (2, 1)).astype(float)
    logs = 2.0 + signs @ np.array([0.5, -0.25, 0.0])
    slopes, half = effects(signs, logs)
    assert slopes == pytest.approx([0.5, -0.25, 0], abs=1e-12) and half == pytest.approx(0, abs=1e-9)
    # residuals alternate by 0.1: 8 trainings, 4 degrees of freedom, t = 2.13
    noisy = logs + 0.1 * np.repeat([1, -1], 4)
    assert effects(signs, noisy)[1] == pytest.approx(2.13 * (8 * 0.01 / 4 / 8) ** 0.5)
    assert effects(design(3).astype(float), np.arange(4.0))[1] == np.inf


def test_the_verdict_follows_from_the_interval_of_the_ratio():
    params = Params(switches=["replay", "relu"], repeats=2)
    plan = list(trials(params))
    fds = [10 * (0.5 if row["replay"] > 0 else 1) * (1.1 if repeat else 1) for row, repeat in plan]
    table = summarise(params, plan, fds, 1.0).tables["effects"]
    assert table[0]["ratio"] == pytest.approx(0.5) and table[0]["verdict"] == "helps"
    assert table[1]["ratio"] == pytest.approx(1.0) and table[1]["verdict"] == "unclear"
    assert table[0]["low"] < 0.5 < table[0]["high"]


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_is_valid_on_and_off_and_changes_its_settings(name):
    who = subject()
    off, on = (config_with(who, {name: sign}, Params(switches=[name])) for sign in (-1, 1))
    assert off != on and off.images == on.images == 12_800
    changed = {field for field in type(on).model_fields if getattr(on, field) != getattr(off, field)}
    assert changed <= set(SWITCHES[name][1]) | {"r2"}


def test_invalid_switches_are_named():
    with pytest.raises(ConfigError, match="unknown switch 'soft_labels'"):
        list(trials(Params(switches=["soft_labels"])))
    with pytest.raises(ConfigError, match="different"):
        list(trials(Params(switches=["relu", "relu"])))
    with pytest.raises(ConfigError, match="body=mlp and downsampling=max exclude each other"):
        next(GanAblationReport().run(subject(body="mlp"), Params(switches=["max_pooling"], images=64)))


def test_a_stopped_report_continues_with_the_finished_trainings():
    who, params = subject(), Params(switches=["replay"], images=64, repeats=2)
    steps, whole = finish(GanAblationReport().run(who, params))
    assert [len(step.progress_state) for step in steps if step.progress_state] == [1, 2, 3, 4]
    assert steps[-1].done == steps[-1].total
    half = next(step.progress_state for step in steps if step.progress_state and len(step.progress_state) == 2)
    later, again = finish(GanAblationReport().run(who, params, half))
    assert again == whole and len(later) < len(steps)
    assert len(whole.tables["trainings"]) == 4 and whole.facts["trainings"] == 4


def test_only_families_with_these_settings_fit():
    from models.families.gans.style_gan import StyleGAN

    assert reports()["gan_ablation"] is reports()["hack_lab"] is GanAblationReport
    assert GanAblationReport.fits(GAN) and not GanAblationReport.fits(StyleGAN)
