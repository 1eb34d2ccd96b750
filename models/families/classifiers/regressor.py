"""The regressor: which number belongs to an image."""

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
from models.families.classifiers.base import Judging, JudgingConfig
from models.families.classifiers.ridge import Level
from models.types import Batch, DataSpec, Metrics

FEWEST = 8
"""Images from which a linear answer is fitted."""


class RegressorConfig(JudgingConfig):
    """Errors are counted in standard deviations of the training targets."""

    error: Literal["squared", "absolute", "huber"] = Field(
        "huber", description="Loss of one image. huber: squared near zero, absolute for outliers."
    )


class Regressor(Regresses, Judging):
    """Answers count in standard deviations from the mean of the training targets. The network adds to a linear answer
    to the brightness of patches (models/families/classifiers/ridge.py) what that misses."""

    name = "regressor"
    summary = "Estimates a number from an image."
    lecture = "Supervised learning: regression"
    layouts = ("attributes", "plain", "labelled")
    needs = ("images", "targets")
    Config = RegressorConfig

    def __init__(self, config: RegressorConfig, data: DataSpec):
        super().__init__(config, data)
        self.level = Level(data.shape)
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("deviation", torch.ones((), dtype=torch.float64))

    @classmethod
    def answers(cls, data: DataSpec) -> int:
        return 1

    def before_training(self, train: Columns) -> None:
        """Count the targets and fit the linear answer, unless both come with the weights of another regressor."""
        if self.initialised_from is not None and issubclass(self.initialised_from, Regressor):
            return
        targets = torch.cat(list(metrics.spread(train, "targets"))).to(self.device).double()
        deviation = targets.std(unbiased=False)
        self.mean.copy_(targets.mean())
        self.deviation.copy_(deviation if deviation > 1e-12 else 1.0)
        if len(targets) >= FEWEST:
            patches = metrics.gather(train, self.level.patches, self.device).to(self.device)
            self.level.fit(patches, self.standard(targets))

    def standard(self, targets: Tensor) -> Tensor:
        """Targets in standard deviations from the mean."""
        return ((targets - self.mean) / self.deviation).float()

    def answer(self, images: Tensor) -> Tensor:
        """(b, c, h, w) -> (b,) in standard deviations."""
        return self.judge(images)[:, 0] + self.level(images)

    def estimate(self, images: Tensor) -> Tensor:
        return (self.answer(images) * self.deviation + self.mean).float()

    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        targets = self.standard(batch["targets"])
        answers = self.answer(self.augment(batch["images"], context.generator))
        error = (answers.detach() - targets).abs().mean() * self.deviation
        return self.distance(answers, targets), {"mae": error.float()}

    @property
    def distance(self) -> Callable[[Tensor, Tensor], Tensor]:
        return {"squared": F.mse_loss, "absolute": F.l1_loss, "huber": F.smooth_l1_loss}[self.config.error]

    def mistake(self, batch: Batch) -> Tensor:
        return self.distance(self.answer(batch["images"]), self.standard(batch["targets"]))

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Errors in the unit of the targets, beside answering the mean and beside a linear model of the pixels."""
        estimates = metrics.gather(validation, self.estimate, self.device).double()
        truth = torch.cat(list(metrics.spread(validation, "targets"))).cpu().double()
        known = torch.cat(list(metrics.spread(train, "targets"))).cpu().double()
        away = (estimates - truth).abs()
        found = {"mae": float(away.mean()), "rmse": float(away.square().mean().sqrt())}
        found["mae_mean"] = float((truth - known.mean()).abs().mean())
        found["mae_linear"] = metrics.linear_mae(train, validation)
        total = float((truth - known.mean()).square().sum())
        return found | ({"r2": 1 - float(away.square().sum()) / total} if total > 0 else {})
