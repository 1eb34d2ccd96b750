"""The base of every attack: it checks, counts queries, rounds and verifies; a subclass implements the steps.

An attack is one file in `models/attacks/`: a class with a `name`, a typed `Config`, and `steps`, a generator that
yields after each step. Images are float32 (N, C, H, W) in [0, 1]. docs/extend/attack.md has a complete example.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from itertools import count
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from torch import Tensor

from models.attacks.core.access import LEVELS, Access
from models.attacks.core.logits import Clean
from models.attacks.core.result import AttackResult, finalise
from models.attacks.core.run import AttackRun, BudgetExhausted
from models.attacks.core.threat import ThreatModel, check_eps
from models.attacks.criteria.classification import Criterion, Targeted
from models.capabilities import Classifies
from models.types import ConfigError, InputError

OnStep = Callable[[int, AttackRun], None]


def fraction(value: Any) -> Any:
    """ "8/255" -> 8 / 255; any other value unchanged."""
    if isinstance(value, str) and value.endswith("/255"):
        return float(value.removesuffix("/255")) / 255
    return value


EPS_SCHEMA = {
    "anyOf": [
        {"type": "number", "minimum": 0, "maximum": 1000},
        {"type": "string", "pattern": r"^[0-9]{1,6}(\.[0-9]{1,6})?/255$", "examples": ["8/255"]},
    ]
}
Eps = Annotated[float, BeforeValidator(fraction), Field(ge=0, le=1000), WithJsonSchema(EPS_SCHEMA)]
"""A size in pixel units, where 1 is the whole range: a number or "k/255"."""


def _config_error(name: str, error: ValidationError) -> ConfigError:
    """The first error of a config as a ConfigError that names the field."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = str(first["loc"][0]) if first["loc"] else "config"
    return ConfigError(f"{name}: {field}: {first['msg']}", field=field)


