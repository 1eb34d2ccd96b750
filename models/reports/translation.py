"""Compares translated images with real ones of the target domain, and with baselines that need no network."""

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
from models.reports.core.base import Params, Progress, Report, ReportResult, Run, Subject, check_shape
from models.types import DataError, DataSpec

SIDES = {"paired": ("input", "target"), "unpaired": ("a", "b")}
PICTURES = 8
MIN_IMAGES = 4
NO_TRUTH = (
    "l1 and psnr are missing, because the true translations are unknown. Give two held-out images that show the same "
    "thing equal file names in val/A and val/B of an upload."
)


class TranslationParams(Params):
    """The direction, and the images."""

    direction: Literal["ab", "ba"] | None = Field(None, description="ab or ba. Default: the model's first direction.")
    images: int = Field(512, ge=4, le=10_000, description="Maximum number of validation images.")


class TranslationReport(Report):
    """`kid` and `fd` compare translated with real images of the target domain, in features of a network trained on that
    domain; the row `real` is the floor: real images against other real ones. `class_kept` is the fraction of translated
    images that a classifier trained on the target domain assigns to the class of their source.
    """

    name = "translation"
    summary = "Compares translated images with real ones of the target domain, and with baselines that need no network."
    needs = (Translates,)
    columns = ()
    Params = TranslationParams

    @classmethod
    def check(cls, model: Family, data: DataSpec) -> None:
        if data.layout not in SIDES:
            raise DataError(
                f"translation needs a dataset of layout paired or unpaired; the layout of this one is {data.layout}",
                field="dataset",
            )
        check_shape(model, data)

    def run(self, subject: Subject, params: TranslationParams, progress_state: Any = None) -> Run:
        model, data = subject.model, subject.data
        direction = params.direction or model.directions[0]
        if direction not in model.directions:
            directions = " and ".join(model.directions)
            raise DataError(f"this model translates {directions} only; you sent {direction}", field="params/direction")
        source, target = SIDES[data.layout] if direction == "ab" else SIDES[data.layout][::-1]
        train, unseen = evenly_spaced(subject.train, params.images), evenly_spaced(subject.validation, params.images)
        inputs, paired = unseen[source], data.layout == "paired"
        total = 3 + bool(data.classes)
        yield Progress(0, total)
        translate = partial(model.translate, direction=direction)
        translated = in_batches(lambda part: translate(part.to(model.device)).cpu(), inputs)
        yield Progress(1, total)
        ways = {"translated": translated} | baselines(inputs, train, source, target, paired)
        truth = unseen[target] if paired or data.twins else None
        table = [{"way": name} | self._paired_errors(images, truth) for name, images in ways.items()]
        measure = self._measure(subject, target)
        yield Progress(2, total)
        if measure:
            table.append({"way": "real"})
            for row, images in zip(table, [*ways.values(), measure.train_images], strict=True):
                row |= self._distribution_distances(measure, images)
        yield Progress(3, total)
        facts = {"direction": direction, "images": len(inputs)} | {
            name: value for name, value in table[0].items() if name != "way"
        }
        if (class_kept := self._class_kept(subject, translated, source, target, params.images)) is not None:
            facts["class_kept"] = class_kept
        yield Progress(total, total)
        columns = [images[:PICTURES] for images in (inputs, translated, *([] if truth is None else [truth]))]
        sheet = torch.stack(columns, 1).flatten(0, 1)
        return ReportResult(
            facts, {"ways": table}, pictures={"translated": sheet}, notes=[] if truth is not None else [NO_TRUTH]
        )

    def _paired_errors(self, images: Tensor, truth: Tensor | None) -> dict[str, float]:
        """l1 and psnr to the true translations, if these are known."""
        return {} if truth is None else distances(images, truth, "")

    def _measure(self, subject: Subject, target: str) -> Fidelity | None:
        """Distances in features of a network trained on the target domain; None for too few images."""
        train, validation = (Columns({"images": side.columns[target]}) for side in (subject.train, subject.validation))
        if min(len(train) // 4, len(validation)) < MIN_IMAGES:
            return None
        return Fidelity(train, validation, subject.model.device)

    def _distribution_distances(self, measure: Fidelity, images: Tensor) -> dict[str, float]:
        """kid with its interval, and fd."""
        rows = measure.rows(images)
        low, high = kernel_interval(rows, measure.reference)
        distances = {"kid": kernel_distance(rows, measure.reference), "kid_low": low, "kid_high": high}
        return distances | {"fd": frechet(rows, measure.reference)}

    def _class_kept(self, subject: Subject, translated: Tensor, source: str, target: str, count: int) -> float | None:
        """Fraction of translated images whose predicted class is that of the source; None without labels."""
        learned = Domain.of(subject.train, target)
        labels = evenly_spaced(subject.validation, count).get(f"{source}_labels")
        if labels is None or learned.labels is None:
            return None
        classifier, _ = small_classifier(learned, len(subject.data.classes), subject.seed, device=subject.model.device)
        return accuracy(classifier, Domain(translated, labels), subject.model.device)
