"""Adversarial training of a classifier: the training loss is that of images attacked anew in every update."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from models.attacks.core.access import Live
from models.attacks.core.norms import expand_to
from models.context import StepContext
from models.data import Columns
from models.families.classifiers import robustness
from models.families.classifiers.adversarial_config import InnerAttack, default_eps, divergence
from models.families.classifiers.base import ClassifierBase, accuracy
from models.training.precision import full_precision
from models.training.ranks import mean_over_ranks
from models.types import Batch, Metrics

GUARDED = ("fgsm_rs", "free")
EPS_WARM_UP = 0.25
"""Fraction of the training over which eps rises to its full size; at full size at once, deep networks may not learn."""
PROBES, PROBE_STEPS, SWITCHED_STEPS = 40, 10, 4
"""Checks in a training, PGD steps of a check, and steps of the inner attack after overfitting was found."""


class OverfittingGuard(nn.Module):
    """Detects catastrophic overfitting of single-step adversarial training and keeps the last robust weights.

    Catastrophic overfitting (Wong et al. 2020): within a few updates the network becomes robust to the one step alone
    and accuracy under PGD collapses. Then the kept weights are restored and training goes on with several steps. The
    state is in buffers, so a checkpoint carries it; published models do not. `has_switched` is the buffer `switched`
    on the host, so that an update does not wait for the device.
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
        self.has_switched = False

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *about) -> None:
        super()._load_from_state_dict(state, prefix, *about)
        self.has_switched = bool(self.switched)

    def due(self, step: int) -> bool:
        """Whether to check at this update."""
        return not self.has_switched and (step + 1) % self.every == 0

    def switch(self) -> None:
        """From now on the training attacks with several steps."""
        self.switched.fill_(True)
        self.has_switched = True

    def overfitted(self, network: nn.Module, pgd_accuracy: float, own_accuracy: float) -> bool:
        """Record the accuracy under PGD and under the training's own attack on one batch.

        True: catastrophic overfitting. The kept weights have been restored and `switched` is set.
        """
        if pgd_accuracy < 0.5 * float(self.best) and own_accuracy > pgd_accuracy + 0.25:
            with torch.no_grad():
                for index, parameter in enumerate(network.parameters()):
                    parameter.copy_(getattr(self, f"kept{index}"))
            self.switch()
            return True
        # the best is that of two checks in a row, so that one lucky batch sets no record
        self.best.fill_(max(float(self.best), min(pgd_accuracy, float(self.before))))
        self.before.fill_(pgd_accuracy)
        if pgd_accuracy >= 0.8 * float(self.best):
            for index, parameter in enumerate(network.parameters()):
                getattr(self, f"kept{index}").copy_(parameter.detach())
        return False


