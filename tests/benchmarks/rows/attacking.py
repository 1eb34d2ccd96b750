"""Claims about attacks on a classifier: one change for all images, a substitute in the victim's place, black boxes."""

import torch

from models.attacks.core.access import ScoreOracle, WhiteBox
from models.attacks.core.universal import Universal, UniversalConfig, measure, random_signs
from models.attacks.criteria.classification import Misclassified
from models.data import Columns
from models.family import Family
from models.registry import attacks
from models.reports.core.base import Subject as Looked
from models.reports.transfer import TransferReport
from tests.benchmarks.claims import Found, Row, Subject, Target, at_least, at_most, labelled

EPS = "51/255"
VICTIM = {"body": "conv", "epochs": 10}
"""A plain convolutional network: the standard victim."""


def victim(subject: Subject):
    return subject.trained("classifier", VICTIM, share=0.6)


def boxed(model: Family) -> WhiteBox:
    return WhiteBox(model, lambda net, x: net.logits(x), shape=model.data.shape)


def universal(subject: Subject) -> Found:
    """Held-out fooling of the sign gradient version, beside DeepFool's and random signs of the same size."""
    run = victim(subject)
    some = Columns({"images": subject.train.columns["images"][:: max(1, len(subject.train) // 200)][:200]})
    rates = {}
    for method in ("sgd", "deepfool"):
        fit = Universal(boxed(run.model), some, UniversalConfig(method=method, eps=EPS, passes=1, steps=100))
        for _ in fit.run():
            pass
        tried = {"fit": fit.delta, "random": random_signs(fit.delta)}
        found = measure(boxed(run.model), subject.validation, tried, 1000)
        rates |= {method: found["fit"].rate, "random signs": found["random"].rate}
    value = rates.pop("sgd")
    return Found(value, rates, f"eps {EPS}, 200 images, {run.note}", run.short)


def transfer(subject: Subject) -> Found:
    """Share of changed answers at eps 76/255 after 1,600 labels, a quarter of what Papernot et al. (2017) ask for.

    The attacker begins with 400 images. From 100, as many labels or four times as many turn .75 to .81.
    """
    run, report = victim(subject), TransferReport()
    looked = Looked(run.model, subject.spec, subject.train, subject.validation, None, subject.seed)
    walk = report.run(looked, report.Params(images=200, initial=400, rounds=2))
    while True:
        try:
            next(walk)
        except StopIteration as end:
            facts = end.value.facts
            break
    beside = {"white box": facts["white_box"], "random signs": facts["random_signs"]}
    note = f"{facts['queries']} queries, agreement {facts['agreement']:.2f}, {run.note}"
    return Found(facts["transfer"], beside, note, run.short)


def square(subject: Subject) -> Found:
    """Points by which Square (300 queries) leaves less robust accuracy than APGD-T: black boxes should not win."""
    run = victim(subject)
    rows = subject.validation.head(100)
    x, y = rows["images"], torch.as_tensor(rows["labels"])
    hits = {}
    for name, box, config in (
        ("apgdt", boxed(run.model), {"steps": 20}),
        ("square", ScoreOracle(run.model.logits), {"queries": 300}),
    ):
        result = attacks()[name](eps=EPS, **config).run(box, x, Misclassified(y))
        hits[name] = result.success
    spent = result.queries[result.success].double()
    ahead = float((hits["square"].float().mean() - hits["apgdt"].float().mean()) * 100)
    beside = {"square fools": float(hits["square"].float().mean()), "apgd-t fools": float(hits["apgdt"].float().mean())}
    note = f"queries mean {spent.mean():.0f}, median {spent.median():.0f}; {run.note}"
    return Found(ahead, beside, note, run.short)


def far_above(factor: float, deepfool: float) -> Target:
    """Several times random signs, and more than DeepFool's."""
    text = f">= {factor:g} x random signs and {deepfool:g} x deepfool"
    return Target(
        text,
        lambda found: (
            found.value >= max(factor * found.baselines["random signs"], deepfool * found.baselines["deepfool"])
        ),
    )


UNIVERSAL = Row(
    "universal-fooling",
    "A universal perturbation fitted by sign gradients fools a classifier on unseen images",
    "fooling rate",
    far_above(5, 1.5),
    universal,
    suits=labelled,
)
TRANSFER = Row(
    "transfer-substitute",
    "Examples made on substitutes that saw 1,600 labels fool the classifier",
    "share",
    at_least(0.8),
    transfer,
    suits=labelled,
)
SQUARE = Row(
    "square-against-apgdt",
    "Square does not fool images that APGD-T leaves",
    "points",
    at_most(0.2),
    square,
    suits=labelled,
)
