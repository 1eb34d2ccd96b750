"""Can somebody who sees only its labels fool a classifier? A substitute learns from them and is attacked in its place
(Papernot et al. 2017)."""

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
from models.capabilities import Classifies
from models.evaluation.confidence import wilson
from models.operations.attack import on_grid
from models.registry import attacks
from models.reports.core.base import Curve, Findings, Params, Progress, Report, Run, Subject
from models.reports.core.substitute_models import Committee, fit
from models.seeds import derive
from models.types import DataError

BATCH = 250


class TransferParams(Params):
    """What the attacker has and may ask, and how examples are made on the substitute."""

    initial: int = Field(100, ge=2, le=10_000, description="Images the attacker begins with.")
    rounds: int = Field(
        6, ge=0, le=12, description="Rounds of Jacobian augmentation, each of which doubles the images."
    )
    step: float = Field(0.1, gt=0, le=1, description="How far an image is moved to make a new one (lambda).")
    budget: int = Field(6400, ge=2, le=1_000_000, description="Most queries of the victim, which answers with a label.")
    epochs: int = Field(10, ge=1, le=200, description="Passes over the images in each round.")
    substitutes: int = Field(
        3, ge=1, le=8, description="Networks that learn from the same labels and are attacked together; time grows so."
    )
    method: Literal["fgsm", "mifgsm", "pgd"] = Field("mifgsm", description="What makes examples on the substitute.")
    eps: Eps = Field("76/255", description="Largest change of a pixel: a number or k/255.", validate_default=True)
    steps: int = Field(10, ge=1, le=1000, description="Gradient steps of mifgsm and pgd.")
    momentum: float = Field(1.0, ge=0, le=10, description="Weight of past gradients in mifgsm.")
    diversity: float = Field(0.0, ge=0, le=1, description="Chance of a resized and padded image in a step (DI).")
    kernel: int | None = Field(
        None, ge=0, le=31, description="Width of the blur of gradients (TI); 0 for none. Empty: a sixth of the side."
    )
    images: int = Field(500, ge=1, le=10_000, description="Images to try the examples on, other than the attacker's.")

    def attack(self, side: int) -> Attack:
        """The attack on the substitute, for images of this shorter side. It never stops early: a margin carries over.

        Blurred gradients carry over better because a substitute's own details are not in them.
        """
        kernel = min(15, side // 6 | 1) if self.kernel is None else self.kernel
        own = {"fgsm": {}, "pgd": {"steps": self.steps, "stop_early": False}}
        own["mifgsm"] = {"steps": self.steps, "momentum": self.momentum, "diversity": self.diversity,
                         "kernel": kernel if kernel > 1 else 0, "stop_early": False}  # fmt: skip
        return attacks()[self.method](eps=self.eps, **own[self.method])


class TransferReport(Report):
    """The victim answers with labels alone, and every label is counted. Success is a changed answer.

    A stopped report begins anew; the same seed finds the same.
    """

    name = "transfer"
    summary = "A substitute trained on a classifier's answers, and how many examples made on it fool the classifier."
    needs = (Classifies,)
    columns = ("images", "labels")
    Params = TransferParams
    price = {
        "forwards": "min(budget, initial * 2 ** rounds) + images * (2 * rounds + run_forwards + 7)",
        "backwards": "images * run_backwards",
    }
    passes_on = ("steps",)

    def run(self, subject: Subject, params: TransferParams, kept: Any = None) -> Run:
        seeds, test = parted(subject, params)
        oracle = Oracle(subject.model.logits, params.budget)
        total = (params.rounds + 1) * params.epochs + 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(subject.seed, "substitute") % 2**31)
            substitute = Committee(subject.model.data.shape, outputs_of(subject), params.substitutes)
        substitute.to(subject.model.device)
        x, y, history = seeds, oracle(seeds), []
        for turn in range(params.rounds + 1):
            if turn:
                x, y = augment(substitute, x, y, params.step, oracle)
            for epoch in fit(substitute, x, y, params.epochs, derive(subject.seed, "order", turn)):
                yield Progress(turn * params.epochs + epoch, total)
            history.append(tried(subject, substitute, test, params) | {"round": turn, "queries": oracle.asked})
            if oracle.asked >= params.budget:
                break
        return findings(subject, params, history, controls(subject, test, params))


class Oracle:
    """The victim as it is seen: a label for an image, as long as the budget lasts."""

    def __init__(self, logits: Callable[[Tensor], Tensor], budget: int):
        self.logits, self.budget, self.asked = logits, budget, 0

    @property
    def left(self) -> int:
        return self.budget - self.asked

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) > self.left:
            raise DataError("the budget is smaller than what the attacker begins with", "params/budget")
        self.asked += len(x)
        return answers(self.logits, x)


