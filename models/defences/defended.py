"""A classifier with defences in front of it, as a model of its own: weights, settings and threshold in one piece."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models import registry
from models.attacks.core.rng import RowRNG
from models.capabilities import Classifies, DetectsAdversarial
from models.defences.detector import Detector
from models.defences.randomized_smoothing import RandomlySmoothed
from models.defences.stage import Defence, read_config
from models.families.classifiers.adversarial_config import is_line_art
from models.family import Family
from models.types import Batch, ConfigError, DataSpec, Metrics, ModelError

DRAWS, BATCH = 16, 64


class Part(BaseModel):
    """A model inside this one: where it came from, and all that is needed to build it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    family: str
    config: dict[str, Any]
    data: dict[str, Any]

    @classmethod
    def of(cls, model: Family, reference: str) -> Self:
        """The description of a live model."""
        data = asdict(model.data) | {"columns": {}}
        return cls(model=reference, family=model.name, config=model.config.model_dump(mode="json"), data=data)

    def build(self) -> Family:
        """The model with fresh weights, in the structure it had at the end of its training."""
        family = registry.models()[self.family].create(self.config, DataSpec.from_facts(self.data))
        if hasattr(family.config, "images"):
            family.grow_to(family.total - family.config.batch_size)
        return family


class Stage(BaseModel):
    """One defence by name, its settings, and the model it works with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    settings: dict[str, Any] = {}
    part: Part | None = None


class DefendedConfig(BaseModel):
    """What is in front of which model."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    base: Part
    stages: tuple[Stage, ...] = ()
    draws: int = Field(DRAWS, ge=1, le=1024)
    detector: Stage = Stage(kind="squeezing")


class Defended(Classifies, RandomlySmoothed, DetectsAdversarial, Family):
    """Stages without a gradient let it straight through, and random ones are averaged: attacks on it are adaptive.

    The noise of an image is drawn from its own 8-bit content, so the same image has the same answer, alone or in any
    batch, while an attacker who moves meets new noise at each step.
    """

    name = "defended"
    summary = "A classifier behind defences."
    Config = DefendedConfig

    def __init__(self, config: DefendedConfig, data: DataSpec):
        super().__init__(config, data)
        self.base = config.base.build()
        self.stages = nn.ModuleList(stage_of(stage) for stage in config.stages)
        self.detector = detector_of(config.detector, data)

    @classmethod
    def create(cls, config: dict, data: DataSpec) -> Self:
        return cls(DefendedConfig(**config), data)

    def load_for_serving(self, state: dict[str, Tensor]) -> Self:
        missing, unexpected = self.load_state_dict(state, strict=False)
        if missing or unexpected:
            raise ModelError("the weights do not belong to this model's parts")
        return self.eval().requires_grad_(False)

    def logits(self, images: Tensor) -> Tensor:
        """Of the base behind all stages; with a random stage the logarithm of the mean of `draws` softmaxes."""
        return through(self.base.logits, self.stages, images, self.config.draws)

    @property
    def sigma(self) -> float | None:
        """Of noise in the first place: behind another stage it certifies nothing about the image."""
        first = next(iter(self.config.stages), None)
        return self.stages[0].config.sigma if first is not None and first.kind == "noise" else None

    def voter(self, images: Tensor) -> Tensor:
        return through(self.base.logits, self.stages[1:], images, self.config.draws)

    def adversarial_score(self, images: Tensor) -> Tensor:
        return self.detector(self.base.logits, images)

    @property
    def threshold(self) -> float | None:
        return self.detector.level

    def teach(self, images: Tensor, seed: int = 0) -> Iterator[tuple[int, int]]:
        """Lets the detector learn from clean images (n, c, h, w) that are not those of `calibrate`."""
        return self.detector.learn(self, self.base.logits, images.to(self.device), seed)

    def calibrate(self, images: Tensor) -> None:
        """Sets the detector's threshold from clean images (n, c, h, w)."""
        self.detector.adapt_to(is_line_art(images))
        parts = [self.adversarial_score(part.to(self.device)).cpu() for part in images.split(BATCH)]
        self.detector.calibrate(torch.cat(parts))

    def optimisers(self) -> dict:
        raise ConfigError("a defended model is made, not trained", field="family")

    def step(self, batch: Batch, optimisers: dict, context) -> Metrics:
        raise ConfigError("a defended model is made, not trained", field="family")


