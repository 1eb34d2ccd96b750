"""Adversarial images: an attack on a classifier, segmenter or detector, tested on the 8-bit image that is sent."""

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
FINE, COARSE = 41, 9
"""Radii of a sweep by default: an attack of one pass affords a slider's worth, one of many steps a few."""
NO_EPS = -1.0
KEPT = "_white_boxes"
"""Where a resident model keeps its frozen copies, so that they go when the model goes."""
GOALS = tuple(name for kind in VICTIMS for name in kind.goals)


class AttackParams(Params):
    """What every attack takes; the settings of the chosen `method` come beside these."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    planes = ("mask", "truth", "pixels", "aim")

    method: str = Field("fgsm", description="The attack; the catalog lists them.")
    label: int | str | None = Field(None, description="True class by name or index; empty: what the model says.")
    target: int | str | None = Field(
        None,
        description="Class to be taken for, by name or index, or the number to be estimated; empty: any other.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="The same seed gives the same images.")
    control: bool = Field(False, description="Also try random signs of the same size, and the perturbation shuffled.")
    sweep: bool | list[Eps] = Field(
        False, description="Also try a whole curve of eps: yes (0 to twice eps), or up to 64 ascending values."
    )
    mask: Plane = Field(None, exclude=True, description="A PNG: pixels may change where it is not black.")
    truth: Plane = Field(None, exclude=True, description="A PNG of true class indices, 255 where none counts.")
    pixels: Plane = Field(None, exclude=True, description="A PNG: pixels are to be turned where it is not black.")
    aim: Plane = Field(None, exclude=True, description="A PNG of the class wanted of each pixel, 255 for any.")
    threshold: float = Field(0.99, gt=0, le=1, description="Share of the pixels that have to turn for a success.")
    goal: Literal[*GOALS] | None = Field(
        None,
        description="Of a detector: objects are to go unseen (default), to appear where there are none, or to get a"
        " wrong class. Of a regressor: its estimate is to go up, down or away to either side (default). Of other"
        " models, whichever fits first: the translation, the reconstruction, the code (latents)"
        " or the discriminator's judgement (realness) is to change.",
    )
    towards: Literal["last"] | None = Field(
        None, description="last: what is made of the other images is to come nearer to what is made of the last one."
    )
    reach: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="How far away is far enough. Of a translation in the pixel range (0.1); of a reconstruction in"
        " errors of the clean one (1.5); of a code in distances to that of the picture turned upside down (0.5); of an"
        " estimate in standard deviations of the training targets (0.5, and 0.1 around a target).",
    )
    direction: Literal["ab", "ba"] | None = Field(None, description="Of a translation; empty: the model's first.")
    boxes: list[tuple[int | str, float, float, float, float]] | None = Field(
        None, max_length=LIMIT, description="True objects: [class, left, top, right, bottom] in pixels."
    )

    def attack(self) -> Attack:
        """The attack these describe. Raises ConfigError naming the setting that cannot stay."""
        return self._attack

    @cached_property
    def _attack(self) -> Attack:
        known = attacks()
        if self.method not in known:
            raise ConfigError(f"there is no such attack; there is {', '.join(known)}", field="method")
        return known[self.method](**(self.model_extra or {}))

    @property
    def asked(self) -> set[str]:
        """What the request decides: all that is not its default, for the front fills every default in."""
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        return {name for name in defaults if getattr(self, name) is not None and getattr(self, name) != defaults[name]}

    def epsilons(self, attack: Attack, eps: float) -> list[float]:
        """The radii of the sweep; none without one."""
        if isinstance(self.sweep, list):
            if not 1 <= len(self.sweep) <= 64:
                raise ConfigError("a sweep takes 1 to 64 values of eps", field="sweep")
            return self.sweep
        if not self.sweep:
            return []
        count = COARSE if attack.warm_start and not attack.minimal else FINE
        top = 2 * eps if attack.threat().norm != "linf" else min(1.0, 2 * eps)
        return [top * step / (count - 1) for step in range(count)]


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
    """What is true defaults to the model's own answers. Images the model already gets wrong come back unchanged."""

    name = "attack"
    summary = "Changes images a little so that the model errs: in classes, masks, objects or what it makes of them."
    needs = (ATTACKED,)
    gradients = True
    json_first = True
    Params = AttackParams

    def derivative(
        self, model: Family, params: AttackParams, count: int
    ) -> tuple[Callable[[Tensor], Tensor], Tensor] | None:
        box = white_box(model, victim_of(model, params))

        def both(images: Tensor) -> Tensor:
            """What is attacked and, where batch norm was folded, what is served."""
            asked = {id(net): net for net in (box.function, box.served)}.values()
            return torch.cat([net(images).flatten(1) for net in asked], 1)

        return both, torch.rand(count, *model.data.shape)

    def rows(self, model: Family, inputs: Tensor, params: AttackParams) -> Rows:
        attack, victim = params.attack(), victim_of(model, params)
        check_pair(attack, victim)
        check_settings(victim, params.asked)
        if (params.target is not None or params.aim is not None) and not attack.targeted:
            raise ConfigError(f"{attack.name} cannot aim at a class", field="target", remedy="leave target out")
        rows = {"inputs": inputs, **victim.rows(model, inputs, params)}
        threat, count = attack.threat(), len(rows["inputs"])
        eps = NO_EPS if threat.eps is None else on_grid(threat.norm, threat.eps)
        curve_top = eps if threat.bounded else Attack.default_eps[threat.norm] * 2
        epsilons = sorted({on_grid(threat.norm, value) for value in params.epsilons(attack, curve_top)})
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
        aimed = params.target is not None, params.aim is not None
        after = params.goal, params.towards, params.reach, params.direction
        return params.method, config, attack.config.eps is None, aimed, params.control, *after

    def compute(self, model: Family, rows: Rows, params: AttackParams) -> Rows:
        attack, victim = params.attack(), victim_of(model, params)
        x, seeds = rows["inputs"], rows["seeds"]
        access = access_of(model, attack, victim)
        # Asking a black box about the copies that pad a batch would cost passes; a gradient step takes them along.
        copies = None if attack.access == "gradients" else _copies(rows)
        with torch.no_grad():
            clean = Clean.of(access, x)
            criterion = victim.criterion(model, rows, clean.logits, params)
            threat = replace(attack.threat(LEVELS_8BIT), mask=rows.get("mask"))
            threat = threat.at(rows["eps"]) if threat.bounded else threat
            skip = None if copies is None else copies != _places(x)
            one = attack.run(access, x, criterion, threat, seeds, compact=False, clean=clean, skip=skip)
            found = _found(one) | {"clean": victim.seen(one.clean_logits), "adversarial": victim.seen(one.logits)}
            if attack.access == "labels":  # the attacker sees no scores, the reader of the result does
                for name, images in {"clean": x, "adversarial": one.images}.items():
                    outputs = victim.outputs(model, images)
                    found |= {name: victim.seen(outputs), "nonfinite": found["nonfinite"] | ~_finite(outputs)}
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
                "the model's answer to this image is not a finite number, so nothing can be said of an attack on it",
                field="model",
                remedy="train the model again with a lower learning rate",
            )
        pictures, scales = perturbation(rows["inputs"], found["images"])
        facts = {"method": params.method, "seed": params.seed, "items": items(model, rows, found, params, scales)}
        shown = victim_of(model, params).pictures(model, found | {"inputs": rows["inputs"]})
        return Result(images=found["images"], facts=facts, pictures={"perturbation": pictures, **shown})


