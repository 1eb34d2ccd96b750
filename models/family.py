"""The base of every model family, and the capabilities that say in a class line what a trained model can do.

A family is one file in `models/families`: networks built in `__init__`, a flat typed `Config`, and the update of one
mini-batch. Training, checkpoints, progress and reports are the engine's (models/training.py).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from models.data import Columns
from models.doctor import Alarm, Look
from models.moment import Moment
from models.plane import Plane
from models.types import Batch, ConfigError, DataError, DataSpec, Metrics, ModelError


class Config(BaseModel):
    """Fields every family shares. An empty (null) value is decided from the data by `Family.resolve`."""

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

    @classmethod
    def create(cls, config: dict, data: DataSpec) -> Self:
        """A new model from a config with gaps. Raises ConfigError or DataError when config and data do not fit."""
        try:
            asked = cls.Config(**config)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(first["msg"], field=".".join(map(str, first["loc"])) or None) from None
        missing = [name for name in cls.needs if name not in data.columns.get("train", {name: 1})]
        if missing:
            raise DataError(f"{cls.name} needs the column {missing[0]}, which this dataset lacks", field="dataset")
        return cls(cls.resolve(asked, data), data)

    @classmethod
    def resolve(cls, config: Config, data: DataSpec) -> Config:
        """The config with all that the data decides filled in; families extend it. Resolving again changes nothing."""
        count = max(data.count, 1)
        batch = config.batch_size or min(cls.default_batch, max(8, count))
        length = config.images or round((config.epochs or cls.length(data)) * count)
        return config.model_copy(update={"batch_size": batch, "images": max(length, batch), "epochs": None})

    @classmethod
    def length(cls, data: DataSpec) -> float:
        """Epochs to train when nobody says: more for a small dataset, so that the count of updates stays sensible."""
        return max(cls.default_epochs * min(1.0, 20_000 / max(data.count, 1)), 4.0, 20_000 / max(data.count, 1))

    def prepare(self, images: int) -> None:
        """Bring the structure to what it is after `images` images: grow layers, enter a stage. Does nothing twice.

        Called before every update, before a checkpoint is loaded and before serving.
        """

    def adopt(self, other: "Family") -> None:
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

    def begin(self, train: Columns) -> None:
        """Before the first update or a resumed one: decide from the images what the config left open."""

    @abstractmethod
    def optimisers(self) -> dict[str, Optimizer]:
        """New optimisers over the present parameters; moments carry over by parameter name."""

    @abstractmethod
    def step(self, batch: Batch, optimisers: dict[str, Optimizer], moment: Moment) -> Metrics:
        """One update of all networks, in place. Returns scalars to report, without waiting for the device."""

    def schedule(self, progress: float) -> float:
        """Factor on every learning rate at `progress` in [0, 1]: the warm-up, times a cosine from 1 to 0.01."""
        updates = self.total / self.config.batch_size
        rise = min(1.0, (progress * updates + 1) / max(1.0, min(self.warm_up, updates / 10)))
        return rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))

    def finish(self, train: Columns, moment: Moment) -> None:
        """After the last update: fit what is fitted on the trained networks (a mixture over codes, thresholds)."""

    def evaluate(self, train: Columns, validation: Columns, moment: Moment) -> dict[str, float]:
        """Numbers for the result, on validation data, with the trivial baseline beside each."""
        return {}

    def remarks(self, measured: dict[str, float]) -> list[str]:
        """What the numbers of `evaluate` should make a user wary of: cause and remedy, a sentence each."""
        return []

    def held_out(self, probe: Batch, moment: Moment) -> Tensor | None:
        """The loss (a scalar) on images that are not trained on, the same measure at every moment: less is better."""
        return None

    def examine(self, look: Look) -> Iterable[Alarm]:
        """What is wrong now, at one of the doctor's looks: every alarm that holds, whether or not it did before."""
        return ()

    def treat(self, alarm: Alarm, look: Look) -> str | None:
        """A bounded remedy for an alarm, in place, and a sentence about it; None: nothing was changed.

        Called at every look at which the alarm holds, when the config has a true `auto_remedy`. All that it changes
        must be parameters or buffers, which the checkpoint carries; rates of learning follow from `schedule`.
        """
        return None

    def snapshot(self, probe: Batch, moment: Moment) -> Tensor | None:
        """Images (k, c, h, w) that show the state of training, the same inputs and latents every time."""
        return None

    @property
    def total(self) -> int:
        """Images of a whole training: the configured length, in whole batches."""
        return -(-self.config.images // self.config.batch_size) * self.config.batch_size

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def served_state(self) -> dict[str, Tensor]:
        """What a published model keeps: the whole state, less modules marked `training_only` (history pools)."""
        dropped = tuple(f"{name}." for name, module in self.named_modules() if getattr(module, "training_only", False))
        return {key: value for key, value in self.state_dict().items() if not (dropped and key.startswith(dropped))}

    def serve(self, state: dict[str, Tensor]) -> Self:
        """Take over what `served_state` of a finished training gave: frozen, in eval mode."""
        self.prepare(self.total - self.config.batch_size)
        missing, unexpected = self.load_state_dict(state, strict=False)
        if unexpected or set(missing) & self.served_state().keys():
            raise ModelError("the weights do not belong to this family and config")
        return self.eval().requires_grad_(False)


class OneLoss(Family):
    """A family trained by descending one loss with Adam: it only says what the loss is."""

    clip: ClassVar[float | None] = None
    """Longest gradient of an update, where the first updates of a family can be wild."""

    @abstractmethod
    def loss(self, batch: Batch, moment: Moment) -> tuple[Tensor, Metrics]:
        """The scalar to descend, and scalars to report."""

    def optimisers(self) -> dict[str, Optimizer]:
        return {"adam": torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, fused=True)}

    def step(self, batch: Batch, optimisers: dict[str, Optimizer], moment: Moment) -> Metrics:
        loss, metrics = self.loss(batch, moment)
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


