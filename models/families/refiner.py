"""Simulated images made realistic without losing their annotation: SimGAN (Shrivastava et al. 2017)."""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.capabilities import JudgesPatches, Refines
from models.data import Columns
from models.family import Config, Family
from models.identity import changed
from models.moment import Moment
from models.nn.adversarial import frozen, update
from models.nn.bodies import ConvEncoder, FlatEncoder, default_body
from models.nn.ema import Ema
from models.nn.history import HistoryPool
from models.refinement import refinement_report
from models.translation import ROWS, in_batches
from models.types import Batch, DataError, DataSpec, Metrics


class RefinerConfig(Config):
    """L_R = mean over patches softplus(-D(R(x))) + lambda_self * (mean |R(x) - x| + mean displacement)
    + label_weight * cross-entropy of the label read in R(x).

    All terms are means, whatever the size; `lambda_of_sums` turns published weights into these. Values are compared
    along the displacement, which counts in shares of the image's side.
    """

    lambda_self: float = Field(0.5, ge=0, le=1e3, description="Weight of staying near the simulated image.")
    warp: float = Field(
        0.1,
        ge=0,
        le=0.5,
        description="Farthest that pixels may be displaced, in shares of the side; 0: only values change (the paper).",
    )
    label_weight: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Weight of the label staying readable; empty: 1 where simulated images have labels. 0: the paper.",
    )
    width: int = Field(24, ge=4, le=256, description="Channels of the refiner.")
    blocks: int = Field(3, ge=1, le=16, description="Residual blocks of the refiner.")
    refiner_updates: int = Field(1, ge=1, le=50, description="Updates of the refiner for one of the discriminator.")
    warm_up: float = Field(0.02, ge=0, le=0.5, description="Share of the run in which only the discriminator learns.")
    history_batches: int = Field(50, ge=1, le=1000, description="Batches of past refined images shown to it again.")


def lambda_of_sums(weight: float, height: int, width: int) -> float:
    """`lambda_self` for a published weight where pixels and D's patches, a quarter of a side's pixels, are summed.

    0.5 at 35x55 with its 9x14 patches is 7.6 (carpedm20/simulated-unsupervised-tensorflow).
    """
    return weight * height * width / (math.ceil(height / 4) * math.ceil(width / 4))


def lambda_of_batch_sums(weight: float, height: int, width: int, batch: int) -> float:
    """`lambda_self` for a published weight of a sum over the pixels of a batch, beside D's loss as a mean.

    1e-4 at 35x55 with batches of 512 is 99 (mjdietzx/SimGAN).
    """
    return weight * height * width * batch


class Block(nn.Module):
    """x + conv(relu(conv(x))), then ReLU: the paper's residual block, without normalisation."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(features + self.layers(features))


class Warp(nn.Module):
    """Displaces pixels along a smooth field that the image decides: strokes bend and lean, which values cannot."""

    def __init__(self, channels: int, farthest: float):
        super().__init__()
        self.farthest = farthest
        self.body = nn.Sequential(
            nn.Conv2d(channels, 24, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(24, 48, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(48, 48, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(48, 48, 3, 1, 1),
            nn.ReLU(),
        )
        self.last = zeroed(nn.Conv2d(48, 2, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(b, c, h, w) -> the same displaced, and the mean displacement in shares of the side."""
        coarse = self.farthest * torch.tanh(self.last(self.body(images * 2 - 1)))
        field = F.interpolate(coarse, images.shape[2:], mode="bicubic", align_corners=False)
        still = torch.eye(2, 3, device=images.device).expand(len(images), -1, -1)
        grid = F.affine_grid(still, images.shape, align_corners=False) + 2 * field.permute(0, 2, 3, 1)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False), coarse.abs().mean()