def check_pair(attack: Attack, victim: Victim) -> None:
    """Raises ConfigError when the attack is not for this kind of model, naming those that are."""
    if victim.suits(attack):
        return
    able = [name for name, other in attacks().items() if victim.suits(other)]
    raise ConfigError(
        f"{attack.name} is not for a model that {victim.title}", field="method", remedy=f"choose {', '.join(able)}"
    )


def access_of(model: Family, attack: Attack, victim: Victim | None = None) -> Access:
    """The model as `attack` may see it."""
    victim = victim or victim_of(model)
    budget, outputs = attack.config.budget, victim.outputs
    if attack.access == "gradients":
        return white_box(model, victim).with_budget(budget)
    return (ScoreOracle if attack.access == "scores" else LabelOracle)(lambda x: outputs(model, x), budget)


def white_box(model: Family, victim: Victim) -> WhiteBox:
    """The frozen copy of a resident model, made once for each thing that can be asked of it."""
    kept = vars(model).setdefault(KEPT, {})
    if victim.key not in kept:
        kept[victim.key] = WhiteBox(model, victim.outputs, shape=model.data.shape)
    return kept[victim.key]


def on_grid(norm: str, eps: float) -> float:
    """The largest radius that 8-bit pixels can use up: for linf a whole number of 255ths, rounded down."""
    return int(eps * 255 + 1e-3) / 255 if norm == "linf" else eps


def _finite(outputs: Tensor) -> Tensor:
    return torch.isfinite(outputs).flatten(1).all(1)


def _places(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)


def _copies(rows: Rows) -> Tensor:
    """(N,): for each row the first of the equal rows right before it, itself when there is none.

    A batch is padded with copies of its last row; attacking one of them is enough.
    """
    index = _places(rows["inputs"])
    new = torch.ones_like(index, dtype=torch.bool)
    repeats = [(part[1:] == part[:-1]).unsqueeze(1).flatten(1).all(1) for part in rows.values()]
    new[1:] = ~torch.stack(repeats).all(0)
    return torch.where(new, index, 0).cummax(0).values


def _found(one: AttackResult) -> Rows:
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
