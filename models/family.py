"""The base of every model family. What a trained model can do is said by capabilities (models/capabilities.py).

A family is one file in `models/families`: networks built in `__init__`, a flat typed `Config`, and the update of one
mini-batch. Training, checkpoints, progress and reports are the engine's (models/training/loop.py).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from models.context import StepContext
from models.data import Columns
from models.diagnosis import Alarm, Inspection
from models.types import Batch, ConfigError, DataError, DataSpec, Metrics, ModelError


class Config(BaseModel):
    """Fields every family shares. An empty (null) value is decided from the data by `Family.resolve_config`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    images: int | None = Field(None, ge=1, le=10**9, description="Training length in images shown.")
    epochs: float | None = Field(None, gt=0, le=10**5, description="The same in passes over the data.")
    batch_size: int | None = Field(None, ge=2, le=4096, description="Images per update.")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="Step size of the optimiser at the start.")


class Family(nn.Module, ABC):
    """A kind of model: its networks are submodules, and every tensor of a checkpoint is theirs or a buffer."""

    name: ClassVar[str]
    summary: ClassVar[str]
    lecture: ClassVar[str] = ""
    """The part of the lecture this family implements."""
    layouts: ClassVar[tuple[str, ...]] = ("plain", "labelled", "attributes", "segmentation", "detection")
    needs: ClassVar[tuple[str, ...]] = ("images",)
    """Columns without which training cannot start."""
    Config: ClassVar[type[Config]] = Config

    default_epochs: ClassVar[float] = 30
    default_batch: ClassVar[int] = 64
    warm_up: ClassVar[int] = 0
    """Updates over which the learning rate rises to its full height, at most a tenth of the run."""

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.config, self.data = config, data
        self.initialised_from: type[Family] | None = None
        """The family of the model whose weights were taken over before the first update."""

    @classmethod
    def create(cls, config: dict, data: DataSpec) -> Self:
        """A new model from a config with gaps. Raises ConfigError or DataError when config and data do not fit."""
        return cls(cls.complete_config(config, data), data)

    @classmethod
    def complete_config(cls, config: dict, data: DataSpec) -> Config:
        """The config without gaps, found without building a network.

        Raises ConfigError or DataError when config and data do not fit; a setting is named as `config/setting`.
        """
        try:
            asked = cls.Config(**config)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(first["msg"], field="/".join(["config", *map(str, first["loc"])])) from None
        missing = [name for name in cls.needs if name not in data.columns.get("train", {name: 1})]
        if missing:
            raise DataError(f"{cls.name} needs the column {missing[0]}, which this dataset lacks", field="dataset")
        try:
            return cls.resolve_config(asked, data)
        except ModelError as error:
            if error.field in cls.Config.model_fields:
                error.field = f"config/{error.field}"
            raise

    @classmethod
    def resolve_config(cls, config: Config, data: DataSpec) -> Config:
        """The config with all that the data decides filled in; families extend it. Resolving again changes nothing."""
        count = max(data.count, 1)
        batch = config.batch_size or min(cls.default_batch, max(8, count))
        length = config.images or round((config.epochs or cls.default_epochs_for(data)) * count)
        return config.model_copy(update={"batch_size": batch, "images": max(length, batch), "epochs": None})

    @classmethod
    def default_epochs_for(cls, data: DataSpec) -> float:
        """Epochs to train when nobody says: more for a small dataset, so that the count of updates stays sensible."""
        return max(cls.default_epochs * min(1.0, 20_000 / max(data.count, 1)), 4.0, 20_000 / max(data.count, 1))

    def grow_to(self, images: int) -> None:
        """Bring the structure to what it is after `images` images: grow layers, enter a stage. Does nothing twice.

        Called before every update, before a checkpoint is loaded and before serving.
        """

    def init_from(self, other: "Family") -> None:
        """Start from the weights of a trained model: every tensor of the same name and shape. Raises ConfigError."""
        mine, theirs = self.state_dict(), other.state_dict()
        common = {name: theirs[name] for name in mine if name in theirs and theirs[name].shape == mine[name].shape}
        if not any(name in common for name, _ in self.named_parameters()):
            raise ConfigError(
                f"{self.name} shares no weights with this {other.name}",
                field="init_from",
                remedy="start from a model of the same family and layer sizes",
            )
        self.load_state_dict(common, strict=False)
        self.initialised_from = type(other)

    def before_training(self, train: Columns) -> None:
        """Before the first update or a resumed one: decide from the images what the config left open."""

    @abstractmethod
    def optimisers(self) -> dict[str, Optimizer]:
        """New optimisers over the present parameters; moments carry over by parameter name."""

    @abstractmethod
    def step(self, batch: Batch, optimisers: dict[str, Optimizer], context: StepContext) -> Metrics:
        """One update of all networks, in place. Returns scalars to report, without waiting for the device."""

    def schedule(self, progress: float) -> float:
        """Factor on every learning rate at `progress` in [0, 1]: the warm-up, times a cosine from 1 to 0.01."""
        updates = self.total / self.config.batch_size
        rise = min(1.0, (progress * updates + 1) / max(1.0, min(self.warm_up, updates / 10)))
        return rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))

    def after_training(self, train: Columns, context: StepContext) -> None:
        """After the last update: fit what is fitted on the trained networks (a mixture over codes, thresholds)."""

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Numbers for the result, on validation data, with the trivial baseline beside each."""
        return {}

    def midway_points(self) -> Iterable[int]:
        """Counts of images after which to call `evaluate_midway`; a function of the config alone."""
        return ()

    def evaluate_midway(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Measures that are too expensive for every update, shown beside the curves. In eval mode, without gradients.

        Changes nothing that training depends on, except in buffers.
        """
        return {}

    def warnings(self, measured: dict[str, float]) -> list[str]:
        """What the numbers of `evaluate` should make a user wary of: cause and remedy, a sentence each."""
        return []

    def validation_loss(self, probe: Batch, context: StepContext) -> Tensor | None:
        """The loss (a scalar) on images that are not trained on, the same measure at every moment: less is better."""
        return None

    def diagnose(self, look: Inspection) -> Iterable[Alarm]:
        """What is wrong now, at one of the doctor's looks: every alarm that holds, whether or not it did before."""
        return ()

    def auto_remedy(self, alarm: Alarm, look: Inspection) -> str | None:
        """A bounded remedy for an alarm, in place, and a sentence about it; None: nothing was changed.

        Called at every look at which the alarm holds, when the config has a true `auto_remedy`. All that it changes
        must be parameters or buffers, which the checkpoint carries; rates of learning follow from `schedule`.
        """
        return None

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor | None:
        """Images (k, c, h, w) that show the state of training, the same inputs and latents every time."""
        return None

    @property
    def total(self) -> int:
        """Images of a whole training: the configured length, in whole batches."""
        return -(-self.config.images // self.config.batch_size) * self.config.batch_size

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def serving_state(self) -> dict[str, Tensor]:
        """What a published model keeps: the whole state, less modules marked `training_only` (history pools)."""
        dropped = tuple(f"{name}." for name, module in self.named_modules() if getattr(module, "training_only", False))
        return {key: value for key, value in self.state_dict().items() if not (dropped and key.startswith(dropped))}

    def load_for_serving(self, state: dict[str, Tensor]) -> Self:
        """Take over what `serving_state` of a finished training gave: frozen, in eval mode."""
        self.grow_to(self.total - self.config.batch_size)
        missing, unexpected = self.load_state_dict(state, strict=False)
        if unexpected or set(missing) & self.serving_state().keys():
            raise ModelError("the weights do not belong to this family and config")
        return self.eval().requires_grad_(False)


class OneLoss(Family):
    """A family trained by descending one loss with Adam: it only says what the loss is."""

    clip: ClassVar[float | None] = None
    """Longest gradient of an update, where the first updates of a family can be wild."""

    @abstractmethod
    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        """The scalar to descend, and scalars to report."""

    def optimisers(self) -> dict[str, Optimizer]:
        return {"adam": torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, fused=True)}

    def step(self, batch: Batch, optimisers: dict[str, Optimizer], context: StepContext) -> Metrics:
        loss, metrics = self.loss(batch, context)
        self.descend(loss, optimisers)
        return {"loss": loss.detach(), **metrics}

    def descend(self, loss: Tensor, optimisers: dict[str, Optimizer]) -> None:
        """One step down."""
        for optimiser in optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters(), self.clip)
        for optimiser in optimisers.values():
            optimiser.step()
