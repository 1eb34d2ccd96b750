"""The fooling matrix: how often universal perturbations fool the model they were fitted to, and others."""

from typing import Any

import torch
from pydantic import Field

from models.attacks.core.access import WhiteBox
from models.attacks.core.universal import measure, permuted, random_signs
from models.capabilities import Classifies
from models.evaluation.confidence import wilson
from models.operations.core.attack_facts import perturbation
from models.reports.core.base import Findings, Params, Progress, Report, Run, Subject
from models.seeds import derive
from models.types import ConfigError


class UniversalFoolingParams(Params):
    """Which perturbations (rows) on which models (columns, the report's own model first)."""

    perturbations: list[str] = Field(min_length=1, max_length=16, description="Names of universal perturbations.")
    others: list[str] = Field([], max_length=8, description="Further models to show the perturbed images to.")
    images: int = Field(2000, ge=1, le=10_000, description="At most so many validation images.")


class UniversalFoolingReport(Report):
    """Fooling means that the answer changes. Beside each rate: random signs, and the same values in other places."""

    name = "universal_fooling"
    aliases = ("fooling",)
    summary = "How often universal perturbations fool each of several models, beside controls of the same size."
    needs = (Classifies,)
    Params = UniversalFoolingParams
    price = {"forwards": "images * (count_others + 1) * (3 * count_perturbations + 1)", "backwards": "0"}

    def run(self, subject: Subject, params: UniversalFoolingParams, kept: Any = None) -> Run:
        models = {"this model": subject.model, **subject.others}
        for name, model in models.items():
            if not isinstance(model, Classifies) or model.data.shape != subject.data.shape:
                raise ConfigError(f"{name} does not classify images of this size", field="params/others")
        for name, delta in subject.perturbations.items():
            if tuple(delta.shape) != subject.data.shape:
                raise ConfigError(f"the perturbation {name} is of another size", field="params/perturbations")
        seed = derive(subject.seed, "control") % 2**62
        cells: list[dict[str, Any]] = list(kept or [])
        done = {cell["model"] for cell in cells}
        for place, (title, model) in enumerate(models.items()):
            if title not in done:
                box = WhiteBox(model, lambda net, x: net.logits(x), shape=model.data.shape)
                for name, delta in subject.perturbations.items():
                    tried = {
                        "rate": delta,
                        "random_signs": random_signs(delta, seed),
                        "permuted": permuted(delta, seed),
                    }
                    found = measure(box, subject.validation, tried, params.images)
                    cell = {"perturbation": name, "model": title} | {what: part.rate for what, part in found.items()}
                    hits = found["rate"]
                    cells.append(cell | {"interval": wilson(hits.changed, hits.total), "images": hits.total})
            yield Progress(place + 1, len(models), list(cells))
        matrix = {name: {cell["model"]: cell["rate"] for cell in cells if cell["perturbation"] == name}
                  for name in subject.perturbations}  # fmt: skip
        rows = [{"perturbation": name, **row} for name, row in matrix.items()]
        shown, _ = perturbation(*(torch.stack([part(delta) for delta in subject.perturbations.values()])
                                  for part in (torch.zeros_like, lambda delta: delta)))  # fmt: skip
        return Findings({"fooling": matrix}, {"matrix": rows, "cells": cells}, pictures={"perturbations": shown})
