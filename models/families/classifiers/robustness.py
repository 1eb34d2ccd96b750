"""Robust accuracies of an adversarially trained classifier, for its result: FGSM and PGD side by side.

FGSM alone overestimates the robustness of a network that was trained on it (label leaking); PGD shows whether it holds.
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
from models.capabilities import predicted_classes
from models.data import Columns
from models.evaluation.metrics import spaced_rows
from models.family import Family

MAX_IMAGES, MAX_VALUES = 500, 1_000_000
"""Maximum validation images, and pixel values in all of them (but at least 32 images)."""
LEAKING = 0.15
"""An accuracy under FGSM that exceeds that under PGD by more than this is reported as robustness to FGSM alone."""


def robust_accuracies(family: Family, validation: Columns, eps: float, norm: str, seed: int = 0) -> dict[str, float]:
    """Accuracy on validation images: clean, under random signs, FGSM and PGD-40, all of size eps."""
    count = min(MAX_IMAGES, max(32, MAX_VALUES // family.data.pixels))
    columns = (torch.cat(list(spaced_rows(validation, name, count))) for name in ("images", "labels"))
    images, labels = (column.to(family.device) for column in columns)
    access = WhiteBox(family, lambda net, x: net.logits(x))
    threat = ThreatModel(norm, eps)
    seeds = torch.arange(len(images), device=images.device) + seed

    def after(attack: Attack) -> float:
        result = attack.run(access, images, Misclassified(labels), threat, seeds)
        return fraction(~(result.success | result.initially_wrong))

    return {
        "attacked_images": float(len(images)),
        "accuracy_before_attack": fraction(predicted_classes(access.outputs(images)) == labels),
        "accuracy_random_signs": fraction(predicted_classes(access.outputs(noise(images, threat, seeds))) == labels),
        "accuracy_fgsm": after(FGSM(norm=norm)),
        "accuracy_pgd": after(PGD(norm=norm)),
    }


def fraction(correct: Tensor) -> float:
    return float(correct.double().mean())


def warnings(measured: dict[str, float]) -> list[str]:
    """Warnings about the numbers of `robust_accuracies`."""
    if "accuracy_pgd" not in measured:
        return []
    fgsm, pgd = measured["accuracy_fgsm"], measured["accuracy_pgd"]
    if fgsm > pgd + LEAKING:
        return [
            f"Accuracy is {fgsm:.1%} under FGSM but {pgd:.1%} under PGD of the same size: the model hides its gradient "
            "from one step and is not robust. Train with adversarial=pgd or trades."
        ]
    return []
