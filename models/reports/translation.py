"""How near translated images come to the other domain, beside what needs no learning."""

from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Translates
from models.data import Columns
from models.evaluation.fidelity import Fidelity, frechet, kernel_distance, kernel_interval
from models.evaluation.refinement import Domain, accuracy, small_classifier
from models.evaluation.translation import baselines, distances, evenly_spaced, in_batches
from models.family import Family
from models.reports.core.base import Findings, Params, Progress, Report, Run, Subject, check_shape
from models.types import DataError, DataSpec

SIDES = {"paired": ("input", "target"), "unpaired": ("a", "b")}
SHOWN = 8
FEWEST = 4
NO_TRUTH = (
    "The true translation of these images is not known, so l1 and psnr are missing; equal file names in val/A and "
    "val/B of an upload say that two held-out images show the same thing."
)


class TranslationParams(Params):
    """Which way, and how much to look at."""

    direction: Literal["ab", "ba"] | None = Field(None, description="ab or ba; empty: the model's first direction.")
    images: int = Field(512, ge=4, le=10_000, description="At most so many held-out images.")


class TranslationReport(Report):
    """`kid` and `fd` compare translated with real images of the target domain in the features of a frozen network that
    learned from them; the row `real` is the floor, real images of that domain against others of it. `class_kept` is
    the share of translated images that a classifier of the target domain takes for the class of their source.
    """

    name = "translation"
    summary = (
        "Compares translated images with real ones of the other domain, and with translations that need no network."
    )
    needs = (Translates,)
    columns = ()
    Params = TranslationParams

    @classmethod
    def check(cls, model: Family, data: DataSpec) -> None:
        if data.layout not in SIDES:
            raise DataError(
                f"the report translation needs a dataset of layout paired or unpaired, this one is {data.layout}",
                field="dataset",
            )
        check_shape(model, data)

    def run(self, subject: Subject, params: TranslationParams, kept: Any = None) -> Run:
        model, data = subject.model, subject.data
        direction = params.direction or model.directions[0]
        if direction not in model.directions:
            known = " and ".join(model.directions)
            raise DataError(f"this model translates {known} only", field="params/direction")
        source, target = SIDES[data.layout] if direction == "ab" else SIDES[data.layout][::-1]
        seen, unseen = evenly_spaced(subject.train, params.images), evenly_spaced(subject.validation, params.images)
        inputs, paired = unseen[source], data.layout == "paired"
        total = 3 + bool(data.classes)
        yield Progress(0, total)
        translate = partial(model.translate, direction=direction)
        found = in_batches(lambda part: translate(part.to(model.device)).cpu(), inputs)
        yield Progress(1, total)
        ways = {"translated": found} | baselines(inputs, seen, source, target, paired)
        truth = unseen[target] if paired or data.twins else None
        table = [{"way": name} | self._against(images, truth) for name, images in ways.items()]
        measure = self._measure(subject, target)
        yield Progress(2, total)
        if measure:
            table.append({"way": "real"})
            for row, images in zip(table, [*ways.values(), measure.train_images], strict=True):
                row |= self._likeness(measure, images)
        yield Progress(3, total)
        facts = {"direction": direction, "images": len(inputs)} | {
            name: value for name, value in table[0].items() if name != "way"
        }
        if (kept_share := self._class_kept(subject, found, source, target, params.images)) is not None:
            facts["class_kept"] = kept_share
        yield Progress(total, total)
        shown = [images[:SHOWN] for images in (inputs, found, *([] if truth is None else [truth]))]
        sheet = torch.stack(shown, 1).flatten(0, 1)
        return Findings(
            facts, {"ways": table}, pictures={"translated": sheet}, notes=[] if truth is not None else [NO_TRUTH]
        )

    def _against(self, images: Tensor, truth: Tensor | None) -> dict[str, float]:
        return {} if truth is None else distances(images, truth, "")

    def _measure(self, subject: Subject, target: str) -> Fidelity | None:
        """The frozen network of the target domain; None where there are too few images for one."""
        train, validation = (Columns({"images": side.columns[target]}) for side in (subject.train, subject.validation))
        if min(len(train) // 4, len(validation)) < FEWEST:
            return None
        return Fidelity(train, validation, subject.model.device)

    def _likeness(self, measure: Fidelity, images: Tensor) -> dict[str, float]:
        rows = measure.rows(images)
        low, high = kernel_interval(rows, measure.reference)
        found = {"kid": kernel_distance(rows, measure.reference), "kid_low": low, "kid_high": high}
        return found | {"fd": frechet(rows, measure.reference)}

    def _class_kept(self, subject: Subject, found: Tensor, source: str, target: str, count: int) -> float | None:
        """None where the domains have no labels."""
        learned = Domain.of(subject.train, target)
        labels = evenly_spaced(subject.validation, count).get(f"{source}_labels")
        if labels is None or learned.labels is None:
            return None
        judge, _ = small_classifier(learned, len(subject.data.classes), subject.seed, device=subject.model.device)
        return accuracy(judge, Domain(found, labels), subject.model.device)
