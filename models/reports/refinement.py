"""Are refined images as good as real ones to learn from, and do their labels stay true?"""

from collections.abc import Generator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Refines
from models.evaluation.refinement import (
    BATCH,
    LOOKS,
    UPDATES,
    Domain,
    accuracy,
    domain_labels,
    image_noise,
    linear_accuracy,
    small_classifier,
)
from models.evaluation.translation import colour_transfer
from models.reports.core.base import Curve, Findings, Params, Progress, Report, Run, Subject

SHOWN = 16
STEPS = 8
UNLABELLED = (
    "The dataset has no labels for its two domains, so nothing says whether the labels stay true: give both folders A "
    "and B the same class folders, or an npz the arrays a_labels and b_labels."
)


class RefinementParams(Params):
    """How much to look at."""

    images: int = Field(5000, ge=16, le=50_000, description="At most so many images of each domain and split.")
    updates: int = Field(
        UPDATES, ge=LOOKS, le=100_000, description="Updates of each small classifier.", multiple_of=LOOKS
    )


class RefinementReport(Report):
    """The measures of Shrivastava et al. (2017, section 3), each beside that of the raw simulated images.

    Small classifiers learn from raw, from refined, from colour-transferred and from real images, and are tested on
    unseen real ones. `label_agreement`: of unseen simulated images, how many refined ones a classifier that learned
    from both domains takes for what their label says. `domain_accuracy`: how well a network tells simulated from real,
    .5 at best.
    """

    name = "refinement"
    summary = "Compares what can be learned from refined, raw simulated and real images, and whether labels stay true."
    needs = (Refines,)
    columns = ("a", "b")
    Params = RefinementParams

    def run(self, subject: Subject, params: RefinementParams, kept: Any = None) -> Run:
        model, classes = subject.model, subject.data.classes
        raw, real, raw_unseen, real_unseen = (
            Domain.of(side, name, params.images) for side in (subject.train, subject.validation) for name in ("a", "b")
        )
        labelled = all(each.labels is not None for each in (raw, real, raw_unseen, real_unseen)) and bool(classes)
        total = STEPS if labelled else 4

        def refine(images: Tensor) -> Tensor:
            noise = image_noise(images, model.noise_dim, subject.seed)
            return model.refine(images.to(model.device), noise.to(model.device)).cpu()

        refined, refined_unseen = raw.made(refine), raw_unseen.made(refine)
        yield Progress(1, total)
        facts = {
            "images": len(raw.images),
            "real_images": len(real.images),
            "moved_l1": float((refined_unseen.images - raw_unseen.images).abs().mean()),
        }
        for name, seen, unseen in (("raw", raw, raw_unseen), ("refined", refined, refined_unseen)):
            pair = domain_labels(seen, real), domain_labels(unseen, real_unseen)
            net, _ = small_classifier(pair[0], 2, subject.seed, device=model.device, updates=params.updates)
            facts[f"domain_accuracy_{name}"] = accuracy(net, pair[1], model.device)
            facts[f"domain_accuracy_linear_{name}"] = linear_accuracy(*pair, 2)
            yield Progress(2 if name == "raw" else 3, total)
        curves, notes = [], [UNLABELLED]
        if labelled:
            coloured = raw.made(lambda images: colour_transfer(images, raw.images, real.images))
            sources = {"raw": raw, "refined": refined, "colour": coloured, "real": real}
            found = yield from self._lessons(subject, params, sources, real_unseen)
            facts |= found[0]
            curves, notes = [found[1]], []
            both = raw + real
            judge, _ = small_classifier(both, len(classes), subject.seed, device=model.device, updates=params.updates)
            for name, unseen in (("raw", raw_unseen), ("refined", refined_unseen)):
                facts[f"label_agreement_{name}"] = accuracy(judge, unseen, model.device)
            facts["label_agreement"] = facts.pop("label_agreement_refined")
        yield Progress(total, total)
        sheets = {"refined": self._sheet(raw_unseen.images, refined_unseen.images, real_unseen.images)}
        return Findings(facts, curves=curves, pictures=sheets, notes=notes)

    def _lessons(
        self, subject: Subject, params: RefinementParams, sources: dict[str, Domain], test: Domain
    ) -> Generator[Progress, None, tuple[dict[str, float], Curve]]:
        """Accuracy on unseen real images after learning from each source, and on the way there."""
        classes, facts, series = len(subject.data.classes), {}, {}
        for done, (name, source) in enumerate(sources.items(), start=STEPS - len(sources)):
            _, series[name] = small_classifier(
                source, classes, subject.seed, test, subject.model.device, params.updates
            )
            facts[f"accuracy_{name}"] = series[name][-1]
            facts[f"accuracy_linear_{name}"] = linear_accuracy(source, test, classes)
            yield Progress(done, STEPS)
        seen = [float(params.updates // LOOKS * BATCH * look) for look in range(1, LOOKS + 1)]
        return facts, Curve("Accuracy on real images", "images shown to the classifier", "accuracy", seen, series)

    def _sheet(self, *rows: Tensor) -> Tensor:
        """Raw, refined and real images, row under row."""
        picked = [images[torch.linspace(0, len(images) - 1, SHOWN).long()] for images in rows]
        return torch.cat(picked)
