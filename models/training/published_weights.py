"""Which weights of a training are published: the last or the best, and moving averages of them."""

from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field
from torch.optim import Optimizer

from models.context import StepContext
from models.data import Columns
from models.nn.ema import WeightAverage
from models.types import Batch, DataSpec, Metrics

HALF_LIFE = 0.02
"""Half-life of averaged weights, as a fraction of the training."""


class PublishedWeightsConfig(BaseModel):
    keep: Literal["last", "best"] | None = Field(
        None, description="Weights to publish: last, or best (the lowest validation loss). Default: best."
    )
    ema: bool | None = Field(
        None,
        description="Publish a moving average of the weights, with a half-life of 2 % of the training, which varies "
        "less than the weights. Default: true.",
    )


class PublishesAverages:
    """Stands before OneLoss among the bases of a family. With `ema: true` the parameters are averages in eval mode."""

    keep_margin: ClassVar[float] = 0.15
    """Rise of the validation loss above its best, in the unit of the alarm of overfitting, from which `keep: best`
    publishes earlier weights: the loss of a few rows is only a sign of what counts, such as accuracy."""

    def __init__(self, config: Any, data: DataSpec):
        super().__init__(config, data)
        self.average: WeightAverage | None = None

    @classmethod
    def resolve_config(cls, config: Any, data: DataSpec) -> Any:
        config = super().resolve_config(config, data)
        defaults = {"keep": "best", "ema": True}
        return config.model_copy(update={key: defaults[key] for key in defaults if getattr(config, key) is None})

    @classmethod
    def earlier_settings(cls, engine: int, data: DataSpec) -> dict[str, Any]:
        return ({"keep": "last", "ema": False} if engine < 2 else {}) | super().earlier_settings(engine, data)

    def before_training(self, train: Columns) -> None:
        super().before_training(train)
        if self.config.ema:
            self.average = WeightAverage(self, HALF_LIFE * self.total)

    def step(self, batch: Batch, optimisers: dict[str, Optimizer], context: StepContext) -> Metrics:
        metrics = super().step(batch, optimisers, context)
        if self.average is not None:
            self.average.update(self, self.config.batch_size, context.images + self.config.batch_size)
        return metrics

    def after_training(self, train: Columns, context: StepContext) -> None:
        self.average = None  # in eval mode: the parameters are the averages, and stay so
        super().after_training(train, context)

    def train(self, mode: bool = True) -> Self:
        if self.average is not None and mode != self.training:
            self.average.swap(self)
        return super().train(mode)
