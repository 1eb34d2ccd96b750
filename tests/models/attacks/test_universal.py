"""Universal perturbations fool images they were not fitted to, far more often than noise of the same size."""

import pytest
import torch

from models.attacks.core.access import WhiteBox
from models.attacks.core.universal import (
    Universal,
    UniversalConfig,
    apply,
    fooling_matrix,
    fooling_rate,
    permuted,
    random_signs,
)
from models.data import Columns
from models.types import ConfigError
from tests.models.attacks.nets import cnn, digits


def splits():
    pixels = (digits()[0] * 255).round().to(torch.uint8).numpy()
    return Columns({"images": pixels[:300]}), Columns({"images": pixels[1297:]})


def fit(**config):
    train, test = splits()
    universal = Universal(WhiteBox(cnn()), train, UniversalConfig(eps="50/255", **config))
    steps = list(universal.run())
    return universal.delta, steps, test


@pytest.mark.parametrize(("config", "factor"), [({"steps": 60}, 4), ({"method": "deepfool", "passes": 1}, 2)])
def test_universal_perturbation_beats_controls_on_unseen_images(config, factor):
    delta, steps, test = fit(**config)
    box = WhiteBox(cnn())
    assert delta.abs().max() <= 50 / 255 + 1e-6
    assert torch.equal((delta * 255).round() / 255, delta)
    assert steps[-1].step == steps[-1].total
    rate = fooling_rate(box, test, delta)
    assert rate > factor * fooling_rate(box, test, random_signs(delta))
    assert rate > fooling_rate(box, test, permuted(delta))


def test_targeted_universal_perturbation_leads_to_its_class():
    delta, _, test = fit(steps=80, target=8)
    answers = cnn()(apply(delta, test.head(200)["images"])).argmax(1)
    plain = cnn()(test.head(200)["images"]).argmax(1)
    assert (answers == 8).float().mean() > 2 * (plain == 8).float().mean()


def test_resumed_fit_equals_uninterrupted_fit():
    train, _ = splits()
    config = UniversalConfig(steps=12)
    whole = Universal(WhiteBox(cnn()), train, config, seed=3)
    list(whole.run())
    first = Universal(WhiteBox(cnn()), train, config, seed=3)
    for step in first.run():
        if step.step == 5:
            break
    second = Universal(WhiteBox(cnn()), train, config, seed=3)
    second.restore(*first.state())
    list(second.run())
    assert torch.equal(whole.delta, second.delta)


def test_controls_keep_size_or_values():
    delta = torch.linspace(-0.2, 0.2, 64).view(1, 8, 8)
    assert torch.equal(permuted(delta).flatten().sort().values, delta.flatten().sort().values)
    assert random_signs(delta).abs().unique().numel() == 1


def test_zero_perturbation_fools_nothing_and_matrix_is_complete():
    _, test = splits()
    nothing = torch.zeros(1, 8, 8)
    assert fooling_rate(WhiteBox(cnn()), test, nothing) == 0
    matrix = fooling_matrix({"a": WhiteBox(cnn()), "b": WhiteBox(cnn())}, {"none": nothing}, test)
    assert matrix == {"none": {"a": 0.0, "b": 0.0}}


def test_deepfool_refuses_a_target():
    train, _ = splits()
    with pytest.raises(ConfigError):
        Universal(WhiteBox(cnn()), train, UniversalConfig(method="deepfool", target=3))
