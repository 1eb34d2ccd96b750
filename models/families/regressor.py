"""The regressor: which number belongs to an image."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from models import metrics
from models.capabilities import Estimates
from models.data import Columns
from models.judging import Judging, JudgingConfig
from models.moment import Moment
from models.types import Batch, DataSpec, Metrics


class RegressorConfig(JudgingConfig):
    """Errors are counted in standard deviations of the training targets."""

    error: Literal["squared", "absolute", "huber"] = Field(
        "huber", description="Loss of one image. huber: squared near zero, absolute for outliers."
    )


class Regressor(Estimates, Judging):
    """The network answers in standard deviations from the mean of the targets, both counted in the first epoch."""

    name = "regressor"
    summary = "Estimates a number from an image."
    lecture = "Supervised learning: regression"
    layouts = ("attributes", "plain", "labelled")
    needs = ("images", "targets")
    Config = RegressorConfig

    def __init__(self, config: RegressorConfig, data: DataSpec):
        super().__init__(config, data)
        self.count = data.columns.get("train", {}).get("targets", 0)
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("scatter", torch.zeros((), dtype=torch.float64))

    @classmethod
    def answers(cls, data: DataSpec) -> int:
        return 1

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of the targets, one where they are all the same."""
        found = (self.scatter / self.seen.clamp_min(1)).sqrt()
        return torch.where(found > 1e-12, found, torch.ones_like(found))

    def estimate(self, images: Tensor) -> Tensor:
        return (self.judge(images)[:, 0] * self.deviation + self.mean).float()

    def loss(self, batch: Batch, moment: Moment) -> tuple[Tensor, Metrics]:
        self._count(batch["targets"], moment)
        targets = ((batch["targets"] - self.mean) / self.deviation).float()
        answers = self.judge(self.augment(batch["images"], moment.generator))[:, 0]
        error = (answers.detach() - targets).abs().mean() * self.deviation
        return self.distance(answers, targets), {"mae": error.float()}

    @property
    def distance(self) -> Callable[[Tensor, Tensor], Tensor]:
        return {"squared": F.mse_loss, "absolute": F.l1_loss, "huber": F.smooth_l1_loss}[self.config.error]

    def mistake(self, batch: Batch) -> Tensor:
        targets = ((batch["targets"] - self.mean) / self.deviation).float()
        return self.distance(self.judge(batch["images"])[:, 0], targets)

    def _count(self, targets: Tensor, moment: Moment) -> None:
        """Mean and scatter of the targets of the first epoch (Chan et al. 1979), in place."""
        if moment.images >= self.count:
            return
        targets, count = targets.double(), len(targets)
        away, total = targets.mean() - self.mean, self.seen + count
        self.scatter += (targets - targets.mean()).square().sum() + away.square() * self.seen * count / total
        self.mean += away * count / total
        self.seen += count

    def evaluate(self, train: Columns, validation: Columns, moment: Moment) -> dict[str, float]:
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
