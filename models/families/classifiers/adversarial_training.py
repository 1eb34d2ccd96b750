"""Classifiers that learn from attacked images, and the guard that notices when single steps teach them nothing more."""

from abc import abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from models.attacks.core.access import Live
from models.attacks.core.norms import wide
from models.context import StepContext
from models.data import Columns
from models.families.classifiers import robustness as resistance
from models.families.classifiers.adversarial_config import Ascent, HardeningConfig, divergence, usual_eps, with_defaults
from models.families.classifiers.base import Judging
from models.types import Batch, DataSpec, Metrics

GUARDED = ("fgsm_rs", "free")
RISE = 0.25
"""Share of the training over which eps grows to its full size: at once, a deep network may learn nothing at all."""
PROBES, PROBE_STEPS, SWITCHED_STEPS = 40, 10, 4


class Guard(nn.Module):
    """Watches a single-step training with a small PGD, and keeps the last weights that withstood it.

    Catastrophic overfitting (Wong et al. 2020): within a few updates the network learns to fool the one step alone.
    Then the kept weights come back, and the training goes on with several steps. All of it is in the checkpoint.
    """

    training_only = True

    def __init__(self, network: nn.Module, updates: int):
        super().__init__()
        self.every = max(1, updates // PROBES)
        for index, parameter in enumerate(network.parameters()):
            self.register_buffer(f"kept{index}", parameter.detach().clone())
        self.register_buffer("best", torch.zeros(()))
        self.register_buffer("before", torch.zeros(()))
        self.register_buffer("switched", torch.zeros((), dtype=torch.bool))

    def due(self, step: int) -> bool:
        return not bool(self.switched) and (step + 1) % self.every == 0

    def judge(self, network: nn.Module, withstands: float, own: float) -> bool:
        """Takes note of the accuracy against PGD and against the training's `own` attack. True: back and switch."""
        if withstands < 0.5 * float(self.best) and own > withstands + 0.25:
            with torch.no_grad():
                for index, parameter in enumerate(network.parameters()):
                    parameter.copy_(getattr(self, f"kept{index}"))
            self.switched.fill_(True)
            return True
        self.best.fill_(max(float(self.best), min(withstands, float(self.before))))  # one lucky batch is no record
        self.before.fill_(withstands)
        if withstands >= 0.8 * float(self.best):
            for index, parameter in enumerate(network.parameters()):
                getattr(self, f"kept{index}").copy_(parameter.detach())
        return False


class Hardened(Judging):
    """A classifier whose config says whether, and how, it is trained on attacked images."""

    Config = HardeningConfig

    def __init__(self, config: HardeningConfig, data: DataSpec):
        super().__init__(config, data)
        self.guard: Guard | None = None

    @abstractmethod
    def penalty(self, labels: Tensor) -> Callable[[Tensor], Tensor]:
        """The loss of a batch with these labels as a function of its logits."""

    @classmethod
    def resolve_config(cls, config: HardeningConfig, data: DataSpec) -> HardeningConfig:
        config = with_defaults(config)
        if config.adversarial != "none" and config.images is None and config.epochs is None:
            share = 2 if config.adversarial != "free" else 2 / config.adversarial_steps
            config = config.model_copy(update={"epochs": cls.default_epochs_for(data) * share})
        return super().resolve_config(config, data)

    def before_training(self, train: Columns) -> None:
        if self.config.adversarial == "none":
            return
        if self.config.adversarial_eps is None:
            eps = usual_eps(train, self.config.adversarial_norm)
            self.config = self.config.model_copy(update={"adversarial_eps": eps})
        if self.config.adversarial in GUARDED:
            self.guard = Guard(self.network, self.total // self.config.batch_size).to(self.device)
        if self.config.adversarial == "free":
            self.guard.register_buffer("carried", torch.zeros(self.config.batch_size, *self.data.shape).to(self.device))

    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        images, labels = self.augment(batch["images"], context.generator), batch["labels"]
        penalty = self.penalty(labels)
        method = self.config.adversarial
        if method == "none":
            logits = self.logits(images)
            return penalty(logits), {"accuracy": right(logits, labels)}
        ascent = self.ascent(context)
        if method == "trades":
            clean = self.logits(images)
            reference = self._quiet(images)
            hard = self.attacked(images, lambda x: divergence(self.logits(x), reference), ascent, context)
            logits = self.logits(hard)
            loss = penalty(clean) + self.config.adversarial_weight * divergence(logits, clean).mean()
            return loss, {"accuracy": right(clean, labels), "accuracy_attacked": right(logits, labels)}
        hard = self.attacked(images, self._error(labels), ascent, context)
        logits = self.logits(hard)
        found = {"accuracy_attacked": right(logits, labels)}
        if method != "goodfellow":
            return penalty(logits), found
        clean, share = self.logits(images), self.config.adversarial_weight
        found["accuracy"] = right(clean, labels)
        return share * penalty(clean) + (1 - share) * penalty(logits), found

    def step(self, batch: Batch, optimisers: dict[str, Optimizer], context: StepContext) -> Metrics:
        watched = {}
        if self.guard is not None and self.guard.due(context.step):
            watched = self._watch(batch, optimisers, context)
        if self.config.adversarial == "free" and not bool(self.guard.switched):
            return self._replay(batch, optimisers, context) | watched
        return super().step(batch, optimisers, context) | watched

    def ascent(self, context: StepContext) -> Ascent:
        """The attack of this update: eps grows at first; after the guard's alarm it has several steps."""
        ascent = Ascent.of(self.config, min(1.0, (context.progress + 1e-3) / RISE))
        switched = self.guard is not None and bool(self.guard.switched)
        return ascent.but(SWITCHED_STEPS) if switched else ascent

    def attacked(self, images: Tensor, loss, ascent: Ascent, context: StepContext) -> Tensor:
        """Attacked without dropout, as an attacker would."""
        with Live(self).ready():
            return ascent(images, loss, context.generator)

    def withstood(self, validation: Columns, context: StepContext) -> dict[str, float]:
        """What the result says of attacks; nothing for a model that was trained on clean images."""
        config = self.config
        if config.adversarial == "none":
            return {}
        found = resistance.withstood(self, validation, config.adversarial_eps, config.adversarial_norm, context.seed)
        if self.guard is not None:
            found["guard_switched"] = float(self.guard.switched)
        return found

    def warnings(self, measured: dict[str, float]) -> list[str]:
        found = [*super().warnings(measured), *resistance.warnings(measured)]
        if measured.get("guard_switched"):
            found.append(
                f"One step taught nothing more against PGD (catastrophic overfitting): the last weights that withstood "
                f"it came back, and the rest was trained with {SWITCHED_STEPS} steps."
            )
        return found

    def _error(self, labels: Tensor):
        return lambda x: F.cross_entropy(self.logits(x), labels, reduction="none")

    def _quiet(self, images: Tensor) -> Tensor:
        with Live(self).ready(), torch.no_grad():
            return self.logits(images)

    def _watch(self, batch: Batch, optimisers: dict[str, Optimizer], context: StepContext) -> Metrics:
        """A small PGD on this batch beside the training's own attack; back to the kept weights at an alarm."""
        images, labels, ascent = batch["images"], batch["labels"], self.ascent(context)
        ascents = ascent.but(1) if self.config.adversarial == "free" else ascent, ascent.but(PROBE_STEPS)
        hard = [self.attacked(images, self._error(labels), each, context) for each in ascents]
        own, withstands = (right(self._quiet(each), labels) for each in hard)
        if self.guard.judge(self.network, float(withstands), float(own)):
            for optimiser in optimisers.values():
                optimiser.state.clear()
        return {"accuracy_pgd": withstands, "switched": self.guard.switched.float()}

    def _replay(self, batch: Batch, optimisers: dict[str, Optimizer], context: StepContext) -> Metrics:
        """Free training: one backward pass gives the gradient of the weights and that of the perturbation."""
        images, labels = self.augment(batch["images"], context.generator), batch["labels"]
        penalty, threat = self.penalty(labels), self.ascent(context).threat
        length = threat.radius(images)
        for _ in range(self.config.adversarial_steps):
            hard = threat.project(images, images + self.guard.carried).requires_grad_()
            logits = self.logits(hard)
            loss = penalty(logits)
            self.descend(loss, optimisers)
            with torch.no_grad():
                further = hard + wide(length, images) * threat.geometry.steepest(hard.grad)
                self.guard.carried.copy_(threat.project(images, further) - images)
        return {"loss": loss.detach(), "accuracy_attacked": right(logits.detach(), labels)}

    @property
    def network(self) -> nn.Module:
        """All that is learned."""
        return nn.ModuleList([self.trunk, self.head])


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the rows with the right answer."""
    return (logits.detach().argmax(1) == labels).float().mean()
