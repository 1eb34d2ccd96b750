"""Compares defences: accuracy on clean images, under an attack blind to the defence, and under an adaptive one."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.bim import BIM
from models.attacks.core.base import Attack, Eps
from models.attacks.core.rng import RowRNG
from models.attacks.core.sweep import noise
from models.attacks.core.threat import ThreatModel
from models.attacks.criteria.classification import Misclassified
from models.attacks.fgsm import FGSM
from models.attacks.mifgsm import MIFGSM
from models.attacks.pgd import PGD
from models.capabilities import UNDECIDED, Classifies
from models.defences.defended import Defended, defend, fingerprints
from models.family import Family
from models.reports.core.base import Params, Progress, Report, ReportResult, Run, Subject
from models.reports.core.classification import CHUNK, classifier_access, eps_for, labelled_images, predict, rate
from models.types import ConfigError

METHODS: dict[str, type[Attack]] = {attack.name: attack for attack in (FGSM, BIM, PGD, MIFGSM)}
LEVELS = 256
OBFUSCATION = 0.15
"""Loss of accuracy from the blind to the adaptive attack above which a note says that the gradient is obfuscated."""


class DefencesParams(Params):
    """The defences and the attack."""

    defences: list[list[dict[str, Any]]] = Field(
        [
            [{"kind": "jpeg", "quality": 50}],
            [{"kind": "bit_depth", "bits": 2}],
            [{"kind": "median"}],
            [{"kind": "tv"}],
            [{"kind": "noise"}],
        ],
        min_length=1,
        max_length=16,
        description="Defences to compare, each a list of stages as in POST /v1/defences.",
    )
    method: Literal[*METHODS] = Field("pgd", description="Attack.")
    steps: int = Field(20, ge=1, le=1000, description="Gradient steps of iterative attacks.")
    eps: Eps | None = Field(
        None, description="eps. Default: that of the model's adversarial training, else chosen from the images."
    )
    norm: Literal["linf", "l2"] = Field("linf", description="Norm of eps.")
    images: int = Field(200, ge=2, le=10_000, description="Maximum number of validation images.")
    draws: int = Field(8, ge=1, le=256, description="Predictions averaged per image for a random defence.")


class DefencesReport(Report):
    """`blind`: adversarial images of the undefended model, shown to the defended one. `adaptive`: attacks on the
    defended model, with straight-through gradients and averages over random draws. Only `adaptive` measures robustness.
    """

    name = "defences"
    summary = (
        "Compares defences: accuracy on clean images, under an attack blind to the defence and under an adaptive one."
    )
    needs = (Classifies,)
    columns = ("images", "labels")
    Params = DefencesParams
    price = {"forwards": "images * (1 + answers * (run_forwards + 4))", "backwards": "images * answers * run_backwards"}
    forwards_params = ("steps",)

    def run(self, subject: Subject, params: DefencesParams, progress_state: Any = None) -> Run:
        images, labels = labelled_images(subject, params.images)
        plans: list[list[dict[str, Any]]] = [[], *params.defences]
        defended = [behind(subject, stages, params, place) for place, stages in enumerate(plans)]
        attack, threat = attack_of(params), ThreatModel(params.norm, eps_for(subject, params.eps, params.norm), LEVELS)
        seeds = torch.arange(len(images), device=images.device) + subject.seed
        total = len(plans) * len(images)
        blind = images.clone()
        rows: list[dict[str, Any]] = list(progress_state or [])
        for place, model in enumerate(defended):
            if 0 < place < len(rows):
                continue
            adaptive = images.clone()
            for start in range(0, len(images), CHUNK):
                part = slice(start, start + CHUNK)
                adaptive[part] = attacked(attack, model, images[part], labels[part], threat, seeds[part])
                yield Progress(place * len(images) + min(start + CHUNK, len(images)), total)
            if place == 0:
                blind = adaptive  # of the undefended model, attacked again after a resume
            if place >= len(rows):
                control = noise(images, threat, seeds)
                variants = {"clean": images, "random_signs": control, "blind": blind, "adaptive": adaptive}
                rows.append(row_of(plans[place], model, variants, labels))
            yield Progress((place + 1) * len(images), total, list(rows))
        facts = {"images": len(images), "method": params.method, "eps": threat.eps, "norm": params.norm}
        pictures = {"defended": gallery(defended, images, blind)}
        order = f"Each row shows the image, the attacked image, and that after each defence: {', '.join(names(rows))}."
        return ReportResult(facts, {"defences": rows}, pictures=pictures, notes=[*notes(rows), order])


def behind(subject: Subject, stages: list[dict[str, Any]], params: DefencesParams, place: int) -> Family:
    """The model behind the stages; the model itself if there are none. Raises ConfigError for an unknown stage."""
    if not stages:
        return subject.model
    try:
        return defend(subject.model, "this", stages, subject.load, draws=params.draws)
    except ConfigError as error:
        field = error.field and f"params/defences/{place - 1}/{error.field.removeprefix('stages/')}"
        raise ConfigError(error.detail, field, error.remedy) from None


def attack_of(params: DefencesParams) -> Attack:
    """The attack of the params, with those settings that it has."""
    kind = METHODS[params.method]
    settings = {"steps": params.steps, "norm": params.norm}
    return kind(**{name: value for name, value in settings.items() if name in kind.Config.model_fields})


def attacked(attack: Attack, model: Family, x: Tensor, labels: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
    """8-bit images (n, c, h, w); the best attempt where the attack failed."""
    return attack.run(classifier_access(model), x, Misclassified(labels), threat, seeds).images


def row_of(stages: list[dict[str, Any]], model: Family, variants: dict[str, Tensor], labels: Tensor) -> dict[str, Any]:
    """A row of the table: the accuracy on each variant of the images, with its interval."""
    row: dict[str, Any] = {"defence": " + ".join(describe_stage(stage) for stage in stages) or "none"}
    for name, images in variants.items():
        classes = predict(model.logits, images)
        row |= rate(name, int((classes == labels).sum()), int((classes != UNDECIDED).sum()))
    return row


def describe_stage(stage: dict[str, Any]) -> str:
    """The stage in the form jpeg(quality=50)."""
    settings = ", ".join(f"{name}={value}" for name, value in stage.items() if name != "kind")
    return f"{stage.get('kind')}({settings})" if settings else str(stage.get("kind"))


def names(rows: list[dict[str, Any]]) -> list[str]:
    """The defences, without the undefended model in the first row."""
    return [row["defence"] for row in rows[1:]]


def notes(rows: list[dict[str, Any]]) -> list[str]:
    """A sentence on each defence that obfuscates the gradient."""
    sentences = []
    for row in rows[1:]:
        if row["blind"] > row["adaptive"] + OBFUSCATION:
            sentences.append(
                f"{row['defence']} has an accuracy of {row['blind']:.1%} under an attack blind to it and "
                f"{row['adaptive']:.1%} under an adaptive one: it obfuscates the gradient more than it protects."
            )
    return sentences


def gallery(models: list[Family], images: Tensor, blind: Tensor) -> Tensor:
    """For each image a row: clean, adversarial, and the adversarial image after each defence.

    There are as many rows as columns, so that a square sheet keeps the rows.
    """
    rows = torch.linspace(0, len(images) - 1, min(len(images), len(models) + 1), device=images.device).long()
    images, blind = images[rows], blind[rows]
    seeds = RowRNG(fingerprints(blind))
    columns = [images, blind]
    for model in models:
        if isinstance(model, Defended) and len(model.stages):
            image = blind
            for stage in model.stages:
                image = stage(image, seeds)
            columns.append(image.clamp(0, 1))
    return torch.stack(columns, 1).flatten(0, 1)
