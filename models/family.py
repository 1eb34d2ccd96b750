"""The base of every model family: its settings, its networks, and the update of one mini-batch.

A family is one file in a folder of `models/families`; docs/extend/family.md has a complete example. What its models can
do is said by the capabilities in its class line (models/capabilities.py). The training loop, checkpoints and alarms are
in models/training.

The hooks of a training, in the order in which they are called:
  resolve_config, __init__, init_from, before_training, optimisers;
  for each update grow_to, schedule, step; at inspections validation_loss, diagnose, auto_remedy; at midway_points
  evaluate_midway;
  after_training, calibrate, training_metrics, serving_state; to serve create, load_for_serving;
  once it is published evaluate, warnings.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from models.context import StepContext
from models.data import Columns
from models.diagnosis import Alarm, Inspection
from models.training.ranks import average_gradients, mean_metrics, row_parts
from models.types import Batch, ConfigError, DataError, DataSpec, Metrics, ModelError

ENGINE = 2
"""Version of published models and checkpoints; a reader refuses newer ones. See `Family.earlier_settings`."""
Effort = Literal["lesson", "good", "full"]
Precision = Literal["fp32", "bf16"]
CPU_SECONDS = {"lesson": 75.0, "good": 900.0}
"""Time for the updates of a training of that effort, on one core of the reference machine."""
LONGER_CPU_SECONDS = {"lesson": 150.0, "good": 900.0}
"""The same for families whose lesson takes four minutes on two cores instead of two."""
LEAST_UPDATES = 300
"""Updates of a training of large images at lesson and good, though they take up to `MOST_TIMES` the time."""
MOST_TIMES = 3.0
COMPILED_FROM = 200_000
"""Updates from which compiling saves more than it takes: about a ms of launches each, against two minutes."""


class Config(BaseModel):
    """Fields of every family. `Family.resolve_config` replaces None by a value that suits the dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    effort: Effort | None = Field(
        None,
        description="Chooses the settings that are left out, such as the length and the size of the networks. lesson: "
        "about two minutes on two cores; good: about twenty; full: as long as the quality gains. Default: lesson on a "
        "CPU, good on a GPU.",
    )
    images: int | None = Field(
        None, ge=1, le=10**9, description="Training length in images. Default: chosen from effort and dataset."
    )
    epochs: float | None = Field(
        None,
        gt=0,
        le=10**5,
        description="Training length in epochs (instead of images). Default: chosen from effort and dataset.",
    )
    batch_size: int | None = Field(
        None, ge=2, le=4096, description="Images per update. Default: chosen from the dataset size."
    )
    learning_rate: float = Field(1e-3, gt=0, le=1, description="Initial step size of the optimiser.")
    precision: Precision | Literal["auto"] = Field(
        "auto",
        description="Numbers in which the networks compute in updates: fp32, or bf16 (autocast; weights, losses and "
        "penalties stay fp32). auto: bf16 where the device computes it faster and the quality is equal, else fp32.",
    )
    deterministic: bool = Field(
        False, description="Use deterministic kernels on CUDA, so that a training repeats to the bit; slower."
    )
    compile: bool | None = Field(
        None,
        description="Compile the networks on CUDA, which takes minutes once; gradient penalties are not compiled. "
        "Default: true on CUDA for at least 200,000 updates that need not be deterministic.",
    )


def default_effort() -> Effort:
    """lesson on a CPU, good on an accelerator."""
    return "good" if device_type() == "cuda" else "lesson"