def defend(
    base: Family,
    reference: str,
    stages: list[dict[str, Any]],
    load: Callable[[str], Family],
    *,
    draws: int = DRAWS,
    detector: dict[str, Any] | None = None,
) -> Defended:
    """`base` behind `stages`, each {"kind": ..., settings}; `load` gives the models that stages name.

    In eval mode and frozen; the detector has no threshold yet. Raises ConfigError for a stage that cannot be.
    """
    if not isinstance(base, Classifies):
        raise ConfigError(f"only a classifier can be defended; {reference} is a {base.name}", field="model")
    helpers = [helper_of(stage, registry.defences(), load, base.data, f"stages/{k}") for k, stage in enumerate(stages)]
    watch = helper_of(detector or {"kind": "squeezing"}, registry.detectors(), load, base.data, "detector")
    plain = tuple(stage for stage, _ in helpers)
    config = DefendedConfig(base=Part.of(base, reference), stages=plain, draws=draws, detector=watch[0])
    made = Defended(config, base.data)
    copies = [(made.base, base), (made.detector, watch[1]), *zip(made.stages, (m for _, m in helpers), strict=True)]
    for inside, given in copies:
        if given is not None:
            (inside if inside is made.base else inside.model).load_state_dict(given.state_dict())
    return made.eval().requires_grad_(False).to(base.device)


def helper_of(
    asked: dict[str, Any], kinds: dict[str, type], load: Callable[[str], Family], data: DataSpec, where: str
) -> tuple[Stage, Family | None]:
    """One entry of a request as a Stage, and the live model it names."""
    settings = {name: value for name, value in asked.items() if name != "kind"}
    kind = asked.get("kind")
    if kind not in kinds:
        raise ConfigError(f"there is no such kind; there is {', '.join(kinds)}", field=f"{where}/kind")
    config = read_config(kinds[kind], settings, where)
    settings = config.model_dump(mode="json")
    if not kinds[kind].helper:
        return Stage(kind=kind, settings=settings), None
    model = load(config.model)
    if not isinstance(model, kinds[kind].helper):
        raise ConfigError(f"{kind} needs an autoencoder; {config.model} is a {model.name}", field=f"{where}/model")
    if model.data.shape != data.shape:
        mine, theirs = ("x".join(map(str, shape)) for shape in (data.shape, model.data.shape))
        raise ConfigError(
            f"{config.model} takes images of {theirs} (channels, height, width), the classifier of {mine}",
            field=f"{where}/model",
        )
    return Stage(kind=kind, settings=settings, part=Part.of(model, config.model)), model


def stage_of(stage: Stage) -> Defence:
    """The module of a stage, with fresh weights in its model."""
    kind = registry.defences()[stage.kind]
    return kind(read_config(kind, stage.settings), stage.part.build() if stage.part else None)


def detector_of(stage: Stage, data: DataSpec) -> Detector:
    """The detector for images like `data`, with fresh weights in its model and no threshold."""
    kind = registry.detectors()[stage.kind]
    config = read_config(kind, stage.settings, "detector")
    return kind(config, data, stage.part.build()) if stage.part else kind(config, data)


def through(network, stages: nn.ModuleList, images: Tensor, draws: int) -> Tensor:
    """Logits of `network` behind `stages`."""
    own = RowRNG(fingerprints(images))
    if not any(stage.random for stage in stages):
        for stage in stages:
            images = stage(images, own)
        return network(images)
    chances = [_answer(network, stages, images, own.seeds + number * STRIDE) for number in range(draws)]
    return torch.stack(chances).logsumexp(0) - torch.tensor(float(draws)).log()


STRIDE = 1_000_003
"""Between the seeds of two draws."""


def _answer(network, stages: nn.ModuleList, images: Tensor, seeds: Tensor) -> Tensor:
    for stage in stages:
        images = stage(images, RowRNG(seeds))
    return network(images).log_softmax(1)


def fingerprints(images: Tensor) -> Tensor:
    """(b,) int64: a number for each image, from its 8-bit levels alone."""
    levels = (images.detach() * 255).round().long().flatten(1)
    weights = RowRNG(torch.zeros(1, dtype=torch.int64, device=images.device)).words((levels.shape[1],), "fingerprint")
    return (levels * weights).sum(1)
