"""The two players' turns: what each descends, what is traced, and what a family may change about them."""

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.context import StepContext
from models.data import Columns
from models.families.gans.augment import AdaptiveAugment, diff_augment
from models.families.gans.auto_remedy import Remedies
from models.families.gans.config import GameConfig
from models.family import Family
from models.losses.adversarial import PAIRED, discriminator_loss, frozen, generator_loss, value
from models.losses.gradient_penalties import one_centred, zero_centred
from models.nn.ema import Ema
from models.types import Batch, DataSpec, Metrics

BALANCE = -2 * math.log(2)
COMPILER = "inductor"
LOOK_EVERY = 16  # turns of G from one comparison of saturating and non-saturating gradients to the next


@dataclass(frozen=True)
class Shown:
    """Images (b, c, h, w) in [-1, 1] as D meets them, and what it is told about them (b, k)."""

    images: Tensor
    told: Tensor | None = None


def total_norm(tensors: Iterable[Tensor | None]) -> Tensor:
    """The length of all tensors taken together."""
    return torch.stack(torch._foreach_norm([tensor for tensor in tensors if tensor is not None])).norm()


def descend(optimiser: Optimizer, loss: Tensor) -> tuple[Tensor, Tensor]:
    """One step; returns the length of the gradient, and 1 if it was not finite, which leaves the step out.

    The masks stay on the device: nothing waits.
    """
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    slopes = [weight.grad for group in optimiser.param_groups for weight in group["params"] if weight.grad is not None]
    length = total_norm(slopes)
    unfinite = ~torch.isfinite(length)
    for slope in slopes:
        slope.masked_fill_(unfinite, 0.0)
    optimiser.step()
    return length.masked_fill(unfinite, 0.0), unfinite.float()


