"""What a report on attacks quotes beforehand is what it spends: never less, and hardly more when images hold out."""

from dataclasses import replace
from functools import cache, partial

import pytest
import torch

from app.core import catalog
from app.core.catalog import cost as prices
from models.data import Columns
from models.defences.defended import defend
from models.families.classifiers.classifier import Classifier
from models.registry import reports
from models.reports.core.base import Subject
from models.training.loop import Training
from models.types import DataSpec
from tests.models.attacks.fields import Blobs, Fields
from tests.models.families.classifiers.test_adversarial_training import small_digits
from tests.models.reports.test_dense import objects, segments

COUNT = 24
HARMLESS = 0.0
"""A size at which nothing is turned, so that every step is spent."""


def counting_backwards(meter, outputs: torch.Tensor) -> torch.Tensor:
    """The outputs; `meter.backwards` grows by the rows for which a gradient goes back through them."""

    class Passed(torch.autograd.Function):
        @staticmethod
        def forward(context, outputs):
            return outputs.clone()

        @staticmethod
        def backward(context, slope):
            meter.backwards += len(slope)
            return slope

    return Passed.apply(outputs)


class Meter:
    """Images that go forwards through a function of a class, and backwards; copies of a model count as well."""

    def __init__(self, patch, kind: type, name: str):
        self.forwards = self.backwards = 0
        plain, meter = getattr(kind, name), self

        def counted(model, images):
            meter.forwards += len(images)
            return counting_backwards(meter, plain(model, images))

        patch.setattr(kind, name, counted)


@cache
def learned() -> tuple[Classifier, DataSpec, Columns, Columns]:
    """A classifier of a few digits, and images with its own answers for labels, so that all are right."""
    spec, *sides = small_digits(240)
    torch.manual_seed(0)
    run = Training(Classifier.create({"epochs": 4, "width": 4, "noise": 0.0}, spec), *sides)
    for _ in run.run():
        pass
    model = run.family.eval().requires_grad_(False)
    shown = [side.columns["images"][:count] for side, count in zip(sides, (2 * COUNT, COUNT), strict=True)]
    answers = [model.logits(torch.from_numpy(images) / 255).argmax(1).numpy() for images in shown]
    return model, spec, *(Columns({"images": x, "labels": y}) for x, y in zip(shown, answers, strict=True))


def flat() -> Subject:
    model, data, train, validation = learned()
    return Subject(model, data, train, validation, validation, 0)


def defended() -> Subject:
    plain = flat()
    stages = [{"kind": "bit_depth", "bits": 7}, {"kind": "noise", "sigma": 1e-3}]
    model = defend(plain.model, "flat", stages, None, draws=3)
    model.calibrate(plain.train.head(8)["images"])
    labels = model.logits(plain.validation.head(COUNT)["images"]).argmax(1).numpy()
    validation = Columns({"images": plain.validation.columns["images"], "labels": labels})
    return replace(plain, model=model, validation=validation)


TRAINED = {"kind": "trained", "attacks": ["pgd", "square"], "images": 64, "eps": 0.5}
DEFENCES = [[{"kind": "jpeg", "quality": 50}], [{"kind": "noise", "sigma": 1e-3}, {"kind": "median"}]]
CASES = {
    "defences": (flat, "defences", {"defences": DEFENCES, "steps": 6, "draws": 3, "eps": HARMLESS}),
    "defences by fgsm": (flat, "defences", {"defences": DEFENCES, "method": "fgsm", "eps": HARMLESS}),
    "behind defences": (defended, "robustness", {"attacks": ["pgd"], "eps": [HARMLESS]}),
    "smoothing": (flat, "smoothing", {"n": 100, "n0": 20, "attacked": 8, "steps": 5, "draws": 3, "sigma": 1e-3}),
    "squeezing": (flat, "adversarial_detection", {"images": 12, "steps": 5, "eps": HARMLESS}),
    "trained": (flat, "adversarial_detection", {"images": 50, "methods": ["fgsm", "ddn"], "detector": TRAINED}),
    "its own": (defended, "adversarial_detection", {"images": 12, "methods": ["apgd"], "steps": 5, "eps": HARMLESS}),
    "masks": (segments, "segmentation_attack", {"eps": [HARMLESS, "1/255"], "steps": 4}),
    "objects": (objects, "detection_attack", {"eps": [HARMLESS], "attacks": ["pgd", "dag", "fgsm"]}),
    "robustness": (flat, "robustness", {"attacks": ["fgsm", "pgd"], "eps": [HARMLESS]}),
    "transfer": (flat, "transfer", {"initial": 8, "rounds": 2, "epochs": 1, "eps": HARMLESS, "images": 12}),
    "universal": (flat, "universal_defence", {"steps": 5, "epochs": 1, "batch_size": 16}),
    "fooling": (flat, "fooling", {}),
}  # fmt: skip


def quote(who: Subject, name: str, params) -> dict[str, int]:
    """As the front makes it of the catalog and of what is stored about model and dataset."""
    entries = catalog.load()
    given = params.model_dump(mode="json")
    if name == "robustness":
        given["attacks"] = [{"method": item} | prices.defaults(entries["attacks"][item]) for item in given["attacks"]]
    if hasattr(who.model, "detector"):
        given["detector"] = {"kind": who.model.config.detector.kind, "images": 0}
    shape = {"validation": len(who.validation), "train": len(who.train)}
    shape |= {"classes": len(who.model.data.classes), "pixels": who.model.data.pixels}
    return prices.of_report(entries, entries["reports"][name], given, shape)


@pytest.mark.parametrize("case", CASES)
def test_report_spends_at_most_its_quote_and_not_much_less(case, monkeypatch):
    make, name, given = CASES[case]
    who, kind = make(), reports()[name]
    if name == "fooling":
        who = replace(who, perturbations={"one": torch.full(who.data.shape, 0.1)})
        given = {"perturbations": ["one"]}
    params = kind.Params(**given)
    quoted = quote(who, name, params)
    functions = {Fields: "pixel_logits", Blobs: "detection_maps"}
    meter = Meter(monkeypatch, type(who.model), functions.get(type(who.model), "logits"))
    run = kind().run(who, params)
    with torch.no_grad():
        for _ in iter(partial(next, run, None), None):
            pass
    assert 0 < meter.forwards <= quoted["forwards"], (meter.forwards, quoted)
    assert meter.backwards <= quoted["backwards"], (meter.backwards, quoted)
    assert meter.forwards + meter.backwards >= 0.4 * quoted["passes"], (meter.forwards, meter.backwards, quoted)
