"""The classifier: which of the classes does an image show."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models import metrics
from models.data import Columns
from models.family import Config, OneLoss, Scores
from models.moment import Moment
from models.nn.augment import flip, shift
from models.nn.trunk import Trunk
from models.types import Batch, DataError, DataSpec, Metrics

LISTED = 20


class ClassifierConfig(Config):
    """Augmentation is off by default: a flipped digit is another sign."""

    learning_rate: float = Field(3e-3, gt=0, le=1, description="Step size of Adam after the warm-up.")
    width: int | None = Field(
        None, ge=1, le=512, description="Channels of the first stage, doubled twice. Empty: from the data."
    )
    dropout: float = Field(0.2, ge=0, lt=1, description="Share of the last features hidden in each update.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Decoupled weight decay (AdamW).")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target spread over all classes.")
    balance: Literal["none", "inverse"] = Field(
        "none", description="inverse: rare classes weigh as much as frequent ones."
    )
    flip: bool = Field(False, description="Mirror half of the training images left to right.")
    shift: int = Field(0, ge=0, le=32, description="Move training images by up to so many pixels.")


class Classifier(Scores, OneLoss):
    """A residual network with group normalisation. The last layer starts at zero: the first loss is log K."""

    name = "classifier"
    summary = "Tells which class an image belongs to."
    lecture = "Supervised learning: classification"
    layouts = ("labelled", "attributes")
    needs = ("images", "labels")
    Config = ClassifierConfig
    default_batch = 32
    default_epochs = 12
    warm_up = 100
    clip = 1.0

    def __init__(self, config: ClassifierConfig, data: DataSpec):
        super().__init__(config, data)
        self.trunk = Trunk(data.shape, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(self.trunk.features, len(data.classes))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("seen", torch.zeros(len(data.classes)))

    @classmethod
    def resolve(cls, config: ClassifierConfig, data: DataSpec) -> ClassifierConfig:
        if not data.classes or len(data.classes) < 2:
            raise DataError(
                f"a classifier needs two or more classes; this dataset has {len(data.classes or ())}",
                field="dataset",
                remedy="import it with the layout labelled: one folder for each class",
            )
        config = super().resolve(config, data)
        return config.model_copy(update={"width": config.width or (32 if data.count >= 20_000 else 16)})

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        rates = {"lr": self.config.learning_rate, "weight_decay": self.config.weight_decay}
        return {"adam": torch.optim.AdamW(self.parameters(), fused=True, **rates)}

    def logits(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(self.trunk(images)))

    def loss(self, batch: Batch, moment: Moment) -> tuple[Tensor, Metrics]:
        images, labels = self._augment(batch["images"], moment), batch["labels"]
        logits = self.logits(images)
        loss = F.cross_entropy(logits, labels, self._weights(labels), label_smoothing=self.config.label_smoothing)
        return loss, {"accuracy": (logits.detach().argmax(1) == labels).float().mean()}

    def evaluate(self, train: Columns, validation: Columns, moment: Moment) -> dict[str, float]:
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
        return found

    def _majority(self, train: Columns, truth: Tensor) -> float:
        """Validation accuracy of always answering the most frequent training class."""
        labels = torch.cat(list(metrics.spread(train, "labels", limit=len(train))))
        return float((truth == torch.bincount(labels).argmax()).double().mean())

    def _augment(self, images: Tensor, moment: Moment) -> Tensor:
        if self.config.flip:
            images = flip(images, moment.generator)
        return shift(images, self.config.shift, moment.generator) if self.config.shift else images

    def _weights(self, labels: Tensor) -> Tensor | None:
        """Weights of the classes from the labels seen so far, one on average over the images."""
        if self.config.balance == "none":
            return None
        self.seen += torch.bincount(labels, minlength=len(self.seen))
        return self.seen.sum() / (self.seen.clamp_min(1) * (self.seen > 0).sum())
