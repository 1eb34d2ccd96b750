"""Black-box transfer attack (Papernot et al. 2017) on substitutes that learned from a classifier's labels."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.attacks.core.access import WhiteBox
from models.attacks.core.base import Attack, Eps
from models.attacks.core.sweep import noise
from models.attacks.core.threat import ThreatModel
from models.attacks.criteria.classification import Misclassified
from models.capabilities import UNDECIDED, Classifies
from models.evaluation.confidence import wilson
from models.operations.attack import on_grid
from models.registry import attacks
from models.reports.core.base import Curve, Params, Progress, Report, ReportResult, Run, Subject
from models.reports.core.classification import classifier_access, decided, predict
from models.reports.core.substitute_models import SubstituteEnsemble, train_substitutes
from models.seeds import derive
from models.types import DataError

BATCH = 250


class TransferParams(Params):
    """The attacker's images and queries, the training of the substitutes, and the attack on them."""

    initial: int = Field(100, ge=2, le=10_000, description="Images that the attacker starts with.")
    rounds: int = Field(6, ge=0, le=12, description="Rounds of Jacobian augmentation; each doubles the images.")
    step: float = Field(0.1, gt=0, le=1, description="Step of the augmentation in pixel values (lambda).")
    budget: int = Field(6400, ge=2, le=1_000_000, description="Maximum number of queries; each returns one label.")
    epochs: int = Field(10, ge=1, le=200, description="Training epochs in each round.")
    substitutes: int = Field(
        3,
        ge=1,
        le=8,
        description="Substitute networks, trained on the same labels and attacked together; time is proportional.",
    )
    method: Literal["fgsm", "mifgsm", "pgd"] = Field("mifgsm", description="Attack on the substitutes.")
    eps: Eps = Field(
        "76/255",
        description="Maximum change of a pixel (linf): a number, or a fraction such as 8/255.",
        validate_default=True,
    )
    steps: int = Field(10, ge=1, le=1000, description="Gradient steps of mifgsm and pgd.")
    momentum: float = Field(1.0, ge=0, le=10, description="Weight of past gradients in mifgsm.")
    diversity: float = Field(
        0.0, ge=0, le=1, description="Probability of a resized and padded input in a step of mifgsm (DI)."
    )
    kernel: int | None = Field(
        None,
        ge=0,
        le=31,
        description="Kernel size of the blur of gradients in mifgsm (TI); 0: none. Default: a sixth of the shorter "
        "side.",
    )
    images: int = Field(
        500, ge=1, le=10_000, description="Maximum number of images to attack, other than the attacker's."
    )

    def attack(self, side: int) -> Attack:
        """The attack on the substitutes for images whose shorter side is `side` pixels.

        It does not stop early, because examples with a larger margin transfer better. So do blurred gradients, which
        lack details that only the substitutes have.
        """
        kernel = min(15, side // 6 | 1) if self.kernel is None else self.kernel
        settings = {"fgsm": {}, "pgd": {"steps": self.steps, "stop_early": False}}
        settings["mifgsm"] = {"steps": self.steps, "momentum": self.momentum, "diversity": self.diversity,
                         "kernel": kernel if kernel > 1 else 0, "stop_early": False}  # fmt: skip
        return attacks()[self.method](eps=self.eps, **settings[self.method])


class TransferReport(Report):
    """The victim returns labels alone, and every label counts as a query. Success is a changed label.

    An interrupted report starts again from the beginning; the same seed gives the same result.
    """

    name = "transfer"
    summary = (
        "Trains substitutes on a classifier's labels, and measures how often examples made on them fool the classifier."
    )
    needs = (Classifies,)
    columns = ("images", "labels")
    Params = TransferParams
    price = {
        "forwards": "min(budget, initial * 2 ** rounds) + images * (2 * rounds + run_forwards + 8)",
        "backwards": "images * run_backwards",
    }
    forwards_params = ("steps",)

    def run(self, subject: Subject, params: TransferParams, progress_state: Any = None) -> Run:
        start, test = split(subject, params)
        oracle = Victim(subject.model.logits, params.budget)
        (test,) = decided(subject.model.logits, test)
        total = (params.rounds + 1) * params.epochs + 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(subject.seed, "substitute") % 2**31)
            substitute = SubstituteEnsemble(subject.model.data.shape, outputs_of(subject), params.substitutes)
        substitute.to(subject.model.device)
        x, y = labelled_by(oracle, start)
        history: list[dict[str, Any]] = []
        for turn in range(params.rounds + 1):
            if turn:
                x, y = augment(substitute, x, y, params.step, oracle)
            for epoch in train_substitutes(substitute, x, y, params.epochs, derive(subject.seed, "order", turn)):
                yield Progress(turn * params.epochs + epoch, total)
            history.append(evaluate(subject, substitute, test, params) | {"round": turn, "queries": oracle.queries})
            if oracle.queries >= params.budget:
                break
        return transfer_result(subject, params, history, controls(subject, test, params))


class Victim:
    """The classifier as the attacker sees it: returns labels and counts queries. Raises DataError beyond the budget."""

    def __init__(self, logits: Callable[[Tensor], Tensor], budget: int):
        self.logits, self.budget, self.queries = logits, budget, 0

    @property
    def left(self) -> int:
        return self.budget - self.queries

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) > self.left:
            raise DataError(
                f"budget is {self.budget}, less than the {len(x)} images to label",
                "params/budget",
                "raise budget, or lower initial",
            )
        self.queries += len(x)
        return predict(self.logits, x, BATCH)