def device_type() -> Literal["cuda", "cpu"]:
    """The kind of device for which settings are chosen."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def computes_bf16(device: str) -> bool:
    """Whether `device` has units for bfloat16; others emulate it slowly. GPUs have them from Ampere on."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class Family(nn.Module, ABC):
    """A kind of model. All that a checkpoint or a published model keeps is parameters and buffers of the module."""

    name: ClassVar[str]
    summary: ClassVar[str]
    lecture: ClassVar[str] = ""
    """The part of the course that this family belongs to."""
    layouts: ClassVar[tuple[str, ...]] = ("plain", "labelled", "attributes", "segmentation", "detection")
    needs: ClassVar[tuple[str, ...]] = ("images",)
    """Columns that the training split must have."""
    Config: ClassVar[type[Config]] = Config

    default_epochs: ClassVar[float] = 30
    default_batch: ClassVar[int] = 64
    least_images: ClassVar[int] = 20_000
    """Images of a training at effort=full, however small the dataset."""
    milliseconds: ClassVar[float] = 0.5
    """CPU time of an image in an update with an empty config at effort=lesson and 4,000 grey images of 28x28 pixels, on
    one core of the reference machine. Measured by `python -m tests.benchmarks.training --costs`."""
    reference_width: ClassVar[int] = 16
    """The setting `width` of that config, if the family has it."""
    cpu_seconds: ClassVar[dict[str, float]] = CPU_SECONDS
    length_free_until: ClassVar[float] = 0.0
    """Share of a training in which no update depends on its length: its checkpoints are those of longer ones, too."""
    snapshot_cost: ClassVar[float] = 0.5
    """Of a snapshot as a picture, in updates."""
    warm_up: ClassVar[int] = 0
    """Updates over which the learning rate rises from zero, at most a tenth of the training."""
    bf16_on: ClassVar[tuple[str, ...]] = ()
    """Kinds of device on which bf16 was measured to be faster at equal quality: there, precision=auto is bf16."""

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.config, self.data = config, data
        self.initialised_from: type[Family] | None = None
        """The family of the model that `init_from` has taken weights from."""

    @classmethod
    def create(cls, config: dict, data: DataSpec) -> Self:
        """A new model; `config` may leave settings out. Raises ConfigError or DataError if it does not fit the data."""
        return cls(cls.complete_config(config, data), data)

    @classmethod
    def from_stored(cls, config: dict, data: DataSpec, engine: int) -> Self:
        """A new model with the config of a card or checkpoint that a release with `engine` has written."""
        return cls.create(cls.stored_config(config, data, engine), data)

    @classmethod
    def stored_config(cls, config: dict, data: DataSpec, engine: int) -> dict[str, Any]:
        """`config`, with what the release used for the settings that it leaves out."""
        earlier = {name: value for name, value in cls.earlier_settings(engine, data).items() if value is not None}
        known = {name: value for name, value in earlier.items() if name in cls.Config.model_fields}
        return known | {name: value for name, value in config.items() if value is not None or name not in known}

    @classmethod
    def earlier_settings(cls, engine: int, data: DataSpec) -> dict[str, Any]:
        """Values that releases before this one used for settings that they lacked, or for which they stored None.

        A family that adds a setting or changes a default extends it, so that stored models and trainings stay as they
        are.
        """
        return {"effort": "full", "precision": "fp32", "compile": False} if engine < 2 else {}

    @classmethod
    def complete_config(cls, config: dict, data: DataSpec) -> Config:
        """Validate `config` and fill in what it leaves out, without building a network.

        Raises ConfigError or DataError when it does not fit the data; `field` of the error is `config/<setting>`.
        """
        try:
            validated = cls.Config(**config)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(first["msg"], field="/".join(["config", *map(str, first["loc"])])) from None
        missing = [name for name in cls.needs if name not in data.columns.get("train", {name: 1})]
        if missing:
            raise DataError(f"{cls.name} needs the column {missing[0]}, which this dataset lacks", field="dataset")
        try:
            return cls.resolve_config(validated, data)
        except ModelError as error:
            if error.field in cls.Config.model_fields:
                error.field = f"config/{error.field}"
            raise

    @classmethod
    def resolve_config(cls, config: Config, data: DataSpec) -> Config:
        """Fill in settings that depend on the data, and refuse those that cannot work (ConfigError, DataError).

        Families extend it. It must be idempotent: a resolved config stays as it is.
        """
        effort = config.effort or default_effort()
        batch = config.batch_size or min(cls.default_batch, max(8, data.count))
        precision = cls.auto_precision(config, device_type()) if config.precision == "auto" else config.precision
        config = config.model_copy(update={"effort": effort, "batch_size": batch, "precision": precision})
        length = config.images or (config.epochs or 0) * max(data.count, 1) or cls.default_length(config, data)
        images = max(round(length), batch)
        compiled = images // batch >= COMPILED_FROM and device_type() == "cuda" and not config.deterministic
        settled = {"images": images, "epochs": None, "compile": compiled if config.compile is None else config.compile}
        return config.model_copy(update=settled)

    @classmethod
    def auto_precision(cls, config: Config, device: str) -> Precision:
        """The precision of updates on a kind of device."""
        return "bf16" if device in cls.bf16_on and computes_bf16(device) else "fp32"

    @classmethod
    def default_length(cls, config: Config, data: DataSpec) -> float:
        """Images of a training at `config.effort`: `full_length`, or what takes `cpu_seconds` if that is less.

        What an image costs follows from the settings that the config gets at full length; those of them that the cost
        depends on (sizes of networks) may depend on the effort, not on the length.
        """
        full = cls.full_length(config, data)
        if config.effort == "full":
            return full
        complete = cls.resolve_config(config.model_copy(update={"images": max(1, round(full)), "epochs": None}), data)
        affordable = 1000 * cls.cpu_seconds[config.effort] / cls.milliseconds_per_image(complete, data)
        times = min(MOST_TIMES, max(1.0, data.height * data.width / 1024))
        return min(full, max(affordable, min(times * affordable, LEAST_UPDATES * complete.batch_size)))

    @classmethod
    def full_length(cls, config: Config, data: DataSpec) -> float:
        """Images of a training at effort=full."""
        return cls.full_epochs(data) * max(data.count, 1)

    @classmethod
    def full_epochs(cls, data: DataSpec) -> float:
        """Length at effort=full: `default_epochs`, fewer above 20,000 training images, more for small datasets."""
        count = max(data.count, 1)
        return max(cls.default_epochs * min(1.0, 20_000 / count), 4.0, cls.least_images / count)

    @classmethod
    def milliseconds_per_image(cls, config: Config, data: DataSpec) -> float:
        """CPU time of an image in an update with this complete config, on one core of the reference machine.

        Convolutions grow with the area and, from the reference width on, with the power 1.3 of the width; linear layers
        grow with the numbers of an image.
        """
        if getattr(config, "body", None) in ("linear", "mlp"):
            return cls.milliseconds * max(0.3, data.pixels / 784)
        wider = getattr(config, "width", cls.reference_width) / cls.reference_width
        return cls.milliseconds * max(0.3, data.height * data.width / 784) * wider**1.3

    def grow_to(self, images: int) -> None:
        """Add layers or enter a stage, as after `images` images: before updates, loading and serving. Idempotent."""

    def init_from(self, other: "Family") -> None:
        """Copy every tensor of the same name and shape from a trained model. Raises ConfigError if there is none."""
        own, theirs = self.state_dict(), other.state_dict()
        common = {name: theirs[name] for name in own if name in theirs and theirs[name].shape == own[name].shape}
        if not any(name in common for name, _ in self.named_parameters()):
            raise ConfigError(
                f"{self.name} has no weights in common with this {other.name}",
                field="init_from",
                remedy="start from a model of the same family and layer sizes",
            )
        self.load_state_dict(common, strict=False)
        self.initialised_from = type(other)

    def before_training(self, train: Columns) -> None:
        """Called before the first update, and before a training is resumed: settle what depends on the images."""

    @abstractmethod
    def optimisers(self) -> dict[str, Optimizer]:
        """New optimisers by name. After `grow_to` has added parameters they are made again and keep their moments."""

    @abstractmethod
    def step(self, batch: Batch, optimisers: dict[str, Optimizer], context: StepContext) -> Metrics:
        """One update in place. Returns scalars for the curves, on the device: do not wait for them (`.item()`).

        `batch` has the columns of the dataset, images as (B, C, H, W) in [0, 1]. Draw random numbers with
        `context.generator` only.
        """

    def forward_passes(self) -> Iterable[tuple[nn.Module, str]] | None:
        """Modules and their methods that compute in `precision`; None: `forward` of every child that learns."""

    def schedule(self, progress: float) -> float:
        """Factor on every learning rate at `progress` in [0, 1]: warm-up times a cosine from 1 to 0.01."""
        updates = self.total / self.config.batch_size
        rise = min(1.0, (progress * updates + 1) / max(1.0, min(self.warm_up, updates / 10)))
        return rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))

    def relative_cost(self, images: int) -> float:
        """Cost of an update after `images` images beside that of others, where it differs along the training."""
        return 1.0

    def after_training(self, train: Columns, context: StepContext) -> None:
        """After the last update: fit what depends on the trained networks (a mixture over codes, thresholds)."""

    def calibrate(self, train: Columns, validation: Columns, context: StepContext) -> None:
        """After `after_training`: fit on validation images what serving needs, such as the scale of a score."""

    def training_metrics(self) -> dict[str, float]:
        """Metrics that the published model cannot give, such as what happened in the training."""
        return {}

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Metrics of the published model on the validation split, with a trivial baseline each. Must change nothing."""
        return {}

    def midway_points(self) -> Iterable[int]:
        """Numbers of images after which to call `evaluate_midway`; depends on the config only."""
        return ()

    def evaluate_midway(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Metrics too expensive for every update, in eval mode without gradients. Must change nothing but buffers."""
        return {}

    def warnings(self, measured: dict[str, float]) -> list[str]:
        """Warnings drawn from the metrics of `evaluate`: a sentence of cause, one of remedy."""
        return []

    def validation_loss(self, probe: Batch, context: StepContext) -> Tensor | None:
        """The objective (lower is better) on validation rows in eval mode; `keep: best` publishes the lowest."""
        return None

    def diagnose(self, inspection: Inspection) -> Iterable[Alarm]:
        """Every alarm that holds at this inspection, including those that held before."""
        return ()

    def auto_remedy(self, alarm: Alarm, inspection: Inspection) -> str | None:
        """Change the model because of an alarm, within bounds; returns a sentence about it, or None for no change.

        Called at every inspection at which the alarm holds, if the config has `auto_remedy: true`. It may change
        parameters and buffers only, which are in the checkpoint; learning rates follow from `schedule`.
        """
        return None

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor | None:
        """Images (k, c, h, w) that show the state of the training, from the same inputs and latents every time."""
        return None

    @property
    def total(self) -> int:
        """Images of the whole training: the configured length, rounded up to whole batches."""
        return -(-self.config.images // self.config.batch_size) * self.config.batch_size

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def accelerated(self) -> bool:
        return self.device.type == "cuda"

    @property
    def layout(self) -> torch.memory_format:
        """The memory layout of weights in training."""
        return torch.channels_last if self.accelerated else torch.contiguous_format

    def serving_state(self) -> dict[str, Tensor]:
        """The tensors of a published model: all but those of modules with `training_only = True` (image pools)."""
        excluded = tuple(f"{name}." for name, module in self.named_modules() if getattr(module, "training_only", False))
        return {key: value for key, value in self.state_dict().items() if not (excluded and key.startswith(excluded))}

    def load_for_serving(self, state: dict[str, Tensor]) -> Self:
        """Load the `serving_state` of a finished training; the model is in eval mode, without gradients."""
        self.grow_to(self.total - self.config.batch_size)
        missing, unexpected = self.load_state_dict(state, strict=False)
        if unexpected or set(missing) & self.serving_state().keys():
            raise ModelError("the weights do not fit this family and config")
        return self.eval().requires_grad_(False)


class OneLoss(Family):
    """A family with one loss, minimised by Adam: it defines `loss`."""

    clip: ClassVar[float | None] = None
    """Maximum norm of the gradient of an update; None: not clipped."""
    accumulate = 1  # parts of a batch whose gradients are computed one after the other, in less memory

    @abstractmethod
    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        """The scalar to minimise, and scalars for the curves."""

    def optimisers(self) -> dict[str, Optimizer]:
        return {"adam": torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, fused=True)}

    def step(self, batch: Batch, optimisers: dict[str, Optimizer], context: StepContext) -> Metrics:
        reported, count = [], self.accumulate
        for part in row_parts(batch, context, count):
            loss, metrics = self.loss(part, context)
            reported.append({"loss": loss.detach(), **metrics})
            self.minimise(loss if count == 1 else loss / count, optimisers, len(reported) == 1, len(reported) == count)
        return mean_metrics(reported)

    def minimise(self, loss: Tensor, optimisers: dict[str, Optimizer], first: bool = True, last: bool = True) -> None:
        """One optimiser step, with the gradient of `loss` or, from the first to the last, of several."""
        for optimiser in optimisers.values() if first else ():
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if not last:
            return
        average_gradients(optimisers.values())
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters(), self.clip)
        for optimiser in optimisers.values():
            optimiser.step()