class Encodes(ABC):
    """Maps images to codes; the same image gives the same code."""

    latent_dim: int

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, latent_dim)."""


class Decodes(ABC):
    """Maps codes to images."""

    latent_dim: int

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """(B, latent_dim) -> (B, C, H, W) in [0, 1]."""

    def admissible(self, latents: Tensor) -> Tensor:
        """The nearest latents that can be a code: after a ReLU none is negative."""
        return latents


class HasPrior(ABC):
    """Draws codes to decode: `/samples` works."""

    spherical: bool = False
    """Codes lie on a sphere: scaling the draw changes nothing."""

    @abstractmethod
    def draw(self, noise: Tensor, uniform: Tensor) -> Tensor:
        """Codes (B, latent_dim) from standard normal `noise` (B, latent_dim) and `uniform` (B,) in [0, 1).

        Row i depends on row i alone, so a sample does not change with the number drawn beside it.
        """

    def plane(self) -> Plane | None:
        """The plane through latent space on which codes spread most, where the family knows it."""
        return None


class Denoises(ABC):
    """Removes noise from images."""

    @abstractmethod
    def denoise(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> the same shape and range."""


class Scores(ABC):
    """Gives one logit per class."""

    @abstractmethod
    def logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K), before any softmax."""


class Segments(ABC):
    """Gives one logit per class for each pixel."""

    @abstractmethod
    def pixel_logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K, H, W), before any softmax."""


class Detects(ABC):
    """Finds objects: for each cell of a grid, how sure it is of an object of each class there, and its box."""

    @abstractmethod
    def detection_maps(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K + 4, h, w): K logits, then left, top, right and bottom in pixels."""


class Estimates(ABC):
    """Gives one number per image."""

    @abstractmethod
    def estimate(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B,), in the unit of the dataset's targets."""


class Conditional(ABC):
    """`draw` and `decode` take labels (B,) as a further argument: class indices, unless the family says otherwise."""

    data: DataSpec

    def label(self, given: str | int) -> int | float:
        """The label that a name, an index or a number stands for. Raises InputError when there is none."""
        return self.data.class_index(given)

    def labels_in_turn(self, count: int) -> Tensor:
        """(count,) labels that show what there is."""
        return torch.arange(count) % len(self.data.classes)

    def describe_labels(self, labels: Tensor) -> list[dict]:
        """What to say of each label (B,)."""
        return [{"label": self.data.classes[index], "index": index} for index in labels.tolist()]


class Translates(ABC):
    """Maps images of one domain to another. A direction is `ab` (input to target, A to B) or `ba`."""

    directions: tuple[str, ...]

    @abstractmethod
    def translate(self, images: Tensor, direction: str) -> Tensor:
        """(B, C, H, W) in [0, 1], of any height and width -> the same shape and range."""


class Refines(ABC):
    """Makes simulated images look real while keeping what they show."""

    @abstractmethod
    def refine(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> the same shape and range."""


class Ages(ABC):
    """Shows the same person at another age: `decode` takes the age group as its label."""

    @property
    @abstractmethod
    def age_groups(self) -> tuple[str, ...]:
        """The names of the groups, by label."""

    @abstractmethod
    def age_group(self, given: str) -> int:
        """The label of a group's name, or of an age in it. Raises InputError when there is none."""

    @abstractmethod
    def read_age(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K): logits of the age groups."""

    @abstractmethod
    def identify(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, F): features whose cosine says how alike two persons are."""

    @abstractmethod
    def locate(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, latent_dim): a first guess at the latents, whatever the age."""


class Judges(ABC):
    """Says how real an image looks beside what the model itself makes."""

    @abstractmethod
    def realness(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B,): log-odds that an image is from the data and not from the model."""


class JudgesPatches(Judges):
    """Judges an image patch by patch; the whole is as real as its patches are on average."""

    judged: tuple[str, ...]
    """Domains whose images are judged, `a` or `b`."""
    judges_pairs: bool = False
    """What is judged is an image beside the input that it was made of."""

    @abstractmethod
    def patches(self, *images: Tensor, domain: str) -> Tensor:
        """(B, C, H, W), for pairs twice -> (B, rows, columns): log-odds that a patch is from the data."""

    def realness(self, images: Tensor) -> Tensor:
        """Of the first domain."""
        return self.patches(images, domain=self.judged[0]).flatten(1).mean(1)


class Suspects(ABC):
    """Says how much an image looks like an adversarial one."""

    @property
    @abstractmethod
    def threshold(self) -> float | None:
        """Suspicion above this is more than a clean image should have; None when nothing is known of clean ones."""

    @abstractmethod
    def suspicion(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B,)."""


class Truncates(ABC):
    """Latents have a learned typical value, towards which they can be drawn; straight lines join them well."""

    @abstractmethod
    def truncate(self, latents: Tensor, truncation: Tensor) -> Tensor:
        """(B, latent_dim), with `truncation` (B, 1): 0 gives the typical latents, 1 those given."""


class MixesStyles(ABC):
    """Takes what is coarse in an image from one code and what is fine from another."""

    @property
    @abstractmethod
    def crossings(self) -> int:
        """Places at which the one can give way to the other: 1 .. crossings, coarse to fine."""

    @abstractmethod
    def mix(self, coarse: Tensor, fine: Tensor, crossing: Tensor) -> Tensor:
        """Latents (B, latent_dim) twice and the crossing of each row (B,) -> (B, C, H, W) in [0, 1]."""
