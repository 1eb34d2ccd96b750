"""Whether a conditional model does as it is told, by the judgement of the dataset's frozen network."""

import torch
from torch import Tensor

from models.data import Columns
from models.evaluation.fidelity import Fidelity
from models.evaluation.metrics import gather, nearest, spread

NEIGHBOURS = 5


def class_agreement(measure: Fidelity, validation: Columns, found: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of images (n, c, h, w) the network takes for the class asked for (n,), beside its share on real images.

    `label_entropy` is the mean over classes of the entropy of what their images are taken for, 1 for chance.
    """
    taken = measure.predicted(found).argmax(1)
    truth = torch.cat(list(spread(validation, "labels", measure.count)))
    classes = measure.net.content.out_features
    table = torch.bincount(labels * classes + taken, minlength=classes**2).reshape(classes, classes).double()
    shares = table[table.sum(1) > 0]
    shares = shares / shares.sum(1, keepdim=True)
    entropy = -torch.xlogy(shares, shares).sum(1) / torch.tensor(float(classes)).log()
    return {
        "class_agreement": float((taken == labels).double().mean()),
        "class_agreement_worst": float((table.diag()[table.sum(1) > 0] / table.sum(1)[table.sum(1) > 0]).min()),
        "class_agreement_real": float((measure.predicted(measure.unseen).argmax(1) == truth).double().mean()),
        "label_entropy": float(entropy.mean()),
    }


def number_agreement(
    measure: Fidelity, train: Columns, validation: Columns, found: Tensor, wanted: Tensor
) -> dict[str, float]:
    """Mean distance of the number asked for from that of the nearest real images, beside real images and the mean."""
    known = torch.cat(list(spread(train, "targets", measure.count)))
    reference = gather(train, lambda images: measure.rows(images), torch.device("cpu"), measure.count)

    def error(images: Tensor, numbers: Tensor) -> float:
        read = known[nearest(measure.rows(images), reference, min(NEIGHBOURS, len(known)))[1]].mean(1)
        return float((read - numbers).abs().mean())

    truth = torch.cat(list(spread(validation, "targets", measure.count)))
    return {
        "target_error": error(found, wanted),
        "target_error_real": error(measure.unseen, truth),
        "target_error_mean": float((known.mean() - wanted).abs().mean()),
    }
