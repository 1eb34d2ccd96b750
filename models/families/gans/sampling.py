"""What a trained game does: draw and decode with the averaged generator, and judge with the discriminator."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.capabilities import Decodes, Discriminates, HasPrior
from models.context import StepContext
from models.data import Columns
from models.diagnosis import Alarm, Inspection
from models.evaluation.fidelity import Fidelity, coverage, evenness, fidelity_of, in_chunks
from models.evaluation.metrics import CHUNK
from models.families.gans import diagnostics as alarms
from models.families.gans.base import Game
from models.families.gans.calibration import agreement, log_odds
from models.families.gans.layers import settle
from models.seeds import generator
from models.types import Batch, DataSpec

SETTLING = 16  # batches that set the statistics of the averaged generator
GLANCING = 2  # the same for a snapshot: one costs less than an update
JUDGED = 1000  # images that calibrate the discriminator
PICTURES = 64  # of a snapshot
MEASURED = 8, 64  # measurements along a training, and the most that a config may ask for
MEASURED_SHARE = 1 / 16  # samples drawn for all of them, as a share of the images trained on
FEWEST_MEASURED = 64
SETTLED = 0.2  # share of the training after which samples are looked at for trouble


class Generative(HasPrior, Decodes, Discriminates, Game):
    """A game whose averaged generator serves, and whose discriminator answers how real an image looks."""

    def __init__(self, config, data: DataSpec):
        super().__init__(config, data)
        self.latent_dim = config.latent_dim
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))
        self._known: Tensor | None = None

    def draw(self, noise: Tensor, uniform: Tensor) -> Tensor:
        return self.codes(noise)

    def decode(self, latents: Tensor) -> Tensor:
        return self.pictures(self.ema(latents))

    def pictures(self, made: Tensor) -> Tensor:
        """What a generator made, in [0, 1]."""
        return ((made + 1) / 2).clamp(0, 1)

    def real_log_odds(self, images: Tensor) -> Tensor:
        scale, shift = self.calibration
        return self.judgement(images * 2 - 1) * scale + shift

    def judgement(self, images: Tensor) -> Tensor:
        """D's logits (b,) of images in [-1, 1], whatever their condition."""
        return self.discriminator(images)

    def specimens(self, generator: nn.Module, count: int, context: StepContext) -> Tensor:
        """`count` fresh images in [0, 1] by `generator`."""
        return self.pictures(generator(self.codes(self.noise(count, context.generator))))

    def gallery(self, count: int, context: StepContext) -> Tensor:
        """`count` images by the averaged generator, on the host."""
        return self.drawn(self.ema.module, count, context)

    def drawn(self, generator: nn.Module, count: int, context: StepContext) -> Tensor:
        """`count` images by `generator`, on the host."""
        return in_chunks(lambda size: self.specimens(generator, size, context), count)

    def settle(self, generator: nn.Module, context: StepContext, batches: int = SETTLING) -> None:
        """Give an averaged generator the batch statistics of its own activations."""
        settle(generator, lambda: self.specimens(generator, self.config.batch_size, context), batches)

    def present(self, context: StepContext) -> nn.Module:
        """A copy of the averaged generator as it would serve now."""
        averaged = copy.deepcopy(self.ema.module)
        draws = generator(context.seed, "present", device=self.device)
        self.settle(averaged, replace(context, generator=draws), GLANCING)
        return averaged

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        return self.specimens(self.present(context), PICTURES, context)

    def midway_points(self) -> list[int]:
        every = self.config.measure_every
        if every is None:
            return (
                [self.total * part // MEASURED[0] for part in range(1, MEASURED[0] + 1)] if self._affordable() else []
            )
        return list(range(every, self.total + 1, max(every, self.total // MEASURED[1]))) if every else []

    def _affordable(self) -> bool:
        return self.total * MEASURED_SHARE / MEASURED[0] >= FEWEST_MEASURED

    def evaluate_midway(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Distances of a few samples, with those of as many real images; coverage both ways. Remembers the best."""
        measure = self.measure(train, validation)
        afforded = int(self.total * MEASURED_SHARE / len(self.midway_points()))
        averaged = self.present(context)
        found = self.drawn(averaged, min(measure.count, max(FEWEST_MEASURED, afforded)), context)
        facts = measure.quick(found)
        if facts:
            rows, floor = measure.rows(found), measure.some(len(found))
            facts |= {"precision": coverage(rows, measure.wanted), "recall": coverage(measure.wanted, rows)}
            facts |= {"precision_floor": coverage(floor, measure.wanted)}
            facts |= {"recall_floor": coverage(measure.wanted, floor)}
        if self.remedies is not None and "fd" in facts:
            self.remedies.remember(self.ema.module, facts["fd"])
        return facts

    def diagnose(self, look: Inspection) -> Iterator[Alarm]:
        """Curves at every look; samples and D's judgement once the players have found their feet."""
        yield from alarms.from_scalars(self.config.loss, look.now, look.before)
        if look.first or look.context.progress < SETTLED:
            return
        reals = look.probe["images"]
        samples = self.specimens(self.generator, len(reals), look.context)
        trained = look.train.spaced(len(reals))["images"].to(self.device)
        yield from alarms.collapsed(samples, reals)
        yield from alarms.overfitted(*(self.judgement(images * 2 - 1).float() for images in (trained, reals, samples)))
        if self._known is None:
            self._known = alarms.known_rows(look.train, self.device)
        yield from alarms.memorised(samples, reals, self._known)

    def auto_remedy(self, alarm: Alarm, look: Inspection) -> str | None:
        match alarm.name:
            case "discriminator-overfits" | "memorising":
                done = self.remedies.augment_more()
                if done:
                    self.adaptive.p.copy_(torch.maximum(self.adaptive.p, self.remedies.augment))
                return done
            case "discriminator-too-strong":
                return self.remedies.slow_down()
            case "mode-collapse" | "getting-worse" | "exploding-generator" | "exploding-discriminator":
                return self.remedies.rewind(self.generator, self.ema)
        return None

    def after_training(self, train: Columns, context: StepContext) -> None:
        self.settle(self.ema.module, context)

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Distances from real images with floors and trivial samplers, and how well D still tells the two apart."""
        measure = self.measure(train, validation)
        classes = self.data.classes
        found = self.gallery(measure.count, context)
        facts = measure.report(found) | {"discriminator_accuracy": self.calibrate(measure.unseen, found)}
        if measure.labelled:
            facts["class_entropy"] = evenness(measure.predicted(found).argmax(1), len(classes))
            facts["class_entropy_floor"] = evenness(measure.predicted(measure.unseen).argmax(1), len(classes))
        return facts | self.condition_agreement(measure, train, validation, context)

    def measure(self, train: Columns, validation: Columns) -> Fidelity:
        """The frozen network and the real images that samples are compared with."""
        return fidelity_of(train, validation, self.device, self.data)

    def condition_agreement(
        self, measure: Fidelity, train: Columns, validation: Columns, context: StepContext
    ) -> dict[str, float]:
        """How well a conditional model does as it is told."""
        return {}

    def calibrate(self, unseen: Tensor, found: Tensor) -> float:
        """Learn what D's logits mean from images kept from training: on those it knows they are too high.

        Returns the share of images on the right side of even odds.
        """
        logits = [self.judgements(images[:JUDGED]) for images in (unseen, found)]
        self.calibration.copy_(log_odds(*logits))
        return agreement(*(logit * self.calibration[0].cpu() + self.calibration[1].cpu() for logit in logits))

    def judgements(self, images: Tensor) -> Tensor:
        """D's logits of images (n, c, h, w) in [0, 1], chunk by chunk, on the host."""
        return torch.cat([self.judgement(part.to(self.device) * 2 - 1).cpu() for part in images.split(CHUNK)])
