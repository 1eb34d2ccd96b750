"""Agreement between the requested condition and the samples, according to the dataset's feature network."""

import torch
from torch import Tensor

from models.data import Columns
from models.evaluation.fidelity import Fidelity
from models.evaluation.metrics import gather, nearest, spaced_rows

NEIGHBOURS = 5


def class_agreement(fidelity: Fidelity, validation: Columns, samples: Tensor, labels: Tensor) -> dict[str, float]:
    """Fraction of samples (n, c, h, w) that the network assigns to the requested class (n,), overall and for the worst
    class; the same for real images; and `label_entropy`, the entropy of the assigned classes of the samples of one
    requested class, averaged over classes (0 to 1, 1 for chance)."""
    predicted = fidelity.class_logits(samples).argmax(1)
    truth = torch.cat(list(spaced_rows(validation, "labels", fidelity.count)))
    classes = fidelity.net.content.out_features
    table = torch.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes).double()
    shares = table[table.sum(1) > 0]
    shares = shares / shares.sum(1, keepdim=True)
    entropy = -torch.xlogy(shares, shares).sum(1) / torch.tensor(float(classes)).log()
    return {
        "class_agreement": float((predicted == labels).double().mean()),
        "class_agreement_worst": float((table.diag()[table.sum(1) > 0] / table.sum(1)[table.sum(1) > 0]).min()),
        "class_agreement_real": float(
            (fidelity.class_logits(fidelity.validation_images).argmax(1) == truth).double().mean()
        ),
        "label_entropy": float(entropy.mean()),
    }


def number_agreement(
    fidelity: Fidelity, train: Columns, validation: Columns, samples: Tensor, targets: Tensor
) -> dict[str, float]:
    """Mean absolute difference between the requested numbers (n,) and those of the nearest training images, for samples
    and for real images; and that of a constant answer, the mean."""
    numbers = torch.cat(list(spaced_rows(train, "targets", fidelity.count)))
    reference = gather(train, lambda images: fidelity.rows(images), torch.device("cpu"), fidelity.count)

    def error(images: Tensor, requested: Tensor) -> float:
        neighbours = nearest(fidelity.rows(images), reference, min(NEIGHBOURS, len(numbers)))[1]
        return float((numbers[neighbours].mean(1) - requested).abs().mean())

    truth = torch.cat(list(spaced_rows(validation, "targets", fidelity.count)))
    return {
        "target_error": error(samples, targets),
        "target_error_real": error(fidelity.validation_images, truth),
        "target_error_mean": float((numbers.mean() - targets).abs().mean()),
    }
