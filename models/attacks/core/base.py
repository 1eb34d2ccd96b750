"""The base of every attack and the one way to run it: the run checks, counts, rounds and verifies; the attack steps.

An attack is one file in this folder: a class with a `name`, its typed `Config`, and `steps`, a generator that moves the
rows of a run and yields after each step. Images are float32 (N, C, H, W) in [0, 1].
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
    """ "8/255" -> 8 / 255; anything else as it is."""
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
"""A size in pixel units: a number, or "k/255"."""


def _refusal(name: str, error: ValidationError) -> ConfigError:
    """The first fault of a config, as an error that names the field."""
    fault = error.errors(include_url=False, include_input=False)[0]
    field = str(fault["loc"][0]) if fault["loc"] else "config"
    return ConfigError(f"{name}: {field}: {fault['msg']}", field=field)


class Config(BaseModel):
    """Settings every attack shares."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    eps: Eps | None = Field(None, description="Largest perturbation: a number or k/255. Empty: see the attack.")
    budget: int | None = Field(None, ge=1, le=10**6, description="Most queries of the model per image.")


class Attack(ABC):
    """One way to make adversarial images. Subclasses implement `steps` and declare what they need."""

    name: ClassVar[str]
    summary: ClassVar[str]
    norms: ClassVar[tuple[str, ...]]
    """Norms it can be bounded by or minimise; the first is the default."""
    access: ClassVar[Literal["gradients", "scores", "labels"]] = "gradients"
    minimal: ClassVar[bool] = False
    """Seeks the smallest perturbation, rather than the smallest margin within eps."""
    victims: ClassVar[tuple[type, ...]] = (Classifies,)
    """Capabilities, any one of which makes a model one that can be attacked so."""
    needs_class_scores: ClassVar[bool] = False
    """Plays classes off against each other, in their order: for models with one score per class."""
    targeted: ClassVar[bool] = True
    """Can aim at a class."""
    quantise_inputs = False
    """Shows the model rounded images only (see combine.quantised)."""
    warm_start: ClassVar[bool] = True
    """Can go on from a result found at a smaller eps."""
    forwards: ClassVar[str] = "steps + 2"
    """Most forward passes of one image, repairs after rounding aside: an expression over the config, `classes` (of the
    model) and `pixels` (numbers per image), as app/core/catalog/cost.py reads it."""
    backwards: ClassVar[str] = "steps"
    default_eps: ClassVar[dict[str, float]] = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0, "l0": 10.0}
    Config: ClassVar[type[Config]] = Config

    def __init__(self, **config: Any):
        try:
            self.config = self.Config(**config)
        except ValidationError as error:
            raise _refusal(self.name, error) from None

    @property
    def stop_on_success(self) -> bool:
        """Whether a row rests once it is adversarial within eps."""
        return getattr(self.config, "stop_early", True)

    @abstractmethod
    def steps(self, run: AttackRun) -> Iterator[None]:
        """Move the rows of `run`, yielding after each step. Row tensors that outlive a yield are in `run.state`."""

    def threat(self, levels: int | None = None) -> ThreatModel:
        """The threat model that the config describes."""
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
        """Attack each image: `iterate` to its end. `on_step` is called after each step and may raise to stop."""
        with closing(self.iterate(access, x, criterion, threat, seeds, **more)) as walk:
            for number in count():
                try:
                    run = next(walk)
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
        """Attack each image, step by step. The model, its gradients and every random stream stay as they were.

        `seeds` is one int64 per image, or a number from which they are counted. `start` is where an iterative attack
        begins instead of at `x`; `skip` marks rows to skip. Rows already adversarial come back unchanged; rows without
        a finite answer of the model are marked `nonfinite`.
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
            left = run.end_step()
            yield run
            if not left:
                return

    def check(self, access: Access, x: Tensor, criterion: Criterion, threat: ThreatModel) -> None:
        """Raises ConfigError or InputError when attack, access, threat and images do not go together."""
        if access.level < LEVELS[self.access]:
            raise ConfigError(
                f"{self.name} needs {self.access}, but only {access.title} of this model can be seen",
                field="method",
                remedy="choose an attack that needs less",
            )
        if threat.norm not in self.norms:
            raise ConfigError(f"{self.name} knows the norm {' or '.join(self.norms)} only", field="norm")
        if isinstance(criterion, Targeted) and not self.targeted:
            raise ConfigError(f"{self.name} cannot aim at a class", field="target", remedy="leave target out")
        if not self.minimal and not threat.bounded:
            raise ConfigError(f"{self.name} needs a radius", field="eps", remedy="give eps, such as 8/255")
        if isinstance(threat.eps, Tensor) and threat.eps.numel():
            check_eps(threat.norm, *(float(bound) for bound in threat.eps.aminmax()))
        if x.ndim != 4 or x.dtype != torch.float32:
            raise InputError("images must be float32 (N, C, H, W)", field="images")
        low, high = x.aminmax() if x.numel() else (0, 0)
        if not (low >= 0 and high <= 1):
            raise InputError("pixels must lie in [0, 1]", field="images", remedy="normalise inside the model")
