"""The fooling matrix: how often universal perturbations change the predictions of each of several models."""

from typing import Any

import torch
from pydantic import Field

from models.attacks.core.universal import measure, permuted, random_signs
from models.capabilities import Classifies
from models.evaluation.confidence import wilson
from models.operations.core.attack_facts import perturbation
from models.reports.core.base import Params, Progress, Report, ReportResult, Run, Subject
from models.reports.core.classification import classifier_access
from models.seeds import derive
from models.types import ConfigError


class UniversalFoolingParams(Params):
    """The perturbations (rows) and the models (columns, the model of the report first)."""

    perturbations: list[str] = Field(min_length=1, max_length=16, description="Names of universal perturbations.")
    others: list[str] = Field([], max_length=8, description="Further models to test, by name or name@digest.")
    images: int = Field(2000, ge=1, le=10_000, description="Maximum number of validation images.")


class UniversalFoolingReport(Report):
    """The fooling rate is the fraction of images whose predicted class changes. Controls: random signs of the same
    size, and the values of the perturbation in random places.
    """

    name = "universal_fooling"
    aliases = ("fooling",)
    summary = "Fooling rates of universal perturbations on several models, with controls of the same size."
    needs = (Classifies,)
    Params = UniversalFoolingParams
    price = {"forwards": "images * (count_others + 1) * (3 * count_perturbations + 1)", "backwards": "0"}

    def run(self, subject: Subject, params: UniversalFoolingParams, progress_state: Any = None) -> Run:
        models = {"this model": subject.model, **subject.others}
        for name, model in models.items():
            if not isinstance(model, Classifies) or model.data.shape != subject.data.shape:
                raise ConfigError(
                    f"{name} does not classify images of shape {subject.data.shape}", field="params/others"
                )
        for name, delta in subject.perturbations.items():
            if tuple(delta.shape) != subject.data.shape:
                raise ConfigError(
                    f"the shape of perturbation {name} is {tuple(delta.shape)}, not {subject.data.shape}",
                    field="params/perturbations",
                )
        seed = derive(subject.seed, "control") % 2**62
        cells: list[dict[str, Any]] = list(progress_state or [])
        finished = {cell["model"] for cell in cells}
        for place, (title, model) in enumerate(models.items()):
            if title not in finished:
                box = classifier_access(model)
                for name, delta in subject.perturbations.items():
                    variants = {
                        "rate": delta,
                        "random_signs": random_signs(delta, seed),
                        "permuted": permuted(delta, seed),
                    }
                    measured = measure(box, subject.validation, variants, params.images)
                    rates = {variant: fooling.rate for variant, fooling in measured.items()}
                    cell = {"perturbation": name, "model": title} | rates
                    hits = measured["rate"]
                    cells.append(cell | {"interval": wilson(hits.changed, hits.total), "images": hits.total})
            yield Progress(place + 1, len(models), list(cells))
        matrix = {name: {cell["model"]: cell["rate"] for cell in cells if cell["perturbation"] == name}
                  for name in subject.perturbations}  # fmt: skip
        rows = [{"perturbation": name, **row} for name, row in matrix.items()]
        pictures, _ = perturbation(*(torch.stack([part(delta) for delta in subject.perturbations.values()])
                                  for part in (torch.zeros_like, lambda delta: delta)))  # fmt: skip
        return ReportResult({"fooling": matrix}, {"matrix": rows, "cells": cells}, pictures={"perturbations": pictures})
