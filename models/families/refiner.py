"""Simulated images made realistic without losing their annotation: SimGAN (Shrivastava et al. 2017)."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.data import Columns
from models.family import Config, Family, JudgesPatches, Refines
from models.moment import Moment
from models.nn.adversarial import frozen, update
from models.nn.ema import Ema
from models.nn.history import HistoryPool
from models.refinement import refinement_report
from models.translation import ROWS, in_batches
from models.types import Batch, DataSpec, Metrics


class RefinerConfig(Config):
    """L_R = mean over patches softplus(-D(R(x))) + lambda_self * mean |R(x) - x|.

    Both terms are means, whatever the size. Sums over a 35x55 image and its 126 patches, as published, convert by
    lambda_self = lambda * 35 * 55 / 126, so 0.5 there is 7.6 here.
    """

    lambda_self: float = Field(5.0, ge=0, le=1e3, description="Weight of staying near the simulated image.")
    width: int = Field(32, ge=4, le=256, description="Channels of the refiner.")
    blocks: int = Field(4, ge=1, le=16, description="Residual blocks of the refiner.")
    refiner_updates: int = Field(2, ge=1, le=50, description="Updates of the refiner for one of the discriminator.")
    warm_up: float = Field(0.02, ge=0, le=0.5, description="Share of the run in which only the discriminator learns.")
    history_batches: int = Field(50, ge=1, le=1000, description="Batches of past refined images shown to it again.")


class Block(nn.Module):
    """x + conv(relu(conv(x))), then ReLU: the paper's residual block, without normalisation."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(features + self.layers(features))


class RefinerNet(nn.Module):
    """Starts as the identity: its last convolution is zero and its input is added, instead of a warm-up towards it."""

    def __init__(self, channels: int, width: int, blocks: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, 1, 1), nn.ReLU(), *(Block(width) for _ in range(blocks))
        )
        self.last = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Unclamped, so that the gradient at black and white pixels does not vanish."""
        return images + self.last(self.body(images * 2 - 1))


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
        self.refiner = RefinerNet(data.channels, config.width, config.blocks)
        self.served = Ema(self.refiner)
        self.judge = local_judge(data.channels)
        self.pool = HistoryPool(config.history_batches * config.batch_size, data.shape)

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        rate = self.config.learning_rate
        networks = {"refiner": self.refiner, "judge": self.judge}
        return {name: torch.optim.Adam(net.parameters(), rate, (0.5, 0.999)) for name, net in networks.items()}

    def step(self, batch: Batch, optimisers: dict[str, torch.optim.Optimizer], moment: Moment) -> Metrics:
        simulated, real = batch["a"], batch["b"]
        metrics, refined = self._update_refiner(simulated, optimisers["refiner"], learns=self._learns(moment))
        self.served.update(self.refiner, self.config.batch_size, moment.images)
        if not self._learns(moment) or moment.step % self.config.refiner_updates == 0:
            shown = self.pool.exchange(refined, moment.generator)
            loss = F.softplus(-self.judge(real)).mean() + F.softplus(self.judge(shown)).mean()
            metrics["judge"] = update(optimisers["judge"], loss)
        return metrics

    def _learns(self, moment: Moment) -> bool:
        return moment.progress >= self.config.warm_up

    def _update_refiner(
        self, simulated: Tensor, optimiser: torch.optim.Optimizer, learns: bool
    ) -> tuple[Metrics, Tensor]:
        with frozen(self.judge), torch.set_grad_enabled(learns):
            refined = self.refiner(simulated)
            fool = F.softplus(-self.judge(refined)).mean()
            moved = (refined - simulated).abs().mean()
            loss = fool + self.config.lambda_self * moved
            if learns:
                update(optimiser, loss)
        return {"loss": loss.detach(), "fool": fool.detach(), "moved": moved.detach()}, refined.detach()

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
