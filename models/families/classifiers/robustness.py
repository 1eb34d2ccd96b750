"""What a hardened classifier withstands, for the result of its training: FGSM and PGD side by side, beside chance.

FGSM alone flatters a network that was trained on it (label leaking): PGD says whether there is anything to it.
"""

import torch
from torch import Tensor

from models.attacks.core.access import WhiteBox
from models.attacks.core.base import Attack
from models.attacks.core.sweep import noise
from models.attacks.core.threat import ThreatModel
from models.attacks.criteria.classification import Misclassified
from models.attacks.fgsm import FGSM
from models.attacks.pgd import PGD
from models.data import Columns
from models.evaluation.metrics import spread
from models.family import Family

ROWS, NUMBERS = 500, 1_000_000
"""At most so many validation images, and so many pixel values in all of them."""
LEAKING = 0.15
"""FGSM may leave so much more accuracy than PGD; beyond, the model is said to have learned FGSM alone."""


def withstood(family: Family, validation: Columns, eps: float, norm: str, seed: int = 0) -> dict[str, float]:
    """Accuracy on validation images: clean, under random signs, FGSM and PGD-40, all of size eps."""
    count = min(ROWS, max(32, NUMBERS // family.data.pixels))
    found = (torch.cat(list(spread(validation, name, count))) for name in ("images", "labels"))
    images, labels = (column.to(family.device) for column in found)
    access = WhiteBox(family, lambda net, x: net.logits(x))
    threat = ThreatModel(norm, eps)
    seeds = torch.arange(len(images), device=images.device) + seed

    def after(attack: Attack) -> float:
        found = attack.run(access, images, Misclassified(labels), threat, seeds)
        return share(~(found.success | found.initially_wrong))

    return {
        "attacked_images": float(len(images)),
        "accuracy_before_attack": share(access.outputs(images).argmax(1) == labels),
        "accuracy_random_signs": share(access.outputs(noise(images, threat, seeds)).argmax(1) == labels),
        "accuracy_fgsm": after(FGSM(norm=norm)),
        "accuracy_pgd": after(PGD(norm=norm)),
    }


def share(right: Tensor) -> float:
    return float(right.double().mean())


def warnings(measured: dict[str, float]) -> list[str]:
    """Sentences about numbers of `withstood`."""
    if "accuracy_pgd" not in measured:
        return []
    fgsm, pgd = measured["accuracy_fgsm"], measured["accuracy_pgd"]
    if fgsm > pgd + LEAKING:
        return [
            f"Under FGSM {fgsm:.1%} stay right, under PGD of the same size {pgd:.1%}: the model has learned to hide its"
            " gradient from one step, not to withstand attacks. Train with adversarial=pgd or trades."
        ]
    return []
