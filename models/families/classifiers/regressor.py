"""The regressor: predicts a number from an image."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from models.capabilities import Regresses
from models.context import StepContext
from models.data import Columns
from models.evaluation import metrics
from models.families.classifiers.base import ClassifierBase, ClassifierBaseConfig
from models.families.classifiers.ridge import PatchRidge
from models.types import Batch, DataSpec, Metrics

MIN_RIDGE_IMAGES = 8


class RegressorConfig(ClassifierBaseConfig):
    """The loss is of targets in standard deviations from their mean."""

    error: Literal["squared", "absolute", "huber"] = Field(
        "huber",
        description="Loss of one image: squared, absolute, or huber (squared up to one standard deviation).",
    )


class Regressor(Regresses, ClassifierBase):
    """prediction = mean + deviation * (network(image) + ridge(patch brightness)), of the training targets.

    The ridge regression (models/families/classifiers/ridge.py) keeps the brightness, which normalised features lose.
    """

    name = "regressor"
    summary = "Estimates a number from an image."
    lecture = "Supervised learning: regression"
    layouts = ("attributes", "plain", "labelled")
    needs = ("images", "targets")
    Config = RegressorConfig

    def __init__(self, config: RegressorConfig, data: DataSpec):
        super().__init__(config, data)
        self.level = PatchRidge(data.shape)
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("deviation", torch.ones((), dtype=torch.float64))

    @classmethod
    def n_outputs(cls, data: DataSpec) -> int:
        return 1

    def before_training(self, train: Columns) -> None:
        """Fit mean, deviation and ridge to the training targets, unless they come with another regressor's weights."""
        super().before_training(train)
        if self.initialised_from is not None and issubclass(self.initialised_from, Regressor):
            return
        targets = torch.cat(list(metrics.spaced_rows(train, "targets"))).to(self.device).double()
        deviation = targets.std(unbiased=False)
        self.mean.copy_(targets.mean())
        self.deviation.copy_(deviation if deviation > 1e-12 else 1.0)
        if len(targets) >= MIN_RIDGE_IMAGES:
            patches = metrics.gather(train, self.level.patches, self.device).to(self.device)
            self.level.fit(patches, self.standardise(targets))

    def standardise(self, targets: Tensor) -> Tensor:
        """Targets (B,) in standard deviations from the mean."""
        return ((targets - self.mean) / self.deviation).float()

    def standardised_prediction(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B,) in standard deviations from the mean."""
        return self.predict(images)[:, 0] + self.level(images)

    def estimate(self, images: Tensor) -> Tensor:
        return (self.standardised_prediction(images) * self.deviation + self.mean).float()

    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        targets = self.standardise(batch["targets"])
        predictions = self.standardised_prediction(self.augment(batch["images"], context.generator))
        error = (predictions.detach() - targets).abs().mean() * self.deviation
        return self.error_fn(predictions, targets), {"mae": error.float()}

    @property
    def error_fn(self) -> Callable[[Tensor, Tensor], Tensor]:
        return {"squared": F.mse_loss, "absolute": F.l1_loss, "huber": F.smooth_l1_loss}[self.config.error]

    def plain_loss(self, batch: Batch) -> Tensor:
        return self.error_fn(self.standardised_prediction(batch["images"]), self.standardise(batch["targets"]))

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Errors in the unit of the targets, beside always predicting the mean and a linear model of the pixels."""
        estimates = metrics.gather(validation, self.estimate, self.device).double()
        truth = torch.cat(list(metrics.spaced_rows(validation, "targets"))).cpu().double()
        train_targets = torch.cat(list(metrics.spaced_rows(train, "targets"))).cpu().double()
        errors = (estimates - truth).abs()
        measures = {"mae": float(errors.mean()), "rmse": float(errors.square().mean().sqrt())}
        measures["mae_mean"] = float((truth - train_targets.mean()).abs().mean())
        measures["mae_linear"] = metrics.linear_mae(train, validation)
        total = float((truth - train_targets.mean()).square().sum())
        return measures | ({"r2": 1 - float(errors.square().sum()) / total} if total > 0 else {})
