"""Adversarial images for any kind of model; success is tested on the 8-bit image that is sent."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from models.attacks.core.access import Access, LabelOracle, ScoreOracle, WhiteBox
from models.attacks.core.base import Attack, Eps
from models.attacks.core.logits import Clean, as_logits
from models.attacks.core.result import AttackResult
from models.attacks.core.sweep import epsilon_sweep, noise, shuffled
from models.attacks.core.threat import check_eps
from models.capabilities import finite_rows
from models.family import Family
from models.nn.boxes import LIMIT
from models.operations.core.attack_facts import items, perturbation
from models.operations.core.base import Operation, Params, Plane, Result, Rows
from models.operations.core.victims import ATTACKED, SETTINGS, VICTIMS, Victim, check_settings, settings_for, victim_of
from models.operations.core.victims.base import area
from models.registry import attacks
from models.seeds import derive
from models.types import ConfigError, InputError

LEVELS_8BIT = 256
FINE_SWEEP, COARSE_SWEEP = 41, 9
"""Default number of eps values of a sweep: for attacks of one step, and for iterative ones."""
NO_EPS = -1.0
CACHE = "_white_boxes"
"""Attribute of a loaded model that holds its frozen copies, so that they are freed with the model."""
GOALS = tuple(name for kind in VICTIMS for name in kind.goals)


class AttackParams(Params):
    """Parameters of every attack; the settings of the chosen `method` are additional fields."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    planes = ("mask", "truth", "pixels", "aim")

    method: str = Field("fgsm", description="Name of the attack; GET /v1/attacks lists them.")
    label: int | str | None = Field(None, description="True class by name or index. Default: the model's prediction.")
    target: int | str | None = Field(
        None,
        description="Class, by name or index, or for a regressor the number, that the model should predict. Default: "
        "any wrong one.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="The same seed gives the same images.")
    control: bool = Field(
        False,
        description="Also report two controls: random signs of the same size, and the "
        "perturbation with its pixels shuffled.",
    )
    sweep: bool | list[Eps] = Field(
        False, description="Also attack over a range of eps: true (from 0 to twice eps), or a list of 1 to 64 values."
    )
    mask: Plane = Field(
        None, exclude=True, description="PNG of the image size: only pixels where it is not black may change."
    )
    truth: Plane = Field(
        None, exclude=True, description="PNG of the true class index of each pixel, 255 = not counted."
    )
    pixels: Plane = Field(
        None,
        exclude=True,
        description="PNG of the image size: only pixels where it is not black are attacked (segmenters).",
    )
    aim: Plane = Field(
        None, exclude=True, description="PNG of the target class index of each pixel, 255 = not counted (segmenters)."
    )
    threshold: float = Field(
        0.99, gt=0, le=1, description="Fraction of pixels that must change class for success (segmenters)."
    )
    goal: Literal[*GOALS] | None = Field(
        None,
        description="What counts as success, by kind of model. Detector: vanish (default), fabricate, mislabel. "
        "Regressor: away (default), up, down. Other models: translation, reconstruction, latents or realness, the "
        "output that should change (default: the first of these that the model has).",
    )
    towards: Literal["last"] | None = Field(
        None, description="last: make the model's output for each image resemble its output for the last image."
    )
    reach: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Minimum change that counts as success. Translation: fraction of the pixel range (default 0.1); "
        "reconstruction: multiple of the clean image's error (1.5); latents: multiple of the distance to the code of "
        "the image rotated by 180 degrees (0.5); regressor: standard deviations of the training targets (0.5; with a "
        "target, the maximum distance from it: 0.1).",
    )
    direction: Literal["ab", "ba"] | None = Field(
        None, description="Direction of the attacked translation. Default: the model's first."
    )
    boxes: list[tuple[int | str, float, float, float, float]] | None = Field(
        None,
        max_length=LIMIT,
        description="True objects: a list of [class, left, top, right, bottom] in pixels. "
        "Default: the model's detections.",
    )

    def attack(self) -> Attack:
        """The attack that these parameters describe. Raises ConfigError naming the invalid setting."""
        return self._attack

    @cached_property
    def _attack(self) -> Attack:
        by_name = attacks()
        if self.method not in by_name:
            raise ConfigError(f"Unknown method. Choose one of: {', '.join(by_name)}.", field="method")
        return by_name[self.method](**(self.model_extra or {}))

    @property
    def requested(self) -> set[str]:
        """Names of the parameters that differ from their default (the front end fills in all defaults)."""
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        return {name for name in defaults if getattr(self, name) is not None and getattr(self, name) != defaults[name]}

    def epsilons(self, attack: Attack, eps: float) -> list[float]:
        """The eps values of the sweep; empty without one."""
        if isinstance(self.sweep, list):
            if not 1 <= len(self.sweep) <= 64:
                raise ConfigError(f"sweep takes 1 to 64 values of eps; you sent {len(self.sweep)}.", field="sweep")
            return self.sweep
        if not self.sweep:
            return []
        count = default_sweep(type(attack))
        top = 2 * eps if attack.threat().norm != "linf" else min(1.0, 2 * eps)
        return [top * step / (count - 1) for step in range(count)]


