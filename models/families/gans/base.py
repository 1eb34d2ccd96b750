"""The base of the GAN families: a generator G and a discriminator D, trained in turns.

A family says which networks it has and overrides single hooks: `d_adversarial_loss`, `d_penalties`,
`g_adversarial_loss`, `g_penalties` (one term of an objective each), `generate`, `conditions`. Images inside are in
[-1, 1]; at the border of a family they are in [0, 1].
"""

import copy
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.capabilities import Decodes, Discriminates, HasPrior
from models.context import StepContext
from models.data import Columns
from models.diagnosis import Alarm, Inspection
from models.evaluation.fidelity import Fidelity, in_chunks
from models.families.gans import diagnostics, evaluation
from models.families.gans.augment import AdaptiveAugment, diff_augment
from models.families.gans.auto_remedy import Remedies
from models.families.gans.config import GANConfig
from models.families.gans.layers import recalibrate_batch_norm
from models.families.gans.updates import DInput, Penalties, game_metrics, new_optimiser, optimizer_step, saturation
from models.family import Family, default_effort, device_type
from models.losses.adversarial import PAIRED, discriminator_loss, frozen, generator_loss
from models.losses.gradient_penalties import one_centred_penalty, zero_centred_penalty
from models.nn.ema import Ema
from models.seeds import generator
from models.training.precision import full_precision
from models.training.ranks import rank_count
from models.types import Batch, DataSpec, Metrics

SATURATION_EVERY = 16  # updates of G from one comparison of saturating and non-saturating gradients to the next
NORM_BATCHES = 16  # batches that set the batch norm statistics of the averaged generator
SNAPSHOT_BATCHES = 2  # the same for a snapshot, so that one costs less than an update
SNAPSHOT_IMAGES = 64
DIAGNOSED_FROM = 0.2  # share of the training before which samples are not inspected
MEASURES_COUNT_FROM = 0.75  # share of the training before which samples may be no better than trivial ones