class AdversarialTraining:
    """What a Classifier whose `adversarial` is not none does in training. It holds no tensors of its own.

    The guard is a module of the model (`model.guard`), so that checkpoints carry it.
    """

    def __init__(self, model: ClassifierBase):
        self.model = model

    @property
    def method(self) -> str:
        return self.model.config.adversarial

    @property
    def guard(self) -> OverfittingGuard | None:
        return self.model.guard

    def before_training(self, train: Columns) -> None:
        """Choose eps from the images if the config does not, and build the guard of the single-step methods."""
        model, config = self.model, self.model.config
        if config.adversarial_eps is None:
            eps = default_eps(train, config.adversarial_norm)
            model.config = config.model_copy(update={"adversarial_eps": eps})
        if self.method in GUARDED:
            model.guard = OverfittingGuard(self.network, model.total // model.config.batch_size).to(model.device)
        if self.method == "free":
            perturbation = torch.zeros(model.config.batch_size, *model.data.shape)
            model.guard.register_buffer("carried", perturbation.to(model.device))

    def loss(self, images: Tensor, labels: Tensor, context: StepContext) -> tuple[Tensor, Metrics]:
        """The loss of augmented images (B, C, H, W), and accuracies to report."""
        model, attack, loss_fn = self.model, self.inner_attack(context), self.model.loss_fn(labels)
        if self.method == "trades":
            # L = CE(f(x), y) + beta * max KL(f(x) || f(x'))  (Zhang et al. 2019, eq. 5)
            clean = model.logits(images)
            reference = self._logits_without_dropout(images)
            attacked = self.attacked(images, lambda x: divergence(model.logits(x), reference), attack, context)
            logits = model.logits(attacked)
            loss = loss_fn(clean) + model.config.adversarial_weight * divergence(logits, clean).mean()
            return loss, {"accuracy": accuracy(clean, labels), "accuracy_attacked": accuracy(logits, labels)}
        attacked = self.attacked(images, self._cross_entropy(labels), attack, context)
        logits = model.logits(attacked)
        metrics = {"accuracy_attacked": accuracy(logits, labels)}
        if self.method != "goodfellow":
            return loss_fn(logits), metrics  # L = E max CE(f(x'), y)  (Madry et al. 2018, eq. 2.1)
        # L = alpha * CE(f(x), y) + (1 - alpha) * CE(f(x + eps sign(grad)), y)  (Goodfellow et al. 2015, sec. 6)
        clean, alpha = model.logits(images), model.config.adversarial_weight
        metrics["accuracy"] = accuracy(clean, labels)
        return alpha * loss_fn(clean) + (1 - alpha) * loss_fn(logits), metrics

    def step(
        self, batch: Batch, optimisers: dict[str, Optimizer], context: StepContext, plain_step: Callable[[], Metrics]
    ) -> Metrics:
        """One update: `plain_step`, or the repeated one of free training, after the guard's check where one is due."""
        checked = {}
        if self.guard is not None and self.guard.due(context.step):
            checked = self._check(batch, optimisers, context)
        if self.method == "free" and not self.guard.has_switched:
            return self._free_step(batch, optimisers, context) | checked
        return plain_step() | checked

    def inner_attack(self, context: StepContext) -> InnerAttack:
        """The attack of this update: eps rises at first; after the guard's alarm the attack has several steps."""
        attack = InnerAttack.of(self.model.config, min(1.0, (context.progress + 1e-3) / EPS_WARM_UP))
        switched = self.guard is not None and self.guard.has_switched
        return attack.with_steps(SWITCHED_STEPS) if switched else attack

    def attacked(self, images: Tensor, loss, attack: InnerAttack, context: StepContext) -> Tensor:
        """Images attacked without dropout, as an attacker would."""
        with Live(self.model).ready():
            return attack(images, loss, context.generator)

    def evaluate(self, validation: Columns, context: StepContext) -> dict[str, float]:
        """Robust accuracies for the result."""
        model, config = self.model, self.model.config
        eps, norm = config.adversarial_eps, config.adversarial_norm
        return robustness.robust_accuracies(model, validation, eps, norm, context.seed)

    def training_metrics(self) -> dict[str, float]:
        """Whether the guard found catastrophic overfitting."""
        return {} if self.guard is None else {"guard_switched": float(self.guard.switched)}

    def warnings(self, measured: dict[str, float]) -> list[str]:
        sentences = robustness.warnings(measured)
        if measured.get("guard_switched"):
            sentences.append(
                "Single-step training overfitted to its own attack (catastrophic overfitting): the last weights robust "
                f"to PGD were restored, and the rest was trained with {SWITCHED_STEPS} steps."
            )
        return sentences

    def _cross_entropy(self, labels: Tensor):
        return lambda x: F.cross_entropy(self.model.logits(x), labels, reduction="none")

    def _logits_without_dropout(self, images: Tensor) -> Tensor:
        with Live(self.model).ready(), torch.no_grad():
            return self.model.logits(images)

    def _check(self, batch: Batch, optimisers: dict[str, Optimizer], context: StepContext) -> Metrics:
        """Compare a small PGD on this batch with the training's own attack; restore weights on overfitting."""
        images, labels, attack = batch["images"], batch["labels"], self.inner_attack(context)
        own = attack.with_steps(1) if self.method == "free" else attack
        attacked = [
            self.attacked(images, self._cross_entropy(labels), each, context)
            for each in (own, attack.with_steps(PROBE_STEPS))
        ]
        own_accuracy, pgd_accuracy = (
            mean_over_ranks(accuracy(self._logits_without_dropout(each), labels)) for each in attacked
        )
        if self.guard.overfitted(self.network, float(pgd_accuracy), float(own_accuracy)):
            for optimiser in optimisers.values():
                optimiser.state.clear()
        return {"accuracy_pgd": pgd_accuracy, "switched": self.guard.switched.float()}

    def _free_step(self, batch: Batch, optimisers: dict[str, Optimizer], context: StepContext) -> Metrics:
        """Free training (Shafahi et al. 2019, algorithm 1): one backward pass for weights and perturbation."""
        model, labels = self.model, batch["labels"]
        images = model.augment(batch["images"], context.generator)
        loss_fn, threat = model.loss_fn(labels), self.inner_attack(context).threat
        radius, carried = threat.radius(images), self.guard.carried[: len(images)]
        for _ in range(model.config.adversarial_steps):
            attacked = threat.project(images, images + carried).requires_grad_()
            with full_precision():
                logits = model.logits(attacked)
            loss = loss_fn(logits)
            model.minimise(loss, optimisers)
            with torch.no_grad():
                further = attacked + expand_to(radius, images) * threat.geometry.steepest(attacked.grad)
                carried.copy_(threat.project(images, further) - images)
        return {"loss": loss.detach(), "accuracy_attacked": accuracy(logits.detach(), labels)}

    @property
    def network(self) -> nn.Module:
        """All that is learned: trunk and head."""
        return nn.ModuleList([self.model.trunk, self.model.head])
