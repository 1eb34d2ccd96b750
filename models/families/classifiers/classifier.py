"""The classifier: which of the classes does an image show."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from models.capabilities import Classifies
from models.context import StepContext
from models.data import Columns
from models.evaluation import metrics
from models.families.classifiers.adversarial_config import HardeningConfig
from models.families.classifiers.adversarial_training import Hardened
from models.types import Batch, DataError, DataSpec

LISTED = 20


class ClassifierConfig(HardeningConfig):
    """The loss is the cross-entropy, averaged over the batch."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target spread over all classes.")
    balance: Literal["none", "inverse"] = Field(
        "none", description="inverse: rare classes weigh as much as frequent ones."
    )


class Classifier(Classifies, Hardened):
    """By default a residual network with group normalisation. The first loss is log K."""

    name = "classifier"
    summary = "Tells which class an image belongs to."
    lecture = "Supervised learning: classification"
    layouts = ("labelled", "attributes")
    needs = ("images", "labels")
    Config = ClassifierConfig

    def __init__(self, config: ClassifierConfig, data: DataSpec):
        super().__init__(config, data)
        self.register_buffer("seen", torch.zeros(len(data.classes)))

    @classmethod
    def answers(cls, data: DataSpec) -> int:
        return len(data.classes)

    @classmethod
    def resolve_config(cls, config: ClassifierConfig, data: DataSpec) -> ClassifierConfig:
        if not data.classes or len(data.classes) < 2:
            raise DataError(
                f"a classifier needs two or more classes; this dataset has {len(data.classes or ())}",
                field="dataset",
                remedy="import it with the layout labelled: one folder for each class",
            )
        return super().resolve_config(config, data)

    def logits(self, images: Tensor) -> Tensor:
        return self.judge(images)

    def penalty(self, labels: Tensor) -> Callable[[Tensor], Tensor]:
        weights, smoothing = self._weights(labels), self.config.label_smoothing
        return lambda logits: F.cross_entropy(logits, labels, weights, label_smoothing=smoothing)

    def mistake(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.logits(batch["images"]), batch["labels"])

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Accuracy beside the most frequent class and a linear softmax on pixels; calibration; accuracy by class."""
        logits = metrics.gather(validation, self.logits, self.device)
        truth = torch.cat(list(metrics.spread(validation, "labels")))
        right = (logits.argmax(1) == truth).double()
        counts = torch.bincount(truth, minlength=len(self.data.classes))
        by_class = torch.bincount(truth, right, minlength=len(counts)) / counts.clamp_min(1)
        found = {
            "accuracy": float(right.mean()),
            "accuracy_balanced": float(by_class[counts > 0].mean()),
            "accuracy_majority": self._majority(train, truth),
            "accuracy_linear": metrics.linear_baseline(train, validation, len(counts)),
            "cross_entropy": float(F.cross_entropy(logits, truth)),
            "calibration_error": metrics.calibration_error(logits, truth),
        }
        if len(counts) <= LISTED:
            names = zip(self.data.classes, by_class.tolist(), counts.tolist(), strict=True)
            found |= {f"accuracy:{name}": share for name, share, count in names if count}
        return found | self.withstood(validation, context)

    def _majority(self, train: Columns, truth: Tensor) -> float:
        """Validation accuracy of always answering the most frequent training class."""
        labels = torch.cat(list(metrics.spread(train, "labels", limit=len(train))))
        return float((truth == torch.bincount(labels).argmax()).double().mean())

    def _weights(self, labels: Tensor) -> Tensor | None:
        """Weights of the classes from the labels seen so far, one on average over the images."""
        if self.config.balance == "none":
            return None
        self.seen += torch.bincount(labels, minlength=len(self.seen))
        return self.seen.sum() / (self.seen.clamp_min(1) * (self.seen > 0).sum())
