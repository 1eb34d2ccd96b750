"""A throw-away family that uses all of the frame at once: two players with their own optimisers and schedules, an
average, a history pool, a network that grows, stages, and two domains of different length.
"""

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from models.context import StepContext
from models.data import Columns
from models.family import Config, Family
from models.nn.ema import Ema
from models.nn.image_pool import ImagePool
from models.types import Batch, DataSpec, Metrics

GROWS_AT = 24
SECOND_STAGE = 40


class Growing(nn.Module):
    """A convolution, and after `grow` another one that fades in."""

    def __init__(self, channels: int):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(channels, channels, 3, 1, 1)])

    def grow(self) -> None:
        last = self.blocks[-1]
        self.blocks.append(nn.Conv2d(last.in_channels, last.out_channels, 3, 1, 1).to(last.weight.device))

    def forward(self, images: Tensor, fade: float) -> Tensor:
        maps = self.blocks[0](images).sigmoid()
        return maps if len(self.blocks) == 1 else torch.lerp(maps, self.blocks[1](maps).sigmoid(), fade)


class TwoNetworks(Family):
    """The generator maps domain b to look like domain a; the critic takes `n_critic` updates for each of its own."""

    name = "two_networks"
    summary = "for tests"
    layouts = ("unpaired",)
    needs = ("a", "b")
    n_critic = 2

    def __init__(self, config: Config, data: DataSpec):
        super().__init__(config, data)
        self.generator = Growing(data.channels)
        self.critic = nn.Sequential(
            nn.Conv2d(data.channels, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.LeakyReLU(), nn.Dropout(0.1),
            nn.Flatten(), nn.LazyLinear(1),
        )  # fmt: skip
        self.critic.eval()(torch.zeros(1, *data.shape))
        self.average = Ema(self.generator, half_life=16)
        self.pool = ImagePool(6, data.shape)

    def grow_to(self, images: int) -> None:
        if images >= GROWS_AT and len(self.generator.blocks) == 1:
            self.generator.grow()
            self.average = Ema(self.generator, half_life=16)

    def optimisers(self) -> dict[str, Optimizer]:
        return {
            "generator": Adam(self.generator.parameters(), lr=0.01, betas=(0.0, 0.99)),
            "critic": SGD(self.critic.parameters(), lr=0.05, momentum=0.9),
        }

    def step(self, batch: Batch, optimisers: dict[str, Optimizer], context: StepContext) -> Metrics:
        fade = min(1.0, max(0.0, (context.images - GROWS_AT) / 16))
        noise = torch.randn(batch["b"].shape, generator=context.generator)
        fake = self.generator(batch["b"] + 0.1 * noise, fade)
        shown = self.pool.exchange(fake.detach(), context.generator)
        critic_loss = self.critic(shown).mean() - self.critic(batch["a"]).mean()
        self._descend(critic_loss, optimisers["critic"])
        if context.step % self.n_critic == self.n_critic - 1:
            weight = 1.0 if context.images < SECOND_STAGE else 0.2
            self._descend(-weight * self.critic(fake).mean(), optimisers["generator"])
            self.average.update(self.generator, len(fake), context.images)
        return {"critic": critic_loss.detach(), "blocks": torch.tensor(float(len(self.generator.blocks)))}

    def _descend(self, loss: Tensor, optimiser: Optimizer) -> None:
        self.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    def after_training(self, train: Columns, context: StepContext) -> None:
        self.register_buffer("fitted", torch.stack([b["a"].mean() for b in train.batches(4)][:1]))

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        return {"mean": float(self.average(validation.head(4)["b"], 1.0).mean())}