def answers(logits: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([logits(part).argmax(1) for part in x.split(BATCH)])


def outputs_of(subject: Subject) -> int:
    with torch.no_grad():
        return subject.model.logits(subject.validation.head(1)["images"].to(subject.model.device)).shape[1]


def parted(subject: Subject, params: TransferParams) -> tuple[Tensor, Tensor]:
    """The attacker's images, and those to try the examples on. Raises DataError when there are too few."""
    count = len(subject.validation.columns["images"])
    if count < params.initial + 1:
        raise DataError(
            f"the attacker's {params.initial} images leave none of {count} to try the examples on",
            "params/initial",
            "ask for fewer",
        )
    draws = torch.Generator().manual_seed(derive(subject.seed, "transfer") % 2**63)
    order = torch.randperm(count, generator=draws)[: params.initial + params.images]
    images = subject.validation.rows(order, ["images"])["images"].to(subject.model.device)
    return images[: params.initial], images[params.initial :]


def augment(net: nn.Module, x: Tensor, y: Tensor, step: float, oracle: Oracle) -> tuple[Tensor, Tensor]:
    """x + step * sign(d logit of the victim's label / dx), labelled by the victim; as many as it still answers."""
    some = x[-min(len(x), oracle.left) :]
    labels = y[-len(some) :] if len(some) else y[:0]
    if not len(some):
        return x, y
    made = []
    for part, truth in zip(some.split(BATCH), labels.split(BATCH), strict=True):
        leaf = part.clone().requires_grad_()
        with torch.enable_grad():
            chosen = net(leaf).gather(1, truth[:, None]).sum()
        (slope,) = torch.autograd.grad(chosen, leaf)
        made.append(((part + step * slope.sign()).clamp(0, 1) * 255).round() / 255)
    fresh = torch.cat(made)
    return torch.cat([x, fresh]), torch.cat([y, oracle(fresh)])


def tried(subject: Subject, substitute: nn.Module, test: Tensor, params: TransferParams) -> dict[str, Any]:
    """How far the substitute agrees, and how many examples made on it fool the victim."""
    victim = answers(subject.model.logits, test)
    agreement = float((answers(substitute, test) == victim).float().mean())
    own = answers(substitute, test)
    made = examples(WhiteBox(substitute), test, own, params, subject.seed)
    moved = int((answers(subject.model.logits, made) != victim).sum())
    return {"agreement": agreement, "fooled": moved, "of": len(test), "transfer": moved / len(test)}


def examples(box: WhiteBox, test: Tensor, labels: Tensor, params: TransferParams, seed: int) -> Tensor:
    """8-bit examples made without a look at the victim."""
    threat = ThreatModel("linf", on_grid("linf", params.eps), 256)
    attack = params.attack(min(test.shape[2:]))
    parts = zip(test.split(BATCH), labels.split(BATCH), strict=True)
    return torch.cat([attack.run(box, x, Misclassified(y), threat, seed % 2**31).images for x, y in parts])


def controls(subject: Subject, test: Tensor, params: TransferParams) -> dict[str, float]:
    """The same attack on the victim itself, and random signs of the same size."""
    victim = answers(subject.model.logits, test)
    box = WhiteBox(subject.model, lambda net, x: net.logits(x), shape=subject.model.data.shape)
    direct = examples(box, test, victim, params.model_copy(update={"kernel": 0}), subject.seed)
    threat = ThreatModel("linf", on_grid("linf", params.eps), 256)
    random = noise(test, threat, torch.arange(len(test), device=test.device))
    share = lambda images: float((answers(subject.model.logits, images) != victim).float().mean())  # noqa: E731
    return {"white_box": share(direct), "random_signs": share(random)}


def findings(
    subject: Subject, params: TransferParams, history: list[dict[str, Any]], compared: dict[str, float]
) -> Findings:
    last = history[-1]
    facts = {
        "queries": last["queries"],
        "agreement": last["agreement"],
        "transfer": last["transfer"],
        "interval": wilson(last["fooled"], last["of"]),
        "images": last["of"],
        "eps": on_grid("linf", params.eps),
        **compared,
    }
    curve = Curve(
        "Transfer", "queries", "share of images", [float(row["queries"]) for row in history],
        {name: [row[name] for row in history] for name in ("agreement", "transfer")},
        {"transfer": [wilson(row["fooled"], row["of"]) for row in history]},
    )  # fmt: skip
    note = f"{last['queries']} labels were asked for; success is a changed answer of the victim to an 8-bit image."
    return Findings(facts, {"rounds": history}, [curve], notes=[note])