def outputs_of(subject: Subject) -> int:
    """The number of logits of the model."""
    with torch.no_grad():
        return subject.model.logits(subject.validation.head(1)["images"].to(subject.model.device)).shape[1]


def split(subject: Subject, params: TransferParams) -> tuple[Tensor, Tensor]:
    """The attacker's images and those to attack, drawn at random. Raises DataError for too few images."""
    count = len(subject.validation.columns["images"])
    if count < params.initial + 1:
        raise DataError(
            f"the validation split has {count} images; initial = {params.initial} leaves none to attack",
            "params/initial",
            f"use at most {count - 1}",
        )
    draws = torch.Generator().manual_seed(derive(subject.seed, "transfer") % 2**63)
    order = torch.randperm(count, generator=draws)[: params.initial + params.images]
    images = subject.validation.rows(order, ["images"])["images"].to(subject.model.device)
    return images[: params.initial], images[params.initial :]


def augment(net: nn.Module, x: Tensor, y: Tensor, step: float, oracle: Victim) -> tuple[Tensor, Tensor]:
    """Adds x + step * sign(d logit_y(x) / dx), labelled by the victim, for as many images as the budget allows.

    Jacobian augmentation (Papernot et al. 2017, eq. 6). The gradient is that of the substitute.
    """
    count = min(len(x), oracle.left)
    if not count:
        return x, y
    parts = []
    for part, labels in zip(x[-count:].split(BATCH), y[-count:].split(BATCH), strict=True):
        leaf = part.clone().requires_grad_()
        with torch.enable_grad():
            logits = net(leaf).gather(1, labels[:, None]).sum()
        (gradient,) = torch.autograd.grad(logits, leaf)
        parts.append(((part + step * gradient.sign()).clamp(0, 1) * 255).round() / 255)
    new_x, new_y = labelled_by(oracle, torch.cat(parts))
    return torch.cat([x, new_x]), torch.cat([y, new_y])


def labelled_by(oracle: Victim, images: Tensor) -> tuple[Tensor, Tensor]:
    """The images that the victim can label, and their labels; all of them cost a query."""
    labels = oracle(images)
    return images[labels != UNDECIDED], labels[labels != UNDECIDED]


def evaluate(subject: Subject, substitute: nn.Module, test: Tensor, params: TransferParams) -> dict[str, Any]:
    """Agreement of substitute and victim, and the number of examples made on the substitute that fool the victim."""
    victim = predict(subject.model.logits, test, BATCH)
    agreement = float((predict(substitute, test, BATCH) == victim).float().mean())
    own = predict(substitute, test, BATCH)
    adversarial = examples(WhiteBox(substitute), test, own, params, subject.seed)
    fooled = int(changed(subject, adversarial, victim).sum())
    return {"agreement": agreement, "fooled": fooled, "of": len(test), "transfer": fooled / len(test)}


def changed(subject: Subject, images: Tensor, victim: Tensor) -> Tensor:
    """(n,) bool: the model's class for the images is another than `victim` (n,); false without a finite output."""
    classes = predict(subject.model.logits, images, BATCH)
    return (classes != victim) & (classes != UNDECIDED)


def examples(box: WhiteBox, test: Tensor, labels: Tensor, params: TransferParams, seed: int) -> Tensor:
    """8-bit adversarial images (n, c, h, w) for the network of `box`."""
    threat = ThreatModel("linf", on_grid("linf", params.eps), 256)
    attack = params.attack(min(test.shape[2:]))
    parts = zip(test.split(BATCH), labels.split(BATCH), strict=True)
    return torch.cat([attack.run(box, x, Misclassified(y), threat, seed % 2**31).images for x, y in parts])


def controls(subject: Subject, test: Tensor, params: TransferParams) -> dict[str, float]:
    """Success of the same attack on the victim itself, and of random signs of the same eps."""
    victim = predict(subject.model.logits, test, BATCH)
    box = classifier_access(subject.model)
    direct = examples(box, test, victim, params.model_copy(update={"kernel": 0}), subject.seed)
    threat = ThreatModel("linf", on_grid("linf", params.eps), 256)
    random = noise(test, threat, torch.arange(len(test), device=test.device))
    success = lambda images: float(changed(subject, images, victim).float().mean())  # noqa: E731
    return {"white_box": success(direct), "random_signs": success(random)}


def transfer_result(
    subject: Subject, params: TransferParams, history: list[dict[str, Any]], controls: dict[str, float]
) -> ReportResult:
    last = history[-1]
    facts = {
        "queries": last["queries"],
        "agreement": last["agreement"],
        "transfer": last["transfer"],
        "interval": wilson(last["fooled"], last["of"]),
        "images": last["of"],
        "eps": on_grid("linf", params.eps),
        **controls,
    }
    curve = Curve(
        "Transfer", "queries", "fraction of images", [float(row["queries"]) for row in history],
        {name: [row[name] for row in history] for name in ("agreement", "transfer")},
        {"transfer": [wilson(row["fooled"], row["of"]) for row in history]},
    )  # fmt: skip
    note = f"The attacker made {last['queries']} queries; success is a changed label of an 8-bit image."
    return ReportResult(facts, {"rounds": history}, [curve], notes=[note])