def default_sweep(attack: type[Attack]) -> int:
    """The number of eps values of `sweep=true`."""
    return COARSE_SWEEP if attack.warm_start and not attack.minimal else FINE_SWEEP


def params_schema(attack: type[Attack]) -> dict[str, Any]:
    """JSON schema of all parameters of a request that uses `attack`."""
    common, own = AttackParams.model_json_schema(), attack.Config.model_json_schema()
    foreign = SETTINGS - settings_for(attack)
    common["properties"] = {name: spec for name, spec in common["properties"].items() if name not in foreign}
    method = {"const": attack.name, "default": attack.name, "type": "string", "title": "Method"}
    schema = {
        "title": attack.name,
        "type": "object",
        "additionalProperties": False,
        "properties": {**common["properties"], "method": method, **own.get("properties", {})},
    }
    definitions = common.get("$defs", {}) | own.get("$defs", {})
    return schema | ({"$defs": definitions} if definitions else {})


class AttackOperation(Operation):
    """The truth defaults to the model's own predictions. Images it already gets wrong are returned unchanged."""

    name = "attack"
    checks_finite = False
    summary = "Creates adversarial images for classifiers, segmenters, detectors and generative models."
    needs = (ATTACKED,)
    gradients = True
    json_first = True
    price = {"forwards": "inputs * (attack_forwards + 2 * control + 2)", "backwards": "inputs * attack_backwards"}
    Params = AttackParams

    def derivative(
        self, model: Family, params: AttackParams, count: int
    ) -> tuple[Callable[[Tensor], Tensor], Tensor] | None:
        box = white_box(model, victim_of(model, params))

        def both(images: Tensor) -> Tensor:
            """Outputs of the attacked network and, if batch norm was folded, of the served one."""
            networks = {id(net): net for net in (box.function, box.served)}.values()
            return torch.cat([net(images).flatten(1) for net in networks], 1)

        return both, torch.rand(count, *model.data.shape)

    def rows(self, model: Family, inputs: Tensor, params: AttackParams) -> Rows:
        attack, victim = params.attack(), victim_of(model, params)
        check_pair(attack, victim)
        check_settings(victim, params.requested)
        if (params.target is not None or params.aim is not None) and not attack.targeted:
            raise ConfigError(f"{attack.name} has no targeted version.", field="target", remedy="Remove target.")
        rows = {"inputs": inputs, **victim.rows(model, inputs, params)}
        threat, count = attack.threat(), len(rows["inputs"])
        eps = NO_EPS if threat.eps is None else on_grid(threat.norm, threat.eps)
        sweep_eps = eps if threat.bounded else Attack.default_eps[threat.norm] * 2
        epsilons = sorted({on_grid(threat.norm, value) for value in params.epsilons(attack, sweep_eps)})
        if epsilons:
            check_eps(threat.norm, min(epsilons), max(epsilons))
        mask = area(model, params.mask, "mask")
        movable = {} if mask is None else {"mask": mask.float()[None].expand(count, 1, -1, -1)}
        return {
            **rows,
            **movable,
            "eps": torch.full((count,), eps, dtype=torch.float32),
            "seeds": torch.tensor([derive(params.seed, "attack", row) for row in range(count)], dtype=torch.int64),
            "sweep": torch.tensor(epsilons, dtype=torch.float32).expand(count, -1),
        }

    def batch_key(self, params: AttackParams) -> tuple:
        attack = params.attack()
        config = attack.config.model_dump_json(exclude={"eps"})
        targeted = params.target is not None, params.aim is not None
        goal = params.goal, params.towards, params.reach, params.direction
        return params.method, config, attack.config.eps is None, targeted, params.control, *goal

    def compute(self, model: Family, rows: Rows, params: AttackParams) -> Rows:
        attack, victim = params.attack(), victim_of(model, params)
        x, seeds = rows["inputs"], rows["seeds"]
        access = access_of(model, attack, victim)
        # the copies that pad a batch would cost a black-box attack queries; a gradient step computes them anyway
        copies = None if attack.access == "gradients" else _copies(rows)
        with torch.no_grad():
            clean = Clean.of(access, x)
            criterion = victim.criterion(model, rows, clean.logits, params)
            threat = replace(attack.threat(LEVELS_8BIT), mask=rows.get("mask"))
            threat = threat.at(rows["eps"]) if threat.bounded else threat
            skip = None if copies is None else copies != _places(x)
            one = attack.run(access, x, criterion, threat, seeds, compact=False, clean=clean, skip=skip)
            found = _rows_of(one) | {"clean": victim.seen(one.clean_logits), "adversarial": victim.seen(one.logits)}
            if attack.access == "labels":  # the attacker sees no scores, but the result reports them
                for name, images in {"clean": x, "adversarial": one.images}.items():
                    outputs = victim.outputs(model, images)
                    found |= {name: victim.seen(outputs), "nonfinite": found["nonfinite"] | ~finite_rows(outputs)}
            if params.control:
                size = threat.radius(x) if threat.bounded else one.distance
                controls = {
                    "control": noise(x, threat.at(size), seeds),
                    "shuffled": shuffled(x, one.images, threat, seeds),
                }
                for name, images in controls.items():
                    outputs = victim.outputs(model, images)
                    found |= {name: victim.seen(outputs), f"{name}_success": criterion.margin(as_logits(outputs)) < 0}
            if rows["sweep"].shape[1]:
                radii = rows["sweep"]
                how = {"compact": False, "clean": clean, "minimal_result": None if threat.bounded else one}
                runs = epsilon_sweep(attack, access, x, criterion, threat, radii, seeds, **how)
                found["sweep"] = torch.stack([victim.seen(run.logits) for run in runs], 1)
                found["sweep_success"] = torch.stack([run.success for run in runs], 1)
        found |= victim.truth(criterion)
        return found if copies is None else {name: tensor[copies] for name, tensor in found.items()}

    def result(self, model: Family, rows: Rows, found: Rows, params: AttackParams) -> Result:
        if bool(found["nonfinite"].any()):
            raise InputError(
                "The model's output for this image is not finite; the attack was not run.",
                field="model",
                remedy="Check the model with classify; a model trained here: train it with a lower learning_rate.",
            )
        pictures, scales = perturbation(rows["inputs"], found["images"])
        facts = {"method": params.method, "seed": params.seed, "items": items(model, rows, found, params, scales)}
        more = victim_of(model, params).pictures(model, found | {"inputs": rows["inputs"]})
        return Result(images=found["images"], facts=facts, pictures={"perturbation": pictures, **more})