class RefinerNet(nn.Module):
    """Starts as the identity: its last convolutions are zero and its input is added, in place of a warm-up."""

    def __init__(self, channels: int, config: RefinerConfig):
        super().__init__()
        width = config.width
        self.warp = Warp(channels, config.warp) if config.warp else None
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, 1, 1), nn.ReLU(), *(Block(width) for _ in range(config.blocks))
        )
        self.last = zeroed(nn.Conv2d(width, channels, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.measured(images)[0]

    def measured(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """R(x), unclamped so that the gradient at black and white pixels does not vanish, and how far it is from x."""
        images, far = self.warp(images) if self.warp else (images, images.new_zeros(()))
        change = self.last(self.body(images * 2 - 1))
        return images + change, change.abs().mean() + far


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer, answering zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Annotator(nn.Module):
    """Reads the label of simulated images, and whether refined ones still have it; only training needs it."""

    training_only = True

    def __init__(self, shape: tuple[int, int, int], classes: int):
        super().__init__()
        conv = default_body(shape) == "conv"
        self.body = ConvEncoder(shape, classes, 16) if conv else FlatEncoder(shape, classes, (128,))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


def local_judge(channels: int) -> nn.Sequential:
    """The paper's discriminator: a map of logits, one for each patch (section 2.2)."""
    return nn.Sequential(
        nn.Conv2d(channels, 96, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(96, 64, 3, 2, 1),
        nn.ReLU(),
        nn.MaxPool2d(3, 1, 1),
        nn.Conv2d(64, 32, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 1),
        nn.ReLU(),
        nn.Conv2d(32, 1, 1),
    )


class Refiner(Refines, JudgesPatches, Family):
    """Domain A is simulated, domain B real. The refined image keeps its place in A's annotation."""

    name = "refiner"
    summary = "Makes simulated images look like real ones while keeping their labels true."
    lecture = "Refiner"
    layouts = ("unpaired",)
    needs = ("a", "b")
    Config = RefinerConfig
    default_batch = 32
    judged = ("b",)

    def __init__(self, config: RefinerConfig, data: DataSpec):
        super().__init__(config, data)
        self.refiner = RefinerNet(data.channels, config)
        self.served = Ema(self.refiner)
        self.judge = local_judge(data.channels)
        self.annotator = Annotator(data.shape, len(data.classes)) if config.label_weight else None
        self.pool = HistoryPool(config.history_batches * config.batch_size, data.shape)

    @classmethod
    def resolve(cls, config: RefinerConfig, data: DataSpec) -> RefinerConfig:
        labelled = bool(data.classes) and "a_labels" in data.columns.get("train", {})
        if config.label_weight and not labelled:
            raise DataError(
                "label_weight needs labels of the simulated images, which this dataset lacks",
                field="config/label_weight",
                remedy="leave it out, or give the folders A and B the same class folders",
            )
        weight = config.label_weight if config.label_weight is not None else float(labelled)
        return super().resolve(config, data).model_copy(update={"label_weight": weight})

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        rate = self.config.learning_rate
        networks = {"refiner": self.refiner, "judge": self.judge, "annotator": self.annotator}
        kept = {name: net for name, net in networks.items() if net is not None}
        return {name: torch.optim.Adam(net.parameters(), rate, (0.5, 0.999)) for name, net in kept.items()}

    def step(self, batch: Batch, optimisers: dict[str, torch.optim.Optimizer], moment: Moment) -> Metrics:
        learns = moment.progress >= self.config.warm_up
        metrics, refined = self._update_refiner(batch, optimisers["refiner"], learns)
        self.served.update(self.refiner, self.config.batch_size, moment.images)
        if self.annotator is not None:
            metrics["annotator"] = self._update_annotator(batch, optimisers["annotator"], moment)
        if not learns or moment.step % self.config.refiner_updates == 0:
            shown = self.pool.exchange(refined, moment.generator)
            loss = F.softplus(-self.judge(batch["b"])).mean() + F.softplus(self.judge(shown)).mean()
            metrics["judge"] = update(optimisers["judge"], loss)
        return metrics

    def _update_annotator(self, batch: Batch, optimiser: torch.optim.Optimizer, moment: Moment) -> Tensor:
        """On simulated images alone: one that learned from refined ones too would come to agree with any of them."""
        views = changed(batch["a"], moment.generator)
        return update(optimiser, F.cross_entropy(self.annotator(views), batch["a_labels"]))

    def _update_refiner(self, batch: Batch, optimiser: torch.optim.Optimizer, learns: bool) -> tuple[Metrics, Tensor]:
        readers = [self.annotator] if self.annotator is not None else []
        with frozen(self.judge, *readers), torch.set_grad_enabled(learns):
            refined, moved = self.refiner.measured(batch["a"])
            fool = F.softplus(-self.judge(refined)).mean()
            loss, found = fool + self.config.lambda_self * moved, {"fool": fool.detach(), "moved": moved.detach()}
            for reader in readers:
                unread = F.cross_entropy(reader(refined), batch["a_labels"])
                loss, found["unread"] = loss + self.config.label_weight * unread, unread.detach()
            if learns:
                update(optimiser, loss)
        return {"loss": loss.detach(), **found}, refined.detach()

    def refine(self, images: Tensor) -> Tensor:
        return self.served(images).clamp(0, 1)

    def patches(self, *images: Tensor, domain: str) -> Tensor:
        return self.judge(*images)[:, 0]

    def evaluate(self, train: Columns, validation: Columns, moment: Moment) -> dict[str, float]:
        """How far images move, and what can be learned from them before and after (models/refinement.py).

        `judge_accuracy` is that of the discriminator which the refiner has learned to fool.
        """
        unseen = validation.head(ROWS)
        real = (in_batches(self.judge, unseen["b"].to(self.device)) > 0).float().mean()
        classes = len(self.data.classes) if self.data.classes else None
        report = refinement_report(self._on_device, train, validation, classes)
        for name, images in (("refined", self._on_device(unseen["a"])), ("raw", unseen["a"])):
            caught = (in_batches(self.judge, images.to(self.device)) < 0).float().mean()
            report[f"judge_accuracy_{name}"] = float((real + caught) / 2)
        return report

    def _on_device(self, images: Tensor) -> Tensor:
        """Refined images on the host, of images on the host."""
        return in_batches(self.refine, images.to(self.device)).cpu()

    def snapshot(self, probe: Batch, moment: Moment) -> Tensor:
        images = probe["a"][:16]
        return torch.stack([images, self.refine(images)], 1).flatten(0, 1)
