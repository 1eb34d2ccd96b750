"""Attacks stay within the passes that they declare, not counting repairs after rounding."""

import pytest
import torch

from app.core.catalog.cost import evaluate
from models.attacks.core.access import WhiteBox
from models.attacks.core.result import ROUNDS
from models.attacks.criteria.classification import Misclassified
from models.capabilities import Classifies
from models.registry import attacks
from tests.models.attacks.nets import cnn, victims
from tests.models.attacks.test_contract import access_for, make

CASES = [(name, norm) for name, kind in attacks().items() if Classifies in kind.victims for norm in kind.norms]


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_passes_stay_within_the_declared_cost(name, norm):
    x, y = victims(3)
    # most hold out, so that all is spent
    config = {} if attacks()[name].minimal else {"eps": 0.004 if norm == "linf" else 0.02}
    attack = make(name, norm, **config)
    result = attack.run(access_for(attack), x, Misclassified(y), attack.threat(256))
    names = attack.config.model_dump() | {"classes": 10, "pixels": 64}
    forwards, backwards = evaluate(attack.forwards, names), evaluate(attack.backwards, names)
    assert int(result.queries.max()) <= forwards + ROUNDS
    assert int(result.gradients.max()) <= backwards
    if not attack.minimal and norm == "linf":
        assert int(result.queries.max()) >= 0.2 * forwards, "far too dear"


def test_fgsm_makes_two_forward_passes_of_correctly_classified_images():
    x, y = victims(3)
    shown = []

    class Counting(torch.nn.Module):
        def forward(self, images):
            shown.append(len(images))
            return cnn()(images)

    attacks()["fgsm"](eps=1 / 255).run(WhiteBox(Counting().eval()), x, Misclassified(y))
    assert shown == [3, 3]
