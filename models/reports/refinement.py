"""How useful refined images are as training data, and whether their labels stay true."""

from collections.abc import Generator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Refines
from models.evaluation.refinement import (
    BATCH,
    CURVE_POINTS,
    UPDATES,
    Domain,
    accuracy,
    domain_labels,
    image_noise,
    linear_accuracy,
    small_classifier,
)
from models.evaluation.translation import colour_transfer
from models.reports.core.base import Curve, Params, Progress, Report, ReportResult, Run, Subject

COLUMNS = 16
STEPS = 8
UNLABELLED = (
    "Accuracies and label_agreement are missing, because the two domains have no labels. Give both folders A and B the "
    "same class folders, or add the arrays a_labels and b_labels to an npz file."
)


class RefinementParams(Params):
    """The images, and the training of the small classifiers."""

    images: int = Field(5000, ge=16, le=50_000, description="Maximum number of images of each domain and split.")
    updates: int = Field(
        UPDATES,
        ge=CURVE_POINTS,
        le=100_000,
        description="Training steps of each small classifier.",
        multiple_of=CURVE_POINTS,
    )


class RefinementReport(Report):
    """Measures after Shrivastava et al. (2017, section 3), for refined and for raw simulated images.

    `accuracy_X`: accuracy on unseen real images of a small classifier trained on X: raw, refined, colour-transferred
    or real images. `label_agreement`: accuracy on refined images of unseen simulated ones of a classifier trained on
    both domains. `domain_accuracy`: accuracy of a network that tells simulated from real images; 0.5 is the best.
    """

    name = "refinement"
    summary = "Compares classifiers trained on refined, raw simulated and real images; checks that labels stay true."
    needs = (Refines,)
    columns = ("a", "b")
    Params = RefinementParams

    def run(self, subject: Subject, params: RefinementParams, progress_state: Any = None) -> Run:
        model, classes = subject.model, subject.data.classes
        raw, real, raw_unseen, real_unseen = (
            Domain.of(side, name, params.images) for side in (subject.train, subject.validation) for name in ("a", "b")
        )
        labelled = all(each.labels is not None for each in (raw, real, raw_unseen, real_unseen)) and bool(classes)
        total = STEPS if labelled else 4

        def refine(images: Tensor) -> Tensor:
            noise = image_noise(images, model.noise_dim, subject.seed)
            return model.refine(images.to(model.device), noise.to(model.device)).cpu()

        refined, refined_unseen = raw.mapped(refine), raw_unseen.mapped(refine)
        yield Progress(1, total)
        facts = {
            "images": len(raw.images),
            "real_images": len(real.images),
            "moved_l1": float((refined_unseen.images - raw_unseen.images).abs().mean()),
        }
        for name, train, unseen in (("raw", raw, raw_unseen), ("refined", refined, refined_unseen)):
            pair = domain_labels(train, real), domain_labels(unseen, real_unseen)
            net, _ = small_classifier(pair[0], 2, subject.seed, device=model.device, updates=params.updates)
            facts[f"domain_accuracy_{name}"] = accuracy(net, pair[1], model.device)
            facts[f"domain_accuracy_linear_{name}"] = linear_accuracy(*pair, 2)
            yield Progress(2 if name == "raw" else 3, total)
        curves, notes = [], [UNLABELLED]
        if labelled:
            coloured = raw.mapped(lambda images: colour_transfer(images, raw.images, real.images))
            sources = {"raw": raw, "refined": refined, "colour": coloured, "real": real}
            accuracies, curve = yield from self._train_on_each(subject, params, sources, real_unseen)
            facts |= accuracies
            curves, notes = [curve], []
            both = raw + real
            classifier, _ = small_classifier(
                both, len(classes), subject.seed, device=model.device, updates=params.updates
            )
            for name, unseen in (("raw", raw_unseen), ("refined", refined_unseen)):
                facts[f"label_agreement_{name}"] = accuracy(classifier, unseen, model.device)
            facts["label_agreement"] = facts.pop("label_agreement_refined")
        yield Progress(total, total)
        sheets = {"refined": self._sheet(raw_unseen.images, refined_unseen.images, real_unseen.images)}
        return ReportResult(facts, curves=curves, pictures=sheets, notes=notes)

    def _train_on_each(
        self, subject: Subject, params: RefinementParams, sources: dict[str, Domain], test: Domain
    ) -> Generator[Progress, None, tuple[dict[str, float], Curve]]:
        """Accuracies on `test` of classifiers trained on each source, and their curves over the training."""
        classes, facts, series = len(subject.data.classes), {}, {}
        for step, (name, source) in enumerate(sources.items(), start=STEPS - len(sources)):
            _, series[name] = small_classifier(
                source, classes, subject.seed, test, subject.model.device, params.updates
            )
            facts[f"accuracy_{name}"] = series[name][-1]
            facts[f"accuracy_linear_{name}"] = linear_accuracy(source, test, classes)
            yield Progress(step, STEPS)
        images = [float(params.updates // CURVE_POINTS * BATCH * point) for point in range(1, CURVE_POINTS + 1)]
        return facts, Curve("Accuracy on real images", "training images", "accuracy", images, series)

    def _sheet(self, *rows: Tensor) -> Tensor:
        """Rows of raw, refined and real images."""
        parts = [images[torch.linspace(0, len(images) - 1, COLUMNS).long()] for images in rows]
        return torch.cat(parts)