class Config(BaseModel):
    """Settings of every attack."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    eps: Eps | None = Field(
        None,
        description="Maximum size of the perturbation: a number or k/255. Default: depends on the attack and norm.",
    )
    budget: int | None = Field(
        None, ge=1, le=10**6, description="Maximum queries of the model per image. Default: unlimited."
    )


class Attack(ABC):
    """One way to make adversarial images. Subclasses implement `steps` and declare the attributes below."""

    name: ClassVar[str]
    summary: ClassVar[str]
    norms: ClassVar[tuple[str, ...]]
    """Norms that bound the perturbation or are minimised; the first is the default."""
    access: ClassVar[Literal["gradients", "scores", "labels"]] = "gradients"
    minimal: ClassVar[bool] = False
    """Seeks the smallest perturbation instead of the smallest margin within eps."""
    victims: ClassVar[tuple[type, ...]] = (Classifies,)
    """Capabilities; the attack applies to models with at least one of them."""
    needs_class_scores: ClassVar[bool] = False
    """Compares the scores of classes, so it applies only to models with one score per class."""
    targeted: ClassVar[bool] = True
    """Can aim at a target class."""
    quantise_inputs = False
    """Shows the model 8-bit images only (see combine.quantised)."""
    warm_start: ClassVar[bool] = True
    """Can continue from the result for a smaller eps."""
    forwards: ClassVar[str] = "steps + 2"
    """Maximum forward passes of an image, not counting repairs after rounding: an expression over the config, `classes`
    (of the model) and `pixels` (values per image) that app/core/catalog/cost.py evaluates."""
    backwards: ClassVar[str] = "steps"
    at_once: ClassVar[str] = "1"
    """Images made of one image that go through the model in one batch: an expression like `forwards`."""
    default_eps: ClassVar[dict[str, float]] = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0, "l0": 10.0}
    Config: ClassVar[type[Config]] = Config

    def __init__(self, **config: Any):
        try:
            self.config = self.Config(**config)
        except ValidationError as error:
            raise _config_error(self.name, error) from None

    @property
    def stop_on_success(self) -> bool:
        """Whether a row stops once it is adversarial within eps."""
        return getattr(self.config, "stop_early", True)

    @abstractmethod
    def steps(self, run: AttackRun) -> Iterator[None]:
        """Improve the rows of `run`, yielding after each step. Tensors that outlive a yield belong in `run.state`."""

    def threat(self, levels: int | None = None) -> ThreatModel:
        """The threat model of the config, with the default eps if there is none."""
        norm = getattr(self.config, "norm", self.norms[0])
        eps = self.config.eps
        if eps is None and not self.minimal:
            eps = self.default_eps[norm]
        return ThreatModel(norm, eps, levels)

    def run(
        self,
        access: Access,
        x: Tensor,
        criterion: Criterion,
        threat: ThreatModel | None = None,
        seeds: Tensor | int = 0,
        on_step: OnStep | None = None,
        **more: Any,
    ) -> AttackResult:
        """Attack each image to the end. `on_step(number, run)` is called after each step and may raise to stop."""
        with closing(self.iterate(access, x, criterion, threat, seeds, **more)) as iterator:
            for number in count():
                try:
                    run = next(iterator)
                except StopIteration as end:
                    return end.value
                if on_step is not None:
                    on_step(number, run)

    def iterate(
        self,
        access: Access,
        x: Tensor,
        criterion: Criterion,
        threat: ThreatModel | None = None,
        seeds: Tensor | int = 0,
        *,
        compact: bool = True,
        clean: Clean | None = None,
        start: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> Generator[AttackRun, None, AttackResult]:
        """Attack each image, step by step. Leaves the model, its gradients and all random streams unchanged.

        `seeds` is one int64 per image, or the seed of the first image. `start` is where an iterative attack begins
        instead of at `x`; rows in `skip` are not attacked. Rows that are adversarial already are returned unchanged;
        rows for which the model's output is not finite are marked `nonfinite`.
        """
        threat = self.threat() if threat is None else threat
        self.check(access, x, criterion, threat)
        with torch.inference_mode(False), torch.no_grad(), access.ready():
            x = x.clone() if x.is_inference() else x.detach()
            if not isinstance(seeds, Tensor):
                seeds = torch.arange(len(x), device=x.device) + seeds
            run = AttackRun(access, x, criterion, threat, seeds.to(x.device), clean, start, skip)
            run.minimal, run.stop_on_success, run.compact = self.minimal, self.stop_on_success, compact
            run.quantise_inputs = self.quantise_inputs
            with suppress(BudgetExhausted):
                yield from self._iterate(run)
            return finalise(run)

    def _iterate(self, run: AttackRun) -> Iterator[AttackRun]:
        if bool(run.done.all()):
            return
        for _ in self.steps(run):
            going = run.end_step()
            yield run
            if not going:
                return

    def check(self, access: Access, x: Tensor, criterion: Criterion, threat: ThreatModel) -> None:
        """Raises ConfigError or InputError when attack, access, threat and images do not fit."""
        if access.level < LEVELS[self.access]:
            raise ConfigError(
                f"{self.name} needs {self.access}, but this model gives only {access.title}",
                field="method",
                remedy=f"choose an attack that needs {access.title} only",
            )
        if threat.norm not in self.norms:
            raise ConfigError(
                f"{self.name} supports norm {' or '.join(self.norms)}; you sent {threat.norm}", field="norm"
            )
        if isinstance(criterion, Targeted) and not self.targeted:
            raise ConfigError(f"{self.name} does not support a target class", field="target", remedy="remove target")
        if not self.minimal and not threat.bounded:
            raise ConfigError(f"{self.name} needs eps", field="eps", remedy="set eps, such as 8/255")
        if isinstance(threat.eps, Tensor) and threat.eps.numel():
            check_eps(threat.norm, *(float(bound) for bound in threat.eps.aminmax()))
        if x.ndim != 4 or x.dtype != torch.float32:
            raise InputError("images must be float32 of shape (N, C, H, W)", field="images")
        low, high = x.aminmax() if x.numel() else (0, 0)
        if not (low >= 0 and high <= 1):
            raise InputError("pixels must lie in [0, 1]", field="images", remedy="normalise inside the model")
