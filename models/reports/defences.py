"""What is a defence worth? Accuracy clean, under an attack that does not know of it, and under one that does."""

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
from models.capabilities import Classifies
from models.defences.defended import Defended, defend, fingerprints
from models.family import Family
from models.reports.core.base import Findings, Params, Progress, Report, Run, Subject
from models.reports.core.classification import CHUNK, classes_of, eps_for, rows_of, share, white_box
from models.types import ConfigError

METHODS: dict[str, type[Attack]] = {attack.name: attack for attack in (FGSM, BIM, PGD, MIFGSM)}
LEVELS = 256
HIDING = 0.15
"""A defence that loses more accuracy than this once the attack knows of it mostly hides the gradient."""


class DefencesParams(Params):
    """Which defences, against what."""

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
        description="Each a list of stages, as in POST /v1/defences.",
    )
    method: Literal[*METHODS] = Field("pgd", description="The attack.")
    steps: int = Field(20, ge=1, le=1000, description="Gradient steps of attacks that have several.")
    eps: Eps | None = Field(
        None, description="Size of the attack. Empty: what the model was trained against, or usual for its images."
    )
    norm: Literal["linf", "l2"] = Field("linf", description="How that size is measured.")
    images: int = Field(200, ge=2, le=10_000, description="At most so many validation images.")
    draws: int = Field(8, ge=1, le=256, description="Answers averaged for a defence that draws.")


class DefencesReport(Report):
    """`blind`: attacked images of the model without defences, shown to the defended one. `adaptive`: attacked through
    the defence, straight through what has no gradient and averaged over what is random. Only this one counts.
    """

    name = "defences"
    summary = "Compares defences: accuracy clean, under an attack blind to the defence, and under one made through it."
    needs = (Classifies,)
    columns = ("images", "labels")
    Params = DefencesParams
    price = {"forwards": "images * answers * (run_forwards + 4)", "backwards": "images * answers * run_backwards"}
    passes_on = ("steps",)

    def run(self, subject: Subject, params: DefencesParams, kept: Any = None) -> Run:
        images, labels = rows_of(subject, params.images)
        plans: list[list[dict[str, Any]]] = [[], *params.defences]
        made = [one(subject, stages, params, place) for place, stages in enumerate(plans)]
        attack, threat = attack_of(params), ThreatModel(params.norm, eps_for(subject, params.eps, params.norm), LEVELS)
        seeds = torch.arange(len(images), device=images.device) + subject.seed
        total = len(plans) * len(images)
        blind = images.clone()
        rows: list[dict[str, Any]] = list(kept or [])
        for place, model in enumerate(made):
            if 0 < place < len(rows):
                continue
            adaptive = images.clone()
            for start in range(0, len(images), CHUNK):
                part = slice(start, start + CHUNK)
                adaptive[part] = attacked(attack, model, images[part], labels[part], threat, seeds[part])
                yield Progress(place * len(images) + min(start + CHUNK, len(images)), total)
            if place == 0:
                blind = adaptive  # the first is the model itself; its attacked images are needed again after a pause
            if place >= len(rows):
                control = noise(images, threat, seeds)
                looks = {"clean": images, "random_signs": control, "blind": blind, "adaptive": adaptive}
                rows.append(row_of(plans[place], model, looks, labels))
            yield Progress((place + 1) * len(images), total, list(rows))
        facts = {"images": len(images), "method": params.method, "eps": threat.eps, "norm": params.norm}
        shown = {"defended": gallery(made, images, blind)}
        order = f"The sheet shows in a row: the image, attacked, and that behind {', '.join(names(rows))}."
        return Findings(facts, {"defences": rows}, pictures=shown, notes=[*notes(rows), order])


def one(subject: Subject, stages: list[dict[str, Any]], params: DefencesParams, place: int) -> Family:
    """The model behind these stages; the model itself behind none."""
    if not stages:
        return subject.model
    try:
        return defend(subject.model, "this", stages, subject.load, draws=params.draws)
    except ConfigError as error:
        field = error.field and f"params/defences/{place - 1}/{error.field.removeprefix('stages/')}"
        raise ConfigError(error.detail, field, error.remedy) from None


def attack_of(params: DefencesParams) -> Attack:
    kind = METHODS[params.method]
    several = {"steps": params.steps} if "steps" in kind.Config.model_fields else {}
    normed = {"norm": params.norm} if "norm" in kind.Config.model_fields else {}
    return kind(**several, **normed)


def attacked(attack: Attack, model: Family, x: Tensor, labels: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
    """8-bit images; where the attack failed, its best attempt."""
    return attack.run(white_box(model), x, Misclassified(labels), threat, seeds).images


def row_of(stages: list[dict[str, Any]], model: Family, looks: dict[str, Tensor], labels: Tensor) -> dict[str, Any]:
    row: dict[str, Any] = {"defence": " + ".join(spelled(stage) for stage in stages) or "none"}
    for name, images in looks.items():
        row |= share(name, int((classes_of(model.logits, images) == labels).sum()), len(labels))
    return row


def spelled(stage: dict[str, Any]) -> str:
    """jpeg(quality=50)"""
    settings = ", ".join(f"{name}={value}" for name, value in stage.items() if name != "kind")
    return f"{stage.get('kind')}({settings})" if settings else str(stage.get("kind"))


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["defence"] for row in rows[1:]]


def notes(rows: list[dict[str, Any]]) -> list[str]:
    """Sentences on defences that only seem to work."""
    found = []
    for row in rows[1:]:
        if row["blind"] > row["adaptive"] + HIDING:
            found.append(
                f"{row['defence']} keeps {row['blind']:.1%} under an attack that does not know of it, and "
                f"{row['adaptive']:.1%} under one that does: it hides the gradient more than it protects."
            )
    return found


def gallery(made: list[Family], images: Tensor, blind: Tensor) -> Tensor:
    """For each image a row: clean, attacked, and the attacked one as each defence passes it on. As many rows as
    columns, so that a sheet which is as square as can be keeps them."""
    picked = torch.linspace(0, len(images) - 1, min(len(images), len(made) + 1), device=images.device).long()
    images, blind = images[picked], blind[picked]
    seeds = RowRNG(fingerprints(blind))
    columns = [images, blind]
    for model in made:
        if isinstance(model, Defended) and len(model.stages):
            seen = blind
            for stage in model.stages:
                seen = stage(seen, seeds)
            columns.append(seen.clamp(0, 1))
    return torch.stack(columns, 1).flatten(0, 1)