class Game(Family):
    """A generator against a discriminator, and the average of the generator over training."""

    Config = GameConfig
    config: GameConfig
    default_images = 300_000
    rewinds = True
    """Whether the generator of an earlier moment can take the place of the present one."""

    def __init__(self, config: GameConfig, data: DataSpec):
        super().__init__(config, data)
        self.generator, self.discriminator = self.players()
        self.ema = Ema(self.generator, config.ema_half_life)
        wanted = config.augment == "adaptive" or config.auto_remedy
        self.adaptive = AdaptiveAugment(min(500_000, self.total // 2)) if wanted else None
        self.remedies = Remedies(self.ema.module, self.rewinds) if config.auto_remedy else None

    def before_training(self, train: Columns) -> None:
        """On CUDA: weights as its convolutions like them, and compiled calls of what is differentiated once."""
        super().before_training(train)
        if not self.accelerated:
            return
        self.to(memory_format=self.layout)
        if self.config.compile:
            for player in (self.discriminator, *([] if self.bends else [self.generator])):
                player.compile(backend=COMPILER)

    @property
    def accelerated(self) -> bool:
        return self.device.type == "cuda"

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.accelerated else torch.contiguous_format

    @property
    def bends(self) -> bool:
        """Whether a penalty differentiates the generator twice."""
        return False

    @abstractmethod
    def players(self) -> tuple[nn.Module, nn.Module]:
        """A new generator and discriminator."""

    @classmethod
    def default_epochs_for(cls, data: DataSpec) -> float:
        return max(cls.default_images / max(data.count, 1), 4.0)

    def schedule(self, progress: float) -> float:
        """Constant for the first half, then linearly down to a tenth: the players should settle, not stop."""
        return min(1.0, 1.0 - 1.8 * (progress - 0.5))

    def optimisers(self) -> dict[str, Optimizer]:
        config = self.config
        return {
            "generator": self._optimiser(config.generator_optimiser, self.generator, config.learning_rate),
            "discriminator": self._optimiser(
                config.discriminator_optimiser, self.discriminator, config.discriminator_learning_rate
            ),
        }

    def _optimiser(self, kind: str, player: nn.Module, rate: float) -> Optimizer:
        beta1, beta2 = self.config.beta1, self.config.beta2
        if kind == "adam":
            return torch.optim.Adam(player.parameters(), rate, (beta1, beta2), eps=1e-8, fused=True)
        if kind == "sgd":
            return torch.optim.SGD(player.parameters(), rate, momentum=beta1)
        return torch.optim.RMSprop(player.parameters(), rate, alpha=beta2)

    # What a family may change

    def reals(self, batch: Batch) -> Tensor:
        """The images D is shown as real, in [-1, 1]."""
        return batch["images"] * 2 - 1

    def asked(self, batch: Batch, context: StepContext) -> tuple[Tensor | None, Tensor | None]:
        """What D is told about the real images (b, k), and what G is asked for."""
        return None, None

    def codes(self, noise: Tensor) -> Tensor:
        """Latents from standard normal noise (b, d), row by row."""
        return noise

    def make(self, count: int, wanted: Tensor | None, context: StepContext) -> Tensor:
        """Fakes in [-1, 1] from fresh latents."""
        return self.generator(self.codes(self.noise(count, context.generator)), wanted)

    def noise(self, count: int, draws: torch.Generator) -> Tensor:
        """Standard normal (count, d)."""
        return torch.randn(count, self.config.latent_dim, generator=draws, device=draws.device)

    def remembered(self, fakes: Shown, context: StepContext) -> Shown:
        """The fakes D is shown for these."""
        return fakes

    has_pretext = False

    def pretext(self, features: Tensor, reals: Tensor) -> Tensor:
        """What D minimises besides the game, from its features of real images, where `has_pretext`."""
        raise NotImplementedError

    def generator_penalty(self, context: StepContext) -> Tensor | None:
        """What G minimises besides the game."""
        return None

    # The turns

    def step(self, batch: Batch, optimisers: dict[str, Optimizer], context: StepContext) -> Metrics:
        """D learns from every batch; G from every `critic_steps`-th, on the fakes D has just been shown."""
        told, wanted = self.asked(batch, context)
        reals = Shown(self.reals(batch), told)
        turn = (context.step + 1) % self.config.critic_steps == 0
        with torch.set_grad_enabled(turn), self._autocast():
            made = Shown(self.make(len(reals.images), wanted, context).float(), wanted)
        fakes = self._disguised(self.remembered(replace(made, images=made.images.detach()), context), context)
        reals = self._disguised(reals, context)
        traced = self._teach_discriminator(reals, fakes, optimisers["discriminator"], context)
        if turn:
            of_generator = self._teach_generator(made, reals, optimisers["generator"], context)
            unfinite = torch.maximum(traced["gradient_nonfinite"], of_generator["gradient_nonfinite"])
            traced |= of_generator | {"gradient_nonfinite": unfinite}
            count = len(reals.images)
            self.ema.update(self.generator, count * self.config.critic_steps, context.images + count)
        return traced

    def _teach_discriminator(self, reals: Shown, fakes: Shown, optimiser: Optimizer, context: StepContext) -> Metrics:
        config = self.config
        due = context.step % config.penalty_every == 0
        x = reals.images.detach().requires_grad_(due and config.r1 > 0)
        y = fakes.images.detach().requires_grad_(due and config.r2 > 0)
        with self._autocast(allowed=not (x.requires_grad or y.requires_grad)):
            features, a, b = self._judged(Shown(x, reals.told), Shown(y, fakes.told))
            loss = discriminator_loss(config.loss, a, b, 1 - config.label_smoothing, self._flips(len(a), context))
            extra = {"pretext": (1.0, self.pretext(features, x.detach()) if self.has_pretext else None)}
        traced = {"loss_discriminator": loss.detach(), **self._trace(a.detach(), b.detach())}
        if config.drift:
            extra["drift"] = config.drift, a.square().mean()
        if x.requires_grad:
            extra["r1"] = config.r1 / 2 * config.penalty_every, zero_centred(a, x)
        if y.requires_grad:
            extra["r2"] = config.r2 / 2 * config.penalty_every, zero_centred(b, y)
        if config.gradient_penalty:
            slope = one_centred(lambda images: self.discriminator.forward(images, reals.told), x, y, context.generator)
            extra["gradient_penalty"] = config.gradient_penalty, slope
        for name, (weight, penalty) in extra.items():
            if penalty is not None:
                loss, traced[name] = loss + weight * penalty, penalty.detach()
        if self.remedies is not None and (pace := self.remedies.value("pace")) < 1:
            for group in optimiser.param_groups:  # set anew before every update
                group["lr"] = group["lr"] * pace
        traced["gradient_discriminator"], traced["gradient_nonfinite"] = descend(optimiser, loss)
        if self.config.augment == "adaptive":
            self.adaptive.observe(a, context.step)
        if self.adaptive is not None:
            traced["augment_p"] = self.adaptive.p.clone()
        return traced

    def _teach_generator(self, made: Shown, reals: Shown, optimiser: Optimizer, context: StepContext) -> Metrics:
        name = self.config.loss
        with frozen(self.discriminator):
            with self._autocast():
                b = self.discriminator(self._disguised(made, context).images, made.told)
                with torch.no_grad():
                    a = self.discriminator(reals.images, reals.told) if name == PAIRED else None
                loss = generator_loss(name, b, a)
            traced = {"loss_generator": loss.detach()}
            turns = (context.step + 1) // self.config.critic_steps
            if name in ("minimax", "non_saturating") and turns % LOOK_EVERY == 0:
                traced |= self._saturation(b)
            penalty = self.generator_penalty(context)
            if penalty is not None:
                loss, traced["generator_penalty"] = loss + penalty, penalty.detach()
            traced["gradient_generator"], unfinite = descend(optimiser, loss)
        return traced | {"gradient_nonfinite": unfinite}

    def _judged(self, reals: Shown, fakes: Shown) -> tuple[Tensor | None, Tensor, Tensor]:
        """D's features of the reals where the pretext needs them, and the logits of both, in one batch or in two."""
        player = self.discriminator
        twice = reals.images.requires_grad or fakes.images.requires_grad
        judge = player.forward if twice else player  # what is differentiated twice cannot be compiled
        if self.has_pretext:
            features = player.features(reals.images, reals.told)
            return features, player.judge(features, reals.told), judge(fakes.images, fakes.told)
        if self.config.separate_batches:
            return None, judge(reals.images, reals.told), judge(fakes.images, fakes.told)
        told = None if reals.told is None else torch.cat([reals.told, fakes.told])
        logits = judge(torch.cat([reals.images, fakes.images]), told)
        return None, *logits.tensor_split([len(reals.images)])

    def _disguised(self, shown: Shown, context: StepContext) -> Shown:
        """Augmentation and instance noise, the same for reals and fakes."""
        images, draws = shown.images, context.generator
        if self.config.augment == "diff":
            images = diff_augment(images, draws)
        if self.config.augment == "adaptive" or (self.remedies is not None and self.remedies.value("augment") > 0):
            images = self.adaptive(images, draws)
        strength = self.config.instance_noise * (1 - context.progress)
        if strength:
            images = images + strength * torch.randn(images.shape, generator=draws, device=images.device)
        return replace(shown, images=images)

    def _flips(self, count: int, context: StepContext) -> tuple[Tensor, Tensor] | None:
        if not self.config.label_flips:
            return None
        draws = torch.rand(2, count, generator=context.generator, device=context.generator.device)
        return tuple(draws < self.config.label_flips)

    def _autocast(self, allowed: bool = True) -> torch.autocast:
        """bfloat16 on CUDA; what is differentiated twice is left out of it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=allowed and self.device.type == "cuda")

    def _trace(self, a: Tensor, b: Tensor) -> Metrics:
        """V(G, D) and how far it is above 2 log(1/2), where D cannot tell; D(x), D(G(z)), both 1/2 there; and the mean
        sign of D's logits on reals: near 1, D knows them by heart."""
        means = {"d_real": a.sigmoid().mean(), "d_fake": b.sigmoid().mean(), "d_real_sign": a.sign().mean()}
        found = value(a, b)
        return {"value": found, "value_excess": found - BALANCE, **means}

    def _saturation(self, b: Tensor) -> Metrics:
        """Length of G's gradient under the saturating loss of the 2014 paper, and under its replacement."""
        found, parameters = {}, [p for p in self.generator.parameters() if p.requires_grad]
        for label, name in (("saturating", "minimax"), ("non_saturating", "non_saturating")):
            slopes = torch.autograd.grad(generator_loss(name, b), parameters, retain_graph=True, allow_unused=True)
            found[f"gradient_{label}"] = total_norm(slopes)
        return found