class GANBase(HasPrior, Decodes, Discriminates, Family):
    """G and D in turns. The average of G over training serves; D, calibrated at the end, scores how real images are."""

    Config = GANConfig
    config: GANConfig
    default_images = 300_000
    batches: ClassVar[dict[str, int]] = {"lesson": 16, "good": 32, "full": 64}
    """Images per update by effort: a short training needs many updates more than exact gradients."""
    milliseconds = 2.0
    snapshot_cost = 1.0
    length_free_until = 0.5
    rewinds = True
    """Whether the weights of an earlier generator fit the present one."""
    bf16_on = ("cuda",)

    def __init__(self, config: GANConfig, data: DataSpec):
        super().__init__(config, data)
        self.generator, self.discriminator = self.build_networks()
        self.ema = Ema(self.generator, config.ema_half_life)
        adapts = config.augment == "adaptive" or config.auto_remedy
        self.adaptive = AdaptiveAugment(min(500_000, self.total // 2)) if adapts else None
        self.remedies = Remedies(self.ema.module, self.rewinds) if config.auto_remedy else None
        self.latent_dim = config.latent_dim
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))  # scale and shift from logits to log-odds
        self._train_rows: Tensor | None = None

    @abstractmethod
    def build_networks(self) -> tuple[nn.Module, nn.Module]:
        """A new generator and discriminator."""

    @classmethod
    def earlier_settings(cls, engine: int, data: DataSpec) -> dict[str, Any]:
        earlier = super().earlier_settings(engine, data)
        return earlier | ({"precision": "bf16" if device_type() == "cuda" else "fp32"} if engine < 2 else {})

    @classmethod
    def resolve_config(cls, config: GANConfig, data: DataSpec) -> GANConfig:
        batch = config.batch_size or min(cls.batches[config.effort or default_effort()], max(8, data.count))
        return super().resolve_config(config.model_copy(update={"batch_size": batch}), data)

    @classmethod
    def full_epochs(cls, data: DataSpec) -> float:
        return max(cls.default_images / max(data.count, 1), 4.0)

    def schedule(self, progress: float) -> float:
        """Constant for the first half, then linearly down to a tenth."""
        return min(1.0, 1.0 - 1.8 * (progress - 0.5))

    def optimisers(self) -> dict[str, Optimizer]:
        config, betas = self.config, (self.config.beta1, self.config.beta2)
        g_lr, d_lr = config.learning_rate, config.discriminator_learning_rate
        return {
            "generator": new_optimiser(config.generator_optimiser, self.generator, g_lr, betas),
            "discriminator": new_optimiser(config.discriminator_optimiser, self.discriminator, d_lr, betas),
        }

    # Inputs of the two networks

    def real_images(self, batch: Batch) -> Tensor:
        """The real images for D, in [-1, 1]."""
        return batch["images"] * 2 - 1

    def conditions(self, batch: Batch, context: StepContext) -> tuple[Tensor | None, Tensor | None]:
        """Conditions (b, k) of the real images, and those for which G makes fakes."""
        return None, None

    def to_latents(self, noise: Tensor) -> Tensor:
        """Latents from standard normal noise (b, d), row by row."""
        return noise

    def generate(self, count: int, condition: Tensor | None, context: StepContext) -> Tensor:
        """Fakes in [-1, 1] from fresh latents."""
        return self.generator(self.to_latents(self.noise(count, context.generator)), condition)

    def noise(self, count: int, draws: torch.Generator) -> Tensor:
        """Standard normal (count, d)."""
        return torch.randn(count, self.config.latent_dim, generator=draws, device=draws.device)

    def replay_fakes(self, fakes: DInput, context: StepContext) -> DInput:
        """The fakes that D learns from; with a replay pool half of them are older ones."""
        return fakes

    # Objectives: what D and G minimise

    def d_loss(self, reals: DInput, fakes: DInput, context: StepContext) -> tuple[Tensor, Tensor, Metrics]:
        """The scalar that D minimises, D's logits (n,) of the reals, and scalars to report. Inputs are augmented."""
        config = self.config
        due = context.step % config.penalty_every == 0
        reals = replace(reals, images=reals.images.detach().requires_grad_(due and config.r1 > 0))
        fakes = replace(fakes, images=fakes.images.detach().requires_grad_(due and config.r2 > 0))
        with full_precision(reals.images.requires_grad or fakes.images.requires_grad):
            a, b, penalties = self.d_forward(reals, fakes)
            loss = self.d_adversarial_loss(a, b, context)
        metrics = {"loss_discriminator": loss.detach(), **game_metrics(a.detach(), b.detach())}
        with full_precision():
            penalties |= self.d_penalties(reals, fakes, a, b, context)
        for name, (weight, penalty) in penalties.items():
            loss, metrics[name] = loss + weight * penalty, penalty.detach()
        return loss, a, metrics

    def d_forward(self, reals: DInput, fakes: DInput) -> tuple[Tensor, Tensor, Penalties]:
        """D's logits of reals and fakes, in one batch or in two, and penalties on what D computes on the way."""
        logits = self.discriminator
        if self.config.separate_batches:
            return logits(reals.images, reals.condition), logits(fakes.images, fakes.condition), {}
        condition = None if reals.condition is None else torch.cat([reals.condition, fakes.condition])
        both = logits(torch.cat([reals.images, fakes.images]), condition)
        return *both.tensor_split([len(reals.images)]), {}

    def d_adversarial_loss(self, a: Tensor, b: Tensor, context: StepContext) -> Tensor:
        """The adversarial term of D from its logits of reals and fakes."""
        flipped = self._flips(len(a), context)
        return discriminator_loss(self.config.loss, a, b, 1 - self.config.label_smoothing, flipped)

    def d_penalties(self, reals: DInput, fakes: DInput, a: Tensor, b: Tensor, context: StepContext) -> Penalties:
        """The further terms of D that are due in this update, from its inputs and their logits."""
        config, penalties = self.config, {}
        if config.drift:
            penalties["drift"] = config.drift, a.square().mean()  # E D(x)^2 (Karras et al. 2018, appendix A.1)
        if reals.images.requires_grad:  # lazy: every k-th update, k times as much (Karras et al. 2020, section 3.1)
            penalties["r1"] = config.r1 / 2 * config.penalty_every, zero_centred_penalty(a, reals.images)
        if fakes.images.requires_grad:
            penalties["r2"] = config.r2 / 2 * config.penalty_every, zero_centred_penalty(b, fakes.images)
        if config.gradient_penalty:
            critic = partial(self.discriminator, condition=reals.condition)
            penalty = one_centred_penalty(critic, reals.images, fakes.images, context.generator)
            penalties["gradient_penalty"] = config.gradient_penalty, penalty
        return penalties

    def g_loss(self, fakes: DInput, reals: DInput, context: StepContext) -> tuple[Tensor, Metrics]:
        """The scalar that G minimises, and scalars to report. Fakes are not augmented yet, reals are."""
        b = self.discriminator(self._augmented(fakes, context).images, fakes.condition)
        loss = self.g_adversarial_loss(b, reals)
        metrics = {"loss_generator": loss.detach()}
        updates = (context.step + 1) // self.config.critic_steps
        if self.config.loss in ("minimax", "non_saturating") and updates % SATURATION_EVERY == 0:
            metrics |= saturation(self.generator, b)
        with full_precision():
            penalties = self.g_penalties(context)
        for name, (weight, penalty) in penalties.items():
            loss, metrics[name] = loss + weight * penalty, penalty.detach()
        return loss, metrics

    def g_adversarial_loss(self, b: Tensor, reals: DInput) -> Tensor:
        """The adversarial term of G from D's logits of its images."""
        with torch.no_grad():
            a = self.discriminator(reals.images, reals.condition) if self.config.loss == PAIRED else None
        return generator_loss(self.config.loss, b, a)

    def g_penalties(self, context: StepContext) -> Penalties:
        """The further terms of G that are due in this update."""
        return {}

    # Updates

    def step(self, batch: Batch, optimisers: dict[str, Optimizer], context: StepContext) -> Metrics:
        """One update of D; after every `critic_steps`-th also one of G, on the fakes that D has just learned from."""
        condition, fake_condition = self.conditions(batch, context)
        reals = DInput(self.real_images(batch), condition)
        updates_generator = (context.step + 1) % self.config.critic_steps == 0
        with torch.set_grad_enabled(updates_generator):
            images = self.generate(len(reals.images), fake_condition, context)
        generated = DInput(images, fake_condition)
        fakes = self._augmented(self.replay_fakes(replace(generated, images=images.detach()), context), context)
        reals = self._augmented(reals, context)
        metrics = self._update_discriminator(reals, fakes, optimisers["discriminator"], context)
        if updates_generator:
            of_generator = self._update_generator(generated, reals, optimisers["generator"], context)
            nonfinite = torch.maximum(metrics["gradient_nonfinite"], of_generator["gradient_nonfinite"])
            metrics |= of_generator | {"gradient_nonfinite": nonfinite}
            count = len(reals.images) * rank_count()
            self.ema.update(self.generator, count * self.config.critic_steps, context.images + count)
        return metrics

    def _update_discriminator(
        self, reals: DInput, fakes: DInput, optimiser: Optimizer, context: StepContext
    ) -> Metrics:
        loss, real_logits, metrics = self.d_loss(reals, fakes, context)
        if self.remedies is not None and (d_lr_factor := self.remedies.value("pace")) < 1:
            for group in optimiser.param_groups:  # the schedule sets the rate anew before every update
                group["lr"] = group["lr"] * d_lr_factor
        metrics["gradient_discriminator"], metrics["gradient_nonfinite"] = optimizer_step(optimiser, loss)
        if self.config.augment == "adaptive":
            self.adaptive.observe(real_logits, context.step)
        if self.adaptive is not None:
            metrics["augment_p"] = self.adaptive.p.clone()
        return metrics

    def _update_generator(
        self, generated: DInput, reals: DInput, optimiser: Optimizer, context: StepContext
    ) -> Metrics:
        with frozen(self.discriminator):
            loss, metrics = self.g_loss(generated, reals, context)
            metrics["gradient_generator"], metrics["gradient_nonfinite"] = optimizer_step(optimiser, loss)
        return metrics

    def _augmented(self, inputs: DInput, context: StepContext) -> DInput:
        """Augmentation and instance noise, the same for reals and fakes."""
        images, draws = inputs.images, context.generator
        if self.config.augment == "diff":
            images = diff_augment(images, draws)
        if self.config.augment == "adaptive" or (self.remedies is not None and self.remedies.value("augment") > 0):
            images = self.adaptive(images, draws)
        strength = self.config.instance_noise * (1 - context.progress)
        if strength:
            images = images + strength * torch.randn(images.shape, generator=draws, device=images.device)
        return replace(inputs, images=images)

    def _flips(self, count: int, context: StepContext) -> tuple[Tensor, Tensor] | None:
        """Masks (n,) of the reals and of the fakes whose label is swapped."""
        if not self.config.label_flips:
            return None
        uniform = torch.rand(2, count, generator=context.generator, device=context.generator.device)
        return tuple(uniform < self.config.label_flips)

    # Serving

    def draw(self, noise: Tensor, uniform: Tensor) -> Tensor:
        return self.to_latents(noise)

    def decode(self, latents: Tensor) -> Tensor:
        return self.to_unit_range(self.ema(latents))

    def to_unit_range(self, images: Tensor) -> Tensor:
        """Output of a generator, in [-1, 1] -> [0, 1]."""
        return ((images + 1) / 2).clamp(0, 1)

    def real_log_odds(self, images: Tensor) -> Tensor:
        scale, shift = self.calibration
        return self.d_logits(images * 2 - 1) * scale + shift

    def d_logits(self, images: Tensor) -> Tensor:
        """D's logits (b,) of images in [-1, 1], whatever their condition."""
        return self.discriminator(images)

    def sample(self, network: nn.Module, count: int, context: StepContext) -> Tensor:
        """`count` new images in [0, 1] from `network`, a generator."""
        return self.to_unit_range(network(self.to_latents(self.noise(count, context.generator))))

    def sample_on_host(self, count: int, context: StepContext, network: nn.Module | None = None) -> Tensor:
        """`count` new images in [0, 1] from the averaged generator, or from `network`, in the host's memory."""
        network = self.ema.module if network is None else network
        return in_chunks(lambda size: self.sample(network, size, context), count)

    def recalibrate_batch_norm(self, network: nn.Module, context: StepContext, batches: int = NORM_BATCHES) -> None:
        """Give an averaged generator batch norm statistics of its own activations."""
        recalibrate_batch_norm(network, lambda: self.sample(network, self.config.batch_size, context), batches)

    def serving_generator(self, context: StepContext) -> nn.Module:
        """A copy of the averaged generator as it would serve now."""
        averaged = copy.deepcopy(self.ema.module)
        draws = generator(context.seed, "present", device=self.device)
        self.recalibrate_batch_norm(averaged, replace(context, generator=draws), SNAPSHOT_BATCHES)
        return averaged

    def after_training(self, train: Columns, context: StepContext) -> None:
        self.recalibrate_batch_norm(self.ema.module, context)

    def calibrate(self, train: Columns, validation: Columns, context: StepContext) -> None:
        evaluation.calibrate(self, train, validation, context)

    # Measures, snapshots, alarms

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        return self.sample(self.serving_generator(context), SNAPSHOT_IMAGES, context)

    def midway_points(self) -> list[int]:
        return evaluation.midway_points(self)

    def evaluate_midway(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        metrics = evaluation.evaluate_midway(self, train, validation, context)
        if self.remedies is not None and "fd" in metrics:
            self.remedies.remember(self.ema.module, metrics["fd"])
        return metrics

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        return evaluation.evaluate(self, train, validation, context)

    def warnings(self, measured: dict[str, float]) -> list[str]:
        return [alarm.sentence for alarm in diagnostics.from_measures(measured)]

    def condition_agreement(
        self, fidelity: Fidelity, train: Columns, validation: Columns, context: StepContext
    ) -> dict[str, float]:
        """Agreement between the requested condition and the samples, in a conditional GAN."""
        return {}

    def diagnose(self, inspection: Inspection) -> Iterator[Alarm]:
        """Alarms from the curves at every inspection; from samples and D's logits after a fifth of the training."""
        yield from diagnostics.from_scalars(self.config.loss, inspection.now, inspection.before)
        if inspection.first or inspection.context.progress < DIAGNOSED_FROM:
            return
        if inspection.context.progress >= MEASURES_COUNT_FROM:
            yield from diagnostics.from_measures(inspection.metrics)
        reals = inspection.probe["images"]
        samples = self.sample(self.generator, len(reals), inspection.context)
        trained = inspection.train.spaced(len(reals))["images"].to(self.device)
        yield from diagnostics.collapsed(samples, reals)
        yield from diagnostics.overfitted(
            *(self.d_logits(images * 2 - 1).float() for images in (trained, reals, samples))
        )
        if self._train_rows is None:
            self._train_rows = diagnostics.training_rows(inspection.train, self.device)
        yield from diagnostics.memorised(samples, reals, self._train_rows)

    def auto_remedy(self, alarm: Alarm, inspection: Inspection) -> str | None:
        match alarm.name:
            case "discriminator-overfits" | "memorising":
                sentence = self.remedies.augment_more()
                if sentence:
                    self.adaptive.p.copy_(torch.maximum(self.adaptive.p, self.remedies.augment))
                return sentence
            case "discriminator-too-strong":
                return self.remedies.slow_discriminator()
            case "mode-collapse" | "getting-worse" | "exploding-generator" | "exploding-discriminator":
                return self.remedies.rewind(self.generator, self.ema)
        return None
