"""The classifier: predicts the class of an image."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from models.capabilities import Classifies, predicted_classes
from models.context import StepContext
from models.data import Columns
from models.evaluation import metrics
from models.families.classifiers.adversarial_config import AdversarialConfig, with_defaults
from models.families.classifiers.adversarial_training import AdversarialTraining, OverfittingGuard
from models.families.classifiers.base import ClassifierBase, accuracy
from models.family import Precision
from models.nn.augment import constant_borders
from models.training.ranks import total_over_ranks
from models.types import Batch, DataError, DataSpec, Metrics

MAX_LISTED_CLASSES = 20
SHIFTED_SIDES, FRAME_SIDES = 14, 28  # the side over the default shift, and over the width of the frame that permits it
FRAMED, MAX_SHIFT_IMAGES = 0.9, 512  # share of images with a frame of one colour, of the images looked at


class ClassifierConfig(AdversarialConfig):
    """The loss is the cross-entropy, averaged over the batch."""

    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Fraction of each target's probability that is distributed over all classes."
    )
    balance: Literal["none", "inverse"] = Field(
        "none", description="inverse: weights classes by the inverse of their frequency, so that rare classes count."
    )


class Classifier(Classifies, ClassifierBase):
    """By default a residual network with group normalisation. The head starts at zero: the first loss is log K."""

    name = "classifier"
    summary = "Tells which class an image belongs to."
    lecture = "Supervised learning: classification"
    layouts = ("labelled", "attributes")
    needs = ("images", "labels")
    Config = ClassifierConfig
    bf16_on = ("cpu", "cuda")

    def __init__(self, config: ClassifierConfig, data: DataSpec):
        super().__init__(config, data)
        self.adversarial = AdversarialTraining(self) if config.adversarial != "none" else None
        self.guard: OverfittingGuard | None = None
        self.register_buffer("seen", torch.zeros(len(data.classes)))  # training labels so far, by class

    @classmethod
    def n_outputs(cls, data: DataSpec) -> int:
        return len(data.classes)

    @classmethod
    def resolve_config(cls, config: ClassifierConfig, data: DataSpec) -> ClassifierConfig:
        if not data.classes or len(data.classes) < 2:
            raise DataError(
                f"A classifier needs at least 2 classes; this dataset has {len(data.classes or ())}.",
                field="dataset",
                remedy="Import it with layout=labelled: one folder per class.",
            )
        config = with_defaults(config)
        if config.adversarial != "none":
            plain = {"keep": "last", "ema": False, "shift": 0}
            config = config.model_copy(update={name: plain[name] for name in plain if getattr(config, name) is None})
        return super().resolve_config(config, data)

    @classmethod
    def default_length(cls, config: ClassifierConfig, data: DataSpec) -> float:
        """Twice as many images under adversarial training; `free` shows each `adversarial_steps` times."""
        if config.adversarial == "none":
            return super().default_length(config, data)
        plain = {name: None for name in AdversarialConfig.model_fields if name.startswith("adversarial_")}
        length = super().default_length(config.model_copy(update=plain | {"adversarial": "none"}), data)
        return length * (2 if config.adversarial != "free" else 2 / config.adversarial_steps)

    @classmethod
    def milliseconds_per_image(cls, config: ClassifierConfig, data: DataSpec) -> float:
        steps = config.adversarial_steps or 0
        return super().milliseconds_per_image(config, data) * (1 + steps - (config.adversarial == "free"))

    @classmethod
    def auto_precision(cls, config: ClassifierConfig, device: str) -> Precision:
        """float32 for adversarial training, whose attacks are float32 in any case."""
        return super().auto_precision(config, device) if config.adversarial == "none" else "fp32"

    def default_shift(self, train: Columns) -> int:
        """7 % of the smaller side for images in a frame of one colour, in which the place says nothing; else 0."""
        side = min(self.data.height, self.data.width)
        images = torch.cat(list(metrics.spaced_rows(train, limit=MAX_SHIFT_IMAGES)))
        framed = constant_borders(images, max(1, round(side / FRAME_SIDES))).double().mean()
        return round(side / SHIFTED_SIDES) if float(framed) >= FRAMED else 0

    def before_training(self, train: Columns) -> None:
        super().before_training(train)
        if self.adversarial is not None:
            self.adversarial.before_training(train)

    def logits(self, images: Tensor) -> Tensor:
        return self.predict(images)

    def loss_fn(self, labels: Tensor) -> Callable[[Tensor], Tensor]:
        """The training loss of a batch with these labels (B,) as a function of its logits (B, K)."""
        weights, smoothing = self._class_weights(labels), self.config.label_smoothing
        return lambda logits: F.cross_entropy(logits, labels, weights, label_smoothing=smoothing)

    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        images, labels = self.augment(batch["images"], context.generator), batch["labels"]
        if self.adversarial is not None:
            return self.adversarial.loss(images, labels, context)
        loss_fn, logits = self.loss_fn(labels), self.logits(images)
        return loss_fn(logits), {"accuracy": accuracy(logits, labels)}

    def step(self, batch: Batch, optimisers: dict[str, Optimizer], context: StepContext) -> Metrics:
        if self.adversarial is None:
            return super().step(batch, optimisers, context)
        plain_step = super().step
        return self.adversarial.step(batch, optimisers, context, lambda: plain_step(batch, optimisers, context))

    def plain_loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.logits(batch["images"]), batch["labels"])

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Accuracy beside the most frequent class and a linear softmax on pixels; calibration; accuracy by class."""
        logits = metrics.gather(validation, self.logits, self.device)
        labels = torch.cat(list(metrics.spaced_rows(validation, "labels")))
        correct = (predicted_classes(logits) == labels).double()
        counts = torch.bincount(labels, minlength=len(self.data.classes))
        by_class = torch.bincount(labels, correct, minlength=len(counts)) / counts.clamp_min(1)
        measures = {
            "accuracy": float(correct.mean()),
            "accuracy_balanced": float(by_class[counts > 0].mean()),
            "accuracy_majority": self._majority_accuracy(train, labels),
            "accuracy_linear": metrics.linear_baseline(train, validation, len(counts)),
            "cross_entropy": float(F.cross_entropy(logits, labels)),
            "calibration_error": metrics.calibration_error(logits, labels),
        }
        if len(counts) <= MAX_LISTED_CLASSES:
            names = zip(self.data.classes, by_class.tolist(), counts.tolist(), strict=True)
            measures |= {f"accuracy:{name}": fraction for name, fraction, count in names if count}
        return measures | (self.adversarial.evaluate(validation, context) if self.adversarial else {})

    def training_metrics(self) -> dict[str, float]:
        return self.adversarial.training_metrics() if self.adversarial else {}

    def warnings(self, measured: dict[str, float]) -> list[str]:
        return [*super().warnings(measured), *(self.adversarial.warnings(measured) if self.adversarial else ())]

    def _majority_accuracy(self, train: Columns, labels: Tensor) -> float:
        """Accuracy on `labels` (N,) of always predicting the most frequent training class."""
        known = torch.cat(list(metrics.spaced_rows(train, "labels", limit=len(train))))
        return float((labels == torch.bincount(known).argmax()).double().mean())

    def _class_weights(self, labels: Tensor) -> Tensor | None:
        """Weights (K,) of the classes from the labels seen so far; their average over the images is 1."""
        if self.config.balance == "none":
            return None
        self.seen += total_over_ranks(torch.bincount(labels, minlength=len(self.seen)))
        return self.seen.sum() / (self.seen.clamp_min(1) * (self.seen > 0).sum())