def check_pair(attack: Attack, victim: Victim) -> None:
    """Raises ConfigError if the attack does not support this kind of model, naming those that do."""
    if victim.suits(attack):
        return
    suitable = [name for name, other in attacks().items() if victim.suits(other)]
    raise ConfigError(
        f"{attack.name} does not support a model that {victim.title}.",
        field="method",
        remedy=f"Choose one of: {', '.join(suitable)}.",
    )


def access_of(model: Family, attack: Attack, victim: Victim | None = None) -> Access:
    """The access to the model that `attack` needs: gradients, scores or labels."""
    victim = victim or victim_of(model)
    budget, outputs = attack.config.budget, victim.outputs
    if attack.access == "gradients":
        return white_box(model, victim).with_budget(budget)
    return (ScoreOracle if attack.access == "scores" else LabelOracle)(lambda x: outputs(model, x), budget)


def white_box(model: Family, victim: Victim) -> WhiteBox:
    """White-box access to a frozen copy of a loaded model, made once per kind of output."""
    boxes = vars(model).setdefault(CACHE, {})
    if victim.key not in boxes:
        boxes[victim.key] = WhiteBox(model, victim.outputs, shape=model.data.shape)
    return boxes[victim.key]


def on_grid(norm: str, eps: float) -> float:
    """The largest eps that 8-bit pixels can use: for linf rounded down to a multiple of 1/255."""
    return int(eps * 255 + 1e-3) / 255 if norm == "linf" else eps


def _places(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)


def _copies(rows: Rows) -> Tensor:
    """(N,): for each row the index of the first row of its run of equal rows.

    A batch is padded with copies of its last row; attacking one of them is enough.
    """
    index = _places(rows["inputs"])
    new = torch.ones_like(index, dtype=torch.bool)
    repeats = [(part[1:] == part[:-1]).unsqueeze(1).flatten(1).all(1) for part in rows.values()]
    new[1:] = ~torch.stack(repeats).all(0)
    return torch.where(new, index, 0).cummax(0).values


def _rows_of(one: AttackResult) -> Rows:
    names = (
        "images",
        "success",
        "success_float",
        "queries",
        "gradients",
        "steps",
        "nonfinite",
        "probabilities",
        "zero_gradient",
    )
    rows = {name: getattr(one, name) for name in names}
    return rows | {"wrong": one.initially_wrong}
